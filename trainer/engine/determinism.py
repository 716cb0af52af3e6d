"""`train.deterministic`: kernels that add numbers up in one order. What libraries read from the environment is set where the ranks
are started (`trainer.supervise.attempt`).

Read in torch's source: `scatter_add_` (the loss) goes by a sorted `index_put_` on CUDA, the backward pass of its flash attention
(varlen, and SDPA with it) takes its deterministic kernel unless `warn_only` is set, and SDPA leaves cuDNN's attention out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from trainer.run.exits import TrainingFailed

NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")


def ask() -> None:
    """For the whole process, before anything is computed. An operation without such a kernel is an error from then on."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # finds faults, decides no result, and costs a pass
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raises TrainingFailed for an operation without a deterministic kernel, which a restart would meet again."""
    try:
        yield
    except RuntimeError as error:
        found = NO_KERNEL.search(str(error))
        if found is None:
            raise
        raise TrainingFailed(
            f"train.deterministic: {found[1]} of this model has no deterministic kernel in torch {torch.__version__}; "
            "`dolphin resume RUN --set train.deterministic=false` goes on without"
        ) from error
