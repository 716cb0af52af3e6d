"""Matrix products of the decoder in fp8, a scale for each row (torchao): parameters, masters and everything else stay as in bf16.

Owns which matrices take part, and who may have it. The output embedding and routers of experts keep bf16: their errors become
probabilities.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import torch
from torch import nn

from trainer.model.packed import decoder_of
from trainer.run.exits import BadInput

PACKAGE = "torchao"
CAPABILITY = (8, 9)
"""Ada; Hopper is (9, 0). Older cards have no fp8 arithmetic."""
MULTIPLE = 16
"""Rows and columns of a product in fp8 come in multiples of this (cuBLASLt)."""
ROUTERS = ("gate", "router")
"""Last part of a router's name; a gated activation's is `gate_proj`."""


def require(device: str, zero: int | str) -> None:
    """Raises BadInput where this rank's card or installation has no fp8, or the stage gathers its matrices; with what to do."""
    if zero == 3:
        raise BadInput(
            "train.precision fp8 has not been tried under ZeRO-3, which this run was given; write bf16, or set train.zero "
            "to 1 or 2"
        )
    if device != "cuda":
        raise BadInput("train.precision fp8 needs a GPU with fp8 arithmetic; write bf16 or fp32")
    found = torch.cuda.get_device_capability()
    if found < CAPABILITY:
        raise BadInput(
            f"train.precision fp8: {torch.cuda.get_device_name()} has no fp8 arithmetic (compute capability "
            f"{found[0]}.{found[1]}; Ada and Hopper have it, from 8.9 on); write bf16, or take an L4, L40S, H100 or H200"
        )
    try:
        importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(
            f"train.precision fp8 needs the package {PACKAGE}, which is not installed: pip install {PACKAGE} "
            "(or dolphin-launcher[fp8]), or write bf16"
        ) from None


def apply(model: Any, *, emulated: bool = False) -> int:
    """Have the decoder's matrices multiply in fp8; returns how many. Parameters keep their names and are the same objects.

    `emulated` rounds as fp8 does and multiplies in bf16, for a device without it. Raises BadInput where none takes part.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = dataclasses.replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=emulated)
    decoder = decoder_of(model)
    convert_to_float8_training(decoder, config=config, module_filter_fn=takes_part)
    count = sum(type(part).__name__ == "Float8Linear" for part in decoder.modules())
    if not count:
        raise BadInput(
            f"train.precision fp8: a {model.config.model_type} has no matrix that it could multiply; write bf16"
        )
    return count


def takes_part(module: nn.Module, name: str) -> bool:
    return (
        isinstance(module, nn.Linear)
        and module.in_features % MULTIPLE == 0 == module.out_features % MULTIPLE
        and name.rpartition(".")[2] not in ROUTERS
    )
