"""The self-test at load: does a conversation packed with others give the logits, and the gradients, that it gives alone?

Owns the comparison, its tolerances and the choice of the way in which a family's decoder is called. It runs on a small twin of
the model (same code, same switches) with random weights, or on the model itself where no twin can be made. What it finds
covers masks that are not built, states that run on from one conversation into the next, arguments that are ignored, and
anything that is done to logits: the reference is the model's own forward and backward, one conversation at a time.
Where a kernel of a GPU is to be tried, the twin has the heads' real size, which not every kernel takes.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from trainer.model import attention, twin
from trainer.model.packed import PackedModel, Way, decoder_of
from trainer.run.exits import BadInput

LENGTHS = (11, 17, 6)
"""Tokens of the conversations that are packed: longer than a twin's window, and than any convolution."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""Largest difference of a logit, in standard deviations of the logits. In fp32 equal ways differ by 1e-5 at most; bf16 keeps
8 bits: 0.01 to 0.04 were seen. A conversation that sees another differs by 0.3 to 8."""
REPEATS = {torch.float32: 1, torch.bfloat16: 6}
"""Sets of conversations. Rounding sends a token of a mixture of experts to another expert now and then, a neighbour is seen
every time: of each position, the least difference counts."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one way gave."""

    way: Way
    difference: float
    """In standard deviations of the logits; infinite where it could not be run."""
    gradient: float = 0.0
    """Of a gradient by an input embedding, in shares of its length; 0 where logits differ already."""
    error: str = ""

    @property
    def worst(self) -> float:
        return max(self.difference, self.gradient)


@dataclass(frozen=True, slots=True)
class Verdict:
    family: str
    trials: tuple[Trial, ...]
    """In the order of preference; the last one is the one that holds, where one does."""
    tolerance: float
    is_of_twin: bool

    @property
    def way(self) -> Way | None:
        """The first way in which a conversation sees itself alone; None where there is none."""
        last = self.trials[-1] if self.trials else None
        return last.way if last and last.worst <= self.tolerance else None

    def refusal(self, packing: bool) -> str:
        """Why this family cannot be trained so, and what to do."""
        ran = [trial for trial in self.trials if not trial.error]
        if not ran:
            return f"a {self.family} cannot be run on a batch ({self.trials[0].error}); choose another base"
        least = min(trial.difference for trial in ran)
        if least <= self.tolerance:
            gradient = min(trial.gradient for trial in ran if trial.difference <= self.tolerance)
            return (
                f"a {self.family} gives its logits, but gradients that differ from those of each conversation alone by "
                f"{gradient:.2g} of their length, with every attention that can run here; choose another base"
            )
        if packing:
            return (
                f"a {self.family} does not keep packed conversations apart: its logits differ by {least:.2g} standard "
                "deviations from those of each conversation alone (a layer carries something into the next one); set data.packing: false"
                + "".join(f", or install {name}" for name in self.wanted())
            )
        return (
            f"a {self.family} gives other logits in a padded row than alone (they differ by {least:.2g} standard "
            "deviations): it does more than a causal language model; choose another base"
        )

    def wanted(self) -> list[str]:
        """Packages that transformers names as what would keep conversations apart."""
        told = [re.search(r"without `([\w-]+)`", trial.error) for trial in self.trials]
        return [" and ".join(dict.fromkeys(match[1] for match in told if match))] if any(told) else []

    def line(self) -> str:
        """For the log, and for a person before a launch."""
        if self.way is None:
            return f"packing: {self.refusal(True)}"
        where = "a small random twin" if self.is_of_twin else "the model itself"
        tried = [trial for trial in self.trials[:-1] if trial.way.attention != self.way.attention]
        instead = f"; {tried[0].way.attention} does not serve ({_why(tried[0])})" if tried else ""
        return (
            f"packing: {self.family} checked on {where}, conversations together and alone differ by "
            f"{self.trials[-1].difference:.1g} standard deviations of a logit, {self.trials[-1].gradient:.1g} of a gradient "
            f"({self.way}{instead})"
        )


def of_config(
    config: Any, requested: str, device: str, precision: str, packing: bool, **options: Any
) -> Verdict | None:
    """On a twin of what `config` describes. None where no twin can be made; then `of_model` is asked.

    Raises BadInput for an attention that cannot run here.
    """
    ways = _ways(config, requested, device, precision, packing)
    sizes = (True, False) if any(way.attention in attention.HALF for way in ways) else (False,)
    for has_real_heads in sizes:
        model = twin.make(config, has_real_heads=has_real_heads, **options)
        found = _verdict(model, ways, torch.device(device), is_of_twin=True) if model is not None else None
        if found is not None:
            return found
    return None


