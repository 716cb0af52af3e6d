"""Where DeepSpeed keeps a model's training state: masters and the optimizer's moments, by parameter name and flat range.

The only module that knows DeepSpeed's optimizers from inside. Owns which elements this rank holds, reading them, and
putting others in their place, low-precision copies included. Refuses to know files, and which moments there are.

A parameter of n elements, flattened, is cut differently by every stage: ZeRO-3 gives rank r of W the elements from
r * ceil(n / W); ZeRO-1 and 2 cut one long row of all parameters of a group; without ZeRO every rank holds everything.
What is handed out is in terms of the parameter alone, so that any cut can be put together from any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from trainer.engine.adamw_8bit import AdamW8bit
from trainer.engine.muon import Muon, Range
from trainer.model.packed import hf_name
from trainer.run.optimizer_state import OptimizerState, StateTensor

Live: TypeAlias = torch.Tensor | Callable[[], torch.Tensor]
"""A vector of live state; or what makes one in fp32 of it, on the device and stream of the call, where it is held otherwise."""


@dataclass(frozen=True, slots=True)
class ParameterShard:
    """Elements [start, start + numel) of the flattened parameter `name`: a vector of `numel` elements for each tensor of
    the optimizer's state, in its order.

    The vectors are views of live state: copy them before the next update.
    """

    name: str
    start: int
    numel: int
    shape: tuple[int, ...]
    """Of the whole parameter."""
    tensors: tuple[Live, ...]


ReadRange = Callable[[str, int, int], tuple[torch.Tensor, ...]]
"""(name, start, numel) -> each tensor of the state of that range, on the CPU."""


@dataclass(frozen=True, slots=True)
class _Held:
    """A range that this rank's optimizer holds: `numel` elements of `holder` from `offset`."""

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    holder: torch.Tensor
    """The tensor that the inner optimizer updates, and the key of its state."""
    offset: int
    is_replicated: bool
    """Every rank holds this same range."""


def iterate_shards(engine: Any, kept: OptimizerState) -> Iterator[ParameterShard]:
    """The ranges that this rank has to save. Over all ranks they cover each trainable parameter exactly once.

    Replicated state is shared out evenly, so that all ranks write. Parameters that no step has updated yet have moments
    of 0, as the optimizer itself would make them.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    inner = _inner_optimizer(engine)
    for held in _held_ranges(engine):
        start, numel = held.start, held.numel
        if held.is_replicated:
            share = -(-numel // world_size)
            start = min(rank * share, numel)
            numel = min(share, numel - start)
        if numel == 0:
            continue
        offset = held.offset + start - held.start
        moments = tuple(_moment(inner, moment, held.holder, offset, numel) for moment in kept.moments)
        master = held.holder.detach().view(-1).narrow(0, offset, numel)
        yield ParameterShard(held.name, start, numel, held.shape, (master, *moments))


def _moment(inner: torch.optim.Optimizer, moment: StateTensor, holder: torch.Tensor, offset: int, numel: int) -> Live:
    updated = inner.state.get(holder) or {}
    if moment.name not in updated:
        zeros: Live = torch.zeros(numel)
        return zeros
    if isinstance(inner, AdamW8bit):
        return partial(inner.moment, holder, moment, offset, numel)
    found: Live = updated[moment.name].detach().view(-1).narrow(0, offset, numel)
    return found


def optimizer_step(engine: Any) -> int:
    """Updates that Adam's bias correction counts; the same on all ranks."""
    for state in _inner_optimizer(engine).state.values():
        if "step" in state:
            return int(state["step"])
    return 0


def call_before_update(engine: Any, hook: Callable[[], None]) -> None:
    """Have `hook` called in the training thread before every change of masters or moments, whoever asks for the step."""
    _inner_optimizer(engine).register_step_pre_hook(lambda *_: hook())


def is_offloaded(engine: Any) -> bool:
    """Whether masters and moments are in host memory because DeepSpeed was told to keep them there."""
    return bool(
        getattr(engine.optimizer, "cpu_offload", False) or getattr(engine.optimizer, "offload_optimizer", False)
    )


