"""`dolphin watch`: right for every end of a run, in 80 x 24 and without colours, over a backend that does not answer; its keys."""

import asyncio
import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from launcher.backends.base import BackendStatus, get_backend
from launcher.follow.watch import panels
from launcher.follow.watch import watched as watched_module
from launcher.follow.watch.app import WatchApp
from launcher.follow.watch.charts import chart
from launcher.follow.watch.pace import FASTEST_S, SHARE, SLOWEST_S, Pace
from launcher.follow.watch.watched import Watched
from launcher.runs.errors import BackendError
from launcher.runs.states import RunState
from tests.support.written_run import START, long, metric, preempted, write

DONE = {"state": "done", "exit_code": 0}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))


def picture(watched: Watched, width: int = 80, height: int = 24) -> str:
    console = Console(width=width, height=height, color_system=None, record=True, file=io.StringIO())
    console.print(panels.head(watched, width))
    console.print(panels.curves(watched, width, 10))
    console.print(panels.time_line(watched.history, width))
    console.print(panels.log(watched, 4))
    return console.export_text()


def looked_at(record, monkeypatch, state=RunState.RUNNING, detail="") -> Watched:
    monkeypatch.setattr(watched_module, "status_of", lambda backend, record: BackendStatus(state, detail))
    watched = Watched(record)
    watched.look()
    return watched


def test_a_run_that_was_preempted_three_times_fits_a_small_terminal(monkeypatch):
    events, metrics = preempted((60, 110, 160))
    record = write("demo", events, metrics, DONE)
    record.files.log.write_text("".join(f"line {i}\n" for i in range(1000)))
    text = picture(looked_at(record, monkeypatch, RunState.SUCCEEDED))
    assert "succeeded" in text
    assert "step 200/200" in text
    assert "4 attempts" in text
    assert text.count("x") >= 3
    assert "line 999" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert len(text.splitlines()) <= 24


@pytest.mark.parametrize(
    ("state", "detail"), [(RunState.QUEUED, "waits for a machine"), (RunState.FAILED, "rank 3 ended with signal 9")]
)
def test_a_run_without_a_step_says_what_it_waits_for_or_why_it_ended(state, detail, monkeypatch):
    text = picture(looked_at(write("demo", [], []), monkeypatch, state, detail))
    assert detail in text
    assert "no step was made yet" in text


def test_a_loss_that_is_no_number_is_said(monkeypatch):
    lines = [metric(step, START + step, loss=math.nan if step > 5 else 2.0) for step in range(1, 9)]
    text = picture(looked_at(write("demo", [], lines), monkeypatch))
    assert "the loss is no finite number at 3 steps, first at step 6" in text


def test_only_what_is_new_is_read_and_what_was_known_stays_while_nobody_answers(monkeypatch):
    events, metrics = preempted(())
    record = write("demo", events, metrics[:10])
    watched = looked_at(record, monkeypatch)
    assert max(watched.history.steps) == 10
    with record.files.metrics.open("a") as file:
        file.write('{"step": 11, "loss": 1.5, "attempt": 1, "time": 1790000090.0}\n')

    def silent(backend, record):
        raise BackendError("the API server does not answer")

    monkeypatch.setattr(watched_module, "status_of", silent)
    watched.look()
    assert "the API server does not answer" in picture(watched)
    assert "step 10/200" in picture(watched)
    monkeypatch.setattr(watched_module, "status_of", lambda backend, record: BackendStatus(RunState.RUNNING))
    watched.look()
    assert max(watched.history.steps) == 11
    assert "does not answer" not in picture(watched)


def test_a_backend_that_fails_between_two_files_costs_no_line(monkeypatch):
    events, metrics = preempted(())
    record = write("demo", events, metrics[:10])
    monkeypatch.setattr(watched_module, "status_of", lambda backend, record: BackendStatus(RunState.RUNNING))
    backend = get_backend("local")
    read_file = type(backend).read_file

    def torn(self, record, name, offset=0):
        if name == "metrics.jsonl":
            raise BackendError("the connection is gone")
        return read_file(self, record, name, offset)

    watched = Watched(record)
    with monkeypatch.context() as patch:
        patch.setattr(type(backend), "read_file", torn)
        watched.look()
    assert watched.lost
    watched.look()
    assert (watched.lost, watched.history.total_steps, len(watched.history.steps)) == ("", 200, 10)


def test_drawing_takes_a_small_share_of_a_core():
    pace = Pace()
    for cpu_s in (0.0, 0.2, 1.0, 100.0):
        pace.took(cpu_s / 2)
        pace.took(cpu_s / 2)
        pause_s = pace.pause_s()
        assert FASTEST_S <= pause_s <= SLOWEST_S
        assert pause_s == SLOWEST_S or cpu_s / pause_s <= SHARE * 1.0001
    assert pace.pause_s() == FASTEST_S


def test_a_chart_of_nothing_and_one_in_a_small_place_are_words():
    assert "nothing yet" in chart("loss", [("training", [(1, math.nan)])], 40, 8).plain
    assert "8 to 2" in chart("loss", [("training", [(1, 8.0), (2, 2.0)])], 60, 3).plain


def pressed(records, *keys, size=(80, 24)):
    """What the app returns, and what it shows at the end."""

    async def run():
        app = WatchApp(records)
        async with app.run_test(size=size) as pilot:
            for _ in range(200):
                await pilot.pause(0.05)
                if app.watched.seen is not None or app.watched.lost:
                    break
            await pilot.pause(0.1)
            await pilot.press(*keys)
            await pilot.pause(0.3)
            shown = (app.watched.record.run_id, app.query_one("#below").active) if app.is_running else ("", "")
        return app.return_value, shown

    return asyncio.run(run())


def test_keys_leave_the_run_alone_show_the_next_and_ask_before_they_stop(monkeypatch):
    monkeypatch.setattr(watched_module, "status_of", lambda backend, record: BackendStatus(RunState.RUNNING))
    events, metrics = preempted(())
    first, second = write("first", events, metrics), write("second", events, metrics)
    assert pressed([first, second], "q")[0] is None
    assert pressed([first, second], "n", "a") == (None, (second.run_id, "samples"))
    assert pressed([first], "y")[0] is None  # nothing was asked
    assert pressed([first], "s", "l", "y")[0] is None  # another key in between
    stopped, _ = pressed([first], "s", "y")
    assert stopped is not None
    assert replace(stopped, created_at=0).run_id == first.run_id


def test_a_hundred_thousand_steps_are_read_once(monkeypatch):
    events, metrics = long(20_000)
    watched = looked_at(write("long", events, metrics), monkeypatch)
    before = len(watched.history.steps)
    watched.look()
    assert len(watched.history.steps) == before == 20_000
    assert "step 20000/20000" in picture(watched)
