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

from trainer.rankend import rank_guard
from trainer.rundir import EventKind, RunDir
from trainer.spec import NodeJob


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("train_json")
    parser.add_argument("--attempt", type=int)
    arguments = parser.parse_args()
    job, rank = NodeJob.read(arguments.train_json), int(os.environ["RANK"])
    with rank_guard(job.run_dir, arguments.attempt, rank) as me:
        train(job, arguments.attempt, rank, me)


def train(job, attempt, rank, me) -> None:
    import torch
    import torch.distributed as dist

    from trainer.exits import BadInput, Preempted

    plan = json.loads(os.environ.get("STAND_IN", "{}"))
    run = RunDir(job.run_dir)
    dist.init_process_group("gloo")
    saved = [e["step"] for e in run.read_events() if e["event"] == EventKind.CHECKPOINT_SAVED]
    step, total = (saved[-1] if saved else 0), plan.get("steps", 6)

    def save() -> None:
        if rank == 0:
            run.emit(EventKind.CHECKPOINT_SAVED, attempt=attempt, step=step, checkpoint=f"step-{step}", seconds=0.5)
        dist.barrier()

    if rank == 0:
        run.emit(EventKind.PHASE, attempt=attempt, phase="training")
        run.emit(EventKind.PLAN, attempt=attempt, total_steps=total)
    me.heartbeat.step(step)
    while step < total:
        wish = torch.tensor([float(me.stop.requested is not None), float(me.stop.save_requested)])
        dist.all_reduce(wish, op=dist.ReduceOp.MAX)
        if wish[0]:
            save()
            raise Preempted(f"stopped at step {step}")
        if wish[1]:
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
            elif kind == "hang":
                time.sleep(3600)
        time.sleep(plan.get("step_s", 0.02))
        dist.all_reduce(torch.ones(1))
        step += 1
        me.heartbeat.step(step)
        if step % plan.get("save_every", 2) == 0:
            save()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
