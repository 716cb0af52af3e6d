"""For all tests: the quick tiers run first, no hub is asked, and a rank takes one thread."""

from __future__ import annotations

import contextlib
import gc
import os

import pytest

TIERS = ("unit", "contract", "process", "lab", "gpu")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")

if os.environ.get("CI"):  # people's runs look for new cases; what checks a change tries the same ones each time
    with contextlib.suppress(ImportError):  # the lab runs some of these tests with an installation of its own
        from hypothesis import settings

        settings.register_profile("the same each time", derandomize=True)
        settings.load_profile("the same each time")
gc.disable()  # until everything is imported: half a million objects to look through again and again, and none to free


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays to the end: a collection looks at what the tests made
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    gc.freeze()  # the process ends: nothing is worth looking for


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos", type=int, default=0, metavar="N", help="kill the chaos test's run N times (12 or more)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def tier(item: pytest.Item) -> int:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0]
        return TIERS.index(folder) if folder in TIERS else len(TIERS)

    items.sort(key=tier)  # stable: the order within a tier stays
