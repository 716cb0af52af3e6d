"""Decoder layers through torch.compile, each by itself: one graph for all layers that are alike, and no parameter has another name.

Owns when that is done. What attends a conversation at a time stays outside of the graphs: its lengths are other ones every time.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import Any, Literal

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.model.packed import decoder_of
from trainer.run.exits import BadInput

MOST_GRAPHS = 64
"""Layers differ in what of them is trained; torch's own limit of 8 would leave the rest as it is, in silence."""


def is_wanted(setting: Literal["auto"] | bool, device: str, zero: int | str) -> bool:
    """Whether layers are to be compiled. `auto` does it on a GPU, unless ZeRO-3 gathers parameters within the layers.

    Raises BadInput where it is asked for and cannot be.
    """
    if setting == "auto":
        return device == "cuda" and zero != 3 and has_compiler()
    if setting and not has_compiler():
        raise BadInput(
            "train.compile true: torch.compile needs a C++ compiler here, and there is none (g++, clang++, CXX): "
            "install one, or write false"
        )
    return setting


def has_compiler() -> bool:
    named = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    return any(shutil.which(name) for name in named)


def apply(model: Any) -> int:
    """Compile the model's decoder layers when they are first called; returns how many. Raises BadInput where there is none."""
    layers = [part for part in decoder_of(model).modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise BadInput(f"train.compile: a {model.config.model_type} has no decoder layers that could be compiled")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    for layer in layers:
        _compile(layer)
    return len(layers)


def _compile(layer: Any) -> None:
    """The family's own method, within the recomputation that transformers puts around it: torch compiles nothing that is called
    through it. Hooks and what a parameter is called stay as they are."""
    plain = torch.compile(type(layer).forward.__wrapped__)

    def forward(*arguments: Any, **named: Any) -> Any:
        if layer.gradient_checkpointing and layer.training:
            return layer._gradient_checkpointing_func(partial(plain, layer, **named), *arguments)
        return plain(layer, *arguments, **named)

    layer.forward = forward
