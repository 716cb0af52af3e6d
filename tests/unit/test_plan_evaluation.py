"""An hour of evaluations that no plan tells of: seconds of losses and answers, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.jobfile.spec import JobSpec
from launcher.plan.data_facts import DataFacts
from launcher.plan.evaluation_time import FORWARD_S, Pass, answers_s, losses_s
from launcher.plan.gpus import find_card
from launcher.plan.throughput import StepFlops

FLOPS = StepFlops(2.0, 0.0, 2.0, 2.0, 2.0)
DATA = DataFacts("prepared", "", 900, held_out=64)


def job_of(**evaluate: Any) -> JobSpec:
    return JobSpec.model_validate({
        "name": "t", "model": {"base": "owner/base"}, "evaluate": evaluate,
        "data": {"sources": [{"path": "/rows.jsonl"}], "sequence_length": 1000}, "train": {"global_batch": 32, "micro_batch": 2},
    })  # fmt: skip


def test_losses_are_forward_passes_over_what_is_held_out() -> None:
    cost = Pass(8.0, FLOPS, 4, None, 0.0)
    assert losses_s(job_of(), DATA, cost, 32) == pytest.approx(8.0 / 4 * 64 / 32)
    assert losses_s(job_of(), None, cost, 32) == 0.0


def test_an_answer_is_a_forward_pass_for_each_of_its_tokens() -> None:
    job = job_of(prompts=["a"], questions=11, max_new_tokens=50)
    cost = Pass(8.0, FLOPS, 4, None, 0.0)
    a_token_s = 2.0 * 4 / (32 * 1000)
    assert answers_s(job, 1, cost, 32) == pytest.approx(50 * 3 * (200 + 25) * a_token_s)
    assert answers_s(job_of(questions=80, max_new_tokens=50), 0, cost, 32) == pytest.approx(
        3 * 50 * 8 * 225 * a_token_s
    )
    assert answers_s(job_of(), 0, cost, 32) == 0.0


def test_on_gpus_a_forward_pass_has_its_least_time_and_zero_3_gathers_for_it() -> None:
    card = find_card("H100")
    assert card is not None
    job = job_of(questions=4, max_new_tokens=10)
    alone = answers_s(job, 0, Pass(0.001, FLOPS, 4, card, 0.0), 32)
    assert alone == pytest.approx(10 * FORWARD_S)
    assert answers_s(job, 0, Pass(0.001, FLOPS, 4, card, 16e9), 32) > alone + 10 * 16e9 * 0.75 / (
        card.link_gb_per_s * 1e9
    )
