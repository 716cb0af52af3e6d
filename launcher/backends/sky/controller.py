"""SkyPilot's jobs controller: what it costs beside the run, and which clouds cannot hold one. Asks nobody, imports no sky.

A client of its own starts a VM for it on the first managed job (read in SkyPilot 0.14.1's `sky/jobs/constants.py`); an API
server that consolidates holds it in its own process.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from launcher.backends.base import Upkeep
from launcher.backends.sky.task import Place, cloud_of
from launcher.jobfile.regions import catalog_folder
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BadUsage

NO_CONTROLLER = frozenset({
    "cudo", "fluidstack", "hyperbolic", "lambda", "mithril", "seeweb", "shadeform", "slurm", "verda", "yotta",
})  # fmt: skip
"""Clouds of SkyPilot 0.14.1 on which no controller can run (`HOST_CONTROLLERS`)."""
IN_A_POD = {"kubernetes", "ssh"}
"""Clouds on which it is a pod beside others, and nothing is paid for it alone."""
VCPUS, MEMORY_GIB = 4, 16
"""What SkyPilot asks for: `cpus: 4+`, `memory: 4x`."""
IDLE_MINUTES = 10
"""It stops itself after so many idle minutes; its disk is kept."""
FAMILIES = {"aws": ("m6i.", "m5."), "gcp": ("n2-standard-",), "azure": ("Standard_D",)}
"""Where the catalog has many machines: beginnings of those that SkyPilot takes for it."""
ASSUMED_USD_PER_HOUR = 0.20
"""AWS's m6i.xlarge is $0.192, GCP's n2-standard-4 $0.194 (list prices, us-east-1 and us-central1)."""
SERVER_SIGNAL = "~/.sky/.jobs_controller_consolidation_reloaded_signal"
"""An API server of this machine leaves it where it holds the controller itself."""
CONFIG = "~/.sky/config.yaml"
ENDPOINT = "SKYPILOT_API_SERVER_ENDPOINT"
"""Environment variable of SkyPilot's that names an API server."""
LOCAL_SERVER = "http://127.0.0.1:46580"
"""Where a client starts one of its own."""


def upkeep(job: JobSpec, options: Mapping[str, Any]) -> list[Upkeep]:
    """The controller's VM, where there is one: not for a run on a cluster of one's own (`--cluster`), not where the API server
    of this machine holds the controller, nor where it is a pod of the job's Kubernetes cluster."""
    clouds = {cloud_of(infra) for infra in job.resources.infra}
    if options.get("cluster") or is_consolidated() or clouds & IN_A_POD:
        return []
    return [
        Upkeep(
            f"SkyPilot's jobs controller, a VM of {VCPUS} vCPUs", _price(),
            f"unless the API server holds it; it stops itself {IDLE_MINUTES} idle minutes after the last run",
        )
    ]  # fmt: skip


def is_consolidated() -> bool | None:
    """Whether the API server holds the controller itself; None where that server is another machine, whose settings are not known
    here."""
    config = _config()
    if os.path.exists(os.path.expanduser(SERVER_SIGNAL)) or config.get("jobs", {}).get("controller", {}).get(
        "consolidation_mode"
    ):
        return True
    return False if is_server_here() else None


def endpoint() -> str:
    """Where SkyPilot's API server answers."""
    stated = os.environ.get(ENDPOINT) or _config().get("api_server", {}).get("endpoint") or LOCAL_SERVER
    return str(stated).rstrip("/")


def is_server_here() -> bool:
    return urlsplit(endpoint()).hostname in (None, "127.0.0.1", "localhost", "0.0.0.0", "::1")


def _config() -> dict[str, Any]:
    """SkyPilot's settings here; empty where there are none that can be read."""
    try:
        config = yaml.safe_load(Path(os.path.expanduser(CONFIG)).read_bytes())
        jobs = config.get("jobs") or {}
        controller = jobs.get("controller") or {}
        server = config.get("api_server") or {}
        return {"jobs": {"controller": dict(controller)}, "api_server": dict(server)}
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):
        return {}


def refuse_homeless(places: Sequence[Place], enabled: Sequence[str]) -> None:
    """BadUsage where a managed job has no cloud for its controller: neither one that it runs on, nor another that is enabled.

    SkyPilot takes a cloud of the job's own where one can hold it, else any that is enabled. Nothing is refused where the API server is
    another machine: it may hold the controller itself."""
    if is_consolidated() is not False:
        return
    clouds = {place.cloud for place in places if place.cloud}
    able = (clouds | {cloud.partition("/")[0].lower() for cloud in enabled}) - NO_CONTROLLER
    if clouds and not able:
        names = ", ".join(sorted(clouds))
        raise BadUsage(
            f"resources.infra: {names} cannot hold SkyPilot's jobs controller, and no other cloud is enabled; enable one for it "
            "(`sky check`; its CPU VM is all that runs there), or use an API server with `jobs.controller.consolidation_mode: "
            "true` in its ~/.sky/config.yaml, or a cluster of your own (--cluster NAME)"
        )


def _price() -> float:
    """US dollars per hour of the cheapest machine that SkyPilot would take, by the cached catalog; else an assumed one."""
    folder = catalog_folder()
    prices = (
        [price for cloud in FAMILIES for price in _prices(folder / cloud / "vms.csv", FAMILIES[cloud])]
        if folder
        else []
    )
    return min(prices, default=ASSUMED_USD_PER_HOUR)


def _prices(path: Path, families: tuple[str, ...]) -> list[float]:
    found = []
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                if row["AcceleratorName"] or not row["InstanceType"].startswith(families) or not row["Price"]:
                    continue
                if float(row["vCPUs"]) >= VCPUS and float(row["MemoryGiB"] or 0) >= MEMORY_GIB:
                    found.append(float(row["Price"]))
    except (OSError, ValueError, KeyError):
        return []
    return found
