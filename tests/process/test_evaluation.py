"""A run that is killed in the middle of an evaluation, and goes on to other answers, another best or another end.

Two ranks under ZeRO-3. The user's own score is what kills: it is called in the middle of an evaluation, on rank 0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_job
from trainer.checkpoint.manifest import MANIFEST, Manifest
from trainer.checkpoint.trainer_state import Best, TrainerState
from trainer.export import sample
from trainer.run.run_folder import SAMPLE_FIELDS, RunDir, read_lines

SCORES = """\
import os, signal
CALLS = 0
def letters(question, answer, expected):
    global CALLS
    CALLS += 1
    lives = {name!r} + ".lives"
    lived = open(lives).read() if os.path.exists(lives) else ""
    if CALLS in {deaths}[len(lived):][:1]:
        open(lives, "w").write(lived + "x")
        os.kill(os.getpid(), signal.SIGKILL)
    if expected is None:
        raise ValueError("nothing to compare with")
    return len(answer)
"""
QUESTIONS = 3


def job(root: Path, name: str, deaths: list[int]) -> RunDir:
    (root / f"{name}.py").write_text(SCORES.format(name=str(root / name), deaths=deaths))
    return tiny_job.write_job(
        root, name, nproc=2,
        data={
            "validation": [{"name": "mine", "path": str(root / "mine.jsonl")}, {"name": "drawn", "count": 8}],
            "validation_fraction": 0.01,  # at its default, as a launcher writes it
        },
        train={
            "zero": 3, "max_steps": 60, "evaluate_every": 3, "learning_rate": 4e-2,
            "stop": {"metric": "mine/loss", "patience": 2},
        },
        checkpoint={"keep_best": "mine/loss", "every": {"steps": 4}, "max_restarts": 3},
        export={"which": "best"},
        evaluate={
            "prompts": ["the sea is blue"], "questions": QUESTIONS - 1, "max_new_tokens": 8,
            "metrics": ["contains", f"{root}/{name}.py:letters"],
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    root = tmp_path_factory.mktemp("evaluation")
    tiny_job.write_data(root / "mine.jsonl", 10, seed=9)
    # the call that ends the first life: in the evaluation of step 6
    return {
        "whole": tiny_job.train(job(root, "whole", [])),
        "killed": tiny_job.train(job(root, "killed", [2 * QUESTIONS + 2])),
    }


def answers(run: RunDir) -> dict[tuple[int, int], str]:
    """Every answer as it stands in the file; the same one twice says the same."""
    found: dict[tuple[int, int], str] = {}
    for line in read_lines(run.samples):
        assert tuple(line) == SAMPLE_FIELDS
        text = json.dumps(line)
        assert found.setdefault((line["step"], line["number"]), text) == text
    return found


def last_state(run: RunDir) -> TrainerState:
    newest = max(run.checkpoints.glob(f"*/{MANIFEST}"))
    return TrainerState.from_state_dict(Manifest.decode(newest.read_bytes(), newest.parent.name).state)


def measures(run: RunDir) -> dict[int, dict[str, Any]]:
    lines = [line for line in run.read_metrics() if "loss" not in line]
    return {line["step"]: {name: value for name, value in line.items() if name != "time"} for line in lines}


def test_a_run_killed_in_its_evaluations_has_the_same_answers_best_and_end(runs: dict[str, RunDir]) -> None:
    whole, killed = runs["whole"], runs["killed"]
    resumed = [event["step"] for event in killed.read_events() if event["event"] == "resumed"]
    assert resumed == [4], killed.log.read_text()[-3000:]
    assert answers(killed) == answers(whole)
    assert measures(killed) == measures(whole)
    assert tiny_job.losses(killed) == tiny_job.losses(whole)
    one, other = last_state(whole), last_state(killed)
    assert (one.best, one.gain, one.num_without_gain, one.step) == (
        other.best, other.gain, other.num_without_gain, other.step,
    )  # fmt: skip
    assert tiny_job.weights_sha256(killed) == tiny_job.weights_sha256(whole)


def test_it_stops_where_nothing_gets_better_and_leaves_the_best(runs: dict[str, RunDir]) -> None:
    run = runs["whole"]
    by_step = {step: values["mine/loss"] for step, values in measures(run).items() if step}
    state = last_state(run)
    best_step = min(by_step, key=lambda step: by_step[step])
    assert state.best == Best("mine/loss", by_step[best_step], best_step)
    assert best_step < state.step == max(by_step) < 60
    assert (run.checkpoints / f"step-{best_step:08d}" / MANIFEST).is_file()
    outcome = run.read_outcome() or {}
    assert outcome["reason"] == f"stopped early at step {state.step}: mine/loss was best at step {best_step}"
    assert (outcome["state"], outcome["model_step"], outcome["step"]) == ("done", best_step, state.step)
    stopped = [event for event in run.read_events() if event["event"] == "stopped_early"]
    assert [event["steps_left"] for event in stopped] == [60 - state.step]
    card = (run.model / "README.md").read_text()
    assert f"These are the weights after step {best_step}." in card
    assert f"| {best_step} | {by_step[best_step]:.4f} |" in card
    assert "drawn/loss | contains | letters |" in card
    log = run.log.read_text()
    assert log.count("warning: letters failed at") == 1
    assert "ValueError: nothing to compare with" in log


def test_what_it_answered_at_its_best_is_what_the_exported_model_answers(runs: dict[str, RunDir]) -> None:
    run = runs["whole"]
    best = last_state(run).best
    assert best is not None
    line = next(line for line in read_lines(run.samples) if (line["step"], line["number"]) == (best.step, 0))
    assert line["question"] == "the sea is blue"
    answer = sample.ask(run.model, "the sea is blue")
    assert answer.startswith(line["answer"])
    assert line["ended"] == (answer == line["answer"])