def of_model(model: nn.Module, requested: str, device: str, precision: str, packing: bool) -> Verdict:
    """On the model itself, where it is and as it is."""
    where = next(model.parameters()).device
    verdict = _verdict(model, _ways(model.config, requested, device, precision, packing), where, is_of_twin=False)
    assert verdict is not None
    return verdict


def _ways(config: Any, requested: str, device: str, precision: str, packing: bool) -> list[Way]:
    """Ways to try, the fastest first. A kernel that was asked for by name has no substitute."""
    first = list(attention.usable(requested, device, precision, attention.dropout_of(config)))
    kinds = first if requested not in ("auto", "sdpa") else [*first, "sdpa", "eager"]
    ways = [Way(kind, sequence_index=index) for kind in first for index in (False, True)]
    ways += [Way(kind, boundaries=False) for kind in kinds if kind not in _OURS]
    if not packing:
        ways += [Way(kind, boundaries=False, rows=True) for kind in kinds if kind not in _OURS]
    return ways


def _verdict(model: Any, ways: list[Way], device: torch.device, *, is_of_twin: bool) -> Verdict | None:
    """None for a twin that cannot be run even on one conversation: it was made small in a way that its family does not bear."""
    family = str(model.config.get_text_config().model_type)
    was_training = model.training
    model.eval()
    if is_of_twin:
        model.to(device)
    trials: list[Trial] = []
    dtype = next(model.parameters()).dtype
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        sets = [_conversations(model, seed) for seed in range(REPEATS.get(dtype, 6) if device.type == "cpu" else 6)]
        try:
            model.set_attn_implementation("eager")
            alone = [
                [model(input_ids=ids.to(device), use_cache=False).logits.float().cpu() for ids in conversations]
                for conversations in sets
            ]
            gradients = [_gradients_alone(model, conversations, device) for conversations in sets]
        except Exception as error:
            if is_of_twin:
                return None
            return Verdict(family, (Trial(ways[0], float("inf"), error=_told(error)),), 0.0, is_of_twin)
        spread = torch.cat(alone[0], dim=1).std().item()
        head = model.get_output_embeddings()
        for way in ways:
            # half precision is what kernels of a GPU are made for
            kind = torch.bfloat16 if device.type == "cuda" and way.attention in attention.HALF else dtype
            trials.append(_trial(model, way, sets, alone, gradients, spread, device, kind))
            model.set_output_embeddings(head)
            if trials[-1].worst <= TOLERANCE.get(kind, 0.15):
                break
    model.train(was_training)
    used = torch.bfloat16 if device.type == "cuda" and trials[-1].way.attention in attention.HALF else dtype
    return Verdict(family, tuple(trials), TOLERANCE.get(used, 0.15), is_of_twin)


_OURS = (attention.SEGMENTED, attention.VARLEN)


def _trial(
    model: Any, way: Way, sets: list[list[torch.Tensor]], alone: list[list[torch.Tensor]],
    gradients_alone: list[list[torch.Tensor]], spread: float, device: torch.device, dtype: torch.dtype,
) -> Trial:  # fmt: skip
    """Many parameters: one way to pack, and all that it is held against."""
    try:
        if (way.boundaries or way.sequence_index) and not _takes_more(decoder_of(model)):
            return Trial(way, float("inf"), error=f"{type(decoder_of(model)).__name__} takes no boundaries")
        model.set_attn_implementation(way.attention)
        tested = model if dtype == next(model.parameters()).dtype else copy.deepcopy(model).to(dtype)
        packed = PackedModel(tested.to(device), loss_chunk=1, way=way, router_loss=0.0)
        together = [_logits(packed, conversations, device) for conversations in sets]
        difference = _worst(together, alone, lambda a, b: (a - b).abs().amax(-1) / spread) if spread > 0 else math.inf
        if not difference <= TOLERANCE.get(dtype, 0.15):
            return Trial(way, difference)
        gradients = [_gradients(packed, conversations, device) for conversations in sets]
        return Trial(way, difference, _worst(gradients, gradients_alone, _share))
    except BadInput as error:
        return Trial(way, float("inf"), error=str(error))
    except Exception as error:
        return Trial(way, float("inf"), error=_told(error))


