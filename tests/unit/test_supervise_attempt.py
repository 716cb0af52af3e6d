"""What a rank finds in its environment, and that no rank outstays its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.run.exits import EndKind
from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob
from trainer.supervise import attempt as attempt_module
from trainer.supervise import torchrun
from trainer.supervise.attempt import Attempt, Nodes, Program, Stopping, rank_environment
from trainer.supervise.heartbeat import Heartbeat
from trainer.supervise.rank_guard import RankEnd, report_rank_end


def job_of(run_dir: Path, **facts: Any) -> NodeJob:
    spec = {"name": "t", "model": {"base": "x"}, "data": {"sources": [{"path": "x"}]}, "train": {"global_batch": 2}}
    given = {"run_id": "r", "run_dir": str(run_dir), "cache_dir": "/c", "nproc": 2, "device": "cpu", "spec": spec}
    return NodeJob.model_validate({**given, **facts})


class NobodyAsks:
    """Of `Wake`, what an attempt looks at."""

    stop_signals: tuple[str, ...] = ()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_ranks_that_have_all_failed_and_do_not_leave_are_ended(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank whose thread is lost in a library writes why it failed, and then waits for that thread for ever."""
    job, run = job_of(tmp_path), RunDir(tmp_path)
    stopping = Stopping(NobodyAsks(), run)  # type: ignore[arg-type]
    watched = Attempt(job, Program("x", tmp_path), 1, Nodes(), stopping, lambda *_: None)
    for rank in range(2):
        Heartbeat(watched.dir, rank).close()
        path = watched.dir / f"heartbeat-{rank}"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": sleeper.pid}))
        report_rank_end(watched.dir, rank, RankEnd(EndKind.FAILED, "no", 0, "X", False, None, [], time.time()))
    watched._tick()
    assert sleeper.poll() is None
    monkeypatch.setattr(attempt_module, "LINGER_S", 0.0)
    monkeypatch.setattr(attempt_module, "STACKS_S", 0.0)
    watched._tick()
    assert sleeper.wait(10) in (-signal.SIGKILL, -signal.SIGUSR1)


def test_the_watch_and_not_a_library_decides_what_a_hang_is(tmp_path: Path) -> None:
    env = rank_environment(job_of(tmp_path, device="cuda"), {"PATH": os.defpath})
    assert int(env["DEEPSPEED_TIMEOUT"]) >= 24 * 60
    assert int(env["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"]) >= 24 * 3600


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_users_own_setting_of_the_allocator_wins(tmp_path: Path, name: str) -> None:
    job, mine = job_of(tmp_path, device="cuda"), {"PATH": os.defpath, name: "max_split_size_mb:128"}
    found = {key: value for key, value in rank_environment(job, mine).items() if "ALLOC_CONF" in key}
    assert found == {name: "max_split_size_mb:128"}
    assert "expandable_segments" in rank_environment(job, {"PATH": os.defpath})["PYTORCH_ALLOC_CONF"]


def test_libraries_hear_of_determinism_before_their_first_kernel(tmp_path: Path) -> None:
    job = job_of(tmp_path, device="cuda")
    train = job.spec.train.model_copy(update={"deterministic": True})
    asked = job.model_copy(update={"spec": job.spec.model_copy(update={"train": train})})
    env = rank_environment(asked, {"PATH": os.defpath, "NCCL_ALGO": "Tree"})
    found = [env[name] for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC", "NCCL_ALGO")]
    assert found == [":4096:8", "1", "Tree"]
    assert "CUBLAS_WORKSPACE_CONFIG" not in rank_environment(job, {"PATH": os.defpath})


def test_one_node_does_not_wait_for_its_turn_among_nodes() -> None:
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    waited: list[object] = []
    delay = torchrun._without_skew(waited.append)
    delay(seconds=(0, 0.3))
    delay(seconds=1)  # between two looks at the store
    assert waited == [1]
    assert callable(dynamic_rendezvous._delay)
