"""A launch asks its backend for nothing that it knows: with a controller of its own, each answer of SkyPilot's takes seconds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.backends.base import BackendStatus
from launcher.commands import launch
from launcher.commands.launch import LaunchOptions
from launcher.runs import ledger
from launcher.runs.errors import BadUsage
from launcher.runs.states import RunState


def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, submissions: int) -> list[str]:
    """What a start of a run asks for, in order."""
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    record, order = ledger.update(ledger.create("demo-1", "demo", "sky"), submissions=submissions), list[str]()

    def status(record: ledger.RunRecord) -> BackendStatus:
        order.append("status")
        return BackendStatus(RunState.QUEUED)

    def submit(record: ledger.RunRecord, *_: Any) -> ledger.RunRecord:
        order.append("submit")
        return record

    monkeypatch.setattr(launch, "_submit", submit)
    launch._start(record, None, SimpleNamespace(status=status), LaunchOptions(is_detached=True))  # type: ignore[arg-type]
    return order


def test_a_run_that_was_never_submitted_is_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert started(monkeypatch, tmp_path, submissions=0) == ["submit", "status"]


def test_a_run_that_somebody_has_submitted_meanwhile_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="follows it"):
        started(monkeypatch, tmp_path, submissions=1)
