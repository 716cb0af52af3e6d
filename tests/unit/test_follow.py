"""A connection that breaks, a log that is cut anywhere: no line twice, none lost, and no success that was not seen."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from launcher.backends.base import BackendStatus, LogChunk
from launcher.follow.follow import LogFrom, follow, parse_age, show_log
from launcher.follow.readers import JsonLines, ViewReader
from launcher.follow.run_view import RunView
from launcher.runs.errors import BackendError, BadUsage
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState
from trainer.run.run_folder import EventKind

RECORD = RunRecord("demo-1", Path("/nowhere"), "demo", "wild", 0.0)


class WildBackend:
    """A run of scripted looks; at each, the state, the log and the files as they are then, or an error."""

    name = "wild"
    poll_s = 0.5

    def __init__(self, looks):
        self.looks, self.at = looks, -1

    def status(self, record):
        self.at = min(self.at + 1, len(self.looks) - 1)
        look = self.looks[self.at]
        if isinstance(look, Exception):
            raise look
        return BackendStatus(look.get("state", RunState.RUNNING), look.get("detail", ""))

    def logs(self, record, after=""):
        look = self.looks[max(self.at, 0)]
        if isinstance(look, Exception):
            return
        lines = look.get("log", [])
        for number in range(int(after or 0), len(lines)):
            if lines[number] is BREAK:
                if not look.pop("mended", False):
                    look["mended"] = True
                    raise BackendError("connection reset")
                continue
            yield LogChunk(lines[number], str(number + 1), look.get("time"))

    def read_file(self, record, name, offset=0):
        data = self.looks[max(self.at, 0)].get(name)
        return None if data is None else data[offset:]


BREAK = object()


class Screen:
    def __init__(self):
        self.text, self.lines = "", []

    def log(self, text):
        self.text += text

    def say(self, line):
        self.lines.append(line)

    def progress(self, view):
        pass


def run(looks, start=LogFrom(), **options):
    screen, now = Screen(), [0.0]

    def sleep(pause_s):
        now[0] += pause_s

    status, view = follow(WildBackend(looks), RECORD, screen, start, sleep=sleep, clock=lambda: now[0], **options)
    return screen, status, view


def test_no_line_twice_and_none_lost_over_a_broken_stream():
    lines = ["a\n", "b\n", BREAK, "c\n", "d\n"]
    screen, status, _ = run(
        [{"log": lines[:2]}, {"log": lines}, {"log": lines}, {"log": lines, "state": RunState.SUCCEEDED}]
    )
    assert screen.text == "a\nb\nc\nd\n"
    assert status.state is RunState.SUCCEEDED


def test_what_a_dying_run_wrote_last_is_shown():
    screen, status, _ = run([{"log": ["a\n"]}, {"log": ["a\n", "Error: it broke"], "state": RunState.FAILED}])
    assert screen.text == "a\nError: it broke"
    assert status.state is RunState.FAILED


def test_a_server_that_is_away_is_waited_for_and_said_once():
    away, back = BackendError("connection refused"), {"log": ["a\n", "b\n"]}
    screen, _, _ = run([{"log": ["a\n"]}, away, away, away, back, back, back | {"state": RunState.SUCCEEDED}])
    assert screen.text == "a\nb\n"
    assert [line.partition(" (")[0] for line in screen.lines] == ["no answer from wild", "wild answers again"]


def test_patience_begins_anew_after_every_answer():
    away, looks = BackendError("connection refused"), []
    for _ in range(10):  # 10 times 5 minutes away, which is more than the patience
        looks += [away] * 14 + [{}]
    assert run([*looks, {"state": RunState.SUCCEEDED}])[1].state is RunState.SUCCEEDED


def test_a_server_that_stays_away_is_no_success():
    with pytest.raises(BackendError, match="dolphin logs demo-1"):
        run([{"log": []}, BackendError("connection refused")])


def test_waiting_is_told_when_it_begins_only():
    queued = {"state": RunState.QUEUED, "detail": "no L40S free"}
    screen, _, _ = run([queued, queued, {}, {"state": RunState.RECOVERING}, {}, {"state": RunState.SUCCEEDED}])
    assert screen.lines == ["queued: no L40S free", "recovering"]


def events(num):
    lines = [{"event": EventKind.EVALUATED, "attempt": 1, "step": n, "eval_loss": 1.0} for n in range(num)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_who_comes_late_is_told_the_end_of_the_story():
    looks = [{"events.jsonl": events(40)}, {"events.jsonl": events(41), "state": RunState.SUCCEEDED}]
    screen, _, view = run(looks)
    assert len(screen.lines) == 6
    assert screen.lines[-1] == "validation loss 1.0000 at step 40"
    assert len(view.story) == 41


def test_a_resume_is_not_told_the_past_again():
    backend = WildBackend([{"events.jsonl": events(3)}, {"events.jsonl": events(4), "state": RunState.SUCCEEDED}])
    reader, screen = ViewReader(backend, RECORD), Screen()
    reader.read()
    follow(backend, RECORD, screen, LogFrom(), reader, sleep=lambda pause_s: None)
    assert screen.lines == ["validation loss 1.0000 at step 3"]


def test_a_line_half_written_is_read_when_it_is_whole():
    backend = WildBackend([{"m": b'{"step": 1}\n{"st'}, {"m": b'{"step": 1}\n{"step": 2}\n{"torn\n[1]\n{"step": 3}\n'}])
    lines = JsonLines(backend, RECORD, "m")
    assert lines.read() == [{"step": 1}]
    backend.at = 1
    assert lines.read() == [{"step": 2}, {"step": 3}]
    assert lines.read() == []


def test_tail_shows_the_last_lines_then_what_comes():
    looks = [{"log": ["a\nb\n", "c\n"]}, {"log": ["a\nb\n", "c\n", "d\n"], "state": RunState.SUCCEEDED}]
    assert run(looks, LogFrom(tail=2))[0].text == "b\nc\nd\n"
    assert run(looks, LogFrom(tail=0))[0].text == "d\n"


def test_since_goes_by_the_times_in_the_log():
    now = datetime.now(UTC)
    stamp = [(now - timedelta(minutes=m)).strftime("%Y-%m-%d %H:%M:%S") for m in (60, 5)]
    log = [f"{stamp[0]} old\nof the old\n{stamp[1]} young\nof the young\n"]
    screen = Screen()
    show_log(WildBackend([{"log": log}]), RECORD, screen, LogFrom(since=parse_age("10m")))
    assert screen.text == f"{stamp[1]} young\nof the young\n"


def test_since_goes_by_the_backends_clock_where_it_has_one():
    screen = Screen()
    look = {"log": ["a\n"], "time": datetime.now(UTC).timestamp() - 60}
    show_log(WildBackend([look]), RECORD, screen, LogFrom(since=parse_age("2m")))
    show_log(WildBackend([look]), RECORD, screen, LogFrom(since=parse_age("30s")))
    assert screen.text == "a\n"


def test_since_goes_by_the_runs_own_records_where_the_log_has_no_times():
    now = datetime.now(UTC).timestamp()

    def shown(age, start):
        event = {"time": now - start, "event": "attempt_started", "attempt": 1}
        metrics = [
            {"step": 1, "loss": 2.0, "time": now - 3000},
            {"step": 2, "loss": 1.5, "time": now - 2000},
            {"step": 2, "eval_loss": 1.6, "time": now - 900},
            {"step": 2, "loss": 1.5, "time": now - 300},  # trained again after a resume
        ]
        look = {
            "log": ["hello\nstep 1/2 · loss 2.0000 · x\nstep 2/2 · loss 1.5000 · x\nnoise\n",
                    "step 2/2 · epoch 1.00 · validation loss 1.6000\nstep 2/2 · loss 1.5000 · x\nend\n"],
            "metrics.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in metrics),
            "events.jsonl": json.dumps(event).encode() + b"\n",
        }  # fmt: skip
        screen = Screen()
        show_log(WildBackend([look]), RECORD, screen, LogFrom(since=parse_age(age)))
        return screen.text.splitlines()

    assert shown("10m", 4000) == ["step 2/2 · loss 1.5000 · x", "end"]
    assert shown("20m", 4000)[0] == "step 2/2 · epoch 1.00 · validation loss 1.6000"
    assert shown("40m", 4000)[:2] == ["step 2/2 · loss 1.5000 · x", "noise"]
    assert shown("2h", 4000)[0] == "hello"
    assert shown("1m", 4000) == []


def test_since_on_a_log_without_times_is_refused_not_ignored():
    with pytest.raises(BadUsage, match="holds no times"):
        show_log(WildBackend([{"log": ["a\n"]}]), RECORD, Screen(), LogFrom(since=parse_age("10m")))


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "5y", "h1", "1.h"])
def test_an_age_that_is_none_says_what_one_looks_like(text):
    with pytest.raises(BadUsage, match="for example 10m"):
        parse_age(text)


def test_the_view_is_what_the_run_said():
    metrics = b'{"step": 3, "loss": 1.5, "tokens_per_second": 9.0, "seconds": 1.0}\n'
    _, _, view = run([{"metrics.jsonl": metrics, "state": RunState.SUCCEEDED}])
    assert isinstance(view, RunView)
    assert (view.step, view.loss) == (3, 1.5)
