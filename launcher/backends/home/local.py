"""LocalBackend: a run as processes of this machine, on its GPUs or its CPU.

Owns starting the supervisor away from the terminal, and ending it. Refuses to
know how training works: it starts `python -m trainer.supervise train.json` and believes outcome.json.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.backends.base import Abilities, DownReport, Handle, Submission
from launcher.backends.home import processes
from launcher.backends.home.machine import as_counted
from launcher.backends.home.run_folder import HomeBackend, Look, as_told, last_words
from launcher.runs import ledger
from launcher.runs.errors import BackendError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState
from trainer.run import python, redaction

if TYPE_CHECKING:
    from launcher.jobfile.spec import JobSpec
    from trainer.run.spec import NodeJob


class LocalBackend(HomeBackend):
    """Satisfies `launcher.backends.base.Backend`."""

    name = "local"
    abilities = Abilities()
    poll_s = 0.5

    def preflight(self, job: JobSpec, train: NodeJob, options: Mapping[str, Any]) -> list[str]:
        _require_trainer()
        return []

    def submit(self, submission: Submission) -> Handle:
        record = submission.record
        _require_trainer()
        if processes.of_run(record.run_id):
            raise BackendError(
                f"{record.run_id}: processes of this run still run; `dolphin down {record.run_id}` first"
            )
        files = record.files
        files.outcome.unlink(missing_ok=True)  # of an earlier attempt: it must not speak for this one
        environment = python.environment(as_counted({**os.environ, **submission.job.env, **submission.secrets}))
        environment[redaction.NAMES] = ",".join(sorted(submission.secrets))
        environment[processes.RUN_MARKER] = record.run_id
        environment["PYTHONUNBUFFERED"] = "1"
        # DeepSpeed looks for ninja on the PATH, where a virtual environment that is not activated is missing.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
        try:
            with open(files.log, "ab") as log:
                child = subprocess.Popen(
                    python.command("trainer.supervise", str(files.train_json)),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=record.folder,
                    env=environment,
                    start_new_session=True,  # neither Ctrl-C nor the closing terminal reaches it
                )
        except OSError as error:
            raise BackendError(f"{record.run_id}: cannot start the trainer: {error}") from None
        identity = processes.identify(child.pid)
        started = identity.started if identity else "ended at once"
        return {"pid": child.pid, "started": started, "host": platform.node()}

    def find(self, run_id: str) -> Handle | None:
        for process in processes.roots(processes.of_run(run_id)):
            identity = processes.identify(process.pid)
            if identity is not None:
                return {**asdict(identity), "host": platform.node()}
        return None

    def down(self, record: RunRecord, grace_s: float) -> DownReport:
        root = _root(record)
        host = (record.handle or {}).get("host", platform.node())
        if host != platform.node() and record.files.read_outcome() is None:
            raise BackendError(f"{record.run_id}: runs on {host}, this is {platform.node()}; run `dolphin down` there")
        num_found, was_killed, left = processes.stop(record.run_id, root, grace_s)
        if left:
            return DownReport(False, tuple(left), "some processes cannot be ended", was_killed)
        if not num_found:
            return DownReport(True, detail="nothing of it was running", price_usd=0.0)
        how = "killed" if was_killed else "stopped by itself"
        return DownReport(True, detail=f"{how}; {num_found} processes gone", was_killed=was_killed, price_usd=0.0)

    def look(self, record: RunRecord) -> Look:
        root = _root(record)
        if root is not None and processes.is_alive(root):
            return RunState.RUNNING, f"process {root.pid}", None
        if record.handle is None:
            if ledger.is_locked(record):
                return RunState.CREATED, "being started", None
            if self.find(record.run_id) is not None:
                return RunState.RUNNING, "its launcher died while starting it", None
        elif record.handle.get("host") != platform.node() and record.files.read_outcome() is None:
            return RunState.LOST, f"it was started on {record.handle.get('host')}: ask there", None
        outcome = record.files.read_outcome()
        if outcome is not None:
            return as_told(outcome)
        if record.submissions == 0 or (record.handle is None and not record.files.events.exists()):
            return RunState.LOST, "it was never started; `dolphin resume` starts it", None
        orphans = processes.of_run(record.run_id)
        rest = f"{len(orphans)} of its processes still run: `dolphin down` ends them; then " if orphans else ""
        last = last_words(record)
        said = f"; the log ends: {last}" if last else ""
        detail = f"its process is gone without an outcome (killed, or a reboot); {rest}`dolphin resume` goes on{said}"
        return RunState.LOST, detail, None


def _require_trainer() -> None:
    if importlib.util.find_spec("torch") is None:
        raise BackendError(
            "--on local: the trainer is not installed here; pip install 'dolphin-launcher[train]', or use --on docker or sky"
        )


def _root(record: RunRecord) -> processes.Identity | None:
    pid, started = (record.handle or {}).get("pid"), (record.handle or {}).get("started")
    return processes.Identity(pid, started) if isinstance(pid, int) and isinstance(started, str) and pid > 0 else None
