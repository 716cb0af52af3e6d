"""Killed in one evaluation after the other, at its first answer, its last and between: still the same answers, best and end."""

from __future__ import annotations

from pathlib import Path

from tests.process import test_evaluation as process
from tests.support import tiny_job


def test_every_life_ends_in_an_evaluation(tmp_path: Path) -> None:
    tiny_job.write_data(tmp_path / "mine.jsonl", 10, seed=9)
    whole = tiny_job.train(process.job(tmp_path, "whole", []))
    asked = process.QUESTIONS
    killed = tiny_job.train(
        process.job(tmp_path, "killed", [1, 2 * asked + 1, asked, 2 * asked + 2, 2 * asked]), expect=1
    )
    while (code := tiny_job.start(killed).wait(tiny_job.TIMEOUT_S)) == 1:  # more lives than a run may restart by itself
        assert len((tmp_path / "killed.lives").read_text()) <= 5
    assert code == 0
    assert process.answers(killed) == process.answers(whole)
    assert process.measures(killed) == process.measures(whole)
    assert process.last_state(killed).best == process.last_state(whole).best
    assert tiny_job.weights_sha256(killed) == tiny_job.weights_sha256(whole)
