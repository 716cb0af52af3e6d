"""The images that this release of dolphin was built with: what `resources.image` is where a job names none.

Owns the file that the release's wheel brings. A checkout has none: there the image is built, or the node installs the trainer.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Literal

FILE = "images.json"
"""Written by setup.py into the wheel of a release."""


def image_of_release(device: Literal["cuda", "cpu"]) -> str | None:
    """NAME@sha256:DIGEST of the image for a device; None in a checkout, and in a wheel that is no release's."""
    file = resources.files("launcher.backends") / FILE
    if not file.is_file():
        return None
    images: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return images.get(device)
