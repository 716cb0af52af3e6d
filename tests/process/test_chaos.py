"""Kill it anywhere, at any time, also in the middle of a save, start it again: the same bits.

Real supervisor, torchrun and two ranks. Every life of the run but the last is ended by one of the deaths below, at a
moment drawn from a seed. `pytest tests/process/test_chaos.py --chaos 100` for more of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import tiny_job
from trainer.checkpoint.manifest import MANIFEST, Manifest
from trainer.run.run_folder import RunDir
from trainer.supervise.attempt import is_alive
from trainer.supervise.heartbeat import read_heartbeat

SAVE_EVERY = 3
STEPS_PER_LIFE = 6
SEED = 20
PATIENCE_S = 300

AIMED = {
    "killed before the first byte of a save": "before-first-byte@{save}/{rank}",
    "killed in mid-shard": "mid-shard@{save}/{rank}",
    "killed after the shards": "after-shards@{save}/{rank}",
    "killed in mid-manifest": "mid-manifest@{save}/0",
    "killed after the manifest": "after-manifest@{save}/0",
}
"""What DOLPHIN_FAULT is then; the other rank ends by itself."""


def pids(run: RunDir, attempt: int) -> list[int]:
    """The ranks of an attempt, by rank; fewer while it starts."""
    beats = [read_heartbeat(run.attempt_dir(attempt), rank) for rank in range(2)]
    return [beat.pid for beat in beats if beat is not None]


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_rank(life: Life) -> None:
    kill(life.chance.choice(life.ranks()))


def kill_all_ranks(life: Life) -> None:
    for pid in life.ranks():
        kill(pid)


def kill_supervisor(life: Life) -> None:
    kill(life.supervisor.pid)


def terminate_supervisor(life: Life) -> None:
    kill(life.supervisor.pid, signal.SIGTERM)


def terminate_rank(life: Life) -> None:
    kill(life.chance.choice(life.ranks()), signal.SIGTERM)


DEATHS: dict[str, tuple[Callable[[Life], None], int]] = {
    "a rank killed": (kill_rank, 1),
    "all ranks killed": (kill_all_ranks, 1),
    "the supervisor killed": (kill_supervisor, -signal.SIGKILL),
    "SIGTERM to the supervisor": (terminate_supervisor, 75),
    "SIGTERM to a rank": (terminate_rank, 75),
}
"""What is done, and how the supervisor then ends."""
EARLY = "the supervisor killed while it starts"


class Life:
    """One start of the run, to its end by `death`."""

    def __init__(self, run: RunDir, number: int, death: str | None, chance: random.Random) -> None:
        self.run, self.number, self.death, self.chance = run, number, death, chance
        self.committed = newest_manifest(run)
        fault = {}
        if death in AIMED:
            save = (self.committed // SAVE_EVERY + 1) * SAVE_EVERY
            fault["DOLPHIN_FAULT"] = AIMED[death].format(save=save, rank=chance.randrange(2))
        self.supervisor = tiny_job.start(run, **fault)

    def ranks(self) -> list[int]:
        found = pids(self.run, self.number)
        assert len(found) == 2
        return found

    def steps(self) -> list[int]:
        """Steps of this life, in the order of their lines."""
        lines = self.run.read_metrics()
        return [line["step"] for line in lines if "loss" in line and line["attempt"] == self.number]

    def live(self) -> int:
        """Do what the death asks for at its moment; the supervisor's exit code."""
        if self.death == EARLY:
            self.wait_for(lambda: pids(self.run, self.number))
            kill_supervisor(self)
        elif self.death in DEATHS:
            count = self.chance.randint(1, STEPS_PER_LIFE - 2)
            self.wait_for(lambda: self.is_over() or len(self.steps()) >= count)
            assert not self.is_over(), f"{self.death}: it ended before\n{self.run.log.read_text()[-3000:]}"
            time.sleep(self.chance.random() * 0.05)  # anywhere in a step
            DEATHS[self.death][0](self)
        code = self.supervisor.wait(PATIENCE_S)
        self.wait_for(lambda: not any(is_alive(pid) for pid in pids(self.run, self.number)))
        return code

    def is_over(self) -> bool:
        return self.supervisor.poll() is not None

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"{self.death}: nothing happens\n{self.run.log.read_text()[-3000:]}"
            time.sleep(0.01)

    def expected_code(self) -> int:
        if self.death is None:
            return 0
        if self.death == EARLY:
            return -signal.SIGKILL
        return 1 if self.death in AIMED else DEATHS[self.death][1]


def newest_manifest(run: RunDir) -> int:
    """Step of the newest committed checkpoint; 0 where there is none."""
    steps = [0]
    for path in run.checkpoints.glob(f"*/{MANIFEST}"):
        steps.append(Manifest.decode(path.read_bytes(), path.parent.name).step)
    return max(steps)


def job(root: Path, name: str, num_lives: int) -> RunDir:
    return tiny_job.write_job(
        root, name, nproc=2,
        train={"zero": 3, "precision": "bf16", "max_steps": STEPS_PER_LIFE * num_lives},
        checkpoint={"every": {"steps": SAVE_EVERY}, "max_restarts": 0},
    )  # fmt: skip


def losses_by_step(run: RunDir) -> dict[int, set[str]]:
    """Exact losses of each step, of every time that it was trained."""
    found: dict[int, set[str]] = {}
    for line in run.read_metrics():
        if "loss" in line:
            found.setdefault(line["step"], set()).add(float(line["loss"]).hex())
    return found


@pytest.fixture(scope="module")
def deaths(request) -> list[str]:
    """All kinds, then as many more as were asked for, in an order drawn from the seed."""
    chance = random.Random(SEED)
    kinds = [*DEATHS, *AIMED, EARLY, "a rank killed"]
    count = request.config.getoption("--chaos") or len(kinds)
    drawn = [*kinds, *(chance.choice(kinds) for _ in range(count - len(kinds)))]
    chance.shuffle(drawn)
    return drawn


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, deaths):
    assert len(deaths) >= 12
    chance = random.Random(SEED + 1)
    untouched = tiny_job.train(job(tmp_path, "untouched", len(deaths)))
    run = job(tmp_path, "killed", len(deaths))
    for number, death in enumerate([*deaths, None], start=1):
        life = Life(run, number, death, chance)
        code = life.live()
        log = run.log.read_text()[-4000:]
        assert code == life.expected_code(), f"life {number}, {death}: exit {code}\n{log}"
        steps = life.steps()
        if steps:  # it began right behind the newest manifest and did no step twice
            assert steps == list(range(life.committed + 1, life.committed + 1 + len(steps))), (
                f"{number}, {death}\n{log}"
            )
        if code == 75:
            assert newest_manifest(run) == steps[-1], f"life {number}, {death}: preempted and not saved\n{log}"
        print(f"life {number:3}: {death or 'to the end':40} steps {steps[:1]} to {steps[-1:]}", flush=True)
    assert losses_by_step(run) == losses_by_step(untouched)
    assert all(len(values) == 1 for values in losses_by_step(run).values())
    assert tiny_job.weights_sha256(run) == tiny_job.weights_sha256(untouched)
    resumed = [event for event in run.read_events() if event["event"] == "resumed"]
    assert sum(event["lost_steps"] for event in resumed) > 0
    retrained = sum(1 for line in run.read_metrics() if "loss" in line) - len(losses_by_step(run))
    assert sum(event["lost_steps"] for event in resumed) <= retrained + len(deaths) * STEPS_PER_LIFE
