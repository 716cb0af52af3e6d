"""Manifest: what a checkpoint is. It is written last; a folder without one is not a checkpoint.

Owns the file format, the names inside a checkpoint's folder, and every check that needs no other file: a manifest that
is cut off, altered or does not add up is refused here. Refuses to know stores, torch and DeepSpeed.

    step-00000840/
      rank-00000-000-<save id>.safetensors   for each piece its master and moments, fp32
      rank-00000-<save id>.json              random states of the rank
      manifest.json                          last
"""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, NamedTuple

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainer.run.optimizer_state import OPTIMIZER_STATES, OptimizerState

FORMAT = 1
MANIFEST = "manifest.json"
REFUSED_MANIFEST = "manifest.refused.json"
"""What the manifest of a checkpoint that did not verify is renamed to: kept to be looked at, never loaded again."""
BLOCK_BYTES = 4 << 20
"""Every block of a file has its own checksum, so that a rank which reads a part of a file verifies what it read."""


class CorruptCheckpoint(Exception):
    """What is stored is not what was saved: this checkpoint must not be used."""


class Piece(NamedTuple):
    """A parameter's flat range in a file: the tensors of the optimizer's state, from `offset` one right behind the other."""

    name: str
    start: int
    numel: int
    offset: int
    """Bytes from the start of the file."""


class FileEntry(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    size_bytes: Annotated[int, Field(ge=0)]
    checksum: str
    """xxh3-128 of the whole file."""
    blocks: tuple[str, ...]
    """xxh3-64 of each block of BLOCK_BYTES."""
    pieces: tuple[Piece, ...] = ()


class Manifest(BaseModel):
    """The content of manifest.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    save_id: str
    step: Annotated[int, Field(ge=0)]
    total_steps: int
    world_size: Annotated[int, Field(ge=1)]
    zero_stage: int
    optimizer_step: Annotated[int, Field(ge=0)]
    """Updates that Adam's bias correction has counted."""
    state: dict[str, Any]
    """TrainerState."""
    plan_key: str
    """Identity of the data plan."""
    base_key: str = ""
    """Fingerprint of the base's weights (trainer.run.weights_index), which hold all that is not trained; empty: not known."""
    result_settings: dict[str, Any]
    result_hash: str
    shapes: dict[str, tuple[int, ...]]
    """Trainable parameters."""
    files: tuple[FileEntry, ...]
    random_files: tuple[str, ...]
    """Name of each rank's file of random states, by rank."""
    versions: dict[str, str]
    saved_at: float
    """Unix time."""

    @property
    def folder(self) -> str:
        return folder_name(self.step)

    @property
    def optimizer_state(self) -> OptimizerState:
        """What each piece holds. Raises CorruptCheckpoint where this program does not know the optimizer."""
        name = self.result_settings.get("train.optimizer")
        if name not in OPTIMIZER_STATES:
            raise CorruptCheckpoint(
                f"it was saved of the optimizer {name}, this program knows {', '.join(OPTIMIZER_STATES)}"
            )
        return OPTIMIZER_STATES[name]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def file(self, name: str) -> FileEntry:
        for entry in self.files:
            if entry.name == name:
                return entry
        raise CorruptCheckpoint(f"the manifest names no file {name}")

    def encode(self) -> bytes:
        """JSON with its own checksum as the last key."""
        body = self.model_dump(mode="json")
        return json.dumps({**body, "manifest_checksum": _checksum(body)}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes, folder: str) -> Manifest:
        """Read and check the manifest of `folder`. Raises CorruptCheckpoint."""
        try:
            body = json.loads(data)
            stated = body.pop("manifest_checksum")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise CorruptCheckpoint("its manifest is not whole") from error
        if stated != _checksum(body):
            raise CorruptCheckpoint("its manifest was altered after it was written")
        if body.get("format") != FORMAT:
            raise CorruptCheckpoint(f"its format is {body.get('format')}, this program reads {FORMAT}")
        try:
            manifest = cls.model_validate(body)
        except ValidationError as error:
            raise CorruptCheckpoint(f"its manifest does not make sense: {error.errors()[0]['msg']}") from error
        try:
            manifest.check(folder)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise CorruptCheckpoint(f"its manifest does not make sense: {error}") from error
        return manifest

    def check(self, folder: str) -> None:
        """Raise CorruptCheckpoint where the manifest contradicts itself or its folder."""
        if self.folder != folder or self.state.get("step") != self.step:
            raise CorruptCheckpoint(f"its manifest speaks of step {self.step}")
        if len(self.random_files) != self.world_size:
            raise CorruptCheckpoint("its manifest does not name the random states of all ranks")
        if len({file.name for file in self.files}) != len(self.files):
            raise CorruptCheckpoint("its manifest names a file twice")
        element_bytes = self.optimizer_state.saved_bytes
        for file in self.files:
            if len(file.blocks) != math.ceil(file.size_bytes / BLOCK_BYTES):
                raise CorruptCheckpoint(f"its manifest gives {file.name} the wrong number of blocks")
            for piece in file.pieces:
                end = piece.offset + piece.numel * element_bytes
                if piece.numel < 1 or piece.offset < 0 or end > file.size_bytes:
                    raise CorruptCheckpoint(f"its manifest puts {piece.name} outside {file.name}")
        self._check_coverage()

    def _check_coverage(self) -> None:
        """Each element of each trainable parameter is there exactly once."""
        ranges: dict[str, list[tuple[int, int]]] = {name: [] for name in self.shapes}
        for file in self.files:
            for piece in file.pieces:
                if piece.name not in ranges:
                    raise CorruptCheckpoint(f"its manifest has pieces of {piece.name}, which is not trained")
                ranges[piece.name].append((piece.start, piece.start + piece.numel))
        for name, shape in self.shapes.items():
            reached = 0
            for start, end in sorted(ranges[name]):
                if start != reached:
                    raise CorruptCheckpoint(f"{name} is not covered exactly once at element {min(start, reached)}")
                reached = end
            if reached != math.prod(shape):
                raise CorruptCheckpoint(f"{name} has {reached} of {math.prod(shape)} elements")


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


def step_of(folder: str) -> int | None:
    """Step of a checkpoint's folder name; None for any other name."""
    found = re.fullmatch(r"step-(\d{8,})", folder)
    return int(found[1]) if found else None


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Result-relevant settings that changed, as `key: old in the checkpoint, new in the job`."""
    absent = object()
    found = []
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key, absent), now.get(key, absent)
        if old != new:
            shown = ["nothing" if value is absent else json.dumps(value) for value in (old, new)]
            found.append(f"{key}: {shown[0]} in the checkpoint, {shown[1]} in the job")
    return found


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
