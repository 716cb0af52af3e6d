"""Does the written folder compute what was trained? Its logits on a few held-out texts beside those of the trained model.

Owns the comparison and when it is left out. The reference is taken from the trained model while it is still on its ranks; the folder
is loaded as anyone would load it, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.export.telling import warn
from trainer.run.exits import TrainingFailed

NUM_ROWS, ROW_TOKENS = 2, 128
MAX_LOADED_BYTES = 20 << 30
"""Of weights. A larger export is not read once more on a node that is paid for by the minute."""
MEMORY_FACTOR = 1.25
"""Free host memory that loading needs, in sizes of the weights."""
TOLERANCE = 0.3
"""Of the median over positions, where each counts by its largest difference of a logit, in standard deviations of the logits.
Rounding to bf16 gives 0.01 to 0.1; another rotary base, a lost tensor or an untied head 0.5 and more. The median, because rounding
sends a token of a mixture of experts to another expert now and then."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the trained model gives for each row of token ids."""

    rows: tuple[tuple[int, ...], ...]
    logits_TV: tuple[torch.Tensor, ...]
    """fp32, on the CPU."""


def hold(reference: Reference, size_bytes: int, load: Callable[[], Any]) -> None:
    """Print how far the logits of what `load` returns, which has so many bytes of weights, are from the trained model's. Rank 0
    only.

    Raises TrainingFailed where they are another model's.
    """
    if not reference.rows:
        return
    reason = why_not(size_bytes)
    if reason:
        left_out(reason)
        return
    difference = median_difference(reference, load())
    if not difference <= TOLERANCE:
        raise TrainingFailed(
            f"the exported folder is another model than the trained one: its logits differ by {difference:.2g} of their standard "
            "deviation; the last checkpoint is whole, nothing is lost"
        )
    print(f"export: loaded again, its logits differ by {difference:.1g} of their standard deviation", flush=True)


def left_out(reason: str) -> None:
    """Say that nothing is compared, and why."""
    warn(f"the export's logits are not compared with the trained model's: {reason}")


def hold_folder(reference: Reference, folder: Path) -> None:
    """`hold` for a model folder, loaded in bf16."""
    from transformers import AutoModelForCausalLM

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    hold(reference, size, lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16))


def why_not(size_bytes: int) -> str:
    """Why weights of this size are not loaded once more; empty where they are."""
    if size_bytes > MAX_LOADED_BYTES:
        return f"{size_bytes / 1e9:,.0f} GB would be read again"
    free = free_memory_bytes()
    if free is not None and size_bytes * MEMORY_FACTOR > free:
        return f"{size_bytes / 1e9:,.1f} GB do not fit into {free / 1e9:,.1f} GB of free host memory"
    return ""


def free_memory_bytes() -> int | None:
    """Of the host, as Linux tells it; None where it does not."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def median_difference(reference: Reference, model: Any) -> float:
    """Median over all positions of the largest difference of a logit, in standard deviations of the reference's."""
    model.eval()
    with torch.no_grad():
        found = [model(torch.tensor([row])).logits[0].float() for row in reference.rows]
    spread = torch.cat([logits.reshape(-1) for logits in reference.logits_TV]).std()
    by_position = [
        (ours[:, : theirs.shape[1]] - theirs).abs().amax(-1)
        for ours, theirs in zip(found, reference.logits_TV, strict=True)
    ]
    return float(torch.cat(by_position).median() / spread)
