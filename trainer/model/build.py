"""The model: configuration, weights, vocabulary and the wrapper that turns a packed batch into a loss.

Owns how a base model becomes the thing that is trained. Refuses to know DeepSpeed: it works alike on one process.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from trainer.model import (
    activation_offloading,
    adapter,
    attention,
    compiled,
    float8,
    kernels,
    one_reader,
    router,
    self_test,
)
from trainer.model.packed import Way
from trainer.run import trainable, weight_names
from trainer.run.exits import BadInput
from trainer.run.recomputation import is_recomputed
from trainer.run.settings.model import ModelSpec
from trainer.run.spec import NodeJob

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def build(job: NodeJob, tokenizer: PreTrainedTokenizerBase, alive: Callable[[], None] = lambda: None) -> nn.Module:
    """All ranks: the base model on the CPU in the training precision, its vocabulary grown to the tokenizer's, ready to freeze.
    Where there are several ranks the first alone has the weights (`one_reader`), except of a base that gets adapters.

    Its attribute `way` says how it has to be called for a batch: what the self-test found; `has_grown` whether its vocabulary is
    larger than the base's. `alive` is called after the self-test and after the weights. Raises BadInput for a base that is
    not there, lacks weights, or cannot be trained on such batches.
    """
    spec, train, packing = job.spec.model, job.spec.train, job.spec.data.packing
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    dtype = DTYPES[train.stored_precision]
    if train.precision == "fp8":
        float8.require(job.device, train.zero)
    is_compiled = compiled.is_wanted(train.compile, job.device, train.zero)
    with explained(spec):
        config = read_config(spec)
        verdict = self_test.of_config(config, spec.attention, job.device, train.stored_precision, packing, **options)
        if verdict is not None:
            kind = held(verdict, packing).attention
        else:
            kind = attention.usable(spec.attention, job.device, train.stored_precision, attention.dropout_of(config))[0]
        alive()
        fused = kernels.choose(train.kernels, config, job.device, **options)
        torch.manual_seed(train.seed)

        def empty(dtype: torch.dtype = dtype) -> Any:
            return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kind, **options)

        def whole() -> Any:
            if spec.init == "random":
                return empty(torch.float32).to(dtype)
            more = {}
            if quantised is not None:
                more = {"quantization_config": quantised, "device_map": {"": _loading_device(job)}}
            return _load(spec, config=config, dtype=dtype, attn_implementation=kind, **options, **more)

        quantised = adapter.quantisation(train.adapter, dtype)
        # a family that the twin says nothing of is tested with its weights, and adapters begin from them, on every rank
        is_shared = verdict is not None and train.adapter is None
        model = one_reader.of_first_rank(whole, empty) if is_shared else whole()
        adapter.keep_quantised_layout(model)
        alive()
        if verdict is None:
            verdict = self_test.of_model(model, spec.attention, job.device, train.stored_precision, packing)
            model.set_attn_implementation(held(verdict, packing).attention)
        rows = model.get_input_embeddings().weight.shape[0]
        grow_vocabulary(model, len(tokenizer))
        if fused.is_on:
            kernels.apply(model, job.device)
        if train.precision == "fp8":
            say(f"{float8.apply(model)} matrices of the decoder multiply in fp8")
        recompute(model, train.recompute_every)
        if train.activation_offloading:
            activation_offloading.apply(model, job.device)
    if is_compiled:
        say(f"{compiled.apply(model)} decoder layers are compiled when they are first called")
    model.way = verdict.way
    model.has_grown = len(tokenizer) > rows
    say(verdict.line())
    say(f"attention: {kernel_of(job, model)}")
    if job.device == "cuda":
        say(fused.line())
    if dtype != torch.float32 and router.numbers_of_experts(model):
        num_routers = router.compute_in_fp32(model)
        say(
            f"experts: the routers of {num_routers} layers are computed in fp32"
            if num_routers
            else f"warning: experts: this family's router was not recognised, and is computed in {train.stored_precision}"
        )
    model.config.use_cache = False
    return model


def _loading_device(job: NodeJob) -> str:
    """Where 4-bit weights are made: on this rank's GPU, which is faster, but not where ZeRO-3 is to cut them first."""
    return f"cuda:{torch.cuda.current_device()}" if job.device == "cuda" and job.spec.train.zero != 3 else "cpu"


def kernel_of(job: NodeJob, model: Any) -> str:
    """Which kernel of attention the model runs with, and why."""
    dropout = attention.dropout_of(model.config)
    return attention.described(
        model.way.attention, job.spec.model.attention, job.device, job.spec.train.stored_precision, dropout
    )


