"""A hang must be found; an evaluation, a save or a slow machine must not be taken for one."""

from __future__ import annotations

from pathlib import Path

from trainer.supervise.heartbeat import BUSY_FACTOR, STEP_FACTOR, Beat, Heartbeat, hang, read_heartbeat


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def beat(at: float, typical_s: float | None = None, busy: str | None = None) -> Beat:
    return Beat(pid=1, step=7, at=at, typical_s=typical_s, busy=busy)


def test_silence_beyond_the_floor_is_a_hang_and_names_the_rank() -> None:
    beats = {0: beat(1000.0), 1: beat(400.0)}
    assert hang(beats, now=999.0, floor_s=600) is None
    reason = hang(beats, now=1001.0, floor_s=600)
    assert reason is not None
    assert reason.startswith("rank 1 made no progress for 601 s (in step 8, limit 600 s")


def test_a_run_of_slow_steps_gets_a_longer_limit() -> None:
    beats = {0: beat(0.0, typical_s=60.0)}
    assert hang(beats, now=STEP_FACTOR * 60 - 1, floor_s=600) is None
    assert hang(beats, now=STEP_FACTOR * 60 + 1, floor_s=600) is not None


def test_ranks_that_wait_for_a_busy_one_are_not_hung() -> None:
    beats = {0: beat(0.0, busy="exporting"), 1: beat(0.0)}
    assert hang(beats, now=BUSY_FACTOR * 600 - 1, floor_s=600) is None
    assert hang(beats, now=BUSY_FACTOR * 600 + 1, floor_s=600) is not None


def test_no_rank_at_work_is_no_hang() -> None:
    assert hang({}, now=1e9) is None


def test_an_evaluation_does_not_count_into_the_typical_step(tmp_path: Path) -> None:
    clock = Clock()
    heart = Heartbeat(tmp_path, 0, clock=clock)
    started = read_heartbeat(tmp_path, 0)
    assert started is not None
    assert started.busy == "starting"
    heart.step(10)
    for step in range(11, 16):
        if step == 13:
            with heart.busy("evaluating"), heart.busy("saving"):
                clock.now += 500
                seen = read_heartbeat(tmp_path, 0)
                assert seen is not None
                assert seen.busy == "saving"
        clock.now += 2
        heart.step(step)
    seen = read_heartbeat(tmp_path, 0)
    assert seen is not None
    assert (seen.step, seen.typical_s, seen.busy) == (15, 2.0, None)


def test_a_torn_or_missing_heartbeat_is_none(tmp_path: Path) -> None:
    assert read_heartbeat(tmp_path, 3) is None
    (tmp_path / "heartbeat-3").write_text('{"pid": 12, "st')
    assert read_heartbeat(tmp_path, 3) is None
