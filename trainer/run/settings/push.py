"""`push:` of a job: where a finished model is published."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.run.settings.base import SpecModel

REPO = r"^[\w][\w.-]*/[\w][\w.-]*$"


class PushSpec(SpecModel):
    repo: Annotated[str, Field(pattern=REPO)]
    """Model repository of the Hugging Face hub, as owner/name; made where it is missing. Needs a token that may write: `secrets: [HF_TOKEN]`."""
    private: bool = True
    """Make it private. One that exists stays as it is."""
