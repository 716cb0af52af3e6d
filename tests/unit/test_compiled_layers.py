"""Compiled layers compute what plain ones do, under the same names, and a machine that cannot compile says so before it trains."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.model import compiled
from trainer.run.contradictions import problems
from trainer.run.exits import BadInput
from trainer.run.result import result_settings
from trainer.run.spec import TrainSpec


def spec(**train: Any) -> TrainSpec:
    return TrainSpec.model_validate(
        {"name": "t", "model": {"base": "/m"}, "data": {"sources": [{"path": "/d"}]}, "train": train}
    )


def test_auto_compiles_on_a_gpu_and_not_where_layers_gather_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "has_compiler", lambda: True)
    assert [compiled.is_wanted("auto", "cuda", zero) for zero in (0, 1, 2, 3)] == [True, True, True, False]
    assert not compiled.is_wanted("auto", "cpu", 1)
    assert compiled.is_wanted(True, "cpu", 1)
    assert not compiled.is_wanted(False, "cuda", 1)


def test_a_machine_without_a_compiler_is_told_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not compiled.is_wanted("auto", "cuda", 1)
    with pytest.raises(BadInput, match=r"train\.compile true: torch\.compile needs a C\+\+ compiler"):
        compiled.is_wanted(True, "cpu", 1)


def test_compile_contradicts_zero_3_and_decides_the_result() -> None:
    (found,) = problems(spec(compile=True, zero=3))
    assert found.where == ("train", "compile")
    assert problems(spec(compile="auto", zero=3)) == problems(spec(compile=True, zero=2)) == []
    assert result_settings(spec(compile=True))["train.compile"] is True, "other graphs round otherwise, on a CPU too"
