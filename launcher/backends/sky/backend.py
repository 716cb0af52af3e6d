"""SkyRuns: the backend protocol over a SkyClient: managed jobs, and jobs on a cluster of one's own. Imports no sky.

Owns the way of a run through SkyPilot: submitted, told of, fetched. How its job is found is `jobs`', how it is stopped
`stopping`'s, and how what the node writes comes home is `reading`'s.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.backends.base import (
    BEGINNING,
    Abilities,
    BackendStatus,
    Cursor,
    DownReport,
    Fetchable,
    Handle,
    LogChunk,
    Offer,
    Submission,
)
from launcher.backends.home.run_folder import read_from
from launcher.backends.inputs import check_upload
from launcher.backends.sky import adopting, elsewhere, store_access
from launcher.backends.sky import status as sky_status
from launcher.backends.sky.catalog import has_memory
from launcher.backends.sky.controller import refuse_homeless
from launcher.backends.sky.enforcement import deadline_is_enforced
from launcher.backends.sky.jobs import Jobs, kind_of
from launcher.backends.sky.offers import offers_of, priced, refuse_losing_progress, tried
from launcher.backends.sky.reach import InBucket
from launcher.backends.sky.reading import Reading
from launcher.backends.sky.records import (
    hourly_price,
    keep_price,
    last_step,
    model_url_of,
    node_attempts,
    reach_of,
)
from launcher.backends.sky.ship import pack, unstage
from launcher.backends.sky.stopping import Stopping
from launcher.backends.sky.task import (
    IDLE_MINUTES,
    PRICES_FILE,
    SUBMITTED_AT,
    TERMS_FILE,
    build_task,
    folder_store,
    places_of,
    ship,
)
from launcher.backends.sky.terms import terms_of
from launcher.backends.sky.uploads import Uploads
from launcher.jobfile.settle import Placement
from launcher.jobfile.spec import JobSpec
from launcher.runs import ledger
from launcher.runs.copying import copy_folder
from launcher.runs.errors import BackendError, LauncherError, NoCapacity
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState, is_over, told_after_down
from trainer.run.run_folder import CHECKPOINTS_FOLDER, MODEL_FOLDER, write_atomic
from trainer.run.spec import NodeJob

NODE_FOLDER = "/tmp/dolphin"
"""Where a run lives on a node that shares no folder with the next one."""


class SkyRuns:
    name = "sky"
    abilities = Abilities(
        has_many_nodes=True, chooses_machine=True, options=frozenset({"cluster", "yes_lose_progress"})
    )
    poll_s = 5.0

    def __init__(self, client: Any) -> None:
        self._client = client
        self._jobs = Jobs(client)
        self._reading = Reading(self._job, self._tail)

    def offers(self, job: JobSpec, nproc: int | None) -> list[Offer]:
        return offers_of(self._client, job, nproc)

    def place(self, job: JobSpec, run_id: str, folder: Path, nproc: int | None) -> Placement:
        store = folder_store(job) or NODE_FOLDER
        count = nproc or job.resources.ranks_per_node or job.resources.gpus_per_node or 1
        on_cpu = job.resources.gpu_name is None or job.env.get("DOLPHIN_DEVICE") == "cpu"
        return Placement(f"{store}/{run_id}", f"{store}/cache", count, "cpu" if on_cpu else "cuda")

    def preflight(self, job: JobSpec, train: NodeJob, options: Mapping[str, Any]) -> list[str]:
        refuse_losing_progress(job, options)
        shipment = ship(train)
        lines = check_upload(shipment.inputs, job)
        self._jobs.refuse_namesakes(job.name)
        enabled = self._client.enabled()
        places = places_of(job, job.resources.infra or enabled)
        is_managed, secrets = not options.get("cluster"), dict.fromkeys(job.secret_names, "set")
        if is_managed:
            refuse_homeless(places, enabled)
        task = build_task(job, train, places, shipment, Path("/"), is_managed=is_managed, secrets=secrets)
        self._client.check_task({key: value for key, value in task.items() if key != "file_mounts"})
        return lines + store_access.check(job, train.store, places)

    def submit(self, submission: Submission) -> Handle:
        record, job, train = submission.record, submission.job, submission.train
        cluster = record.options.get("cluster")
        refuse_losing_progress(job, record.options)
        self._jobs.refuse_twins(record)
        places = places_of(job, job.resources.infra or self._client.enabled())
        # The plan's offers, less the nodes that are too small for the memory that the job asks for by now.
        offers = [offer for offer in submission.offers if has_memory(job.resources, offer.host_memory_gib)]
        offers = offers or offers_of(self._client, job, train.nproc)
        places = priced(job, places, offers)
        job = store_access.with_environment(job, record.folder)
        adopting.keep(record, train)
        prices = [[offer.infra, offer.spot, offer.price_usd_per_hour] for offer in offers]
        write_atomic(record.folder / PRICES_FILE, json.dumps(prices))
        terms = terms_of(job, train, places, prices, _kept(record.folder / ledger.PLAN_FILE))
        write_atomic(record.folder / TERMS_FILE, json.dumps(terms))
        shipment = ship(train)
        staging = pack(record.folder, job, train, shipment, list(submission.secrets), record.submissions)
        task = build_task(
            job, train, places, shipment, staging, is_managed=not cluster, secrets=submission.secrets,
            terms=terms if terms is not None and deadline_is_enforced() is None else None,
        )  # fmt: skip
        task["envs"][SUBMITTED_AT] = str(int(time.time()))
        self._client.check_task(task)

        def asked(request: str) -> None:
            write_atomic(record.folder / ledger.REQUEST_FILE, request)

        uploads = Uploads(self._client, is_managed=not cluster)
        try:
            if cluster:
                idle = None if all(place.cloud == "slurm" for place in places) else IDLE_MINUTES
                job_id = self._client.launch_cluster(task, cluster, idle, asked)
                return {"kind": "cluster", "cluster": cluster, "job_id": job_id}
            return {"kind": "managed", "job_id": self._client.launch_managed(task, record.run_id, asked)}
        except NoCapacity as error:
            uploads.remove(submission.tell)
            raise NoCapacity(f"{error} [asked for {', '.join(tried(job, places))}]") from None
        except LauncherError:
            uploads.remove(submission.tell)
            raise

    def find(self, run_id: str) -> Handle | None:
        return self._jobs.find(run_id)

    def status(self, record: RunRecord) -> BackendStatus:
        job = self._job(record)
        if job is None:
            self._reading.refresh(record, self.poll_s)
            state, detail, exit_code = self._without_job(record)
            if record.down_requested_at is not None:
                state, detail = told_after_down(state, detail)
            now = time.time()
            attempts = node_attempts(record, None, state, now, hourly_price(record, None))
            price = sky_status.price_of(attempts, now) if attempts else None
            return BackendStatus(
                state, detail, exit_code, price_usd_so_far=price, attempts=attempts, model_url=model_url_of(record)
            )
        is_managed = kind_of(record) == "managed"
        table = sky_status.MANAGED_JOB_STATES if is_managed else sky_status.CLUSTER_JOB_STATES
        state = sky_status.managed_state(job.status) if is_managed else sky_status.cluster_job_state(job.status)
        if is_over(state):
            self._reading.complete(record)
        if is_over(state) and state is not RunState.LOST and record.handle is not None and not ledger.is_locked(record):
            unstage(record.folder)  # not while a resume stages anew
        step = last_step(record)
        outcome = record.files.read_outcome() or {}
        state, detail, exit_code = sky_status.settled(state, outcome, job.reason)
        known = sky_status.detail_of(job.status, state, step=step, is_known=job.status in table)
        detail = known if known and state in (RunState.RECOVERING, RunState.LOST) else detail or known
        if record.down_requested_at is not None:
            state, detail = told_after_down(state, detail)
        now = time.time()
        hourly = hourly_price(record, job)
        if state is RunState.RUNNING:
            keep_price(record, hourly)
        attempts = node_attempts(record, job, state, now, hourly)
        node = attempts[-1] if attempts else None
        where = "/".join(part for part in (node.infra or job.infra, node.node) if part) if node else job.infra
        return BackendStatus(
            state, detail, exit_code, where, None if is_over(state) else hourly,
            sky_status.price_of(attempts, now), max(job.recoveries, 0), attempts, model_url_of(record),
        )  # fmt: skip

    def logs(self, record: RunRecord, after: Cursor = BEGINNING) -> Iterator[LogChunk]:
        self._reading.follow(record)
        yield from self._reading.lines(record, int(after or 0))

    def read_file(self, record: RunRecord, name: str, offset: int = 0) -> bytes | None:
        self._reading.refresh(record, self.poll_s)
        return read_from(record.folder / name, offset)

    def down(self, record: RunRecord, grace_s: float) -> DownReport:
        return Stopping(self._client, self._jobs, self.poll_s).down(record, grace_s)

    def fetch(self, record: RunRecord, what: Fetchable, target: Path) -> Path:
        if what == "log":
            self._reading.refresh(record, self.poll_s)
            if not record.files.log.exists():
                raise BackendError(f"{record.run_id}: has no log yet; nothing was copied")
            return copy_folder(record.files.log, target)
        train = NodeJob.read(record.files.train_json)
        if what == "model":
            status = self.status(record)
            if status.state is not RunState.SUCCEEDED and not (record.files.read_outcome() or {}).get("model"):
                raise BackendError(
                    f"{record.run_id}: has no finished model (it is {status.state.value}); --what checkpoints copies what there is"
                )
        folder = MODEL_FOLDER if what == "model" else CHECKPOINTS_FOLDER
        path = f"{train.run_dir}/{folder}"
        if "://" in train.store:
            from launcher.backends.sky.bucket_copy import copy_prefix

            environment = store_access.environment_of_run(record.folder)
            return copy_prefix(f"{train.store}/{folder}", target, environment)
        there = reach_of(record)
        if there is None:
            raise BackendError(
                f"{record.run_id}: its {what} lies at {path} on {self.status(record).node or 'its node'}, which cannot be "
                "reached from here; copy it there, or use a bucket as checkpoint.store"
            )
        return there.copy(path, target)

    def _job(self, record: RunRecord) -> Any:
        """SkyPilot's record of the run; None where there is none."""
        job = self._jobs.of(record)
        if job is not None:
            self._reading.heard(record.run_id, job)
        return job

    def _without_job(self, record: RunRecord) -> tuple[RunState, str, int | None]:
        if self._client.pending_launch(record.run_id):
            return RunState.PROVISIONING, "SkyPilot is taking it in", None
        if record.handle is None and ledger.is_locked(record):
            return RunState.CREATED, "being submitted", None
        there = reach_of(record)
        node = elsewhere.holder(there) if isinstance(there, InBucket) else None
        if node is not None:
            return RunState.RUNNING, f"{node}; SkyPilot here knows no job of this name", None
        outcome = record.files.read_outcome() or {}
        if outcome:  # the trainer's own word came home before SkyPilot forgot the job, as with a cluster that is down
            presumed = RunState.SUCCEEDED if outcome.get("exit_code") == 0 else RunState.FAILED
            return sky_status.settled(presumed, outcome, None)
        if kind_of(record) == "cluster" and record.handle is not None:
            return RunState.LOST, "its cluster is gone without an outcome; `dolphin resume` goes on", None
        if record.submissions == 0 or record.handle is None:
            return RunState.LOST, "it was never started; `dolphin resume` starts it", None
        return RunState.LOST, "SkyPilot knows no job of this name any more; `dolphin resume` goes on", None

    def _tail(self, record: RunRecord, job: Any, follow: bool, stream: io.TextIOBase) -> None:
        if kind_of(record) == "managed":
            self._client.tail_managed(job.job_id, follow, stream)
        else:
            self._client.tail_cluster(job.cluster, job.job_id, follow, stream)


def _kept(path: Path) -> dict[str, Any]:
    """A file of the run's folder at home; nothing where there is none that can be read."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        return {}
