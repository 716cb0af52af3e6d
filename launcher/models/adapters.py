"""What `train.adapter` makes of a model's shape: small matrices beside its linear layers, which alone are trained.

Owns which layers get them. Refuses to know torch and memory. Where a family names its layers otherwise than by `.weight` of two
sides the trainer's own word, at the load, is the one that counts.
"""

from __future__ import annotations

import dataclasses
import re

from launcher.models.architecture import Architecture, Shapes, TrainedModel
from trainer.run.exits import BadInput
from trainer.run.settings.adapter import AdapterSpec
from trainer.run.settings.train import OptimizerSettings

ROUTERS = (".router.", ".gate.weight", ".mlp.router")
"""Parts of the names of a mixture of experts' routers, which are no linear layers."""


def trained_model(architecture: Architecture, train: OptimizerSettings) -> TrainedModel:
    """What a job makes of a base. `train.unfrozen` is resolved to patterns."""
    if train.adapter is not None:
        return adapted(architecture, train.adapter)
    if train.unfrozen is not None and not isinstance(train.unfrozen, tuple):
        raise TypeError("train.unfrozen must be resolved to patterns")
    return TrainedModel.by_patterns(architecture, train.unfrozen)


def adapted(architecture: Architecture, spec: AdapterSpec) -> TrainedModel:
    """The base's architecture with adapters, and what is trained. BadInput where the target or a whole module is not there."""
    linear = [name for name in architecture.shapes if is_linear(architecture, name)]
    layers = [name for name in linear if _is_target(architecture, name, spec)]
    if not layers:
        kinds = ", ".join(sorted({_leaf(name) for name in linear}))
        raise BadInput(f"train.adapter.target {spec.target!r} names no linear layer of the base; it has {kinds}")
    added: Shapes = {}
    for name in layers:
        out, into = architecture.shapes[name]
        module = name.removesuffix(".weight")
        added[f"{module}.lora_A.weight"] = (spec.rank, into)
        added[f"{module}.lora_B.weight"] = (out, spec.rank)
        if spec.dora:
            added[f"{module}.lora_magnitude_vector.weight"] = (out,)
    whole = {name for name in architecture.shapes if any(_is_in(name, module) for module in spec.modules_to_save)}
    for module in spec.modules_to_save:
        if not any(_is_in(name, module) for name in architecture.shapes):
            raise BadInput(f"train.adapter.modules_to_save: {module!r} names no module of the base")
    quantised = frozenset(linear) - whole if spec.type == "qlora" else frozenset()
    grown = dataclasses.replace(architecture, shapes={**architecture.shapes, **added})
    return TrainedModel(grown, frozenset(added) | whole, quantised)


def without_adapters(architecture: Architecture) -> Architecture:
    """The base's own."""
    own = {name: shape for name, shape in architecture.shapes.items() if ".lora_" not in name}
    return architecture if len(own) == len(architecture.shapes) else dataclasses.replace(architecture, shapes=own)


def is_linear(architecture: Architecture, name: str) -> bool:
    """Whether a parameter is the matrix of a linear layer of the decoder: the embeddings and routers are none."""
    return (
        name.endswith(".weight")
        and len(architecture.shapes[name]) == 2
        and architecture.layer_of(name) is not None
        and name not in architecture.beside
        and not (architecture.expert_share < 1 and any(part in name for part in ROUTERS))
    )


def _is_target(architecture: Architecture, name: str, spec: AdapterSpec) -> bool:
    module = name.removesuffix(".weight")
    if spec.layers is not None and architecture.layer_of(name) not in spec.layers:
        return False
    if any(_is_in(name, left_out) for left_out in spec.exclude):
        return False
    if isinstance(spec.target, str):
        return spec.target == "all-linear" or re.fullmatch(spec.target, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in spec.target)


def _is_in(name: str, module: str) -> bool:
    own = name.rpartition(".")[0]
    return own == module or own.endswith(f".{module}")


def _leaf(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]
