"""A chunked loss that is a little wrong trains a little wrong for three days: it must equal the plain one."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.data.batch import IGNORE, Batch
from trainer.engine.engine import configuration
from trainer.model.loss import LogitTransform, LossHead
from trainer.model.packed import Balance
from trainer.run.spec import NodeJob


def plain(
    head: nn.Linear, hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, transform=lambda logits: logits
) -> torch.Tensor:
    logits = transform(F.linear(hidden, head.weight, head.bias).float()).flatten(0, 1)
    each = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction="none")
    return (each * weights.flatten()).sum()


def case(bias: bool, dtype: torch.dtype) -> tuple[nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=bias).to(dtype)
    hidden = torch.randn(2, 11, 16, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, 50, (2, 11))
    labels[torch.rand(2, 11) < 0.4] = IGNORE
    weights = torch.rand(2, 11) * (labels != IGNORE)
    return head, hidden, labels, weights


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_every_gradient_equal_the_plain_ones(chunk, bias):
    head, hidden, labels, weights = case(bias, torch.float32)
    expected = plain(head, hidden, labels, weights)
    expected_gradients = torch.autograd.grad(expected * 0.125, [hidden, *head.parameters()])
    loss = LossHead(head, chunk)(hidden, labels, weights)
    gradients = torch.autograd.grad(loss * 0.125, [hidden, *head.parameters()])
    torch.testing.assert_close(loss, expected)
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LogitTransform(cap=0.7), lambda x: torch.tanh(x / 0.7) * 0.7),
        (LogitTransform(scale=0.25), lambda x: x * 0.25),
        (LogitTransform(scale=3.0, cap=2.0), lambda x: torch.tanh(x * 3.0 / 2.0) * 2.0),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_transformed_logits_give_the_plain_loss_and_gradients(ours, theirs, bias):
    """Gemma 2 and 3 cap their logits, Cohere and Granite scale them: left out, the loss is of another model."""
    head, hidden, labels, weights = case(bias, torch.float32)
    expected = plain(head, hidden, labels, weights, theirs)
    assert (expected - plain(head, hidden, labels, weights)).abs() > 1e-3
    loss = LossHead(head, 4, ours)(hidden, labels, weights)
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, [hidden, *head.parameters()])
    for got, want in zip(gradients, torch.autograd.grad(expected, [hidden, *head.parameters()]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_a_frozen_output_embedding_gets_no_gradient_and_hidden_states_still_do():
    head, hidden, labels, weights = case(False, torch.float32)
    head.weight.requires_grad_(False)
    LossHead(head, 4)(hidden, labels, weights).backward()
    assert head.weight.grad is None
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() > 0


def test_a_batch_without_labels_has_loss_zero_and_zero_gradients():
    """An empty row of the last partial batch must not turn into 0/0."""
    head, hidden, labels, weights = case(False, torch.float32)
    loss = LossHead(head, 4)(hidden, torch.full_like(labels, IGNORE), weights * 0)
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() == 0
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum() == 0


def test_bf16_accumulates_the_weight_gradient_in_fp32():
    head, hidden, labels, weights = case(False, torch.bfloat16)
    LossHead(head, 1)(hidden, labels, weights).backward()
    exact = nn.Linear(16, 50, bias=False)
    exact.weight.data = head.weight.detach().float()
    plain(exact, hidden.detach().float(), labels, weights).backward()
    assert head.weight.grad is not None
    assert exact.weight.grad is not None
    error = (head.weight.grad.float() - exact.weight.grad).abs().max() / exact.weight.grad.abs().max()
    assert error < 0.01


def test_evaluation_computes_no_gradient():
    head, hidden, labels, weights = case(False, torch.float32)
    with torch.no_grad():
        loss = LossHead(head, 4)(hidden, labels, weights)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(head, hidden, labels, weights).detach())


class Asked(TorchDispatchMode):
    """The operations that make a GPU's host wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.nonzero, torch.ops.aten._local_scalar_dense):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_batch_that_knows_its_labels_is_never_asked_for_them_on_the_gpu() -> None:
    """Every question to a GPU waits until it has done what was asked of it before: the next micro batch starts late."""
    torch.manual_seed(0)
    labels = torch.tensor([[1, IGNORE, 2, IGNORE], [IGNORE, 3, IGNORE, IGNORE]])
    bounds = torch.tensor([0, 4, 8], dtype=torch.int32)
    batch = Batch.of(labels, labels, (labels != IGNORE).float(), torch.arange(4).expand(2, 4), bounds)
    head = LossHead(nn.Linear(8, 16), 2)
    hidden = torch.randn(1, 8, 8, requires_grad=True)
    balance = Balance(0.01, lambda logits, experts, chosen: logits[0].sum(), 4, 2)
    with Asked() as asked:
        loss = head(hidden, batch.labels_BT, batch.weights_BT, batch.labelled_N)
        (loss + balance.loss((torch.randn(8, 4),), batch.weights_BT, batch.row_ends)).backward()
    assert asked.seen == []
    assert torch.equal(loss, head(hidden, batch.labels_BT, batch.weights_BT))


def test_deepspeed_times_no_micro_batch() -> None:
    """Its throughput timer waits for the GPU twice in each."""
    spec = {"name": "t", "model": {"base": "/m"}, "data": {"sources": [{"path": "/d"}]}, "train": {"zero": 2}}
    job = NodeJob.model_validate(
        {"run_id": "r", "run_dir": "/r", "cache_dir": "/c", "nproc": 2, "device": "cuda", "spec": spec}
    )
    config = configuration(job, 2, 4)
    assert config["timers"] == {"throughput": {"enabled": False}}
