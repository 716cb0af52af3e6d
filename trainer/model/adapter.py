"""Adapters: LoRA's small matrices beside the layers of a frozen base, and the base in 4 bits for QLoRA.

Owns what `train.adapter` means for a model. peft makes the layers and knows their arithmetic, bitsandbytes holds 4-bit weights.
Refuses to know DeepSpeed and files. The adapted model keeps its class and its forward, so that everything that trains it
sees one more set of parameters and nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from trainer.data.tokenizer import added_token_ids
from trainer.model import quiet, token_rows
from trainer.model.freeze import FreezeReport
from trainer.model.packed import beside_language
from trainer.run.exits import BadInput
from trainer.run.settings.adapter import AdapterSpec
from trainer.run.spec import NodeJob

WRAPPED = "base_model.model."
"""What peft's files have before transformers' names."""


@dataclass
class Adapter:
    """What was put into a model, and what it takes to write it down."""

    spec: AdapterSpec
    peft: Any
    """peft's wrapper around the model."""
    whole: dict[str, tuple[str, ...]]
    """Module of `modules_to_save` -> its parameters, by transformers' names."""
    has_grown: bool = False
    """The vocabulary is larger than the base's."""
    token_ids: tuple[int, ...] = ()
    """Rows of the embeddings that are trained alone."""
    initial: dict[str, torch.Tensor] = field(default_factory=dict)
    """The matrices that an initialisation took out of the base: what is learnt is the difference from them."""


def quantisation(spec: AdapterSpec | None, dtype: torch.dtype) -> Any:
    """transformers' configuration for a base in 4 bits (NF4, double quantisation); None where it is not to be.

    The 4-bit codes are stored as numbers of the training precision, so that ZeRO-3 can cut them as it cuts any weight.
    """
    if spec is None or spec.type != "qlora":
        return None
    from transformers import BitsAndBytesConfig

    quiet.bitsandbytes()
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )  # fmt: skip


def keep_quantised_layout(model: nn.Module) -> None:
    """bitsandbytes packs a layer's codes anew, and rounds its scales, at the first evaluation on some CPUs: a run that was
    evaluated would go on with other weights than one that was resumed."""
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False


def of_job(model: Any, job: NodeJob, tokenizer: Any) -> Adapter | None:
    """The adapter that the job asks for, put into `model`; None where it trains the base itself."""
    spec = job.spec.train.adapter
    if spec is None:
        return None
    quiet.bitsandbytes()
    adapter = inject(model, spec, added_token_ids(job.spec.model, tokenizer), job.spec.train.seed)
    adapter.has_grown = model.has_grown
    return adapter


def inject(model: Any, spec: AdapterSpec, token_ids: tuple[int, ...], seed: int) -> Adapter:
    """Put adapters into `model`, freeze everything else, and return what was done. `token_ids` are the tokens that the job
    adds and that its data uses.

    Raises BadInput for targets or modules that are not there, tied embeddings of which one side is named, and added tokens
    whose rows nothing would train.
    """
    model.requires_grad_(False)
    whole = _modules_to_save(model, spec.modules_to_save)
    _refuse_half_tied(model, whole)
    _refuse_untrained_tokens(model, spec, whole, token_ids)
    _refuse_empty_target(model, spec)
    torch.manual_seed(seed)
    adapter = Adapter(spec, _wrap(model, spec), whole)
    if spec.changes_base:
        adapter.initial = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        }
    for names in whole.values():
        for name in names:
            model.get_parameter(name).requires_grad_(True)
    if spec.trainable_tokens and token_ids:
        adapter.token_ids = token_ids
        token_rows.attach(model, token_ids)
    return adapter


def report(model: nn.Module, adapter: Adapter) -> FreezeReport:
    """What is trained, of how much. A 4-bit weight counts the numbers that it stands for."""
    beside = beside_language(model)
    total = trained = untouched = 0
    names = []
    for name, parameter in model.named_parameters():
        size = _num_elements(parameter)
        total += size
        untouched += size if name in beside else 0
        if parameter.requires_grad:
            trained += size
            names.append(name)
    return FreezeReport(total, trained, tuple(names), untouched)


