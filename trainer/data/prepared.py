"""Prepared: tokenized conversations on disk, written once and then only mapped into memory.

Owns the files of a cache entry. A folder is complete or it does not exist: it is written under another name, flushed and
renamed; what a disk did to it since is found when it is opened.
Refuses to know formats, templates, packing and ranks. A *sequence* is one conversation, or one piece of a split one.

    meta.json      version, token type, palette of weights, names of the files that were read, counts
    tokens.bin     every sequence's token ids, one after another (uint16 or uint32)
    weights.bin    uint8 a token: index into the palette; the weight of that token as a target
    offsets.npy    int64, sequences + 1: where each begins
    origin.npy     int64 (sequences, 2): file and row that each came from
    weight_sum.npy float64 a sequence; trained.npy int32 a sequence (tokens with a weight above 0)
    train.npy, validation.npy   int64: the sequences of each part; a sequence may be in training more than once; the
                   validation sets stand one behind another, as meta.json's validation_sets says
    report.json    what became of every row
    checksums.json, tokens.bin.blocks, weights.bin.blocks   what all of these must hold (checksums.py)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from trainer.data import checksums
from trainer.data.checksums import Blocks, DamagedEntry
from trainer.run.exits import BadInput, TrainingFailed
from trainer.run.run_folder import RunDir, write_atomic
from trainer.run.settings.data import HELD_OUT

VERSION = 4
MAX_WEIGHTS = 256
REPORT = "report.json"
_ARRAYS = ("offsets", "origin", "weight_sum", "trained", "train", "validation")
_LARGE = ["tokens.bin", "weights.bin"]
_FILES = ["meta.json", REPORT, *(f"{name}.npy" for name in _ARRAYS), *_LARGE]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A cache entry, open for reading. Opening costs the same whatever its size."""

    path: Path
    key: str
    tokens: np.ndarray
    weight_codes: np.ndarray
    palette: np.ndarray
    """float32: weight behind each code; code 0 is weight 0."""
    offsets: np.ndarray
    origin: np.ndarray
    weight_sum: np.ndarray
    trained: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    meta: dict[str, Any]
    guards: Mapping[str, Blocks] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: str | Path, key: str) -> Prepared:
        """Raises DamagedEntry where a file is not what was written, BadInput where there is no entry."""
        folder = Path(path)
        try:
            guards = checksums.verify(folder, _FILES)
        except FileNotFoundError:
            raise BadInput(f"prepared data is not at {folder}; prepare it again") from None
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["version"] != VERSION:
            raise BadInput(
                f"prepared data at {folder} is of version {meta['version']}, not {VERSION}; prepare it again"
            )
        total = meta["tokens"]
        arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _ARRAYS}
        return cls(
            path=folder,
            key=key,
            tokens=_mapped(folder / "tokens.bin", meta["dtype"], total),
            weight_codes=_mapped(folder / "weights.bin", "uint8", total),
            palette=np.array(meta["palette"], dtype=np.float32),
            meta=meta,
            guards=guards,
            **arrays,
        )

    @classmethod
    def open(cls, run_dir: str | Path) -> Prepared:
        """The data that `prepare` settled for this run. Raises TrainingFailed where it was damaged since."""
        pointer = RunDir(run_dir).prepared
        try:
            content = json.loads(pointer.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadInput(
                f"{pointer} is not there: prepare the data first (python -m trainer.data.prepare)"
            ) from error
        try:
            return cls.load(content["path"], content["key"])
        except DamagedEntry as error:
            raise _damaged(Path(content["path"]), error) from error

    @property
    def validation_sets(self) -> dict[str, np.ndarray]:
        """Sequences of each set by its name, in the job's order; empty ones are left out."""
        sizes = self.meta.get("validation_sets", [[HELD_OUT, len(self.validation)]])
        ends = np.cumsum([size for _, size in sizes])
        return {name: self.validation[end - size : end] for (name, size), end in zip(sizes, ends, strict=True) if size}

    def point_to(self, run_dir: str | Path) -> None:
        """Leave in the run folder what `open` reads."""
        write_atomic(RunDir(run_dir).prepared, json.dumps({"path": str(self.path), "key": self.key}) + "\n")

    def name_of(self, sequence: int) -> str:
        """`file:row` that a sequence came from (rows count from 1)."""
        file, row = self.origin[sequence]
        return f"{self.meta['files'][file]}:{row}"

    def lengths(self, sequences: np.ndarray) -> np.ndarray:
        """Tokens of each of `sequences`, int64."""
        found: np.ndarray = self.offsets[sequences + 1] - self.offsets[sequences]
        return found

    def token_weights(self, sequence: int) -> np.ndarray:
        """float32: how much each token of a sequence counts as a target."""
        found: np.ndarray = self.palette[self.weight_codes[self._range(sequence, "weights.bin", 1)]]
        return found

    def token_ids(self, sequence: int) -> np.ndarray:
        return self.tokens[self._range(sequence, "tokens.bin", self.tokens.itemsize)]

    def _range(self, sequence: int, name: str, item_bytes: int) -> slice:
        """Where a sequence lies in a file that is what was written there. Raises TrainingFailed where it is not."""
        start, end = int(self.offsets[sequence]), int(self.offsets[sequence + 1])
        guard = self.guards.get(name)
        if guard is not None:
            try:
                guard.check(start * item_bytes, end * item_bytes)
            except DamagedEntry as error:
                raise _damaged(self.path, error) from error
        return slice(start, end)


@dataclass
class Sequences:
    """Some sequences in memory, on their way from a worker to the files. One entry a sequence except where said."""

    tokens: np.ndarray
    """All of them, one after another."""
    weights: np.ndarray
    """float32 a token."""
    lengths: np.ndarray
    """int64."""
    weight_sum: np.ndarray
    trained: np.ndarray
    rows: np.ndarray
    """int64: row in the file, from 1."""


@dataclass
class Writer:
    """Appends sequences to a folder that is not complete yet; `finish` completes it."""

    folder: Path
    vocabulary_size: int
    num_tokens: int = 0
    _palette: dict[float, int] = field(default_factory=lambda: {0.0: 0, 1.0: 1})
    _lengths: list[np.ndarray] = field(default_factory=list)
    _origin: list[np.ndarray] = field(default_factory=list)
    _weight_sum: list[np.ndarray] = field(default_factory=list)
    _trained: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.dtype = token_type(self.vocabulary_size)
        self._tokens: BinaryIO = open(self.folder / "tokens.bin", "wb")  # noqa: SIM115 - closed by finish and abandon
        self._weights: BinaryIO = open(self.folder / "weights.bin", "wb")  # noqa: SIM115

    def append(self, file: int, part: Sequences) -> None:
        self._tokens.write(part.tokens.astype(self.dtype, copy=False).tobytes())
        self._weights.write(self._codes(part.weights).tobytes())
        self.num_tokens += len(part.tokens)
        self._lengths.append(part.lengths.astype(np.int32))
        self._origin.append(np.stack([np.full(len(part.rows), file, np.int64), part.rows], axis=1))
        self._weight_sum.append(part.weight_sum)
        self._trained.append(part.trained.astype(np.int32))

    def lengths(self) -> np.ndarray:
        """Tokens of each sequence so far, int64."""
        return _joined(self._lengths, np.int64)

    def trained(self) -> np.ndarray:
        return _joined(self._trained, np.int64)

    def finish(
        self,
        destination: Path,
        train: np.ndarray,
        validation: Mapping[str, np.ndarray],
        files: list[str],
        report: dict[str, Any],
        pad_token: int,
        end_tokens: list[int],
    ) -> None:
        """Write the rest, flush to disk, and give the folder its name: from here on the entry exists.

        Many parameters: each becomes a file or a fact of the entry.
        """
        lengths = self.lengths()
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        origin = np.concatenate(self._origin) if self._origin else np.zeros((0, 2), np.int64)
        for name, array in {
            "offsets": offsets,
            "origin": origin,
            "weight_sum": _joined(self._weight_sum, np.float64),
            "trained": _joined(self._trained, np.int32),
            "train": train.astype(np.int64),
            "validation": _joined(list(validation.values()), np.int64),
        }.items():
            np.save(self.folder / f"{name}.npy", array)
        meta = {
            "version": VERSION,
            "dtype": np.dtype(self.dtype).name,
            "palette": list(self._palette),
            "tokens": self.num_tokens,
            "sequences": len(lengths),
            "files": files,
            "pad_token": pad_token,
            "end_tokens": end_tokens,
            "validation_sets": [[name, len(members)] for name, members in validation.items()],
        }
        (self.folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False) + "\n", encoding="utf-8")
        (self.folder / REPORT).write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        self._tokens.close()
        self._weights.close()
        checksums.write(self.folder, [name for name in _FILES if name not in _LARGE], _LARGE)
        os.replace(self.folder, destination)
        checksums.flush(destination.parent)

    def abandon(self) -> None:
        """Leave nothing behind of what was not finished."""
        self._tokens.close()
        self._weights.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _codes(self, weights: np.ndarray) -> np.ndarray:
        values, inverse = np.unique(weights, return_inverse=True)
        for value in values.tolist():
            if value not in self._palette:
                if len(self._palette) == MAX_WEIGHTS:
                    raise BadInput(
                        f"the data has more than {MAX_WEIGHTS - 2} different loss weights besides 0 and 1; round them"
                    )
                self._palette[value] = len(self._palette)
        return np.array([self._palette[value] for value in values.tolist()], np.uint8)[inverse]


def _damaged(entry: Path, error: DamagedEntry) -> TrainingFailed:
    """What a rank says, which cannot build the entry again: without its sums, the next start finds it damaged and does."""
    try:
        (entry / checksums.NAME).unlink(missing_ok=True)
    except OSError:  # a cache that is not ours to change; its preparation looks at all of it
        pass
    return TrainingFailed(
        f"prepared data at {entry} is damaged: {error}; `dolphin resume` prepares it again and goes on"
    )


def _mapped(path: Path, dtype: str, count: int) -> np.ndarray:
    """A file as a plain array: numpy's own memmap type makes every slice ten times as dear."""
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(count,)))


def token_type(vocabulary_size: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


def _joined(parts: list[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.zeros(0, dtype)
