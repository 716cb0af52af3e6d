"""A run with compiled layers ends with the losses of a plain one, and goes on after a stop with the same bits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.tiny_job import TIMEOUT_S, losses, start, train, weights_sha256, write_job
from trainer.model import compiled
from trainer.run.run_folder import STOP_FILE


@pytest.mark.skipif(not compiled.has_compiler(), reason="no C++ compiler for torch.compile")
def test_a_compiled_run_has_the_losses_of_a_plain_one_and_resumes_with_the_same_bits(tmp_path: Path) -> None:
    settings = {"max_steps": 60, "evaluate_at_start": False, "gradient_checkpointing": True}
    plain = train(write_job(tmp_path, "plain", train=settings))
    whole = train(write_job(tmp_path, "whole", train=settings | {"compile": True}))
    assert "2 decoder layers are compiled when they are first called" in whole.log.read_text()
    assert max(abs(a - b) for a, b in zip(losses(plain), losses(whole), strict=True)) < 1e-4
    assert weights_sha256(plain) != weights_sha256(whole), "nothing was compiled"

    stopped = write_job(tmp_path, "stopped", train=settings | {"compile": True})
    process, deadline = start(stopped), time.monotonic() + TIMEOUT_S
    while len(losses(stopped)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    (stopped.path / STOP_FILE).touch()
    assert process.wait(TIMEOUT_S) == 75, stopped.log.read_text()[-2000:]
    assert 3 <= len(losses(stopped)) < 60
    train(stopped)
    assert losses(stopped) == losses(whole)
    assert weights_sha256(stopped) == weights_sha256(whole)
