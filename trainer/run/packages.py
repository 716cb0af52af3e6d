"""Which packages a job asks for beyond those that every run needs, and whether they are there. Imports none of them."""

from __future__ import annotations

import importlib.util

from trainer.run.exits import BadInput
from trainer.run.settings.track import TrackSpec
from trainer.run.spec import TrainSpec

PIP_NAMES = {"mlflow": "mlflow-skinny", "lm_eval": "lm-eval"}
"""Packages that are not called as their module."""


def require_all(spec: TrainSpec) -> None:
    """Raises BadInput, with what to install, where a setting needs a package that is missing. Imports nothing."""
    require_packages(spec.track)
    adapter = spec.train.adapter
    _require(
        ("train.adapter", "lora", adapter is not None, "peft"),
        ("train.adapter.type qlora", "lora", adapter is not None and adapter.type == "qlora", "bitsandbytes"),
        ("evaluate.tasks", "eval", bool(spec.evaluate.tasks), "lm_eval"),
        ("export.gguf", "gguf", bool(spec.export.gguf), "gguf"),
        ("train.optimizer adamw_8bit", "quantised", spec.train.optimizer == "adamw_8bit", "bitsandbytes"),
    )


def extras_of(spec: TrainSpec) -> tuple[str, ...]:
    """Extras of dolphin that a node needs for this job besides `train`."""
    wanted = {
        "eval": bool(spec.evaluate.tasks), "gguf": bool(spec.export.gguf), "lora": spec.train.adapter is not None,
        "quantised": spec.train.optimizer == "adamw_8bit",
    }  # fmt: skip
    return tuple(extra for extra, is_wanted in wanted.items() if is_wanted)


def require_packages(track: TrackSpec) -> None:
    """Raises BadInput, with what to install, where a tracker is asked for whose package is missing. Imports nothing."""
    _require(
        ("track.tensorboard", "track", track.tensorboard, "tensorboardX"),
        ("track.wandb", "track", track.wandb is not None, "wandb"),
        ("track.mlflow", "track", track.mlflow is not None, "mlflow"),
    )


def _require(*wanted: tuple[str, str, bool, str]) -> None:
    """(setting, extra, whether it is asked for, module) each."""
    for setting, extra, is_wanted, module in wanted:
        if is_wanted and importlib.util.find_spec(module) is None:
            package = PIP_NAMES.get(module, module)
            raise BadInput(
                f"{setting} needs the package {package}, which is not installed: pip install {package} "
                f"(or dolphin-launcher[{extra}] for all of its kind), or remove the setting"
            )
