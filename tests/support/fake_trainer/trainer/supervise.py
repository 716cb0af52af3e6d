"""A trainer that misbehaves on request: what a launcher must cope with, in a second and without torch.

`FAKE` in its environment is JSON: steps, pause_s (per step), exit (code), workers (session-detached grandchildren),
leave (them behind), evaluate_every (steps; its eval_loss is the learning rate), unmarked (they lack the marker), stubborn (ignores SIGTERM), vanish_at (step at which it dies without an
outcome), tear (writes a torn line), reason.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trainer.run import secret_file
from trainer.run.run_folder import STOP_FILE, EventKind, Phase, append_line, write_atomic
from trainer.run.spec import NodeJob


def main() -> int:
    secret_file.take(os.environ)
    job = NodeJob.read(sys.argv[1])
    wish = json.loads(os.environ.get("FAKE", "{}"))
    run = Path(job.run_dir)
    count = run / "attempts" / "count"
    count.parent.mkdir(exist_ok=True)
    attempt = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(attempt))

    def emit(kind: EventKind, **fields: Any) -> None:
        append_line(run / "events.jsonl", {"time": time.time(), "event": kind, "attempt": attempt, **fields})

    stop: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if wish.get("stubborn") else lambda number, frame: stop.append(number))
    workers = []
    for _ in range(wish.get("workers", 0)):
        # As torchrun's: a session of their own, and here deaf to SIGTERM and without the marker where asked.
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        environment = {} if wish.get("unmarked") else None
        workers.append(subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True, env=environment))

    steps = wish.get("steps", 5)
    saved = run / "checkpoints" / "saved"
    start = int(saved.read_text()) if saved.exists() else 0
    emit(EventKind.ATTEMPT_STARTED, nproc=job.nproc, device=job.device, pid=os.getpid())
    emit(EventKind.PHASE, phase=Phase.TRAINING)
    if start:
        emit(EventKind.RESUMED, step=start, total_steps=steps, checkpoint=str(saved), lost_steps=0, lost_seconds=0.0)
    else:
        emit(EventKind.PLAN, total_steps=steps, sequences=8, conversations=9, tokens=1000, trained_tokens=400,
             parameters=2000, trained_parameters=1000)  # fmt: skip
        append_line(run / "metrics.jsonl", {"step": 0, "epoch": 0.0, "eval_loss": 9.0})
    if wish.get("tear"):
        with open(run / "metrics.jsonl", "a") as handle:
            handle.write('{"step": 1, "lo\n{"also": torn\n')
    if wish.get("show_secret_length"):
        print("secret of", len(os.environ.get("FAKE_TOKEN", "")), "letters", flush=True)

    def finish(state: str, code: int, step: int, reason: str) -> int:
        model = str(run / "model") if state == "done" else None
        outcome = {"state": state, "exit_code": code, "reason": reason, "step": step, "total_steps": steps,
                   "eval_loss": 9.0 - step, "model": model, "attempt": attempt}  # fmt: skip
        write_atomic(run / "outcome.json", json.dumps(outcome))
        emit(EventKind.FINISHED, exit_code=code, reason=reason)
        for worker in [] if wish.get("leave") else workers:
            worker.kill()
            worker.wait()
        return code

    for step in range(start + 1, steps + 1):
        if step == wish.get("vanish_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(wish.get("pause_s", 0.01))
        print(f"step {step} of {steps}", flush=True)
        append_line(run / "metrics.jsonl", {"step": step, "epoch": 0.0, "loss": 9.0 - step / steps, "lr": 0.1,
                    "grad_norm": 1.0, "tokens": 10, "tokens_per_second": 100.0, "seconds": 0.1, "attempt": attempt})  # fmt: skip
        if step % wish.get("evaluate_every", steps + 1) == 0:
            append_line(run / "metrics.jsonl", {"step": step, "epoch": 0.0, "eval_loss": job.spec.train.learning_rate})
        if stop or (run / STOP_FILE).exists():
            saved.parent.mkdir(exist_ok=True)
            saved.write_text(str(step))
            emit(
                EventKind.CHECKPOINT_SAVED,
                step=step,
                checkpoint=str(saved),
                size_bytes=1,
                blocked_seconds=0.0,
                seconds=0.0,
            )
            emit(EventKind.PREEMPTED, step=step, reason="SIGTERM")
            return finish("preempted", 75, step, "asked to stop")
    if wish.get("exit"):
        state = {64: "bad_input"}.get(wish["exit"], "failed")
        return finish(state, wish["exit"], steps, wish.get("reason", "as wished"))
    if "evaluate_every" not in wish:
        append_line(run / "metrics.jsonl", {"step": steps, "epoch": 1.0, "eval_loss": 4.0})
    (run / "model").mkdir(exist_ok=True)
    (run / "model" / "config.json").write_text("{}")
    sample = {"question": "What is it?", "answer": "It is\n  a fake.", "expected": "A fake."}
    emit(EventKind.EXPORTED, model=str(run / "model"), sample=sample)
    return finish("done", 0, steps, "")


if __name__ == "__main__":
    sys.exit(main())
