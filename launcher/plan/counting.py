"""The counting of a job's data by the trainer's own preparation, as a process of its own: whole, or not at all.

Owns where such a count is kept, when it is too old, and how long a plan waits for it. Refuses to read conversations: what it
leaves in the cache, a later launch on this machine finds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec

from launcher.jobfile.settle import Placement, settle
from launcher.jobfile.spec import JobSpec
from launcher.plan.data_facts import DataFacts, from_report, local_files
from launcher.runs import ledger
from trainer.run import python
from trainer.run.exits import BadInput, ExitCode
from trainer.run.run_folder import RunDir, make_private, write_atomic
from trainer.run.spec import NodeJob, TrainSpec

LIMIT_S = 60.0
"""How long a plan waits."""
LARGEST_BYTES = 300_000_000
"""Of sources that are counted unasked: two cores tokenize 5 to 10 MB a second."""
_CLEAN_UP_S = 15.0


def laid_out(job: JobSpec) -> tuple[RunDir, int]:
    """The folder where a preparation leaves its report, with its train.json written anew; and the job's global batch."""
    files = ledger.checked_data(job.name)
    make_private(files.path)
    place = Placement(str(files.path), str(ledger.cache_dir()), job.resources.ranks or 1, "cpu")
    train = settle(job, place, run_id=f"{job.name}-data", zero=0)
    write_atomic(files.train_json, train.model_dump_json())
    files.data_report.unlink(missing_ok=True)
    return files, train.global_batch


def counted(job: JobSpec) -> DataFacts | None:
    """What a preparation left for this job; None where there is none, or data, tokenizer or settings are others by now."""
    files = ledger.checked_data(job.name)
    try:
        then = NodeJob.read(files.train_json).spec
        counted_at = files.data_report.stat().st_mtime
        newest = max((path.stat().st_mtime for path in local_files(job.data) or ()), default=0.0)
    except (OSError, ValueError, BadInput):
        return None
    if then.data != job.data or then.train.seed != job.train.seed or _tokenizer(then) != _tokenizer(job):
        return None
    return from_report(files.data_report, job.data.sequence_length) if newest <= counted_at else None


def count(job: JobSpec, limit_s: float = LIMIT_S) -> str:
    """Count the data now, where all of it is on this machine; why that was not done, or nothing where `counted` knows it.

    Downloads nothing, and leaves nothing half-made where it takes longer than `limit_s`."""
    files = local_files(job.data)
    if not files:
        return "it is not on this machine"
    if find_spec("transformers") is None:
        return "the trainer's packages are not installed here"
    if sum(path.stat().st_size for path in files) > LARGEST_BYTES:
        return f"more than {LARGEST_BYTES // 10**6} MB are not counted unasked"
    try:
        train_json = laid_out(job)[0].train_json
    except OSError as error:  # a plan can be made where nothing can be written
        return f"{error.filename or ledger.cache_dir()}: {error.strerror}"
    print("counting the data, once", file=sys.stderr)
    environment = python.environment({**os.environ, "HF_HUB_OFFLINE": "1"})
    with subprocess.Popen(
        python.command("trainer.data.prepare", str(train_json)), env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        try:
            said = process.communicate(timeout=limit_s)[1]
        except subprocess.TimeoutExpired:
            _end(process)
            return f"it took more than {limit_s:.0f} s"
        except BaseException:
            _end(process)
            raise
    if process.returncode == ExitCode.DONE:
        return ""
    lines = [line for line in said.splitlines() if line.strip()]
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "it failed")


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)  # it removes what is half-made
    try:
        process.communicate(timeout=_CLEAN_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _tokenizer(spec: TrainSpec) -> tuple[object, ...]:
    model = spec.model
    return model.tokenizer or model.base, model.revision, model.chat_template, model.special_tokens, model.added_tokens
