"""An hour on rented GPUs is lost where the bench stops at a setting that this version has not, or shows the wrong line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import gpu, gpu_plan, gpu_report
from bench.gpu_cell import Bench, Cell, NotHere, job_of, key_of
from bench.gpu_inputs import SCALED, vocabulary_of

MACHINE = gpu_plan.Machine("cuda", "NVIDIA H100 80GB HBM3", 81_559, 8, "570.1", 12.0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(SCALED))
    return Bench(tmp_path, gpu.reference(tmp_path, 256, 64), MACHINE, 1, 2, {"data": "words", "matmul_tflops": 700.0})


def test_a_setting_or_value_that_this_version_has_not_is_said_and_nothing_else_is_forgiven(bench: Bench) -> None:
    with pytest.raises(NotHere, match=r"not in this version: train\.warp_drive"):
        job_of(bench, Cell("x", {"train.warp_drive": True}))
    with pytest.raises(NotHere, match=r"not in this version: train\.optimizer sgd9"):
        job_of(bench, Cell("x", {"train.optimizer": "sgd9"}))
    broken = {**bench.spec, "train": {**bench.spec["train"], "micro_batch": 0}}
    with pytest.raises(ValueError, match="micro_batch"):
        job_of(Bench(bench.folder, broken, MACHINE, 1, 2, bench.facts), Cell("x", {"train.zero": 2}))


def test_every_cell_is_a_job_or_not_in_this_version(bench: Bench) -> None:
    assert len({cell.name for cell in gpu.CELLS}) == len(gpu.CELLS)
    known = 0
    for cell in gpu.CELLS:
        try:
            job_of(bench, cell)
            known += 1
        except NotHere:
            continue
    assert known > 8


def test_what_is_done_once_is_known_again_and_a_second_run_of_it_is_not(bench: Bench) -> None:
    def key(cell: Cell) -> str:
        return key_of(bench, cell, job_of(bench, cell))

    assert key(Cell("a")) == key(Cell("b", {"train.micro_batch": 2}))
    assert (
        len({key(Cell("a")), key(Cell("a", again=1)), key(Cell("a", {"train.zero": 2})), key(Cell("a", program="trl"))})
        == 4
    )


def test_the_vocabulary_has_its_size_and_every_merge_makes_a_token() -> None:
    vocabulary, merges, words = vocabulary_of(1024)
    assert sorted(vocabulary.values()) == list(range(1024))
    assert all(
        first in vocabulary and second in vocabulary and first + second in vocabulary for first, second in merges
    )
    assert all(f"Ġ{word}" in vocabulary for word in words)


def record(**more: Any) -> dict[str, Any]:
    return {
        "cell": "reference", "when": "2026-01-02T03:04:05", "machine": "8 x H100", "memory_mib": 81_559, "driver": "570.1",
        "commit": "abc", "facts": {"data": "words", "matmul_tflops": 700.0, "versions": {"torch": "2.13"}}, "scaled": False,
        "work": "8b", "state": "done", "losses": [2.0, 1.0], "step_s": 9.0, "tokens_per_s": 7000.0, "tflops": 400.0, "mfu": 0.4,
        "peak_bytes": 63e9, "rss_bytes": 1e9, "stage": 1,
        "plan": {"step_s": 10.0, "allocated_bytes": 60e9, "total_bytes": 64e9}, **more,
    }  # fmt: skip


def test_the_report_shows_the_newest_of_each_cell_and_why_others_failed(tmp_path: Path) -> None:
    results = tmp_path / "gpu.jsonl"
    lines = [
        record(state="failed", reason="odd"), record(), record(cell="reference again", losses=[2.0, 1.5]),
        record(cell="zero 3", state="failed", reason="the GPU's memory ran out | try"),
        record(cell="kernels on", state="not here", reason="not in this version: train.kernels"),
    ]  # fmt: skip
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tests = tmp_path / "tests.xml"
    tests.write_text(
        '<testsuites><testsuite><testcase classname="tests.gpu.test_x" name="a"/><testcase classname="tests.gpu.test_x" name="b">'
        '<failure message="assert 1 == 2">long</failure></testcase></testsuite></testsuites>'
    )
    gpu_report.write(results, tmp_path / "gpu.md", tests)
    text = (tmp_path / "gpu.md").read_text()
    assert "| reference (ZeRO-1) | 9.00 | 10.00 | -10% | 7,000 | 400 | 40.0% | 63.0 GB | 60.0 GB | +5.0% |" in text
    assert "odd" not in text
    assert "| zero 3 | failed | the GPU's memory ran out / try |" in text
    assert "reference and reference again: not the same bits." in text
    assert "tests/gpu: 1 passed, 1 failed, 0 skipped." in text
    assert "- failed: test_x::b: assert 1 == 2" in text