def read_config(spec: ModelSpec) -> Any:
    """The base's configuration, with what the job sets in it."""
    config = AutoConfig.from_pretrained(spec.base, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    refused = trainable.refusal(config.to_dict())
    if refused:
        raise BadInput(f"model.base {spec.base!r} cannot be trained: {refused}")
    refuse_unloadable(config)
    text = config.get_text_config(decoder=True)
    if spec.attention_dropout is not None:
        for key in trainable.DROPOUTS:
            if hasattr(text, key):
                setattr(text, key, spec.attention_dropout)
    return config


def refuse_unloadable(config: Any) -> None:
    """Raises BadInput for a family whose causal model is built from a part of its configuration that nobody could load
    again: a run would end with a folder that is no use."""
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    part = getattr(model, "config_class", None)
    if part is not None and part not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInput(
            f"a {config.model_type} cannot be trained: transformers has no way to load its language part ({part.model_type}) "
            "alone, as the finished model would be; choose another base"
        )


def held(verdict: self_test.Verdict, packing: bool) -> Way:
    """The way that holds. Raises BadInput where none does."""
    if verdict.way is None:
        raise BadInput(f"model.base: {verdict.refusal(packing)}")
    return verdict.way


@contextlib.contextmanager
def explained(spec: ModelSpec) -> Iterator[None]:
    """What transformers raises for a base that it cannot build, as a BadInput of one line."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise BadInput(f"model.base {spec.base!r} does not load: {_first_line(error)}") from error


def _load(spec: ModelSpec, **options: Any) -> Any:
    """The base's weights, all of them: transformers starts a missing one from random values and goes on.

    Raises BadInput that names missing weights and those of another shape.
    """
    prefix = spec.weights_prefix
    mapping = {rf"^{re.escape(prefix)}": "", rf"\.{re.escape(prefix)}": "."} if prefix else None
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it would warn of is an error here
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            spec.base, revision=spec.revision, output_loading_info=True, ignore_mismatched_sizes=True,
            key_mapping=mapping, **options,
        )  # fmt: skip
    except (
        RuntimeError
    ) as error:  # weights that cannot be brought into the model's own layout, for example a lost expert
        raise BadInput(f"model.base {spec.base!r} does not load: {_reason(error)}; fetch it again") from error
    finally:
        transformers_logging.set_verbosity(before)
    mismatched = tuple((name, tuple(has), tuple(asked)) for name, has, asked in sorted(info["mismatched_keys"]))
    difference = weight_names.Difference(tuple(sorted(info["missing_keys"])), mismatched, len(model.state_dict()))
    unexpected = sorted(info["unexpected_keys"])
    wrong = weight_names.problem(spec.base, difference, unexpected)
    if wrong:
        raise BadInput(f"model.base {wrong}")
    if prefix:
        say(f"model.base: the prefix {prefix!r} was taken off the names of its weights")
    if unexpected:
        shown = ", ".join(unexpected[:3]) + (", ..." if len(unexpected) > 3 else "")
        say(
            f"warning: model.base has {len(unexpected)} weights that a {type(model).__name__} has no place for, and they "
            f"are not used: {shown}"
        )
    return model


def say(line: str) -> None:
    """Into the run's log, once for all ranks."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def _reason(error: RuntimeError) -> str:
    """The line of transformers' report that says what went wrong, else its first."""
    told = [line.strip() for line in str(error).splitlines() if line.strip().startswith("Error")]
    return told[0] if told else _first_line(error)


def recompute(model: nn.Module, every: int) -> None:
    """Have one layer in `every` recomputed in the backward pass; 0: none. Raises BadInput where a family cannot leave out some."""
    if every == 0:
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if every == 1:
        return
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not layers:
        raise BadInput(
            f"train.gradient_checkpointing every {every}: a {type(model).__name__} recomputes all of its layers or none; "
            "set true or false"
        )
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = is_recomputed(number, every)


def grow_vocabulary(model: nn.Module, size: int) -> None:
    """Grow input and output embeddings to `size` rows; a new row is the mean of the old ones. Never shrinks.

    The mean needs no random numbers, so every rank and every attempt makes the same rows.
    """
    old = model.get_input_embeddings().weight.shape[0]
    if size <= old:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = layer.weight
            weight[old:] = weight[:old].float().mean(0).to(weight.dtype)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
