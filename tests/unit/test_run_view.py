"""What a person is told of a run: numbers that a restart does not confuse, lines that say where it stands."""

from launcher.follow.run_view import RunView
from launcher.follow.screen import PlainScreen, numbers
from launcher.units import count, seconds, size
from trainer.run.run_folder import EventKind


def event(kind, attempt=1, **fields):
    return {"time": 0.0, "event": kind.value, "attempt": attempt, **fields}


def metric(step, loss=1.0, took=2.0, **fields):
    return {"step": step, "loss": loss, "seconds": took, "tokens_per_second": 1000.0, "attempt": 1} | fields


def test_a_resumed_attempt_is_one_calm_line():
    view = RunView()
    line = view.add_event(
        event(
            EventKind.RESUMED,
            3,
            step=840,
            total_steps=3420,
            checkpoint="s3://b/step-840",
            lost_steps=12,
            lost_seconds=41.0,
        )
    )
    assert line == "attempt 3: resumed at step 840 of 3420 from s3://b/step-840 (lost 12 steps, 41 s)"
    assert (view.step, view.total_steps) == (840, 3420)


def test_time_left_follows_the_last_steps():
    view = RunView()
    view.add_event(event(EventKind.PLAN, total_steps=100))
    assert view.seconds_left is None
    view.add_metric(metric(1, took=500.0))  # compiles
    for step in range(2, 12):
        view.add_metric(metric(step))
    assert view.seconds_left == 89 * 2.0


def test_the_pace_of_an_earlier_attempt_does_not_count():
    view = RunView()
    view.add_event(event(EventKind.PLAN, total_steps=100))
    view.add_metric(metric(50, took=9.0))
    view.add_event(event(EventKind.ATTEMPT_STARTED, 2, nproc=8, device="cuda"))
    assert view.seconds_left is None
    view.add_metric(metric(41, took=1.0))
    assert view.seconds_left == 59.0


def test_a_step_measured_again_after_a_resume_counts_once():
    view = RunView()
    view.add_metric({"step": 10, "epoch": 0.5, "eval_loss": 2.0})
    view.add_metric({"step": 10, "epoch": 0.5, "eval_loss": 1.9})
    view.add_metric({"step": 20, "epoch": 1.0, "eval_loss": 1.5})
    assert view.evaluations == {10: (0.5, 1.9), 20: (1.0, 1.5)}
    assert view.eval_loss == 1.5


def test_lines_of_a_newer_trainer_are_passed_over():
    view = RunView()
    assert view.add_event({"event": "invented_later", "attempt": 1}) is None
    assert view.add_event({}) is None
    view.add_metric({"step": None})
    view.add_metric({"what": 1})
    assert numbers(view) == ""


def test_every_event_kind_is_taken_with_no_fields_at_all():
    """An event that lacks its fields must not end the follower."""
    for kind in EventKind:
        RunView().add_event({"event": kind.value})


def test_numbers_for_a_person():
    assert [count(n) for n in (None, 940, 9400, 12_345, 1_240_000, 8_030_261_248)] == ["?", "940", "9,400", "12.35k", "1.24M", "8.03B"]  # fmt: skip
    assert [seconds(n) for n in (None, 0.44, 41.2, 200, 18_720, 183_600)] == ["unknown time", "0.4 s", "41 s", "3 min 20 s", "5 h 12 min", "2 d 3 h"]  # fmt: skip
    assert [size(n) for n in (None, 12, 54_200_000_000, 1_500, 250_000, 2e12)] == ["size unknown", "12 B", "54.2 GB", "1.5 kB", "250 kB", "2.0 TB"]  # fmt: skip


def test_a_pipe_gets_progress_now_and_then_not_at_every_step(capsys):
    import io

    now, story = [0.0], io.StringIO()
    screen = PlainScreen(io.StringIO(), story, clock=lambda: now[0])
    view = RunView()
    view.add_event(event(EventKind.PLAN, total_steps=100))
    for step in range(1, 100):
        now[0] += 1.0
        view.add_metric(metric(step))
        screen.progress(view)
    lines = story.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == "dolphin: step 30/100 · loss 1.0000 · 1,000 tokens/s · 2 min 20 s left"
