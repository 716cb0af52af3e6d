"""What libraries would say to a run's log that no run needs. Refuses to know why they are used."""

from __future__ import annotations

import logging


def bitsandbytes() -> None:
    """It warns of kernels for inference, which it would look for on the hub. Called before it is imported."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
