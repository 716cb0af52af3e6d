"""Every test here needs CUDA devices: one, or as many as its marker says. `make gpu` makes a lack of them a failure."""

from __future__ import annotations

import os

import pytest
import torch

from tests.support.require import lacking

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products need, before the first one


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpus(n): needs n CUDA devices")


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("gpus")
    wanted = marker.args[0] if marker else 1
    if not torch.cuda.is_available():
        lacking("gpu", "no CUDA device")
    if torch.cuda.device_count() < wanted:
        pytest.skip(f"needs {wanted} CUDA devices, here is {torch.cuda.device_count()}")