def _share(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)


def _worst(
    sets: list[list[torch.Tensor]],
    alone: list[list[torch.Tensor]],
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> float:
    """Of all positions, the largest of the least difference over the sets; infinite where one is no number. 0 for nothing."""
    by_position = [
        torch.cat([measure(a, b) for a, b in zip(ours, theirs, strict=True)], dim=1)
        for ours, theirs in zip(sets, alone, strict=True)
        if theirs
    ]
    found = torch.stack(by_position).amin(0).max().item() if by_position else 0.0
    return found if math.isfinite(found) else math.inf


def _takes_more(decoder: nn.Module) -> bool:
    parameters = inspect.signature(decoder.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _conversations(model: Any, seed: int) -> list[torch.Tensor]:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, min(vocabulary, 32_000), (1, length), generator=generator) for length in LENGTHS]


def _logits(packed: PackedModel, conversations: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Of each conversation (1, T, V)."""
    return _apart(packed.way, packed.head.logits(_hidden(packed, conversations, device)).float().cpu())


def _gradients(packed: PackedModel, conversations: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Of a weighted sum of each conversation's last hidden states by its input embeddings (1, T, H)."""
    weights = _weights(packed, conversations)
    if packed.way.rows:
        longest = max(LENGTHS)
        weights = [F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in weights]
    weight = torch.cat(weights, dim=0 if packed.way.rows else 1)
    found = _by_embeddings(packed.model, lambda: _hidden(packed, conversations, device), weight)
    return _apart(packed.way, found) if found is not None else []


def _gradients_alone(model: Any, conversations: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    def last_hidden(ids: torch.Tensor) -> Any:
        return decoder_of(model)(input_ids=ids.to(device), use_cache=False).last_hidden_state

    pairs = zip(conversations, _weights(model, conversations), strict=True)
    found = [_by_embeddings(model, partial(last_hidden, ids), weight) for ids, weight in pairs]
    return [one for one in found if one is not None]


def _weights(model: Any, conversations: list[torch.Tensor]) -> list[torch.Tensor]:
    width = (model.model if isinstance(model, PackedModel) else model).get_output_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, ids.shape[1], width, generator=generator) for ids in conversations]


def _by_embeddings(model: Any, run: Callable[[], torch.Tensor], weight: torch.Tensor) -> torch.Tensor | None:
    """Gradient of the weighted sum of what `run` gives, by what the input embedding gives in it, in fp32 on the CPU; None where that
    is not called once. Of no parameter a gradient is made."""
    leaves: list[torch.Tensor] = []

    def begin_here(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(begin_here)
    try:
        with torch.enable_grad():
            hidden = run()
            if len(leaves) != 1:
                return None
            return torch.autograd.grad((hidden.float() * weight.to(hidden.device)).sum(), leaves)[0].float().cpu()
    finally:
        handle.remove()


def _apart(way: Way, whole: torch.Tensor) -> list[torch.Tensor]:
    """Of each conversation (1, T, ...) what belongs to it."""
    if way.rows:
        return [whole[index : index + 1, :length] for index, length in enumerate(LENGTHS)]
    return list(whole.split(LENGTHS, dim=1))


def _hidden(packed: PackedModel, conversations: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """All conversations in one row, or one a row with more tokens behind the short ones."""
    positions = [torch.arange(ids.shape[1])[None] for ids in conversations]
    if packed.way.rows:
        longest = max(LENGTHS)
        padded = [torch.cat([ids, ids.flip(1).repeat(1, longest)], dim=1)[:, :longest] for ids in conversations]
        ids_BT, positions_BT = torch.cat(padded), torch.arange(longest).expand(len(LENGTHS), longest)
        bounds = [index * longest for index in range(len(LENGTHS) + 1)]
    else:
        ids_BT, positions_BT = torch.cat(conversations, dim=1), torch.cat(positions, dim=1)
        bounds = [sum(LENGTHS[:index]) for index in range(len(LENGTHS) + 1)]
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    return packed.hidden(ids_BT.to(device), positions_BT.to(device), cu_seqlens, max(LENGTHS))


def _told(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:150]}" if text else type(error).__name__


def _why(trial: Trial) -> str:
    return trial.error or (
        f"its gradients differ by {trial.gradient:.2g}" if trial.gradient else f"differs by {trial.difference:.2g}"
    )
