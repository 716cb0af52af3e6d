"""A hang must be found; an evaluation, a save or a slow machine must not be taken for one."""

from __future__ import annotations

from pathlib import Path

from trainer.supervise.heartbeat import (
    BUSY_FACTOR,
    ESTIMATE_FACTOR,
    SILENCE_FACTOR,
    Beat,
    Heartbeat,
    hang,
    read_heartbeat,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def beat(at: float, silence_s: float | None = None, busy: str | None = None) -> Beat:
    return Beat(pid=1, step=7, at=at, silence_s=silence_s, busy=busy)


def test_silence_beyond_the_floor_is_a_hang_and_names_the_rank() -> None:
    beats = {0: beat(1000.0, silence_s=1.0), 1: beat(400.0, silence_s=1.0)}
    assert hang(beats, now=999.0, floor_s=600) is None
    reason = hang(beats, now=1001.0, floor_s=600)
    assert reason is not None
    assert reason.startswith("rank 1 made no progress for 601 s (in step 8, limit 600 s")


def test_a_run_of_slow_micro_batches_gets_a_longer_limit() -> None:
    beats = {0: beat(0.0, silence_s=400.0)}
    assert hang(beats, now=SILENCE_FACTOR * 400 - 1, floor_s=600) is None
    reason = hang(beats, now=SILENCE_FACTOR * 400 + 1, floor_s=600)
    assert reason is not None
    assert "400.0 s at most in a usual step" in reason


def test_before_a_step_is_known_the_plans_seconds_decide_and_without_a_plan_much_patience() -> None:
    first = {0: beat(0.0), 1: beat(0.0)}
    assert hang(first, now=1172.0, floor_s=600, estimate_s=1172.0) is None, "a 70B step with its optimizer on the host"
    assert hang(first, now=ESTIMATE_FACTOR * 1172 + 1, floor_s=600, estimate_s=1172.0) is not None
    assert hang(first, now=601.0, floor_s=600, estimate_s=2.0) is not None
    assert hang(first, now=BUSY_FACTOR * 600 - 1, floor_s=600) is None
    assert hang(first, now=BUSY_FACTOR * 600 + 1, floor_s=600) is not None


def test_ranks_that_wait_for_a_busy_one_are_not_hung_as_long_as_it_gets_on() -> None:
    long = BUSY_FACTOR * 600
    beats = {0: beat(0.0, busy="exporting"), 1: beat(0.0, 1.0)}
    assert hang(beats, now=long - 1, floor_s=600) is None
    assert hang(beats, now=long + 1, floor_s=600) is not None
    beats = {0: beat(3 * long, busy="exporting"), 1: beat(0.0, 1.0)}
    assert hang(beats, now=3 * long + 1, floor_s=600) is None, "rank 0 writes shard after shard"
    assert hang(beats, now=4 * long + 1, floor_s=600) is not None


def test_no_rank_at_work_is_no_hang() -> None:
    assert hang({}, now=1e9) is None


def seen_of(folder: Path) -> Beat:
    seen = read_heartbeat(folder, 0)
    assert seen is not None
    return seen


def test_an_evaluation_does_not_count_into_the_usual_silence(tmp_path: Path) -> None:
    clock = Clock()
    heart = Heartbeat(tmp_path, 0, clock=clock)
    assert seen_of(tmp_path).busy == "starting"
    heart.step(10)
    for step in range(11, 16):
        if step == 13:
            with heart.busy("evaluating"), heart.busy("saving"):
                clock.now += 500
                assert seen_of(tmp_path).busy == "saving"
        clock.now += 2
        heart.step(step)
    seen = seen_of(tmp_path)
    assert (seen.step, seen.silence_s, seen.busy) == (15, 2.0, None)


def test_a_long_step_of_many_micro_batches_is_as_silent_as_its_longest_one(tmp_path: Path) -> None:
    clock = Clock()
    heart = Heartbeat(tmp_path, 0, clock=clock)
    heart.step(0)
    for step in range(1, 4):
        for _ in range(16):
            clock.now += 70
            heart.alive()
            assert seen_of(tmp_path).at == clock.now
        clock.now += 52
        heart.step(step)
    assert seen_of(tmp_path).silence_s == 70.0


def test_a_phase_is_told_before_the_first_step_and_over_with_it(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, 0, clock=Clock())
    heart.enter("loading the model")
    heart.alive()
    assert seen_of(tmp_path).busy == "loading the model"
    heart.step(3)
    assert (seen_of(tmp_path).busy, seen_of(tmp_path).step) == (None, 3)


def test_a_torn_or_missing_heartbeat_is_none(tmp_path: Path) -> None:
    assert read_heartbeat(tmp_path, 3) is None
    (tmp_path / "heartbeat-3").write_text('{"pid": 12, "st')
    assert read_heartbeat(tmp_path, 3) is None
