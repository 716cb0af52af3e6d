"""Hooks over real connections. The disasters: a run that waits for a dead hook; one that is told the same twice, or to a stranger;
a URL in a log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hook_server import HookServer
from trainer.run.limits import Limits
from trainer.run.run_folder import EventKind, RunDir
from trainer.run.spec import NodeJob
from trainer.supervise import hooks
from trainer.supervise.hooks import Hooks, Story, body_for
from trainer.supervise.outcome import PastEvents

SPEC = {"name": "tiny", "model": {"base": "x/y"}, "data": {"sources": [{"path": "x.jsonl"}]}}


@pytest.fixture
def server() -> Iterator[HookServer]:
    server = HookServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(hooks, "WAITS_S", (0.01, 0.01))
    monkeypatch.setattr(hooks, "POLL_S", 0.02)


class Start:
    """One start of the trainer, as far as its hooks see it."""

    def __init__(self, folder: Path, *notify: str, **environment: str) -> None:
        self.run = RunDir(folder)
        job = NodeJob.model_validate(
            {"run_id": "tiny-1", "run_dir": str(folder), "cache_dir": "/c", "nproc": 2, "device": "cpu", "spec": SPEC,
             "limits": Limits(price_usd_per_hour=3600.0, notify=notify)}
        )  # fmt: skip
        self.said: list[str] = []
        self.hooks = Hooks(job, PastEvents(self.run), environment, self.said.append)
        self.began = time.time()

    def happen(self, *events: tuple[EventKind, dict[str, object]]) -> Start:
        self.hooks.start()
        started = {"nproc": 2, "device": "cpu", "began": self.began}
        for kind, fields in ((EventKind.ATTEMPT_STARTED, started), *events):
            self.run.emit(kind, attempt=1, **fields)
        return self

    def end(self) -> float:
        """Seconds that the end of the run took."""
        began = time.monotonic()
        self.hooks.close(1.0)
        return time.monotonic() - began


PREEMPTED = (EventKind.PREEMPTED, {"step": 4, "reason": "spot notice"})
GIVEN_BACK = (EventKind.FINISHED, {"exit_code": 75, "reason": "spot notice"})
RESUMED = (EventKind.RESUMED, {"step": 4, "lost_steps": 0})
DONE = (EventKind.FINISHED, {"exit_code": 0, "reason": ""})


def test_a_run_over_two_machines_is_told_once_each(tmp_path: Path, server: HookServer) -> None:
    plan = (EventKind.PLAN, {"total_steps": 9})
    Start(tmp_path, "${HOOK}", HOOK=f"{server.url}/in").happen(plan, PREEMPTED, GIVEN_BACK).end()
    time.sleep(0.01)
    Start(tmp_path, "${HOOK}", HOOK=f"{server.url}/in").happen(plan, RESUMED, DONE).end()
    told = server.of("/in")
    assert [one["event"] for one in told] == ["started", "preempted", "recovered", "ended"]
    assert told[1]["text"].startswith("tiny-1: preempted, saved at step 4 of 9 (spot notice)")
    assert told[2]["text"].startswith("tiny-1: goes on from step 4 of 9")
    assert told[0]["text"].startswith("tiny-1: started on 2 CPU ranks")
    assert told[3]["text"].endswith(" in all)")
    assert told[3]["paid_usd"] > 0
    assert all(server.url not in line for line in (tmp_path / "events.jsonl").read_text().splitlines())


def test_what_a_killed_machine_could_not_tell_the_next_one_does(tmp_path: Path, server: HookServer) -> None:
    first = Start(tmp_path, f"{server.url}/in").happen()
    first.end()
    first.run.emit(EventKind.CHECKPOINT_SAVED, attempt=1, step=3)  # and no word more
    time.sleep(0.01)
    Start(tmp_path, f"{server.url}/in").happen(RESUMED).end()
    assert [one["event"] for one in server.of("/in")] == ["started", "preempted", "recovered"]


@pytest.mark.parametrize("path", ["/broken", "/gone", "/hangs", "/moved"])
def test_a_hook_that_does_not_take_it_neither_ends_nor_holds_up_a_run(
    tmp_path: Path, server: HookServer, path: str
) -> None:
    secret = f"{server.url}{path}/s3cr3t"
    start = Start(tmp_path, "${BAD}", f"{server.url}/good", BAD=secret).happen(DONE)
    assert start.end() < 3.0
    assert [one["event"] for one in server.of("/good")] == ["started", "ended"], "another hook does not wait for it"
    assert server.of("/elsewhere") == [], "nobody else is told"
    assert len(server.of(f"{path}/s3cr3t")) >= (3 if path == "/broken" else 1)
    if path != "/hangs":
        (said,) = start.said
        assert said.startswith("notify[0]: started could not be posted (HTTP ")
    assert not any("s3cr3t" in line for line in start.said)
    assert "s3cr3t" not in (tmp_path / "events.jsonl").read_text()


def test_nobody_listens(tmp_path: Path, server: HookServer) -> None:
    server.close()
    start = Start(tmp_path, f"{server.url}/in").happen(DONE)
    assert start.end() < 1.0
    assert start.said == ["notify[0]: started could not be posted (URLError); the run goes on"]


def test_a_hook_whose_secret_is_not_here_is_said_to_be_silent(tmp_path: Path) -> None:
    assert Start(tmp_path, "${HOOK}").said == ["notify[0]: ${HOOK} is not set here; it is not told of anything"]


@pytest.mark.parametrize(
    ("url", "keys"),
    [
        ("https://hooks.slack.com/services/T/B/x", {"text"}),
        ("https://discord.com/api/webhooks/1/x", {"content"}),
        ("https://hooks.example.org/x", {"text", "event", "run"}),
        ("https://hooks.slack.com.example.org/x", {"text", "event", "run"}),
    ],
)
def test_each_host_reads_its_own_form(url: str, keys: set[str]) -> None:
    assert set(json.loads(body_for(url, {"text": "a" * 5000, "event": "ended", "run": "r"}))) == keys


def test_every_end_is_told_as_what_it_is() -> None:
    def told(code: int) -> str | None:
        message = Story().take({"event": "finished", "time": 1.0, "exit_code": code, "reason": "why"})
        return None if message is None else f"{message.kind}: {message.text}"

    assert told(75) is None, "it was told as a preemption"
    assert told(76) == "ended: budget reached: why"
    assert told(77) == "ended: deadline reached: why"
    assert told(1) == told(64) == "failed: failed: why"
