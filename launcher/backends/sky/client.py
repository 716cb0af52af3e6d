"""SkyClient: everything dolphin asks of SkyPilot, as plain data; the only importer of sky. SkyBackend binds it.

Owns requests: each one is awaited, and an exception leaves here as a LauncherError. Refuses to know jobs' specifications,
run folders and the log's frames (`backend` and its neighbours do). Importing sky takes 1.6 to 5 s: at first use only.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from launcher.backends.base import Offer
from launcher.backends.sky import errors
from launcher.backends.sky.answers import (
    JOB_FIELDS,
    Cluster,
    Job,
    cluster_job,
    cluster_of,
    lost_controller,
    managed_job,
    without_controller,
)
from launcher.backends.sky.backend import SkyRuns
from launcher.backends.sky.phases import PhaseStream
from launcher.backends.sky.server import answer_of
from launcher.runs.errors import BackendError, LauncherError
from launcher.runs.waiting import Wait, waiting_for
from launcher.units import GIB, MIB

UPLOADS = "skypilot-filemounts-"
"""How SkyPilot begins the name of a bucket with the local files of one submit."""
_ON_SALE_NOWHERE = {"slurm", "kubernetes", "ssh"}
"""Prices, and what there is, come from the cluster itself, not from a catalog file."""


class SkyClient:
    """Raises BackendError at once where SkyPilot is not installed. Methods raise LauncherErrors alone."""

    def __init__(self) -> None:
        try:
            version("skypilot")  # find_spec would find a folder called sky in the working directory
        except PackageNotFoundError:
            raise BackendError(errors.NOT_INSTALLED) from None
        self._lock = threading.Lock()
        self._modules: dict[str, Any] = {}

    def enabled(self) -> list[str]:
        """Clouds that SkyPilot may use; BackendError with the way to learn why where there is none."""
        with self._explained("asking for the enabled clouds"):
            sdk = self._sdk()
            found = [str(name).lower() for name in sdk.get(sdk.enabled_clouds())]
        if not found:
            raise BackendError("--on sky: SkyPilot has no cloud enabled; `sky check` says what each one lacks")
        return found

    def accelerators(self, clouds: Sequence[str]) -> list[str]:
        """Names of GPUs that there are at all."""
        with self._explained("listing the GPUs"):
            return sorted(self._list_accelerators(gpus_only=True, clouds=list(clouds) or None))

    def offers(self, gpu: str, count: int, infra: str) -> list[Offer]:
        """What one infra asks for a node with these GPUs, on demand and spot, region by region."""
        cloud, _, rest = infra.partition("/")
        region, _, zone = rest.partition("/")
        with self._explained(f"asking for the price of {gpu}:{count} at {infra}"):
            found = self._list_accelerators(
                gpus_only=True, name_filter=f"^{gpu}$", quantity_filter=count, clouds=[cloud], case_sensitive=False,
                region_filter=region or None, all_regions=True,
            )  # fmt: skip
        offers = []
        for infos in found.values():
            for info in infos:
                if info.accelerator_count != count:
                    continue
                memory = round(info.device_memory * GIB / MIB) if info.device_memory else None
                host = info.memory if info.memory and info.memory == info.memory else None  # a NaN is unknown
                place = infra if cloud in _ON_SALE_NOWHERE else f"{cloud}/{info.region}{f'/{zone}' if zone else ''}"
                for price, spot in ((info.price, False), (info.spot_price, True)):
                    if price is not None and price == price:  # a NaN is no price
                        offers.append(Offer("sky", place, info.accelerator_name, count, spot, float(price), memory,
                                            info.instance_type, host_memory_gib=host))  # fmt: skip
        return offers

    def _list_accelerators(self, **what: Any) -> dict[str, list[Any]]:
        """Of the regions that the account has: the API server's where that is another machine, which alone has its credentials."""
        common = self._module("sky.server.common")
        if common.is_api_server_local(common.get_server_url()):
            here: dict[str, list[Any]] = self._sky().list_accelerators(**what)
            return here
        there: dict[str, list[Any]] = self._sdk().get(self._sdk().list_accelerators(**what))
        return there

    def jobs(self, name_part: str, *, active_only: bool, wake: bool = False) -> list[Job]:
        """Managed jobs of this user whose name contains the text, newest first; none where there is no jobs controller.

        ControllerStopped where it has stopped itself, unless `wake` starts it again, which takes minutes; ControllerAway where
        it does not answer."""
        jobs, sdk = self._jobs(), self._sdk()
        waking = (
            "starting its jobs controller, a VM that has stopped itself, which takes minutes; then " if wake else ""
        )
        with self._explained(f"{waking}asking for the managed jobs") as wait:
            try:
                request = jobs.queue_v2(
                    refresh=wake, skip_finished=active_only, fields=JOB_FIELDS, name_match=name_part
                )
                if wake:
                    self._tell_phases(request, wait)
                records, *_ = sdk.get(request)
            except Exception as error:
                if type(error).__name__ != "ClusterNotUpError":
                    raise lost_controller(error) or error from None
                problem = without_controller(error)
                if problem is None:
                    return []
                raise problem from None
        found = [managed_job(record) for record in records if record.job_id is not None]
        return sorted(found, key=lambda job: job.job_id, reverse=True)

    def pending_launch(self, run_id: str) -> str | None:
        """The request that is starting the run at this moment, whoever sent it."""
        with self._explained("asking for the requests under way"):
            for request in self._sdk().api_status(all_status=False):
                body = f"{request.request_body}{request.entrypoint}{request.cluster_name}"
                if request.name in ("jobs.launch", "sky.jobs.launch", "launch", "sky.launch") and run_id in body:
                    return str(request.request_id)
        return None

    def cancel_request(self, request_id: str) -> None:
        """Withdraw what was asked for. What it started before stays started."""
        with self._explained(f"cancelling the request {request_id}"):
            self._sdk().get(self._sdk().api_cancel([request_id], silent=True))

    def launch_managed(self, task: dict[str, Any], name: str, asked: Callable[[str], None]) -> int:
        """Submit, wait until it is accepted, and return the job's id. `asked` hears the request's id before the wait."""
        with self._explained(f"{name}: submitting") as wait:
            request = self._jobs().launch(self._task(task), name=name, job_group=None)
            asked(request)
            self._tell_phases(request, wait)
            job_ids, _ = self._sdk().get(request)
        if not job_ids:
            raise BackendError(f"{name}: SkyPilot accepted it without a job id; `sky jobs queue` shows what there is")
        return int(job_ids[0])

    def uploads(self) -> set[str]:
        """Names of the buckets that SkyPilot made for files of submits."""
        with self._explained("asking for the buckets"):
            names = [str(record.name) for record in self._sdk().get(self._sdk().storage_ls())]
        return {name for name in names if name.startswith(UPLOADS)}

    def delete_upload(self, name: str) -> None:
        with self._explained(f"removing the bucket {name}"):
            self._sdk().get(self._sdk().storage_delete(name))

    def cancel_managed(self, job_id: int) -> None:
        with self._explained(f"cancelling managed job {job_id}"):
            try:
                self._sdk().get(self._jobs().cancel(job_ids=[job_id]))
            except Exception as error:
                is_down = type(error).__name__ == "ClusterNotUpError"
                raise (without_controller(error) if is_down else lost_controller(error)) or error from None

    def tail_managed(self, job_id: int, follow: bool, stream: io.TextIOBase) -> None:
        with self._explained(f"reading the log of managed job {job_id}"):
            self._jobs().tail_logs(job_id=job_id, follow=follow, output_stream=stream)

    def clusters(self, *, refresh: bool = False) -> list[Cluster]:
        """Every cluster that SkyPilot has for this user, those of managed jobs too; `refresh` asks the clouds."""
        sky, sdk = self._sky(), self._sdk()
        with self._explained("asking for the clusters"):
            mode = sky.StatusRefreshMode.FORCE if refresh else sky.StatusRefreshMode.NONE
            records = sdk.get(sdk.status(refresh=mode))
            return [cluster_of(record) for record in records]

    def launch_cluster(
        self, task: dict[str, Any], cluster: str, idle_minutes: int | None, asked: Callable[[str], None]
    ) -> int:
        """Run the task on the cluster, made where there is none; a warm one is used as it is. Returns the job's id."""
        with self._explained(f"{cluster}: launching") as wait:
            request = self._sdk().launch(
                self._task(task), cluster_name=cluster, idle_minutes_to_autostop=idle_minutes,
                down=idle_minutes is not None, fast=True,
            )  # fmt: skip
            asked(request)
            self._tell_phases(request, wait)
            job_id, _ = self._sdk().get(request)
        if job_id is None:
            raise BackendError(
                f"{cluster}: SkyPilot started it without a job; `sky queue {cluster}` shows what there is"
            )
        return int(job_id)

    def cluster_jobs(self, cluster: str) -> list[Job] | None:
        """Jobs of a cluster, newest first; None where there is no such cluster, or none that is up."""
        with self._explained(f"asking for the jobs of cluster {cluster}"):
            try:
                records = self._sdk().get(self._sdk().queue(cluster))
            except Exception as error:
                if type(error).__name__ in ("ClusterDoesNotExist", "ClusterNotUpError") or "does not exist" in str(
                    error
                ):
                    return None
                raise
        found = [cluster_job(record, cluster) for record in records]
        return sorted(found, key=lambda job: job.job_id, reverse=True)

    def cancel_cluster_job(self, cluster: str, job_id: int) -> None:
        with self._explained(f"cancelling job {job_id} of cluster {cluster}"):
            self._sdk().get(self._sdk().cancel(cluster, job_ids=[job_id]))

    def tail_cluster(self, cluster: str, job_id: int, follow: bool, stream: io.TextIOBase) -> None:
        with self._explained(f"reading the log of job {job_id} of cluster {cluster}"):
            self._sdk().tail_logs(cluster, job_id, follow, output_stream=stream)

    def down_cluster(self, cluster: str) -> None:
        with self._explained(f"tearing down cluster {cluster}"):
            self._sdk().get(self._sdk().down(cluster))

    def check_task(self, task: dict[str, Any]) -> None:
        """Whether SkyPilot's own parser takes the task; BadUsage with its words where not."""
        with self._explained(f"{task.get('name')}"):
            self._task(task)

    def _task(self, task: dict[str, Any]) -> Any:
        try:
            return self._sky().Task.from_yaml_config(copy.deepcopy(task))  # it takes the keys out of what it is given
        except ValueError as error:
            raise errors.refused(error) from None

    def _sky(self) -> Any:
        return self._module("sky")

    def _sdk(self) -> Any:
        return self._module("sky.client.sdk")

    def _jobs(self) -> Any:
        return self._module("sky.jobs.client.sdk")

    def _module(self, name: str) -> Any:
        with self._lock:
            if name not in self._modules:
                os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
                self._modules[name] = importlib.import_module(name)
                logging.getLogger("sky").setLevel(logging.CRITICAL)  # its words go to stdout, which is for data
            return self._modules[name]

    def _tell_phases(self, request: str, wait: Wait) -> None:
        """Beside the waiting for the request, whose end does not hang on this: it may break off."""

        def tell(phase: str) -> None:
            wait.phase = phase

        def read() -> None:
            with contextlib.suppress(Exception, SystemExit):
                self._sdk().stream_and_get(request, output_stream=PhaseStream(tell), relay_rich_status=True)

        threading.Thread(target=read, daemon=True).start()

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[Wait]:
        try:
            with waiting_for(f"SkyPilot: {what}") as wait:
                yield wait
        except LauncherError:
            raise
        except (Exception, SystemExit) as error:  # SkyPilot raises its own, requests', click's and plain ones
            raise errors.explain(error, what=what, server=self._server) from error

    def _server(self) -> errors.Server | None:
        """The API server that SkyPilot was told to use, and what answers there."""
        with contextlib.suppress(Exception):  # only words of an error hang on it
            common = self._module("sky.server.common")
            endpoint = str(common.get_server_url())
            shown = re.sub(r"//[^/@]*@", "//", endpoint)
            return errors.Server(shown, bool(common.is_api_server_local(endpoint)), answer_of(endpoint))
        return None


class SkyBackend(SkyRuns):
    """Satisfies `launcher.backends.base.Backend`."""

    def __init__(self) -> None:
        super().__init__(SkyClient())
