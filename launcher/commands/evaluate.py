"""`dolphin eval`: a finished model asked beside its base. Owns what the command takes; the trainer's own module asks."""

from __future__ import annotations

from launcher.commands import finished_model, trainer_side
from trainer.run.run_folder import TRAIN_FILE
from trainer.run.spec import NodeJob


def eval_command(source: str, tasks: str, limit: int | None, base: str | None, chat_template: bool) -> int:
    """Ask every task of the model and of its base; the table on standard output, results.json and the card in the folder."""
    trainer_side.require("eval", "torch", "lm_eval", extras="train,eval")
    model = finished_model.find(source)
    options: list[str] = []
    for task in filter(None, (part.strip() for part in tasks.split(","))):
        options += ["--task", task]
    if limit is not None:
        options += ["--limit", str(limit)]
    if chat_template:
        options.append("--chat-template")
    if model.run_dir is not None:
        options += ["--run-dir", str(model.run_dir)]
        spec = NodeJob.read(model.run_dir / TRAIN_FILE).spec.model
        if base is None and spec.init == "pretrained":
            base = spec.base
            options += ["--revision", spec.revision] if spec.revision is not None else []
    options += ["--base", base] if base is not None else []
    trainer_side.run(
        "trainer.finished.harness", str(model.folder), *options, failed=f"not all of {source} was evaluated"
    )
    return 0