def _num_elements(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()


def _wrap(model: Any, spec: AdapterSpec) -> Any:
    from peft import LoraConfig, get_peft_model

    beginning: Any = spec.init if spec.changes_base else True
    config = LoraConfig(
        task_type="CAUSAL_LM", r=spec.rank, lora_alpha=spec.alpha, lora_dropout=spec.dropout, bias="none",
        target_modules=_target(model, spec),
        exclude_modules=list(spec.exclude) or None,
        layers_to_transform=list(spec.layers) if spec.layers is not None else None,
        use_rslora=spec.rslora, use_dora=spec.dora, init_lora_weights=beginning,
    )  # fmt: skip
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise BadInput(f"train.adapter: {str(error).strip().splitlines()[0]}") from error


def _target(model: Any, spec: AdapterSpec) -> str | list[str]:
    """As peft takes it: `all-linear` in some layers only has to be said by names."""
    if spec.target != "all-linear" or spec.layers is None:
        return spec.target if isinstance(spec.target, str) else list(spec.target)
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, part in model.named_modules()
            if isinstance(part, nn.Linear) and part is not head
        }
    )


def linear_names(model: nn.Module) -> list[str]:
    """Modules that an adapter can stand beside, by name."""
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]


def _refuse_empty_target(model: Any, spec: AdapterSpec) -> None:
    names = linear_names(model)
    if spec.target == "all-linear":
        return
    asked = (spec.target,) if isinstance(spec.target, str) else spec.target
    for target in asked:
        if isinstance(spec.target, str):
            hits = [name for name in names if re.fullmatch(target, name)]
        else:
            hits = [name for name in names if name == target or name.endswith(f".{target}")]
        head = [name for name, part in _embeddings(model) if part is model.get_output_embeddings() and name in hits]
        if head:
            raise BadInput(
                f"train.adapter.target: {target!r} is the output embedding, which takes no adapter here: train it whole by "
                f"train.adapter.modules_to_save: [{head[0].rpartition('.')[2]}], or write a target that leaves it out"
            )
        if not hits:
            kinds = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise BadInput(f"train.adapter.target: {target!r} names no linear layer of the base; it has {kinds}")


def _modules_to_save(model: nn.Module, wanted: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in wanted:
        modules = {n: m for n, m in model.named_modules() if n == name or n.endswith(f".{name}")}
        if not modules:
            kinds = ", ".join(
                sorted({n.rpartition(".")[2] for n, m in model.named_modules() if not list(m.children()) and n})
            )
            raise BadInput(f"train.adapter.modules_to_save: {name!r} names no module of the base; it has {kinds}")
        for path, module in modules.items():
            found[path] = tuple(f"{path}.{own}" for own, _ in module.named_parameters())
    return found


def _refuse_half_tied(model: Any, whole: dict[str, tuple[str, ...]]) -> None:
    """With tied embeddings one matrix serves both ends: a file that holds it for one end loads as two that differ."""
    ends = _embeddings(model)
    if len(ends) == 2 and ends[0][1].weight is ends[1][1].weight:
        named = [name for name, _ in ends if name in whole]
        if len(named) == 1:
            other = next(name for name, _ in ends if name not in whole)
            raise BadInput(
                f"train.adapter.modules_to_save names {named[0]} and not {other}, which is the same matrix in this base "
                "(tied embeddings): name both, or neither"
            )


def _refuse_untrained_tokens(
    model: Any, spec: AdapterSpec, whole: dict[str, tuple[str, ...]], token_ids: tuple[int, ...]
) -> None:
    ends = [name for name, _ in _embeddings(model)]
    trained = [name for name in ends if name in whole]
    if spec.trainable_tokens and trained:
        raise BadInput(
            f"train.adapter.trainable_tokens contradicts modules_to_save, which trains {trained[0]} whole; remove one"
        )
    if token_ids and not spec.trainable_tokens and len(trained) < len(ends):
        leaf = ", ".join(name.rpartition(".")[2] for name in ends)
        raise BadInput(
            f"the job adds {len(token_ids)} tokens (ids {', '.join(map(str, token_ids[:4]))}) whose embedding rows no adapter "
            "trains: the model could neither read nor write them. Set train.adapter.trainable_tokens: true, or "
            f"train.adapter.modules_to_save: [{leaf}], or use tokens that the base already has"
        )


def _embeddings(model: Any) -> list[tuple[str, Any]]:
    """Input and output embedding with their names."""
    wanted = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    names = {id(module): name for name, module in model.named_modules()}
    return [(names[id(part)], part) for part in wanted]
