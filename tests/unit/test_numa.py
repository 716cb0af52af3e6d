"""A rank runs beside its GPU, or is left alone: a binding to processors that a container does not have would end every run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainer.engine import numa

ADDRESS = "0000:dc:00.0"


def node(root: Path, side: str, processors: str) -> Path:
    device = root / "bus/pci/devices" / ADDRESS
    device.mkdir(parents=True)
    (device / "numa_node").write_text(side + "\n")
    beside = root / "devices/system/node/node1"
    beside.mkdir(parents=True)
    (beside / "cpulist").write_text(processors + "\n")
    return root


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """What was asked of the kernel, on a machine where this process may use 0 to 15."""
    asked: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, wanted: asked.append(set(wanted)))
    return asked


def test_every_thread_goes_beside_the_gpu(tmp_path: Path, bound: list[set[int]]) -> None:
    assert numa.bind_beside(ADDRESS, node(tmp_path, "1", "8-11,14,24-31")) == "8-11,14,24-31"
    assert bound
    assert all(wanted == {8, 9, 10, 11, 14} for wanted in bound), "processors that it may not use are left out"


@pytest.mark.parametrize(("side", "listed"), [("-1", "0-15"), ("1", "32-63"), ("1", "0-15"), ("1", ""), ("1", "what")])
def test_a_node_that_does_not_say_or_has_one_side_is_left_alone(
    tmp_path: Path, bound: list[set[int]], side: str, listed: str
) -> None:
    assert numa.bind_beside(ADDRESS, node(tmp_path, side, listed)) is None
    assert numa.bind_beside("0000:00:01.0", tmp_path) is None, "a device that the kernel does not show"
    assert bound == []
