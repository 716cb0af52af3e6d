"""Which packages a job asks for beyond those that every run needs, and whether they are there. Imports none of them."""

from __future__ import annotations

import importlib.util

from trainer.run.exits import BadInput
from trainer.run.settings.track import TrackSpec


def require_packages(track: TrackSpec) -> None:
    """Raises BadInput, with what to install, where a tracker is asked for whose package is missing. Imports nothing."""
    wanted = (
        ("track.tensorboard", track.tensorboard, "tensorboardX"),
        ("track.wandb", track.wandb is not None, "wandb"),
        ("track.mlflow", track.mlflow is not None, "mlflow"),
    )
    for setting, is_wanted, module in wanted:
        if is_wanted and importlib.util.find_spec(module) is None:
            package = "mlflow-skinny" if module == "mlflow" else module
            raise BadInput(
                f"{setting} needs the package {package}, which is not installed: pip install {package} "
                "(or dolphin-launcher[track] for all trackers), or remove the setting"
            )
