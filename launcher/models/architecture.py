"""The shape of a model without torch: its parameters by name, and the sizes that memory and FLOPs are counted from.

Owns finding config.json (a folder, the hub's cache, or the table of well-known bases) and the parameter shapes that follow
from it: for the families here by rule, for all others as transformers counts them on the meta device, in a process of its
own. Refuses to load weights and to use the network.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.models.hub_cache import local_folder
from launcher.models.inspected import inspected
from launcher.models.known import KNOWN_CONFIGS
from trainer.run.exits import BadInput
from trainer.run.patterns import match
from trainer.run.weights_index import stored_tensors

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer. Counts are of the whole model; tied embeddings count once, under the input's name."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocabulary: int
    is_tied: bool
    sliding_window: int | None
    shapes: Shapes
    """Parameter name -> shape, in the model's order."""
    source: str
    """Where this was read, for a person."""
    expert_share: float = 1.0
    """Of a layer's experts, the share that a token meets; 1 for a dense model. `intermediate` is then the width of a dense MLP
    with as many weights as a token meets."""
    embedding_name: str = "model.embed_tokens.weight"
    untied_head_name: str = "lm_head.weight"
    layers_path: str = ""
    """What stands before a layer's number in a parameter's name; any number counts where empty."""
    beside: frozenset[str] = frozenset()
    """Parameters that a text never reaches (the towers of a multimodal model): never trained."""
    stored: Shapes | None = None
    """Names and shapes in the files, where they are others than in the model."""

    _layers: dict[int | None, Shapes] = field(init=False, repr=False, compare=False, default_factory=dict)
    """`shapes` by layer: a plan asks for them thousands of times."""

    def __post_init__(self) -> None:
        for name, shape in self.shapes.items():
            self._layers.setdefault(self.layer_of(name), {})[name] = shape

    @property
    def num_parameters(self) -> int:
        return sum(count(shape) for shape in self.shapes.values())

    def layer_of(self, name: str) -> int | None:
        """Index of the layer that a parameter belongs to; None for embeddings, the last norm and the head."""
        if not name.startswith(self.layers_path):
            return None
        return next((int(part) for part in name[len(self.layers_path) :].split(".") if part.isdigit()), None)

    def layer_shapes(self, layer: int) -> Shapes:
        return self._layers.get(layer, {})

    def lowest_reached(self, trained: Set[str]) -> int:
        """Index of the lowest layer that gradients reach; the number of layers where none does."""
        if self.embedding_name in trained:
            return 0
        layers = range(self.num_layers)
        return next((i for i in layers if not trained.isdisjoint(self.layer_shapes(i))), self.num_layers)

    @property
    def head_name(self) -> str:
        """Parameter that makes logits: the input embedding where they are tied."""
        return self.embedding_name if self.is_tied else self.untied_head_name

    def active(self, name: str) -> float:
        """Weights of a matrix that one token meets: all of it, or the share of its experts. 0 for a vector, or a convolution."""
        shape = self.shapes[name]
        if ".experts." in name or name.endswith(".experts"):
            return count(shape) * self.expert_share if len(shape) >= 2 else 0.0
        return float(count(shape)) if len(shape) == 2 else 0.0

    @property
    def num_active(self) -> int:
        """Parameters that one token meets."""
        idle = sum(count(shape) * (1 - self.expert_share) for name, shape in self.shapes.items() if ".experts." in name)
        return int(self.num_parameters - idle)


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def count(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def trainable(architecture: Architecture, patterns: Sequence[str] | None) -> frozenset[str]:
    """Names that `patterns` (re.search) hit; all of them where None. BadInput for a pattern that hits nothing."""
    embedding, head = architecture.embedding_name, architecture.untied_head_name
    names = [name for name in architecture.shapes if name not in architecture.beside]
    if patterns is None:
        return frozenset(names)
    names += [head] if architecture.is_tied and head not in names else []
    try:
        found = match(patterns, names)
    except re.error as error:
        raise BadInput(f"train.unfrozen: {error.pattern!r} is no regular expression: {error.msg}") from None
    if found.missed:
        raise BadInput(
            f"train.unfrozen {found.missed[0]!r} matches no parameter of {architecture.source}; "
            "`dolphin spectrum names MODEL` lists them"
        )
    hit = {embedding if architecture.is_tied and name == head else name for name in found.trainable}
    return frozenset(hit)


@dataclass(frozen=True)
class TrainedModel:
    """A model and which of its parameters a job trains: what memory, arithmetic and traffic are counted from."""

    architecture: Architecture
    trained: frozenset[str]
    """Names of parameters, at least one."""
    quantised: frozenset[str] = frozenset()
    """Names of those that are held in 4 bits."""

    @classmethod
    def by_patterns(cls, architecture: Architecture, patterns: Sequence[str] | None) -> TrainedModel:
        """What `train.unfrozen`, resolved, makes of the model. BadInput for a pattern that hits nothing."""
        return cls(architecture, trainable(architecture, patterns))

    @functools.cached_property
    def num_parameters(self) -> int:
        return self.architecture.num_parameters

    @functools.cached_property
    def num_trained(self) -> int:
        return sum(self._sizes)

    @functools.cached_property
    def num_quantised(self) -> int:
        return sum(count(self.architecture.shapes[name]) for name in self.quantised)

    @functools.cached_property
    def largest_quantised(self) -> int:
        """Elements of the largest parameter that is held in 4 bits; 0 where none is."""
        return max((count(self.architecture.shapes[name]) for name in self.quantised), default=0)

    @functools.cached_property
    def largest_trained(self) -> int:
        """Elements of the largest trained parameter."""
        return max(self._sizes)

    @functools.cached_property
    def _sizes(self) -> list[int]:
        return [count(self.architecture.shapes[name]) for name in self.trained]


def find_architecture(
    base: str, revision: str | None = None, *, cache: Path | None = None, may_ask: bool = True
) -> Architecture:
    """The architecture of a folder or hub id. BadInput where its configuration is not at hand, or its family is not known here
    and transformers cannot be asked. Its answers are kept in the folder `cache`; without `may_ask` (a new question takes
    seconds) only those count."""
    folder = local_folder(base, revision)
    if folder is not None and (folder / "config.json").is_file():
        config, source = read_config(folder), str(folder / "config.json")
        if config.get("model_type") in FAMILIES:
            return from_config(config, source)
        facts = None if cache is None else inspected(folder, cache, may_ask=may_ask)
        return from_config(config, source) if facts is None else from_facts(facts, source)
    known = KNOWN_CONFIGS.get(base.lower().split("/")[-1])
    if known is not None:
        return from_config(known, f"dolphin's table of known models ({base})")
    raise BadInput(
        f"model.base {base}: is no folder here, not in the hub's cache and not in the table of known models; "
        "fetch its config.json into a folder and give that"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of config.json in `folder`. BadInput where it is no JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadInput(f"{path}: is not JSON ({error}); fetch the model again") from None
    if not isinstance(config, dict):
        raise BadInput(f"{path}: is no configuration; fetch the model again")
    return config


def from_facts(facts: dict[str, Any], source: str) -> Architecture:
    """From what `trainer.model.inspect` tells."""
    return Architecture(
        hidden=facts["hidden"], intermediate=facts["intermediate"],
        num_layers=facts["num_layers"], num_heads=facts["num_heads"], num_kv_heads=facts["num_kv_heads"],
        head_size=facts["head_size"], vocabulary=facts["vocabulary"], is_tied=facts["is_tied"],
        sliding_window=facts["sliding_window"], shapes=_tuples(facts["shapes"]), source=source,
        expert_share=facts["expert_share"], embedding_name=facts["embedding_name"],
        untied_head_name=HEAD if facts["is_tied"] else facts["head_name"], layers_path=facts["layers_path"],
        beside=frozenset(facts["beside"]), stored=_tuples(facts["stored"]),
    )  # fmt: skip


def _tuples(shapes: dict[str, list[int]]) -> Shapes:
    return {name: tuple(shape) for name, shape in shapes.items()}


def stored_shapes(folder: str | Path) -> Shapes:
    """Names and shapes as the safetensors headers have them. BadInput where the folder holds none."""
    return {name: tensor.shape for name, tensor in stored_tensors(folder).items()}


def from_config(config: dict[str, Any], source: str) -> Architecture:
    """From the contents of config.json. BadInput for a family whose parameters this module does not know."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise BadInput(
            f"{source}: model_type {family!r} is not one that dolphin can plan ({', '.join(FAMILIES)}); "
            "`dolphin launch` trains it without a plan"
        )
    try:
        heads = config["num_attention_heads"]
        hidden, intermediate = config["hidden_size"], config["intermediate_size"]
        layers, vocabulary = config["num_hidden_layers"], config["vocab_size"]
    except KeyError as error:
        raise BadInput(f"{source}: lacks {error.args[0]}, without which no plan can be made") from None
    sizes = {
        "hidden": hidden, "intermediate": intermediate, "num_layers": layers, "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_size": config.get("head_dim") or _default_head_size(family, hidden, heads),
        "vocabulary": vocabulary,
        "is_tied": bool(config.get("tie_word_embeddings", family in TIED_BY_DEFAULT)),
    }  # fmt: skip
    window = (
        config.get("sliding_window") if config.get("use_sliding_window", family not in ("qwen2", "qwen3")) else None
    )
    return Architecture(
        **sizes, sliding_window=window, source=source, shapes=_shapes(family, config, sizes),
    )  # fmt: skip


FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "smollm3")
"""Families whose parameters follow from config.json here; a test builds each with transformers and compares."""
TIED_BY_DEFAULT = ("gemma", "gemma2", "smollm3")
_TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS = (*_TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_NORMS = {"gemma2": _FOUR_NORMS, "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm")}


def _default_head_size(family: str, hidden: int, heads: int) -> int:
    return {"gemma": 256, "gemma2": 256, "qwen3": 128}.get(family, hidden // heads)


def _shapes(family: str, config: dict[str, Any], sizes: dict[str, Any]) -> Shapes:
    hidden, vocabulary = sizes["hidden"], sizes["vocabulary"]
    shapes: Shapes = {EMBEDDING: (vocabulary, hidden)}
    for layer in range(sizes["num_layers"]):
        for name, shape in _layer(family, config, sizes).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes["model.norm.weight"] = (hidden,)
    if not sizes["is_tied"]:
        shapes[HEAD] = (vocabulary, hidden)
    return shapes


def _layer(family: str, config: dict[str, Any], sizes: dict[str, Any]) -> Shapes:
    hidden, intermediate = sizes["hidden"], sizes["intermediate"]
    query, key = sizes["num_heads"] * sizes["head_size"], sizes["num_kv_heads"] * sizes["head_size"]
    shapes: Shapes = {}

    def linear(name: str, out: int, inner: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (out, inner)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    biased = bool(config.get("attention_bias", False))
    if family == "phi3":
        linear("self_attn.o_proj", hidden, query, False)
        linear("self_attn.qkv_proj", query + 2 * key, hidden, False)
        linear("mlp.gate_up_proj", 2 * intermediate, hidden, False)
        linear("mlp.down_proj", hidden, intermediate, False)
    else:
        for name, out in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
            linear(f"self_attn.{name}", out, hidden, biased or family == "qwen2")
        linear("self_attn.o_proj", hidden, query, biased)
        if family == "qwen3":
            shapes |= {f"self_attn.{name}.weight": (sizes["head_size"],) for name in ("q_norm", "k_norm")}
        if family == "olmo2":
            shapes |= {"self_attn.q_norm.weight": (query,), "self_attn.k_norm.weight": (key,)}
        mlp_bias = bool(config.get("mlp_bias", False))
        linear("mlp.gate_proj", intermediate, hidden, mlp_bias)
        linear("mlp.up_proj", intermediate, hidden, mlp_bias)
        linear("mlp.down_proj", hidden, intermediate, mlp_bias)
    shapes |= {f"{name}.weight": (hidden,) for name in _NORMS.get(family, _TWO_NORMS)}
    return shapes
