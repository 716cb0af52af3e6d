"""Checkpoints made by the real writer from numbers, without an engine: two parameters, any step."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer.checkpoint.manifest import Manifest
from trainer.checkpoint.snapshot import ShardSnapshot, Snapshot
from trainer.checkpoint.writer import SaveWriter, random_file
from trainer.run.optimizer_state import OPTIMIZER_STATES, OptimizerState
from trainer.run.result import result_settings
from trainer.run.spec import TrainSpec
from trainer.run.stores.base import FolderStore

SHAPES = {"w": (5, 7), "b": (5,)}
SETTINGS = result_settings(
    TrainSpec.model_validate(
        {
            "name": "x",
            "model": {"base": "/base"},
            "data": {"sources": [{"path": "/data"}]},
            "train": {"global_batch": 4},
        }
    )
)


ADAMW = OPTIMIZER_STATES["adamw"]


def snapshot(step: int, shapes=SHAPES, rank: int = 0, world_size: int = 1, state: OptimizerState = ADAMW) -> Snapshot:
    """Every element is the step, a fraction for its place, and its sign or size for its kind."""
    pieces, rows = [], []
    for name, shape in shapes.items():
        numel = torch.Size(shape).numel()
        share = -(-numel // world_size)
        start = rank * share
        length = max(0, min(share, numel - start))
        if length:
            pieces.append((name, start, length))
            place = step + torch.arange(start, start + length, dtype=torch.float32) / numel
            rows += [place, -place, place * place][: len(state.tensors)]
    return Snapshot(state, [ShardSnapshot(pieces, [torch.cat(rows)], state)], dict(shapes), b'{"random": true}', step)


def writer(
    local: Path,
    remote=None,
    keep: int = 2,
    rank: int = 0,
    world_size: int = 1,
    warnings=None,
    got_on=lambda: None,
    keeps_best: bool = False,
) -> SaveWriter:
    return SaveWriter(
        FolderStore(local),
        remote,
        rank,
        world_size,
        True,
        rank == 0,
        keep,
        (warnings if warnings is not None else []).append,
        got_on,
        keeps_best=keeps_best,
    )


def completer(step: int, save_id: str, shapes=SHAPES, world_size: int = 1, **changed):
    def complete(files):
        return Manifest(
            **{
                "save_id": save_id, "step": step, "total_steps": 100, "world_size": world_size, "zero_stage": 2,
                "optimizer_step": step, "state": {"step": step}, "plan_key": "plan", "result_settings": SETTINGS,
                "result_hash": "x", "shapes": shapes, "files": tuple(files),
                "random_files": tuple(random_file(r, save_id) for r in range(world_size)), "versions": {},
                "saved_at": 0.0, **changed,
            }
        )  # fmt: skip

    return complete


def save(local: Path, step: int, remote=None, save_id: str = "", **more) -> None:
    save_id = save_id or f"id-{step}"
    writer(local, remote, **more).save(step, save_id, snapshot(step), completer(step, save_id))
