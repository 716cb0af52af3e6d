"""A process in which Triton's interpreter runs Liger's kernels on a CPU: `python -m tests.support.kernel_probe`; prints JSON.

The interpreter wants what the compiler does by itself: floats as scalars of the language, and functions of CUDA's library by
their names in it.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from transformers import AutoConfig, AutoModelForCausalLM
from triton.runtime import interpreter

from trainer.model import kernels
from trainer.model.packed import PackedModel

FAMILIES = ("llama", "gemma2", "phi3")


def complete_the_interpreter() -> None:
    import liger_kernel.ops.geglu as geglu
    import liger_kernel.ops.rms_norm as rms_norm

    convert = interpreter._implicit_cvt

    def with_floats(value):
        if isinstance(value, float):
            return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
        return convert(value)

    interpreter._implicit_cvt = with_floats
    rms_norm.rsqrt = lambda x: tl.math.rsqrt(x)
    geglu.tanh = lambda x: 2 * tl.sigmoid(2 * x) - 1


def packed_run(fused: bool) -> dict[str, torch.Tensor]:
    """Loss and gradients of a packed batch, a third of the parameters frozen, activations recomputed."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="dolphin_segments")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("self_attn" not in name and "layers.0.input_layernorm" not in name)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if fused:
        kernels.apply(model, "cpu")
    packed = PackedModel(model, loss_chunk=8).train()
    ids = torch.randint(0, 64, (1, 20))
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None]
    loss = packed(ids, ids.roll(-1, 1), torch.ones(1, 20), positions, torch.tensor([0, 12, 20], dtype=torch.int32), 12)
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in packed.named_parameters() if p.grad is not None}


def main() -> None:
    complete_the_interpreter()
    plain, fused, again = packed_run(False), packed_run(True), packed_run(False)
    found = {
        "families": {name: kernels.compare(AutoConfig.for_model(name), torch.device("cpu")) for name in FAMILIES},
        "same_names": list(plain) == list(fused),
        "packed": max(((plain[n] - fused[n]).abs().max() / plain[n].abs().max()).item() for n in plain),
        "is_fused": not all(torch.equal(plain[n], fused[n]) for n in plain),
        "plain_again": all(torch.equal(plain[n], again[n]) for n in plain),
        "line": kernels.choose("auto", AutoConfig.for_model("llama"), "cpu").line(),
        "no_family": kernels.choose("auto", AutoConfig.for_model("gpt2"), "cpu").line(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
