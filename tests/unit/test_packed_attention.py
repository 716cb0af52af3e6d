"""A packed conversation that sees its neighbour trains on leaked text, silently: logits must equal those of it alone."""

import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from trainer.model import attention
from trainer.model.attention import SEGMENTED, VARLEN, described, segmented_attention, usable
from trainer.model.packed import PackedModel
from trainer.run.exits import BadInput

LENGTHS = (5, 17, 1, 9)


def tiny(kind: str, family: str = "llama") -> PackedModel:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    if family == "llama":
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), attn_implementation=kind)
    else:
        model = MistralForCausalLM._from_config(MistralConfig(**shape, sliding_window=6), attn_implementation=kind)
    return PackedModel(model, loss_chunk=8)


def packed(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 64, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return ids, positions, cu_seqlens


def logits(model: PackedModel, ids: torch.Tensor, positions: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    hidden = model.hidden(ids, positions, cu_seqlens, int(cu_seqlens.diff().max()))
    return hidden @ model.model.lm_head.weight.T


@pytest.mark.parametrize("kind", [SEGMENTED, "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_logits_equal_those_of_each_conversation_alone(kind, family, checkpointing):
    model = tiny(kind, family).train()
    if checkpointing:
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids, positions, cu_seqlens = packed(LENGTHS)
    together = logits(model, ids, positions, cu_seqlens)
    reference = tiny("eager", family).eval()
    for start, length in zip(cu_seqlens.tolist(), LENGTHS, strict=False):
        part = slice(start, start + length)
        alone = logits(reference, ids[:, part], positions[:, part], torch.tensor([0, length], dtype=torch.int32))
        assert (together[:, part] - alone).abs().max() < 2e-6


def test_a_neighbour_is_seen_when_the_boundaries_are_lost():
    """The test above can fail: with one boundary removed the logits differ."""
    model = tiny(SEGMENTED)
    ids, positions, cu_seqlens = packed(LENGTHS)
    merged = torch.cat([cu_seqlens[:1], cu_seqlens[2:]])
    difference = (logits(model, ids, positions, cu_seqlens) - logits(model, ids, positions, merged)).abs().max()
    assert difference > 1e-3


def test_micro_batch_rows_do_not_see_each_other():
    model = tiny(SEGMENTED)
    ids, positions, cu_seqlens = packed((6, 6, 6, 6))
    as_rows = model.hidden(ids.view(2, 12), positions.view(2, 12), cu_seqlens, 6)
    assert torch.equal(as_rows, model.hidden(ids, positions, cu_seqlens, 6))


@pytest.mark.parametrize("name", ["flash_attention_3", "flash_attention_2", "varlen"])
def test_an_attention_that_cannot_run_here_is_refused(name):
    with pytest.raises(BadInput, match=f"model.attention {name}: .* needs a GPU and bf16; write `auto`"):
        usable(name, "cpu", "bf16")
    assert usable("auto", "cpu", "bf16") == (SEGMENTED,)
    assert described(SEGMENTED, "auto", "cpu", "bf16") == (
        "SDPA, one conversation at a time (flash attention needs a GPU and bf16)"
    )


@pytest.mark.parametrize(
    ("capability", "installed", "dropout", "chosen", "why"),
    [
        ((9, 0), {2, 3}, 0.0, "flash_attention_3", "FlashAttention 3 (the fastest here)"),
        ((9, 0), {2, 3}, 0.1, "flash_attention_2", "flash-attn (FlashAttention 3 has no dropout)"),
        ((9, 0), set(), 0.0, VARLEN, "torch's varlen flash attention (flash attention is not installed)"),
        ((8, 9), {2, 3}, 0.0, "flash_attention_2", "flash-attn (FlashAttention 3 is for Hopper GPUs)"),
        ((10, 0), set(), 0.0, VARLEN, "(FlashAttention 3 is for Hopper GPUs; flash-attn is not installed)"),
        ((7, 5), {2}, 0.0, SEGMENTED, "torch's varlen flash attention needs an Ampere GPU or a newer one)"),
    ],
)  # fmt: skip
def test_what_is_installed_and_fits_the_gpu_runs_and_the_reason_is_told(
    capability, installed, dropout, chosen, why, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    for version in (2, 3):
        monkeypatch.setattr(
            attention, f"is_flash_attn_{version}_available", lambda version=version: version in installed
        )
    assert usable("auto", "cuda", "bf16", dropout)[0] == chosen
    assert usable("auto", "cuda", "bf16", dropout)[-1] == SEGMENTED, "what fails the self-test has a substitute"
    assert described(chosen, "auto", "cuda", "bf16", dropout).endswith(why)


def shares_of(q, k, window, scale):
    """Attention within one conversation (L, H, D) -> (H, L, L); `window` is (left, right) as flash attention has it."""
    distance = torch.arange(len(q))[:, None] - torch.arange(len(q))[None, :]
    left, right = (len(q) if side < 0 else side for side in window)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    return torch.softmax(scores.masked_fill((distance > left) | (distance < -right), float("-inf")), dim=-1)


@pytest.fixture
def flash_on_cpu():
    """The two operators behind torch's varlen attention, which a CPU does not have, written out (FlashAttention, arXiv
    2205.14135, algorithms 1 and 4, without tiles); torch's own code around them is what runs on a GPU."""

    def conversations(q, k, v, bounds):
        groups = q.shape[1] // k.shape[1]
        for start, end in itertools.pairwise(bounds.tolist()):
            part = slice(start, end)
            yield part, q[part], k[part].repeat_interleave(groups, 1), v[part].repeat_interleave(groups, 1)

    def facts(q, causal, options):
        window = (-1, 0) if causal else (options["window_size_left"], options["window_size_right"])
        return window, options.get("scale") or q.shape[-1] ** -0.5

    def forward(q, k, v, bounds, _bounds_k, _max_q, _max_k, _dropout, causal, _debug, **options):
        out = torch.empty_like(q)
        for part, one_q, one_k, one_v in conversations(q, k, v, bounds):
            shares = shares_of(one_q, one_k, *facts(q, causal, options))
            out[part] = torch.einsum("hqk,khd->qhd", shares, one_v)
        return out, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64), torch.empty(0), torch.empty(0)

    def backward(
        grad, q, k, v, _out, _lse, bounds, _bounds_k, _max_q, _max_k, _dropout, causal, _seed, _unused, **options
    ):
        grad_q, grad_k, grad_v = (torch.zeros_like(tensor) for tensor in (q, k, v))
        window, scale = facts(q, causal, options)
        for part, one_q, one_k, one_v in conversations(q, k, v, bounds):
            shares = shares_of(one_q, one_k, window, scale)
            of_shares = torch.einsum("qhd,khd->hqk", grad[part], one_v)
            of_scores = scale * shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True))
            grad_q[part] = torch.einsum("hqk,khd->qhd", of_scores, one_k)
            for target, whole in (
                (grad_k, torch.einsum("hqk,qhd->khd", of_scores, one_q)),
                (grad_v, torch.einsum("hqk,qhd->khd", shares, grad[part])),
            ):
                target[part] = whole.unflatten(1, (k.shape[1], -1)).sum(2)
        return grad_q, grad_k, grad_v

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_the_gradient_through_varlen_is_that_of_each_conversation_alone(family, flash_on_cpu):
    def gradients(kind):
        model = tiny(kind, family).train()
        ids, positions, cu_seqlens = packed(LENGTHS)
        weight = torch.randn(sum(LENGTHS), 32, generator=torch.Generator().manual_seed(2))
        (model.hidden(ids, positions, cu_seqlens, max(LENGTHS))[0] * weight).sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    ours, reference = gradients(VARLEN), gradients(SEGMENTED)
    assert ours.keys() == reference.keys()
    for name, gradient in reference.items():
        assert (ours[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max(), name


def test_dropout_in_attention_is_applied_in_training_and_not_in_evaluation():
    """An ignored dropout would train another model than the job states."""
    model = tiny(SEGMENTED)
    ids, positions, cu_seqlens = packed(LENGTHS)
    plain = logits(model.eval(), ids, positions, cu_seqlens)
    for layer in model.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert torch.equal(logits(model.eval(), ids, positions, cu_seqlens), plain)
    once, again = (logits(model.train(), ids, positions, cu_seqlens) for _ in range(2))
    assert not torch.equal(once, again)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("special", ["softcap", "sinks"])
def test_attention_by_its_scores_equals_the_plain_one_where_nothing_is_special(window, special, monkeypatch):
    """A cap far above every score and a sink far below change nothing; blocks of queries see what one block sees."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 5)
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(1, 4, 32, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(1, 2, 32, 8, generator=generator) for _ in range(2))
    more = {"softcap": 1e6} if special == "softcap" else {"s_aux": torch.full((4,), -1e9)}
    cu_seqlens = torch.tensor([0, 5, 22, 23, 32], dtype=torch.int32)
    plain, _ = segmented_attention(None, q, k, v, None, cu_seq_lens_q=cu_seqlens, sliding_window=window)
    ours, _ = segmented_attention(None, q, k, v, None, cu_seq_lens_q=cu_seqlens, sliding_window=window, **more)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(out.square().sum(), q)[0] for out in (ours, plain)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_many_conversations_do_not_cost_a_tensor_of_zeros_each_in_the_backward_pass():
    """The gradient of a slice is a tensor as large as all conversations together: with sixty of them half of the time went there."""
    cu_seqlens = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    query = torch.randn(1, 4, sum(LENGTHS), 8, requires_grad=True)
    out, _ = segmented_attention(torch.nn.Module(), query, query[:, :2], query[:, 2:], None, cu_seq_lens_q=cu_seqlens)
    seen, left = set(), [out.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [following for following, _ in node.next_functions]
    names = [node.name() for node in seen]
    assert sum(name.startswith("Slice") for name in names) <= 2, names  # those of this test's own key and value
    assert sum(name.startswith("Split") for name in names) == 3
    assert out.is_contiguous()
