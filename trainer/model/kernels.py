"""Fused kernels for norms, gated activations and rotary embeddings: Liger's, taken where they are there and give what the model gives.

Owns when they are taken and the comparison that is made first: on a small twin, values and gradients with and without. The loss
stays dolphin's own (Liger's fails under ZeRO-3). Refuses to know attention.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from trainer.model import twin
from trainer.run.exits import BadInput

PACKAGE = "liger-kernel"
WANTED = ("rope", "rms_norm", "swiglu", "geglu")
"""What is replaced, by the names of the arguments of Liger's functions; everything else that they have is left as it is."""
TOLERANCE = 1e-3
"""Largest difference in fp32 of a logit, and of a gradient's element, in shares of the largest of its tensor. Equal ways differ by
1e-6; a norm without its offset, or a rotation of other pairs, by 0.1 to 1."""
LENGTH = 24
"""Tokens of the comparison."""


@dataclass(frozen=True, slots=True)
class Choice:
    is_on: bool
    why: str

    def line(self) -> str:
        """For the log."""
        return f"fused kernels: {'on' if self.is_on else 'off'} ({self.why})"


def choose(setting: Literal["auto"] | bool, config: Any, device: str, **options: Any) -> Choice:
    """Whether a model of this configuration is to have them. Raises BadInput where they are asked for and cannot serve."""
    if setting is False:
        return Choice(False, "train.kernels")
    reason = _obstacle(config, device)
    if reason is None:
        difference = compare(config, torch.device(device), **options)
        if difference is None:
            reason = f"no small {config.model_type} can be made to try them on"
        elif not difference <= TOLERANCE:
            reason = f"with them a {config.model_type} differs by {difference:.2g} of its largest value or gradient"
        else:
            version = importlib.metadata.version(PACKAGE)
            return Choice(True, f"{PACKAGE} {version}; a small {config.model_type} differs by {difference:.1g} in fp32")
    if setting is True:
        raise BadInput(f"train.kernels true: {reason}; write `auto` or false")
    return Choice(False, reason)


def _obstacle(config: Any, device: str) -> str | None:
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "they need a GPU"
    try:
        importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return f"{PACKAGE} is not installed"
    if config.model_type not in _families():
        return f"{PACKAGE} has none for a {config.model_type}"
    return None


def _families() -> dict[str, Callable[..., None]]:
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it warns of every vendor whose compiler is not here
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    found: dict[str, Callable[..., None]] = MODEL_TYPE_TO_APPLY_LIGER_FN
    return found


def apply(model: Any, device: str) -> None:
    """Have this model's norms, gated activations and rotary embeddings computed by fused kernels on `device`.

    Its modules and parameters keep their places and names, so that what ZeRO-3 gathers around a module holds. Liger also
    changes the module of the family: classes are put back, for whoever builds another model, and the rotation, a function that
    all models of the family call, keeps the plain one for tensors elsewhere.
    """
    family = sys.modules[type(model).__module__]
    before = dict(vars(family))
    function = _families()[model.config.model_type]
    parameters = inspect.signature(function).parameters
    function(model=model, **{name: name in WANTED for name in parameters if name != "model"})
    for name, value in list(vars(family).items()):
        plain = before.get(name)
        if plain is value or plain is None:
            continue
        setattr(family, name, plain if inspect.isclass(value) else _on(device, value, plain))


def _on(device: str, fused: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    def rotate(query: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        return (fused if query.device.type == device else plain)(query, *arguments, **named)

    return rotate


def compare(config: Any, device: torch.device, **options: Any) -> float | None:
    """Largest difference that the kernels make to a twin's logits and gradients, in shares of the largest of each tensor; infinite
    where they do not run, None where no twin can be made."""
    model = twin.make(config, **options)
    if model is None:
        return None
    model.to(device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, twin.VOCABULARY, (1, LENGTH), generator=generator).to(device)
    family = sys.modules[type(model).__module__]
    before = dict(vars(family))
    try:
        plain = _values(model, ids)
        apply(model, device.type)
        fused = _values(model, ids)
    except (
        Exception
    ) as error:  # a family's code, or a compiler that is not there: whatever it is, the plain way goes on
        print(f"fused kernels could not be tried ({type(error).__name__}: {str(error)[:200]})", flush=True)
        return float("inf")
    finally:
        for name in [name for name in vars(family) if vars(family)[name] is not before.get(name)]:
            setattr(family, name, before[name]) if name in before else delattr(family, name)
    shares = [(a - b).abs().max() / a.abs().max().clamp(min=1e-12) for a, b in zip(plain, fused, strict=True)]
    return float(torch.stack(shares).max())  # nan where one is


def _values(model: nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    """The logits, and the gradient of each parameter that has one."""
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits.float()
    logits.square().mean().backward()
    return [logits.detach()] + [p.grad.float().clone() for p in model.parameters() if p.grad is not None]
