"""The chunked loss on a GPU: its values and gradients are the plain ones, and its bits the same twice where that is asked for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.data.batch import IGNORE
from trainer.model.loss import LossHead


def case(dtype: torch.dtype) -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(256, 8192, bias=False).to("cuda", dtype)
    hidden = torch.randn(2, 513, 256, device="cuda").to(dtype).requires_grad_()
    labels = torch.randint(0, 8192, (2, 513), device="cuda")
    labels[torch.rand(2, 513, device="cuda") < 0.4] = IGNORE
    return head, hidden, labels, torch.rand(2, 513, device="cuda") * (labels != IGNORE)


def found(dtype: torch.dtype) -> list[torch.Tensor]:
    """The loss, and its gradient by hidden states and weight."""
    head, hidden, labels, weights = case(dtype)
    loss = LossHead(head, 128)(hidden, labels, weights)
    return [loss.detach(), *torch.autograd.grad(loss * 0.01, [hidden, head.weight])]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_loss_and_gradients_equal_the_plain_ones(dtype, tolerance):
    head, hidden, labels, weights = case(torch.float32)
    if dtype != torch.float32:  # of the same rounded inputs
        head.to(dtype).float()
        hidden = hidden.detach().to(dtype).float().requires_grad_()
    logits = F.linear(hidden, head.weight).flatten(0, 1)
    each = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="none")
    plain = (each * weights.flatten()).sum()
    expected = [plain.detach(), *torch.autograd.grad(plain * 0.01, [hidden, head.weight])]
    for ours, theirs in zip(found(dtype), expected, strict=True):
        assert (ours.float() - theirs).norm() / theirs.norm() < tolerance


def test_the_bits_are_the_same_twice_where_that_is_asked_for():
    torch.use_deterministic_algorithms(True)
    try:
        one, two = found(torch.bfloat16), found(torch.bfloat16)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
