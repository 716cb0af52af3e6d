"""axolotl's `deepspeed` and `fsdp` settings: which ZeRO stage does the same, and what of them is not done here.

Reads the DeepSpeed file where it is at hand, else knows axolotl's own files by name. Refuses to know the other keys.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.key_hints import nearest_key
from launcher.jobfile.axolotl.account import Conversion
from launcher.jobfile.axolotl.keys import FSDP_CONFIG

SHIPPED = re.compile(r"^zero([123])(_bf16)?(_cpuoffload(?:_all|_params)?)?(_torch_compile)?(\.json)?$")
"""Names of the DeepSpeed configurations that axolotl ships."""

SCHEDULERS = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


@dataclass
class Parallel:
    """What a sharding configuration asks for."""

    stage: int | None = None
    offload: str | None = None
    """What of the offload is done; the reason for `train.offload`."""
    remarks: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    precision: str | None = None
    max_grad_norm: float | None = None
    schedule: str | None = None
    gradient_checkpointing: bool | None = None

    def offloads(self, *, optimizer: bool, parameters: bool) -> None:
        """Take note of what goes to host memory; without sharding there is nothing that could."""
        if self.stage == 0 and (optimizer or parameters):
            self.remarks.append("nothing is offloaded without ZeRO")
            return
        self.offload = (_PARAMETERS_STAY if parameters else "") if optimizer else None
        if parameters and not optimizer:
            self.remarks.append(_NOTHING_MOVES)


def read_deepspeed(value: Any, folder: Path) -> Parallel:
    """Of `deepspeed:`, a path (relative to the working or the file's folder), a known name, or the configuration itself."""
    if isinstance(value, dict):
        return _deepspeed(value)
    name = str(value)
    for path in (folder / name, Path(name)):
        if path.is_file():
            try:
                config = json.loads(path.read_bytes())
            except (OSError, ValueError) as error:
                return Parallel(errors=[f"{path} is no readable JSON ({error}); correct it, or set train.zero"])
            return (
                _deepspeed(config) if isinstance(config, dict) else Parallel(errors=[f"{path} holds no configuration"])
            )
    shipped = SHIPPED.match(Path(name).name)
    if shipped is None:
        return Parallel(
            errors=[
                f"no such file: {name}, and no name of a known configuration (zero1, zero2, zero3, ...); correct it, or set train.zero"
            ]
        )
    found = Parallel(stage=int(shipped[1]))
    if shipped[3]:
        found.offloads(optimizer=not shipped[3].endswith("_params"), parameters=shipped[3] != "_cpuoffload")
    return found


_PARAMETERS_STAY = "parameters are not offloaded, only masters and moments: `dolphin plan` says whether they fit"
_NOTHING_MOVES = "parameters are not offloaded: `dolphin plan` says whether they fit"


def _deepspeed(config: dict[str, Any]) -> Parallel:
    found = Parallel()
    groups = {key: config.get(key) or {} for key in ("zero_optimization", "fp16", "bf16", "optimizer", "scheduler")}
    for key, group in groups.items():
        if not isinstance(group, dict) or not isinstance(group.get("params") or {}, dict):
            return Parallel(errors=[f"its {key} must be a group; correct it, or set train.zero"])
    zero = groups["zero_optimization"]
    found.stage = zero.get("stage", 0)
    if found.stage not in (0, 1, 2, 3) or isinstance(found.stage, bool):
        found.errors.append(f"zero_optimization.stage {zero.get('stage')!r} is none of 0, 1, 2, 3")
        found.stage = None
    to_nvme = [key for key in ("offload_optimizer", "offload_param") if _offload_device(zero, key) == "nvme"]
    if to_nvme:
        found.errors.append(f"its {to_nvme[0]} goes to NVMe, but dolphin offloads to host memory; write cpu there")
    found.offloads(
        optimizer=_offload_device(zero, "offload_optimizer") == "cpu",
        parameters=_offload_device(zero, "offload_param") == "cpu",
    )
    half, brain = (groups[key].get("enabled") for key in ("fp16", "bf16"))
    if half is True:
        found.errors.append("fp16 is on, but dolphin trains in bf16 or fp32; switch it off")
    elif brain is True:
        found.precision = "bf16"
    clipping = config.get("gradient_clipping", "auto")
    if isinstance(clipping, (int, float)) and not isinstance(clipping, bool):
        found.max_grad_norm = float(clipping)
    optimizer = groups["optimizer"].get("type")
    if optimizer is not None and str(optimizer).lower() not in ("adam", "adamw"):
        found.errors.append(f"its optimizer {optimizer} is not AdamW, the only one here; remove it there")
    numbers = [
        f"{group}.{name}"
        for group in ("optimizer", "scheduler")
        for name, inner in (groups[group].get("params") or {}).items()
        if inner != "auto" and name not in ("torch_adam", "adam_w_mode")
    ]
    if numbers:
        found.errors.append(
            f"it sets {', '.join(numbers)}; write auto there and state the numbers in the configuration"
        )
    scheduler = groups["scheduler"].get("type")
    if scheduler is not None:
        found.schedule = SCHEDULERS.get(str(scheduler))
        if found.schedule is None:
            found.errors.append(f"its scheduler {scheduler} is none of {', '.join(SCHEDULERS)}; remove it there")
    return found


def _offload_device(zero: dict[str, Any], key: str) -> str:
    """cpu, nvme or none, as DeepSpeed reads it: a group that names no device offloads nothing."""
    group = zero.get(key)
    return str(group.get("device") or "none") if isinstance(group, dict) else "none"


def read_fsdp(flags: Any, config: Any, version: Any) -> Parallel:
    """Of `fsdp`, `fsdp_config` and `fsdp_version`; each may be None."""
    found = Parallel(stage=3)
    words = flags.split() if isinstance(flags, str) else list(flags) if isinstance(flags, list) else []
    for word in words:
        if word in ("full_shard", "hybrid_shard"):
            found.stage = 3
        elif word in ("shard_grad_op", "hybrid_shard_zero2"):
            found.stage = 2
        elif word == "no_shard":
            found.stage = 0
        elif word not in ("auto_wrap", "offload"):
            found.errors.append(f"{word!r} is no sharding that is known; correct it, or set train.zero")
    settings = {str(key).removeprefix("fsdp_"): value for key, value in (config or {}).items()}
    for key in settings:
        if key not in FSDP_CONFIG:
            near = nearest_key(key, FSDP_CONFIG)
            found.errors.append(f"unknown key {key!r} in fsdp_config{f'; did you mean {near!r}?' if near else ''}")
    strategy = settings.get("sharding_strategy")
    if strategy is not None:
        stages = {"FULL_SHARD": 3, "1": 3, "SHARD_GRAD_OP": 2, "2": 2, "NO_SHARD": 0, "3": 0, "HYBRID_SHARD": 3, "4": 3}
        found.stage = stages.get(str(strategy).upper(), found.stage)
    if settings.get("reshard_after_forward") is False:
        found.stage = 2
    moves = bool("offload" in words or settings.get("offload_params"))
    found.offloads(optimizer=moves, parameters=moves)
    if settings.get("activation_checkpointing"):
        found.gradient_checkpointing = True
    found.remarks.insert(
        0, f"FSDP{f' {version}' if version else ''} becomes DeepSpeed's ZeRO-{found.stage}, which does the same"
    )
    return found


def convert_layout(out: Conversion, stated: dict[str, Any]) -> None:
    """Degrees by which axolotl has GPUs share a sequence or a matrix: here each GPU takes sequences of its own. As many GPUs
    then take more of them at once, and accumulate fewer times where that divides."""
    degrees = {
        key: int(stated[key])
        for key in ("context_parallel_size", "sequence_parallel_degree", "tensor_parallel_size")
        if stated.get(key, 1) > 1
    }
    shared = math.prod(degrees.values())
    accumulation = out.job.get("train", {}).get("accumulation", 1)
    for key in degrees:
        if accumulation % shared == 0:
            remark = f"each GPU takes whole sequences of its own, so that as many GPUs accumulate {shared} times fewer"
            out.put("train.accumulation", accumulation // shared, key, remark)
        else:
            remark = (
                f"each GPU takes whole sequences of its own: for axolotl's global batch take {shared} times fewer GPUs"
            )
            out.put("train.accumulation", accumulation, key, remark)
