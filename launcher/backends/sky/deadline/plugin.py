"""The plugin that SkyPilot loads: it makes the strategy known, and its settings valid. Named in ~/.sky/plugins.yaml."""

from __future__ import annotations

import importlib
from typing import Any

from sky.server import plugins
from sky.utils import schemas

from launcher.backends.sky.deadline.names import KEY, PLUGIN, VERSION


class DeadlinePlugin(plugins.BasePlugin):  # type: ignore[misc]
    @property
    def name(self) -> str:
        return PLUGIN

    @property
    def version(self) -> str:
        return VERSION

    def install(self, extension_context: Any) -> None:
        """In every process of SkyPilot's that reads a job or runs one."""
        importlib.import_module(f"{__package__}.strategy")  # registers itself
        schemas.register_job_recovery_property(KEY, {"type": "object"})
