"""For all tests: the quick tiers run first, no hub is asked, and a rank takes one thread."""

from __future__ import annotations

import os

import pytest

TIERS = ("unit", "contract", "process", "lab", "gpu")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos", type=int, default=0, metavar="N", help="kill the chaos test's run N times (12 or more)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def tier(item: pytest.Item) -> int:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0]
        return TIERS.index(folder) if folder in TIERS else len(TIERS)

    items.sort(key=tier)  # stable: the order within a tier stays
