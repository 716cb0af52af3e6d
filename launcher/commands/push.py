"""`dolphin push`: a finished model published to the hub. Owns what the command takes; the trainer's own module sends and verifies."""

from __future__ import annotations

from launcher.commands import finished_model, trainer_side
from launcher.runs.errors import BadUsage
from trainer.run.run_folder import TRAIN_FILE
from trainer.run.spec import NodeJob


def push_command(source: str, repo: str | None, public: bool) -> int:
    """Publish a model folder with its card and GGUF files; what is there and verified on standard output. The token is
    HF_TOKEN's, or the one that `hf auth login` left."""
    trainer_side.require("push", "huggingface_hub", extras="train")
    model = finished_model.find(source)
    if model.run_dir is not None and repo is None:
        wanted = NodeJob.read(model.run_dir / TRAIN_FILE).spec.push
        if wanted is not None:
            repo, public = wanted.repo, public or not wanted.private
    if repo is None:
        raise BadUsage(f"{source} says nowhere to push to; name it: dolphin push {source} --repo OWNER/NAME")
    options = ["--public"] if public else []
    trainer_side.run(
        "trainer.export.hub", str(model.folder), repo, *options, failed=f"{source} was not pushed to {repo}"
    )
    return 0
