"""Whether this rank can use its GPU. Knows torch and no DeepSpeed."""

from __future__ import annotations

import torch

from trainer.run.exits import TrainingFailed


def require(local_rank: int) -> None:
    """Raises TrainingFailed, which no restart would mend, where torch cannot use this rank's GPU; with torch's reason.

    Runs a kernel on it: the number of GPUs comes from NVML, which counts them also under a driver that is too old for this
    torch, and a torch without kernels for this GPU shows only then. Raises torch.OutOfMemoryError where the GPU is full.
    """
    try:
        torch.cuda.init()
        found = torch.cuda.device_count()
        if local_rank < found:
            torch.ones(1, device=torch.device("cuda", local_rank)).add_(1).item()
            return
        reason = f"torch sees {found} GPUs here"
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # no driver, one that is too old, a torch for CPUs
        reason = " ".join(str(error).split("Please", 1)[0].split())
    raise TrainingFailed(
        f"rank {local_rank} has no GPU that it can use: {reason.rstrip('. ')} (torch {torch.__version__}, built for CUDA "
        f"{torch.version.cuda or 'none'}); use a node whose driver is new enough, or an image built for an older CUDA"
    )
