"""`card:` of a job: what only its author knows of the model."""

from __future__ import annotations

from trainer.run.settings.base import SpecModel


class CardSpec(SpecModel):
    description: str = ""
    """Markdown of your own, at the top of the model card; kept whenever the card is written anew."""
    license: str | None = None
    """License of the model as the hub writes it, for example apache-2.0; the base model's own where not given."""
    language: tuple[str, ...] = ()
    """Languages as two letters each."""
    tags: tuple[str, ...] = ()
    """Tags beside dolphin's own."""
