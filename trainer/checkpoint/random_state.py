"""Random states of one rank: python's, numpy's, torch's, and its GPU's. Text, not pickle: loading it runs no code."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from typing import Any

import numpy
import torch


def capture(device: torch.device) -> bytes:
    """The present states as JSON; with a GPU's where `device`, which the rank works on, is one."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = numpy.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [kind, _encode(keys.tobytes()), int(position), int(has_gauss), float(cached)],  # type: ignore[union-attr]
        "torch": _encode(torch.get_rng_state().numpy().tobytes()),
        "cuda": _encode(torch.cuda.get_rng_state(device).numpy().tobytes()) if device.type == "cuda" else None,
    }
    return json.dumps(states).encode()


def restore(data: bytes, device: torch.device) -> None:
    """Set the states that `capture` took. A GPU's state is left alone where there is none on either side."""
    states = json.loads(data)
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    numpy.random.set_state((kind, numpy.frombuffer(_decode(keys), dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(_tensor(states["torch"]))
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(_tensor(states["cuda"]), device)


def derive(seed: int, step: int, rank: int) -> None:
    """States for a rank that the checkpoint does not know, different for every step and rank."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big")
    random.seed(number)
    numpy.random.seed(number % 2**32)
    torch.manual_seed(number)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text)


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(_decode(text)), dtype=torch.uint8)
