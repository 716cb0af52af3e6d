"""A packed conversation that sees its neighbour trains on leaked text, silently: logits must equal those of it alone."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from trainer.model import attention
from trainer.model.attention import SEGMENTED, choose, segmented_attention
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


def test_an_attention_that_cannot_run_here_is_refused():
    with pytest.raises(BadInput, match="flash_attention_2 needs a GPU"):
        choose("flash_attention_2", "cpu", "bf16")
    assert choose("auto", "cpu", "bf16") == SEGMENTED


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
