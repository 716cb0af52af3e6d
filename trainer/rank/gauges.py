"""Gauges of a step: what it computed, what it waited for, and what its GPU says of itself.

Owns the columns of metrics.jsonl beside loss and rate, on rank 0 and of its GPU. Refuses to know how they are written. A gauge that
cannot be read is left out: nothing here ends a run, and nothing waits for the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.run.spec import NodeJob


@dataclass(frozen=True, slots=True)
class StepCost:
    """Of one step over all ranks; what was waited for, on this one."""

    tokens: int
    """Without padding."""
    trained_tokens: int
    pairs: int
    """Of a token and one before it in its conversation."""
    seconds: float
    data_wait_s: float
    """Waited for a batch."""
    save_stall_s: float
    """Held up by saves, since the step before."""


class Gauges:
    def __init__(self, job: NodeJob, device: torch.device) -> None:
        self._work, self._ranks, self._device = job.work, job.world_size, device
        self._has_sensors = device.type == "cuda"

    def read(self, cost: StepCost) -> dict[str, float]:
        """Columns of a step that has just ended."""
        seconds = max(cost.seconds, 1e-9)
        found = {
            "tokens_per_second": cost.tokens / seconds,
            "trained_tokens_per_second": cost.trained_tokens / seconds,
            "data_wait_s": cost.data_wait_s,
            "save_stall_s": cost.save_stall_s,
        }
        if self._work is not None:
            step = (cost.tokens, cost.trained_tokens, cost.pairs)
            rank_seconds = seconds * self._ranks
            found["tflops"] = self._work.done(*step) / rank_seconds / 1e12
            if self._work.peak_tflops is not None and self._device.type == "cuda":
                found["mfu"] = self._work.needed(*step) / rank_seconds / 1e12 / self._work.peak_tflops
        if self._device.type == "cuda":
            found |= self._gpu()
        return found

    def _gpu(self) -> dict[str, float]:
        found = {
            "gpu_memory_bytes": float(torch.cuda.max_memory_allocated(self._device)),
            "gpu_reserved_bytes": float(torch.cuda.memory_reserved(self._device)),
        }
        torch.cuda.reset_peak_memory_stats(self._device)
        if self._has_sensors:
            try:  # both ask NVML
                found["gpu_power_w"] = torch.cuda.power_draw(self._device) / 1000
                found["gpu_temperature_c"] = float(torch.cuda.temperature(self._device))
            except Exception as error:  # no nvidia-ml-py, a container without NVML, a virtual GPU without sensors
                self._has_sensors = False
                print(
                    f"power and temperature of the GPU are not recorded ({type(error).__name__}: {error})", flush=True
                )
        return found
