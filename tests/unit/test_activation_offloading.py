"""Activations in host memory: the GPU must really let go of them, and no gradient may change by it."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.model import activation_offloading, build, compiled
from trainer.model.packed import PackedModel
from trainer.run.contradictions import problems
from trainer.run.recomputation import is_recomputed
from trainer.run.result import result_settings
from trainer.run.spec import TrainSpec

NUM_LAYERS, TOKENS, HIDDEN = 5, 24, 16


class Elsewhere(saved_tensors_hooks):
    """Plays the host for a CPU, where torch's own hooks move nothing: a copy goes away, and another comes back."""

    moved: ClassVar[list[torch.Tensor]] = []
    originals: ClassVar[list[weakref.ref[torch.Tensor]]] = []
    came_back = 0

    def __init__(self, pin_memory: bool) -> None:
        self.pin_memory = pin_memory
        super().__init__(self.send, self.fetch)

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        self.originals.append(weakref.ref(tensor))
        self.moved.append(tensor.detach().clone())
        return self.moved[-1]

    def fetch(self, copy: torch.Tensor) -> torch.Tensor:
        Elsewhere.came_back += 1
        return copy.clone()


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_offloading, "save_on_cpu", Elsewhere)
    monkeypatch.setattr(Elsewhere, "moved", [])
    monkeypatch.setattr(Elsewhere, "originals", [])
    monkeypatch.setattr(Elsewhere, "came_back", 0)


def results(every: int, offloads: bool, is_compiled: bool = False) -> list[torch.Tensor]:
    """Loss and gradients of a packed batch through the chunked loss, a layer frozen."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=NUM_LAYERS, num_attention_heads=2
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="dolphin_segments")
    model.model.layers[1].requires_grad_(False)
    build.recompute(model, every)
    if offloads:
        activation_offloading.apply(model, "cpu")
    if is_compiled:
        compiled.apply(model)
    packed = PackedModel(model, loss_chunk=7).train()
    ids = torch.arange(TOKENS)[None]
    bounds = torch.tensor([0, 9, TOKENS], dtype=torch.int32)
    positions = torch.cat([torch.arange(9), torch.arange(TOKENS - 9)])[None]
    loss = packed(ids, ids.roll(-1, 1), torch.ones(1, TOKENS), positions, bounds, TOKENS - 9)
    held = [ref for ref in Elsewhere.originals if ref() is not None]
    assert held == [], "what was copied is kept as well"
    loss.backward()
    return [loss.detach(), *(p.grad for p in packed.parameters() if p.grad is not None)]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_what_recomputed_layers_begin_from_goes_and_comes_back_and_nothing_else(every: int) -> None:
    plain, ours = results(every, offloads=False), results(every, offloads=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    num_recomputed = sum(is_recomputed(layer, every) for layer in range(NUM_LAYERS))
    assert [tuple(tensor.shape) for tensor in Elsewhere.moved] == [(1, TOKENS, HIDDEN)] * num_recomputed
    assert Elsewhere.came_back == num_recomputed


def test_compiled_layers_begin_from_the_same() -> None:
    plain, ours = results(1, False, is_compiled=True), results(1, True, is_compiled=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))
    assert Elsewhere.came_back == NUM_LAYERS


def test_a_gpu_gets_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every copy would hold the host up, and the GPU behind it."""
    seen: list[bool] = []

    class Pinned(Elsewhere):
        def __init__(self, pin_memory: bool) -> None:
            seen.append(pin_memory)
            super().__init__(pin_memory)

    monkeypatch.setattr(activation_offloading, "save_on_cpu", Pinned)
    for device in ("cuda", "cpu"):
        model = torch.nn.Module()
        model._gradient_checkpointing_func = lambda: None
        activation_offloading.apply(model, device)
        model._gradient_checkpointing_func()
    assert seen == [True, False]


def spec(**train: Any) -> TrainSpec:
    return TrainSpec.model_validate(
        {"name": "t", "model": {"base": "/m"}, "data": {"sources": [{"path": "/d"}]}, "train": train}
    )


def test_it_needs_recomputation_and_changes_no_result() -> None:
    (found,) = problems(spec(activation_offloading=True))
    assert found.where == ("train", "activation_offloading")
    assert "needs train.gradient_checkpointing" in found.message
    for enough in (True, "auto", {"every": 2}):
        assert problems(spec(activation_offloading=True, gradient_checkpointing=enough)) == []
    assert "train.activation_offloading" not in result_settings(spec())