def trainable_shapes(engine: Any) -> dict[str, tuple[int, ...]]:
    """Whole shapes of the parameters that the optimizer updates, on any rank."""
    return {name: _whole_shape(p) for name, p in _named_parameters(engine) if p.requires_grad}


@torch.no_grad()
def fill_shards(engine: Any, kept: OptimizerState, read: ReadRange, optimizer_step: int) -> None:
    """Replace this rank's masters and moments by what `read` gives; no collective, before or after any number of steps.

    `refresh_parameters` must follow, on all ranks. An error of `read` leaves the engine half filled: fill it again, or
    give it up.
    """
    inner = _inner_optimizer(engine)
    groups = _group_of_holder(engine)
    for holder, ranges in _by_holder(engine):
        state = _fresh_state(kept, ranges[0], groups[id(holder)], optimizer_step)  # padding: 0, as a step would make it
        for held in ranges:
            if held.numel == 0:
                continue
            master, *moments = read(held.name, held.start, held.numel)
            holder.detach().view(-1).narrow(0, held.offset, held.numel).copy_(master)
            for moment, values in zip(kept.moments, moments, strict=True):
                if moment.name in state:
                    state[moment.name].view(-1).narrow(0, held.offset, held.numel).copy_(values)
        if isinstance(inner, AdamW8bit):
            inner.set_moments(holder, optimizer_step, {m.name: state[m.name].view(-1) for m in kept.moments})
        else:
            inner.state[holder] = state


@torch.no_grad()
def set_masters(engine: Any, values: Mapping[str, torch.Tensor]) -> None:
    """Replace whole parameters, by transformers' names, before the first step. All ranks call it, with the same values."""
    for held in _held_ranges(engine):
        if held.name in values and held.numel:
            flat = values[held.name].reshape(-1).narrow(0, held.start, held.numel)
            held.holder.detach().view(-1).narrow(0, held.offset, held.numel).copy_(flat)
    refresh_parameters(engine)


def _by_holder(engine: Any) -> Iterator[tuple[torch.Tensor, list[_Held]]]:
    """What this rank holds, tensor by tensor."""
    found: dict[int, list[_Held]] = {}
    for held in _held_ranges(engine):
        found.setdefault(id(held.holder), []).append(held)
    for ranges in found.values():
        yield ranges[0].holder, ranges


def attach_optimizer(engine: Any) -> None:
    """Tell an optimizer that needs whole matrices where their elements are. All ranks call it, before the first step."""
    inner = _inner_optimizer(engine)
    if not isinstance(inner, Muon):
        return
    holders: dict[int, torch.Tensor] = {}
    ranges: dict[int, list[Range]] = {}
    is_replicated = False
    for held in _held_ranges(engine):
        is_replicated = is_replicated or held.is_replicated
        holders[id(held.holder)] = held.holder
        here = Range(held.name, held.shape, held.start, held.numel, held.offset)
        ranges.setdefault(id(held.holder), []).append(here)
    inner.attach(list(holders.values()), list(ranges.values()), is_replicated)


@torch.no_grad()
def refresh_parameters(engine: Any) -> None:
    """Make the parameters that the forward pass uses from the masters. All ranks call it (it gathers over them)."""
    optimizer = engine.optimizer
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        # small "persistent" parameters are whole on every rank: they are let go first, or their old values would stay
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        for group_index in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group_index)
        optimizer.checkpoint_event_epilogue()
    elif isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
        optimizer._hp_optimizer_states_linked = False
        optimizer.update_lp_params()
    elif isinstance(optimizer, FP16_UnfusedOptimizer):
        for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, master in zip(low, high, strict=True):
                parameter.data.copy_(master.data)
    elif isinstance(optimizer, FP16_Optimizer):
        for low_flat, high_flat in zip(optimizer.fp16_groups_flat, optimizer.fp32_groups_flat, strict=True):
            low_flat.data.copy_(high_flat.data)  # the parameters are views of the flat tensor


