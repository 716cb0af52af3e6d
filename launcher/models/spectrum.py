"""Choosing layers by signal-to-noise ratio: an SNR file and a share -> patterns for `train.unfrozen`.

Owns reading the file, the ranking and the order of the patterns. Refuses to know torch and how the ratios were measured.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from trainer.run.exits import BadInput

MODULE_ORDER = (
    "mlp.down_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj",
    "mlp.gate_proj",
)  # fmt: skip
"""Order of the module types on published cards; types that are not named here follow in alphabetical order."""


def select(snr: Mapping[str, Mapping[str, Any]], top: str | float) -> tuple[str, ...]:
    """Patterns of the `top` per cent of each module type, highest ratio first within a type.

    Only types with a finite ratio are ranked: vectors (norms) have none. The share is rounded down, as Spectrum does, so
    that a type with one module (the head) is trained at 100% alone. A pattern is the module's name, which `re.search` finds behind any prefix;
    where that would hit another module of the file too, it is anchored. BadInput where nothing is left to train.
    """
    share = share_of(top)
    chosen = []
    by_type = ranked(snr)
    for kind in sorted(by_type, key=_type_order):
        modules = by_type[kind]
        chosen += [module for module, _ in modules[: math.floor(len(modules) * share + 1e-9)]]
    if not chosen:
        largest = max((len(modules) for modules in by_type.values()), default=0)
        raise BadInput(f"the top {top} of {largest} layers is none: nothing would be trained; raise it")
    return tuple(_pattern(module, snr) for module in chosen)


def ranked(snr: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[str, float]]]:
    """Module type -> (module, ratio), highest first; ties keep the order of the file."""
    by_type: dict[str, list[tuple[str, float]]] = {}
    for module, entry in snr.items():
        by_type.setdefault(str(entry["type"]), []).append((module, float(entry["snr"])))
    finite = {kind: modules for kind, modules in by_type.items() if any(math.isfinite(ratio) for _, ratio in modules)}
    return {kind: sorted(modules, key=lambda item: -item[1]) for kind, modules in finite.items()}


def read_snr(path: str | Path) -> dict[str, dict[str, Any]]:
    """An SNR file in either published layout, as module -> {"snr": ratio, "type": module type}. BadInput where it is none.

    Flat, as `dolphin spectrum scan` and Spectrum write it: {module: {"snr": 14.4, "type": "mlp.down_proj"}}. Grouped:
    {"mlp.down_proj": {"model.layers.1.mlp.down_proj": 14.4}}. Vectors have the ratio Infinity in both.
    """
    try:
        record = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: no readable SNR file ({error}); `dolphin spectrum scan MODEL` writes one") from None
    if not isinstance(record, dict) or not record:
        raise BadInput(f"{path}: holds no modules; `dolphin spectrum scan MODEL` writes an SNR file")
    if all(_is_group(entry) for entry in record.values()):
        record = _flattened(record, path)
    for module, entry in record.items():
        ratio = entry.get("snr") if isinstance(entry, dict) else None
        if not _is_ratio(ratio) or math.isnan(ratio) or "type" not in entry:
            raise BadInput(f"{path}: '{module}' has no usable `snr` and `type`; scan the model again")
    found: dict[str, dict[str, Any]] = record
    return found


def _is_ratio(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_group(entry: Any) -> bool:
    """Whether an entry holds the modules of a type, where it could be a module with its ratio."""
    return isinstance(entry, dict) and "snr" not in entry and all(_is_ratio(ratio) for ratio in entry.values())


def _flattened(groups: Mapping[str, Mapping[str, Any]], path: str | Path) -> dict[str, dict[str, Any]]:
    flat: dict[str, dict[str, Any]] = {}
    for kind, modules in groups.items():
        for module, ratio in modules.items():
            if module in flat:
                raise BadInput(
                    f"{path}: '{module}' stands under '{flat[module]['type']}' and under '{kind}'; remove one"
                )
            flat[module] = {"snr": ratio, "type": kind}
    if not flat:
        raise BadInput(f"{path}: holds no modules; `dolphin spectrum scan MODEL` writes an SNR file")
    return flat


def share_of(top: str | float) -> float:
    """`50%`, `50` or 50 -> 0.5. BadInput for anything outside 0 to 100."""
    try:
        share = float(str(top).removesuffix("%")) / 100
    except ValueError:
        raise BadInput(f"--top {top}: is no share; write for example 50%") from None
    if not 0 < share <= 1:
        raise BadInput(f"--top {top}: must lie above 0% and at most at 100%")
    return share


def _pattern(module: str, modules: Iterable[str]) -> str:
    expression = re.compile(module)
    if any(expression.search(f"{other}.weight") for other in modules if other != module):
        return rf"(^|\.){re.escape(module)}\.(weight|bias)$"
    return module


def _type_order(kind: str) -> tuple[int, str]:
    return (MODULE_ORDER.index(kind) if kind in MODULE_ORDER else len(MODULE_ORDER), kind)
