"""A rank for tests of the supervisor alone: real torchrun and gloo, no model. STAND_IN (JSON) says what goes wrong.

Counts steps, agrees on a stop with one all-reduce a step, "saves" after every `save_every` steps by an event, and
resumes from the last of them, as the real loop does.
"""

import argparse
import json
import os
import signal
import sys
import time

from trainer.run.exits import BadInput, NoContact, Preempted
from trainer.run.run_folder import EventKind, RunDir
from trainer.run.spec import NodeJob
from trainer.supervise import rendezvous
from trainer.supervise.rank_guard import rank_guard


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train_json")
    parser.add_argument("--attempt", type=int)
    arguments = parser.parse_args()
    job, rank = NodeJob.read(arguments.train_json), int(os.environ["RANK"])
    with rank_guard(job.run_dir, arguments.attempt, rank) as me:
        train(job, arguments.attempt, rank, me)


def train(job, attempt, rank, me) -> None:
    plan = json.loads(os.environ.get("STAND_IN", "{}"))
    run = RunDir(job.run_dir)
    agree = Agreement() if plan.get("gloo", True) else Alone()
    # Of earlier attempts alone: a rank that starts late would otherwise skip what another has saved meanwhile.
    events = [e for e in run.read_events() if e["event"] == EventKind.CHECKPOINT_SAVED]
    saved = [e["step"] for e in events if e["attempt"] < attempt]
    took_s = plan.get("save_seconds", 0.5)
    step, total = (saved[-1] if saved else 0), plan.get("steps", 6)

    def save() -> None:
        if rank == 0:
            run.emit(EventKind.CHECKPOINT_SAVED, attempt=attempt, step=step, checkpoint=f"step-{step}", seconds=took_s)
        agree.on(0.0)

    if rank == 0:
        run.emit(EventKind.PHASE, attempt=attempt, phase="training")
        run.emit(EventKind.PLAN, attempt=attempt, total_steps=total)
    me.heartbeat.step(step)
    while step < total:
        if agree.on(me.stop.requested is not None):
            save()
            raise Preempted(f"stopped at step {step}")
        if agree.on(me.stop.save_requested):
            save()
            me.stop.saved()
        fault = plan.get("fault", {})
        if fault.get("step") == step and fault.get("rank") == rank and attempt <= fault.get("attempts", 99):
            kind = fault["kind"]
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kind == "raise":
                raise RuntimeError("index 7 is out of bounds")
            elif kind == "bad":
                raise BadInput("data.jsonl:7: no `messages`")
            elif kind == "abort":
                os.abort()
            elif kind == "no contact" and os.environ.get("NCCL_P2P_DISABLE") != "1":
                me.give_up(NoContact("a first all-reduce over 2 ranks did not return in 300 s"))
            elif kind == "hang":
                time.sleep(3600)
        for _ in range(plan.get("micro_batches", 0) if step else 0):
            time.sleep(plan["micro_batch_s"])
            me.heartbeat.alive()
        time.sleep(plan.get("first_step_s", 0.0) if step == 0 else plan.get("step_s", 0.02))
        agree.on(0.0)
        step += 1
        me.heartbeat.step(step)
        if step % plan.get("save_every", 2) == 0:
            save()


class Agreement:
    """The ranks' own all-reduce, over gloo."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist

        self._torch, self._dist = torch, dist
        where = rendezvous.init_method(os.environ)
        dist.init_process_group("gloo", where, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))

    def on(self, wish: float) -> bool:
        value = self._torch.tensor([float(wish)])
        self._dist.all_reduce(value, op=self._dist.ReduceOp.MAX)
        return bool(value.item())


class Alone:
    """For runs of which only the end is looked at: no torch to import."""

    def on(self, wish: float) -> bool:
        return bool(wish)


if __name__ == "__main__":
    sys.exit(main())
