"""`train.deterministic` is a promise of bits: nothing may be left to chance in silence."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from trainer.engine import determinism
from trainer.model.loss import LossHead
from trainer.run.exits import TrainingFailed


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = flags


def test_what_has_no_deterministic_kernel_is_an_error_and_no_warning() -> None:
    determinism.ask()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled(), "flash attention's backward would stay as it is"
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    with pytest.raises(TrainingFailed, match=r"put_ of this model has no deterministic kernel.*deterministic=false"):
        with determinism.explained():
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), determinism.explained():
        torch.zeros(3).reshape(2, 2)


def test_the_loss_and_its_gradient_are_the_same_under_it() -> None:
    def once() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(0)
        head = LossHead(nn.Linear(8, 32), chunk=3)
        hidden = torch.randn(1, 10, 8, requires_grad=True)
        loss = head(hidden, torch.randint(0, 32, (1, 10)), torch.ones(1, 10))
        loss.backward()
        assert hidden.grad is not None
        assert head.weight.grad is not None
        return loss.detach(), hidden.grad, head.weight.grad

    before = once()
    determinism.ask()
    assert all(torch.equal(a, b) for a, b in zip(before, once(), strict=True))
