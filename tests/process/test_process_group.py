"""Two gloo ranks: how long they wait for each other, and what becomes of one that waits in vain."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trainer.checkpoint.agreement import Agreement
from trainer.engine import process_group
from trainer.run.exits import NoContact

LIMIT_S = 2.0


def join(rank: int, folder: Path) -> None:
    process_group.be_patient()
    dist.init_process_group("gloo", f"file://{folder / 'ranks'}", rank=rank, world_size=2)


def meet(rank: int, folder: Path) -> None:
    """Both come; then one group is made as DeepSpeed makes its own, without a word of time-outs."""
    join(rank, folder)
    seconds = process_group.first_contact(torch.device("cpu"), lambda _: None)
    groups = [dist.group.WORLD, dist.new_group(), dist.new_group(backend="gloo")]
    patience = [group._get_backend(torch.device("cpu")).options._timeout for group in groups if group is not None]
    assert patience == [process_group.PATIENCE] * 3
    (folder / f"met-{rank}").write_text(str(seconds))


def miss(rank: int, folder: Path) -> None:
    """Rank 1 never comes to the all-reduce."""
    join(rank, folder)
    if rank == 1:
        time.sleep(60)

    def give_up(error: NoContact) -> None:
        (folder / f"gave-up-{rank}").write_text(str(error))
        os._exit(1)

    process_group.first_contact(torch.device("cpu"), give_up, LIMIT_S)


def leave(rank: int, folder: Path) -> None:
    """Rank 0 still writes the model when rank 1 has nothing left to do."""
    join(rank, folder)
    last = Agreement(rank, 2)
    if rank == 0:
        time.sleep(0.5)
        (folder / "model").touch()
    last.wait_for_all()
    assert (folder / "model").exists()
    dist.destroy_process_group()


def run(work: Any, folder: Path) -> list[Any]:
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=work, args=(rank, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    ranks[0].join(60)
    if work is miss:
        ranks[1].kill()
    ranks[1].join(60)
    return [process.exitcode for process in ranks]


def test_no_process_group_gives_up_before_the_watch(tmp_path: Path) -> None:
    assert run(meet, tmp_path) == [0, 0]
    assert all(float((tmp_path / f"met-{rank}").read_text()) < process_group.CONTACT_LIMIT_S for rank in range(2))


def test_a_rank_whose_first_message_is_not_answered_leaves_and_says_so(tmp_path: Path) -> None:
    assert run(miss, tmp_path)[0] == 1
    assert (tmp_path / "gave-up-0").read_text() == "a first all-reduce over 2 ranks did not return in 2 s"


def test_no_rank_leaves_the_group_while_another_still_writes(tmp_path: Path) -> None:
    assert run(leave, tmp_path) == [0, 0]
