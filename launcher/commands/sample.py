"""`dolphin sample`: ask a model one question. Owns where the model comes from; the trainer's own module loads and asks it."""

from __future__ import annotations

from launcher.commands import finished_model, trainer_side


def sample_command(source: str, prompt: str | None, base: str | None, max_tokens: int) -> int:
    """The answer on standard output; without a prompt a held-out question of the run, its answer, and the one expected."""
    trainer_side.require("sample", "transformers", extras="train")
    options = ["--max-tokens", str(max_tokens)]
    options += [] if prompt is None else ["--prompt", prompt]
    options += [] if base is None else ["--base", base]
    with finished_model.read(source) as folder:
        trainer_side.run("trainer.export.sample", str(folder), *options, failed=f"{source} gave no answer")
    return 0
