"""Kernels are taken where they serve, and a job that insists on them is told why it cannot have them."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from trainer.model import kernels
from trainer.run.exits import BadInput

LLAMA = LlamaConfig()


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for an installed package that knows a llama."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.8.5")
    monkeypatch.setattr(kernels, "_families", lambda: {"llama": lambda **_: None})


def differing(monkeypatch: pytest.MonkeyPatch, by: float | None) -> None:
    monkeypatch.setattr(kernels, "compare", lambda config, device, **options: by)


def test_a_cpu_trains_without_and_says_so_where_it_is_asked() -> None:
    assert kernels.choose("auto", LLAMA, "cpu") == kernels.Choice(False, "they need a GPU")
    assert not kernels.choose(False, LLAMA, "cuda").is_on
    with pytest.raises(BadInput, match=r"train\.kernels true: they need a GPU; write `auto` or false"):
        kernels.choose(True, LLAMA, "cpu")


def test_a_gpu_takes_them_where_they_give_what_the_model_gives(liger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    differing(monkeypatch, 2e-6)
    choice = kernels.choose("auto", LLAMA, "cuda")
    assert choice.line() == "fused kernels: on (liger-kernel 0.8.5; a small llama differs by 2e-06 in fp32)"


@pytest.mark.parametrize("by", [0.02, float("nan"), float("inf")])
def test_kernels_that_give_something_else_are_not_used(liger: None, monkeypatch: pytest.MonkeyPatch, by: float) -> None:
    differing(monkeypatch, by)
    assert f"a llama differs by {by:.2g}" in kernels.choose("auto", LLAMA, "cuda").line()
    with pytest.raises(BadInput, match="differs by"):
        kernels.choose(True, LLAMA, "cuda")


def test_a_family_or_a_twin_that_is_not_there_means_without(liger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    differing(monkeypatch, None)
    assert "no small llama can be made" in kernels.choose("auto", LLAMA, "cuda").why
    monkeypatch.setattr(kernels, "_families", dict)
    assert kernels.choose("auto", LLAMA, "cuda").why == "liger-kernel has none for a llama"


def test_a_kernel_that_does_not_run_leaves_the_family_as_it_was(
    liger: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.LlamaRMSNorm

    def break_it(model: Any, rms_norm: bool = True, cross_entropy: bool = False) -> None:
        assert (rms_norm, cross_entropy) == (True, False), "the loss stays dolphin's"
        modeling_llama.LlamaRMSNorm = torch.nn.Identity  # type: ignore[misc]
        raise RuntimeError("no compiler")

    monkeypatch.setattr(kernels, "_families", lambda: {"llama": break_it})
    assert kernels.compare(LLAMA, torch.device("cpu")) == float("inf")
    assert modeling_llama.LlamaRMSNorm is plain
    assert "fused kernels could not be tried (RuntimeError: no compiler)" in capsys.readouterr().out


def test_a_gradient_that_is_not_finite_counts(liger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """max() of Python passes over a nan that is not the first."""

    def spoil(model: Any) -> None:
        model.lm_head.weight.register_hook(lambda gradient: gradient * float("nan"))

    monkeypatch.setattr(kernels, "_families", lambda: {"llama": spoil})
    difference = kernels.compare(LLAMA, torch.device("cpu"))
    assert difference != difference
