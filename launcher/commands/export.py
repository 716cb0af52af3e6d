"""`dolphin export`: a finished model in another format. Owns what the command takes; the trainer's own module writes."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.commands import finished_model, trainer_side
from launcher.runs.errors import BadUsage
from trainer.run.settings.export import GGUF_KINDS


def export_command(source: str, kinds: Sequence[str]) -> int:
    """Write GGUF files into the model's folder gguf/; their paths on standard output."""
    trainer_side.require("export", "torch", "gguf", extras="train,gguf")
    if unknown := [kind for kind in kinds if kind not in GGUF_KINDS]:
        raise BadUsage(f"--kind {unknown[0]}: is no number format of GGUF; use {', '.join(GGUF_KINDS)}")
    model = finished_model.find(source)
    options = [part for kind in kinds for part in ("--kind", kind)]
    trainer_side.run(
        "trainer.finished.gguf", str(model.folder), "--name", model.name, *options,
        failed=f"{source} was not exported",
    )  # fmt: skip
    return 0
