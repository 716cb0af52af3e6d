"""A best checkpoint that is pruned, an early stop that a resume forgets, a worst one kept as the best."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.support.checkpoint_folder import completer, snapshot, writer
from trainer.checkpoint.manifest import MANIFEST, Manifest, folder_name
from trainer.checkpoint.resume import manifest_of
from trainer.checkpoint.trainer_state import Best, TrainerState
from trainer.rank import best
from trainer.run.spec import TrainSpec
from trainer.run.stores.base import FolderStore


def spec(keep_best: Any = None, stop: Any = None, **groups: Any) -> TrainSpec:
    return TrainSpec.model_validate({
        "name": "t", "model": {"base": "owner/base"}, "data": {"sources": [{"path": "/rows.jsonl"}]},
        "checkpoint": {"keep_best": keep_best}, "train": {"stop": stop}, **groups,
    })  # fmt: skip


def course(
    job: TrainSpec, values: list[float], metric: str = "eval_loss", resumed_at: int = -1
) -> tuple[TrainerState, list[int]]:
    """The state after evaluations of steps 0, 10, 20, ..., and the steps that were the best; the run ends where it is over."""
    state, bests = TrainerState(), list[int]()
    for step, value in enumerate(values):
        state.step = 10 * step
        if best.is_over(state, job):
            break
        if best.take(state, job, {metric: value}):
            bests.append(state.step)
        if step == resumed_at:
            state = TrainerState.from_state_dict(state.state_dict())
    return state, bests


def test_the_best_is_the_lowest_loss_and_never_that_of_before_the_first_step() -> None:
    state, bests = course(spec("eval_loss"), [1.0, 4.0, 3.0, 3.0, 3.5, 2.0])
    assert bests == [10, 20, 50]
    assert state.best == Best("eval_loss", 2.0, 50)
    higher = spec({"metric": "polite"}, evaluate={"metrics": ["/s.py:polite"], "prompts": ["Hi"]})
    assert course(higher, [9.0, 0.1, 0.3, 0.2], "polite")[1] == [10, 20]
    lower = spec({"metric": "polite", "direction": "lower"}, evaluate={"metrics": ["/s.py:polite"], "prompts": ["Hi"]})
    assert course(lower, [9.0, 0.1, 0.3, 0.05], "polite")[1] == [10, 30]


def test_a_measure_that_is_missing_or_no_number_changes_nothing() -> None:
    job = spec("eval_loss", {"patience": 1})
    state = TrainerState(step=10, best=Best("eval_loss", 2.0, 5), gain=Best("eval_loss", 2.0, 5))
    for values in ({}, {"eval_loss": float("nan")}):
        assert not best.take(state, job, values)
    assert (state.best, state.num_without_gain) == (Best("eval_loss", 2.0, 5), 0)


def test_a_run_stops_after_so_many_evaluations_without_a_gain_resumed_or_not() -> None:
    job = spec("eval_loss", {"patience": 2, "min_delta": 0.1})
    losses = [9.0, 3.0, 2.0, 1.95, 1.94, 1.0]
    for resumed_at in (-1, 1, 2, 3):
        state, bests = course(job, losses, resumed_at=resumed_at)
        assert state.step == 50, "the two of 0.05 and 0.06 are no gain"
        assert (state.gain, state.num_without_gain) == (Best("eval_loss", 2.0, 20), 2)
        assert bests == [10, 20, 30, 40]
    assert not best.is_over(state, spec("eval_loss")), "a run that is resumed without train.stop goes on"
    assert not best.is_over(state, spec("eval_loss", {"patience": 3}))


def test_a_checkpoint_of_another_version_is_read() -> None:
    state = TrainerState.from_state_dict({"step": 4, "tokens": 7, "best_eval_loss": 1.0, "of_tomorrow": [1]})
    assert (state.step, state.tokens, state.best) == (4, 7, None)


def test_the_best_checkpoint_outlives_the_newest_two(tmp_path: Path) -> None:
    def kept(best_steps: dict[int, int], *, spares: bool) -> list[int]:
        folder = tmp_path / str(spares)
        for step, of_best in best_steps.items():
            made = writer(folder, keeps_best=spares)
            state = {"step": step, "best": ["eval_loss", 1.0, of_best]}
            made.save(step, f"id{step}", snapshot(step), completer(step, f"id{step}", state=state))
        return sorted(int(path.name[5:]) for path in folder.iterdir())

    bests = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2}
    assert kept(bests, spares=False) == [4, 5]
    assert kept(bests, spares=True) == [2, 4, 5]
    assert kept({6: 6}, spares=True) == [2, 5, 6], "the one before it may be gone on from, and its best was 2"
    assert kept({7: 6, 8: 6}, spares=True) == [6, 7, 8]


def test_a_store_keeps_the_best_too_and_it_is_found_where_the_run_folder_has_lost_it(tmp_path: Path) -> None:
    local, remote = FolderStore(tmp_path / "run"), FolderStore(tmp_path / "bucket")
    for step, of_best in ((1, 1), (2, 1), (3, 1), (4, 1)):
        made = writer(tmp_path / "run", remote=remote, keeps_best=True)
        state = {"step": step, "best": ["eval_loss", 1.0, of_best]}
        made.save(step, f"id{step}", snapshot(step), completer(step, f"id{step}", state=state))
    assert sorted(path.name for path in (tmp_path / "bucket").iterdir()) == [folder_name(step) for step in (1, 3, 4)]
    shutil.rmtree(tmp_path / "run" / folder_name(1))
    found = manifest_of([local, remote], 1)
    assert isinstance(found, Manifest)
    assert found.step == 1
    assert manifest_of([local, remote], 2) == "there is no checkpoint of step 2"
    (tmp_path / "bucket" / folder_name(1) / MANIFEST).write_text("{")
    assert manifest_of([local, remote], 1) == "its manifest is not whole"
