"""`export:` of a job: what a finished run leaves besides the trained weights."""

from __future__ import annotations

from typing import Literal

from trainer.run.settings.base import SpecModel


class ExportSpec(SpecModel):
    which: Literal["last", "best"] = "last"
    """The weights of the last step, or of the best checkpoint (checkpoint.keep_best)."""
    merged: bool = False
    """Of an adapter: leave base and adapter as one model in bf16, with the adapter's own folder in it as adapter/."""
