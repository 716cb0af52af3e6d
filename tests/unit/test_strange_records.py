"""Events and metrics of a newer trainer, or that a disk has damaged: what is known is taken, and no run reads as lost for the rest."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.follow import screen
from launcher.follow.run_view import RunView
from trainer.checkpoint.resume import lost_work
from trainer.export.card import training_results
from trainer.run.run_folder import EventKind, Phase, RunDir, read_lines
from trainer.supervise.outcome import PastEvents

STRANGE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.just(10**400),
)  # fmt: skip
FIELDS = ["attempt", "nproc", "device", "pid", "phase", "total_steps", "conversations", "sequences", "tokens", "trained_tokens",
          "parameters", "trained_parameters", "step", "checkpoint", "lost_steps", "lost_seconds", "reason", "size_bytes", "seconds",
          "blocked_seconds", "epoch", "eval_loss", "loss", "restarts", "model", "sample", "exit_code", "time", "tokens_per_second"]  # fmt: skip
KINDS = st.one_of(st.sampled_from([kind.value for kind in EventKind]), STRANGE)
RECORDS = st.lists(
    st.builds(lambda kind, rest: {"event": kind, **rest}, KINDS, st.dictionaries(st.sampled_from(FIELDS), STRANGE)), max_size=6
)  # fmt: skip


@given(RECORDS)
@settings(max_examples=300, deadline=None)
def test_no_event_or_metric_ends_what_reads_it(records) -> None:
    view = RunView()
    for record in records:
        view.add_event(record)
        view.add_metric(record)
        screen.progress_line(view)
    assert view.attempt >= 0 or view.attempt is not None
    assert view.seconds_left is None or view.seconds_left >= 0


def test_a_run_that_trained_to_its_end_is_done_whatever_stands_between(tmp_path: Path) -> None:
    """The supervisor died of an event without a step, and so the run had no outcome: lost."""
    run = RunDir(tmp_path)
    lines = [{"event": "checkpoint_saved"}, {"event": "checkpoint_saved", "step": "x"}, {"event": "a_newer_one", "step": []}, [1], None, 7,
             {"step": 3}, {"event": "resumed"}, {"event": "attempt_started", "time": "noon"}]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"event": "checkpoint_sa\n' + "[" * 100_000 + "\n"
    run.events.write_text(text)
    run.metrics.write_text(text + json.dumps({"step": 2, "loss": "x", "eval_loss": 0.5}) + "\n")
    assert len(list(read_lines(run.events))) == 6
    story = PastEvents(run)
    assert story.saved_step() is None
    assert story.last_save_seconds() is None
    assert lost_work(run, 3, 0) == (0, 0.0)
    assert training_results(run) == []
    run.emit(EventKind.CHECKPOINT_SAVED, attempt=1, step=4, seconds=1.5)
    assert (story.saved_step(), story.last_save_seconds()) == (4, 1.5)
    assert Phase.DONE.value == "done"


def test_a_folder_in_the_place_of_a_record_is_none(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.events.mkdir()
    run.outcome.mkdir()
    assert run.read_events() == []
    assert run.read_outcome() is None
    run.emit(EventKind.PHASE, attempt=1, phase="training")