def _held_ranges(engine: Any) -> Iterator[_Held]:
    """What this rank's optimizer holds of each parameter, in the optimizer's order, empty ranges included."""
    optimizer = engine.optimizer
    names = {id(p): name for name, p in _named_parameters(engine)}
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        yield from _held_stage_3(optimizer, names)
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        yield from _held_in_row(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, names)
    elif isinstance(optimizer, BF16_Optimizer):
        yield from _held_in_row(optimizer.bf16_groups, optimizer.fp32_groups_flat_partition, names)
    elif isinstance(optimizer, FP16_UnfusedOptimizer):
        for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, master in zip(low, high, strict=True):
                yield _whole(names[id(parameter)], parameter, master, 0)
    elif isinstance(optimizer, FP16_Optimizer):
        for low, flat in zip(optimizer.fp16_groups, optimizer.fp32_groups_flat, strict=True):
            offset = 0
            for parameter in low:
                yield _whole(names[id(parameter)], parameter, flat, offset)
                offset += parameter.numel()
    elif isinstance(optimizer, torch.optim.Optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield _whole(names[id(parameter)], parameter, parameter, 0)
    else:
        raise TypeError(f"no state can be read from DeepSpeed's {type(optimizer).__name__}")


def _held_stage_3(optimizer: DeepSpeedZeroOptimizer_Stage3, names: dict[int, str]) -> Iterator[_Held]:
    for group in optimizer.fp16_groups:
        for parameter in group:
            group_index, offset, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
            whole = parameter.ds_numel
            start = min(dist.get_rank(group=parameter.ds_process_group) * share, whole)
            holder = optimizer.fp32_partitioned_groups_flat[group_index]
            yield _Held(
                names[id(parameter)], tuple(parameter.ds_shape), start, min(share, whole - start), holder, offset, False
            )


def _held_in_row(groups: list[Any], partitions: list[torch.Tensor], names: dict[int, str]) -> Iterator[_Held]:
    """ZeRO-1 and 2, and their bf16 kin: a group's parameters in one row, cut into one partition for each rank."""
    for group, partition in zip(groups, partitions, strict=True):
        for parameter in group:
            name, shape, mapping = names[id(parameter)], tuple(parameter.shape), parameter._hp_mapping
            if mapping is None:
                yield _Held(name, shape, 0, 0, partition, 0, False)
                continue
            here = mapping.lp_fragment_address
            yield _Held(name, shape, here.start, here.numel, partition, mapping.hp_fragment_address.start, False)


def _whole(name: str, parameter: torch.Tensor, holder: torch.Tensor, offset: int) -> _Held:
    return _Held(name, tuple(parameter.shape), 0, parameter.numel(), holder, offset, True)


def _named_parameters(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters under their transformers names; tied ones once."""
    for name, parameter in engine.module.named_parameters():
        yield hf_name(name), parameter


def _whole_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that computes the updates, inside DeepSpeed's."""
    optimizer = engine.optimizer
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer.optimizer


def _group_of_holder(engine: Any) -> dict[int, dict[str, Any]]:
    """Parameter group of the inner optimizer that each held tensor belongs to."""
    optimizer, inner = engine.optimizer, _inner_optimizer(engine)
    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):  # its inner groups are empty between steps
        holders = enumerate(optimizer.fp32_partitioned_groups_flat)
        return {id(h): inner.param_groups[optimizer.sub_group_to_group_id[i]] for i, h in holders}
    return {id(holder): group for group in inner.param_groups for holder in group["params"]}


def _fresh_state(kept: OptimizerState, held: _Held, group: dict[str, Any], step: int) -> dict[str, torch.Tensor]:
    """The state for a holder as optimizers make it at their first step, moments of 8 bits in fp32, with the count of updates
    that Adam's kind has; the others do not look at it."""
    holder = held.holder
    on_device = bool(group.get("capturable") or group.get("fused") or "is_matrix" in group)
    return {
        "step": torch.tensor(float(step), dtype=torch.float32, device=holder.device if on_device else "cpu"),
        **{
            moment.name: torch.zeros_like(
                holder,
                dtype=torch.float32 if moment.block else getattr(torch, moment.dtype),
                memory_format=torch.preserve_format,
            ).detach()
            for moment in kept.moments_of(held.name, held.shape)
        },
    }
