"""What to do when a GPU's memory runs out: said in a line, and not tried again where it cannot end otherwise."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch

from trainer.run.exits import TrainingFailed
from trainer.run.spec import NodeJob

SMALL_CHUNK = 512
OUT_OF_MEMORY = re.compile(
    r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|Failed to CUDA \w*alloc|Cuda failure (\d+ )?'?out of memory"
    r"|CUDA error: out of memory",
    re.IGNORECASE,
)
"""Memory that torch does not manage itself: of cuBLAS, cuDNN, NCCL, and CUDA's own for streams and events."""
LIBRARIES = {"CUBLAS": "cuBLAS", "CUDNN": "cuDNN", "NCCL": "NCCL"}


@contextlib.contextmanager
def explained(job: NodeJob, steps_done: Callable[[], int]) -> Iterator[None]:
    """Turn an out-of-memory error of torch, NCCL or cuBLAS into one that names the settings which save memory here.

    Raises TrainingFailed, which no restart would mend, before the first step of this attempt is done: every step takes as
    much. Later it raises OutOfMemoryError again: then memory was in pieces, and a fresh start may do.
    """
    before = steps_done()
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        message = f"the GPU's memory ran out{_state(_asked(str(error)))}: {advice(job)}"
        if steps_done() <= before:
            raise TrainingFailed(message) from error
        raise torch.OutOfMemoryError(message) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Also where a library says it that allocates past torch."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None
    )


def _asked(message: str) -> str:
    """What was to be allocated, where that is told; else which library was refused."""
    told = next((part for part in message.split(". ") if part.startswith("Tried to allocate")), "")
    library = next((name for word, name in LIBRARIES.items() if word in message.upper()), "")
    return told or (f"in {library}" if library else "")


def advice(job: NodeJob) -> str:
    """The settings that would save memory and change no result, as far as the job does not have them."""
    t = job.spec.train
    savers = {
        "train.gradient_checkpointing true": t.recompute_every != 1,
        "train.activation_offloading true": t.recompute_every > 0 and not t.activation_offloading,
        f"train.micro_batch below {t.micro_batch}": t.micro_batch > 1,
        "train.zero 3": t.zero != 3 and job.world_size > 1,
        "train.offload optimizer": t.offload == "none",
        f"train.loss_chunk {SMALL_CHUNK}": t.loss_chunk > SMALL_CHUNK,
    }
    left = [setting for setting, helps in savers.items() if helps]
    if not left:
        return "use GPUs with more memory, or more of them; `dolphin plan` says how much it takes"
    return f"try {', '.join(left)} (`dolphin plan` shows what each saves; `dolphin resume --set` goes on with it)"


def _state(asked: str) -> str:
    """What was asked for, and how full the GPU was, where it can still say so."""
    words = [asked[0].lower() + asked[1:]] if asked else []
    if torch.cuda.is_initialized():  # by this rank: the GPUs beside a CPU job are somebody else's
        with contextlib.suppress(RuntimeError):
            _, total = torch.cuda.mem_get_info()
            words.append(f"{torch.cuda.memory_allocated() / 1e9:.1f} of {total / 1e9:.1f} GB in use")
    return f" ({', '.join(words)})" if words else ""
