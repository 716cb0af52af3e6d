"""Which packages a job asks for beyond those that every run needs, and whether they are there. Imports none of them."""

from __future__ import annotations

import importlib.util

from trainer.run.exits import BadInput
from trainer.run.settings.adapter import AdapterSpec
from trainer.run.settings.track import TrackSpec

PIP_NAMES = {"mlflow": "mlflow-skinny"}
"""Packages that are not called as their module."""


def require_packages(track: TrackSpec, adapter: AdapterSpec | None = None) -> None:
    """Raises BadInput, with what to install, where a tracker or an adapter is asked for whose package is missing. Imports
    nothing."""
    wanted = (
        ("track.tensorboard", "track", track.tensorboard, "tensorboardX"),
        ("track.wandb", "track", track.wandb is not None, "wandb"),
        ("track.mlflow", "track", track.mlflow is not None, "mlflow"),
        ("train.adapter", "lora", adapter is not None, "peft"),
        ("train.adapter.type qlora", "lora", adapter is not None and adapter.type == "qlora", "bitsandbytes"),
    )
    for setting, extra, is_wanted, module in wanted:
        if is_wanted and importlib.util.find_spec(module) is None:
            package = PIP_NAMES.get(module, module)
            raise BadInput(
                f"{setting} needs the package {package}, which is not installed: pip install {package} "
                f"(or dolphin-launcher[{extra}] for all of its kind), or remove the setting"
            )
