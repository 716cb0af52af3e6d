"""A run as a SkyPilot task dictionary. Pure: no sky, no network, no clock; reads files of dolphin and nothing else.

Owns which SkyPilot keys a job becomes, which clouds lack spot instances or docker images, and what train.json says
on the node.
Refuses to know requests, clusters and prices' sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from launcher.backends import confinement
from launcher.backends.inputs import Input, local_inputs
from launcher.backends.release import image_of_release
from launcher.backends.sky.deadline.names import KEY, STRATEGY
from launcher.config.names import URL
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BadUsage
from trainer.run import redaction
from trainer.run.exits import ExitCode
from trainer.run.measures import function_of
from trainer.run.packages import extras_of
from trainer.run.spec import NodeJob, TrainSpec

NO_SPOT = frozenset({
    "cudo", "do", "fluidstack", "hyperbolic", "kubernetes", "lambda", "paperspace", "scp", "seeweb", "shadeform", "slurm",
    "ssh", "vsphere", "yotta",
})  # fmt: skip
"""Clouds of SkyPilot 0.14.1 that sell no spot instances, or refuse `use_spot`."""
NO_DOCKER_IMAGE = frozenset({
    "cudo", "hyperbolic", "ibm", "oci", "primeintellect", "scp", "shadeform", "slurm", "verda", "vsphere",
})  # fmt: skip
"""Clouds of SkyPilot 0.14.1 where `image_id: docker:...` is refused (Slurm takes it where it has pyxis: `container: image`)."""
NO_AUTOSTOP = frozenset({"hyperbolic", "primeintellect", "slurm", "verda", "yotta"})
DISK_TIERS = frozenset({"aws", "azure", "gcp", "nebius", "oci"})
"""Clouds of SkyPilot 0.14.1 that sell disks of several speeds; the others refuse to be asked for one."""
NO_MANY_NODES = frozenset({
    "hyperbolic", "primeintellect", "runpod", "seeweb", "shadeform", "vast", "verda", "vsphere", "yotta",
})  # fmt: skip
"""Clouds of SkyPilot 0.14.1 on which a cluster is one node (`MULTI_NODE`)."""
NO_DISK_SIZE = frozenset({"slurm"})
DISK_OF_POD = frozenset({"kubernetes", "ssh"})
"""Clouds where `disk_size` becomes a pod's request for ephemeral storage: only what the job states, for few nodes have the default."""
INPUTS = "~/dolphin-inputs"
DATA = "~/dolphin-data"
AWS_FOLDER = "~/.aws"
PRICES_FILE = "sky-prices.json"
"""In the run's folder: the offers of its newest start as (infra, spot, US dollars per hour of all nodes), the cheapest first."""
TERMS_FILE = "sky-terms.json"
"""In the run's folder: what a run with a deadline or a budget has to keep (`terms.terms_of`)."""
NODE_PRICES_FILE = "sky-node-prices.json"
"""In the run's folder: number of a node (from 1) to its price, seen from here, of nodes whose cloud told them nothing."""
REGISTRY_SECRETS = "SKYPILOT_DOCKER_"
"""Secrets that begin so log the node in to a registry; the run itself has no use for them."""
STAGED = "inputs"
"""In the run's folder: the files of this machine that travel, as hard links or copies, one folder an input."""
IDLE_MINUTES = 15
"""Autostop: a node whose run is over and that nobody tore down costs at most this long."""
SAVING_S = 300
"""How long SkyPilot waits, before it tears a node down, for a trainer that saves into a bucket."""
SUBMITTED_AT = "DOLPHIN_SUBMITTED_AT"
"""Variable of a node's `setup`: seconds since the epoch of the submit, by which it knows when to try no other node."""
OWN_ENVIRONMENT = ("DOLPHIN_PYTHON", "DOLPHIN_TORCH_INDEX")
"""Variables of a job's `env` by which it brings the trainer's environment to the node itself."""
_ALIASES = {"k8s": "kubernetes"}


@dataclass(frozen=True, slots=True)
class Place:
    """One thing to try: an infra as SkyPilot writes it, spot or not, and its price where known."""

    infra: str | None
    spot: bool = False
    price_usd_per_hour: float | None = None

    @property
    def cloud(self) -> str | None:
        return cloud_of(self.infra) if self.infra else None


@dataclass(frozen=True, slots=True)
class Shipment:
    """A run's `train.json` with placeholders for the node's folders, and where local files go."""

    train_json: str
    inputs: tuple[Input, ...] = ()
    """Where each of them is staged, and goes: STAGED/0 to DATA/0, and so on."""

    def file_mounts(self, folder: Path) -> dict[str, str]:
        """Path on the node to path here, for inputs that are staged in this folder."""
        return {f"{DATA}/{number}": str(folder / str(number)) for number in range(len(self.inputs))}


def cloud_of(infra: str) -> str:
    cloud = infra.partition("/")[0].lower()
    return _ALIASES.get(cloud, cloud)


def places_of(job: JobSpec, enabled: Sequence[str]) -> list[Place]:
    """What the job allows among its own infra, else among the enabled clouds; BadUsage where that is nothing."""
    wanted = list(job.resources.infra) or list(enabled)
    if job.resources.num_nodes > 1:
        able = [infra for infra in wanted if cloud_of(infra) not in NO_MANY_NODES]
        if wanted and not able:
            raise BadUsage(
                f"resources.num_nodes: {job.resources.num_nodes}, but on {', '.join(wanted)} a cluster is one node; name another "
                "resources.infra"
            )
        wanted = able
    regions, spot = list(job.resources.regions), job.resources.spot
    found = []
    for infra in wanted:
        infras = [f"{infra}/{region}" for region in regions] if regions and "/" not in infra else [infra]
        has_spot = cloud_of(infra) not in NO_SPOT
        for one in infras:
            if spot != "never" and has_spot:
                found.append(Place(one, True))
            if spot != "only":
                found.append(Place(one, False))
    if not found:
        where = ", ".join(wanted) or "no enabled cloud"
        raise BadUsage(f"resources.spot: only, but {where} sells no spot instances; set it to prefer or never")
    return found


def build_task(
    job: JobSpec,
    train: NodeJob,
    places: Sequence[Place],
    shipment: Shipment,
    staging: Path,
    *,
    is_managed: bool = True,
    secrets: Mapping[str, str] | None = None,
    terms: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The task as SkyPilot's own parser takes it. `staging` is the folder here that becomes INPUTS on the node; beside it
    lies STAGED, with the job's own files. `terms` where SkyPilot's controller has dolphin's strategy. Many parameters: all that a task is made of, as nothing is asked for here."""
    template = yaml.safe_load(template_text())
    installed = requirements(job) + constraints() + job.env.get("DOLPHIN_TORCH_INDEX", "")
    venv = f"venv-{hashlib.sha256(installed.encode()).hexdigest()[:12]}"
    image = image_of(job, train)
    envs = {
        **job.env,
        "DOLPHIN_RUN_ID": train.run_id,
        "DOLPHIN_CONTAINER": _container(job, places, image),
        "DOLPHIN_IMAGE": image or "",
        "DOLPHIN_VENVS": folder_store(job) or "~/.dolphin",
        "DOLPHIN_VENV": venv,
    }
    task = {
        "name": train.run_id,
        "num_nodes": job.resources.num_nodes,
        "resources": _resources(job, places, _recovery(terms) if is_managed else None, image),
        "envs": envs,
        "file_mounts": {INPUTS: str(staging), **shipment.file_mounts(staging.parent / STAGED)},
        "setup": template["setup"],
        "run": template["run"],
    }
    if job.checkpoint.store is not None and URL.match(job.checkpoint.store):
        events = {"events": ["down", "preemption"], "timeout": SAVING_S, "run": template["hook"]}
        task["config"] = {"hooks": [events]}
    if secrets:
        task["secrets"] = dict(secrets)
        envs[redaction.NAMES] = ",".join(sorted(secrets))
    return task


def ship(train: NodeJob) -> Shipment:
    """`train.json` for the node: paths of this machine become paths below DATA. With what must be there.

    Raises BadUsage for a file that must not travel (`launcher.backends.inputs`)."""
    values = train.model_dump(mode="json")
    inputs = local_inputs(train.spec)
    there = {one.path: f"@DATA@/{number}/{_name_there(one)}" for number, one in enumerate(inputs)}
    spec = values["spec"]
    for source in (*spec["data"]["sources"], *(spec["data"]["validation"] or ())):
        source["path"] = there.get(source["path"], source["path"])
    evaluate = spec["evaluate"]
    if isinstance(evaluate["prompts"], str):
        evaluate["prompts"] = there[evaluate["prompts"]]
    for index, metric in enumerate(evaluate["metrics"]):
        named = function_of(metric)
        if named is not None:
            evaluate["metrics"][index] = f"{there[named[0]]}:{named[1]}"
    for key in ("base", "tokenizer", "chat_template"):
        spec["model"][key] = there.get(spec["model"][key], spec["model"][key])
    unfrozen = spec["train"]["unfrozen"]
    if isinstance(unfrozen, dict):
        unfrozen["spectrum"]["snr"] = there.get(unfrozen["spectrum"]["snr"], unfrozen["spectrum"]["snr"])
    return Shipment(NodeJob.model_validate(values).model_dump_json(indent=2) + "\n", tuple(inputs))


def _name_there(one: Input) -> str:
    """As the trainer is told: a file's or folder's own name; of a glob its folder's name and the pattern below it."""
    root = Path(one.root)
    return str(root.name / Path(one.path).relative_to(root))


def relay_config(job: JobSpec, train: NodeJob, secret_names: Sequence[str], submission: int = 1) -> dict[str, Any]:
    """relay.json: what the relay on the node must know besides train.json. No secret's value.

    `submission` counts the starts by a person; one that SkyPilot repeats keeps its number."""
    store = folder_store(job)
    names = sorted(
        {
            *job.env,
            *(name for name in secret_names if not name.startswith(REGISTRY_SECRETS)),
            redaction.NAMES,
            "DOLPHIN_RUN_ID",
            "DOLPHIN_NUM_NODES",
            "DOLPHIN_NODE_RANK",
            "DOLPHIN_MASTER_ADDR",
            "DOLPHIN_AWS_METADATA",
            "DOLPHIN_GCP_METADATA",
            "AWS_SHARED_CREDENTIALS_FILE",
        }
    )
    # SkyPilot sends ~/.aws/credentials to the node, which a container of its own would not see.
    keys = AWS_FOLDER if train.store.startswith("s3://") else None
    mounts = [path for path in (store, train.cache_dir) if path]
    return {
        "run_id": train.run_id,
        "submission": submission,
        "run_dir": train.run_dir,
        "image": image_of(job, train) or "",
        "env": names,
        "mounts": mounts,
        "num_nodes": job.resources.num_nodes,
        "max_hourly_cost": job.resources.max_hourly_cost,
        "reads": [path for path in (DATA, keys) if path],
        **confinement.for_a_node(train.cache_dir),
        "bucket": train.store if job.checkpoint.store and store is None else None,
    }


def requirements(job: TrainSpec) -> str:
    """What the trainer needs installed for this job, as lines for pip; from dolphin's own metadata."""
    from importlib.metadata import requires

    wanted = [f'extra == "{extra}"' for extra in ("train", *extras_of(job))]
    lines = {
        line
        for line in requires("dolphin-launcher") or ()
        if any(extra in line for extra in wanted) or line.startswith("pydantic")
    }
    return "\n".join(sorted({line.partition(";")[0].strip() for line in lines})) + "\n"


def constraints() -> str:
    """The versions that this dolphin was tested with, as lines for pip."""
    return _packed("constraints.txt", "constraints.txt")


def folder_store(job: JobSpec) -> str | None:
    """The job's store where it is a folder of a filesystem that the nodes share."""
    store = job.checkpoint.store
    return store.rstrip("/") if store and not URL.match(store) else None


def template_text() -> str:
    return _packed("task.yaml", "sky/task.yaml")


def _packed(name: str, in_checkout: str) -> str:
    """The text of a file: beside this module in an installed wheel, from the top of a checkout."""
    packed = resources.files("launcher.backends.sky") / name
    if packed.is_file():
        return packed.read_text(encoding="utf-8")
    return (Path(__file__).resolve().parents[3] / in_checkout).read_text(encoding="utf-8")


def image_of(job: JobSpec, train: NodeJob) -> str | None:
    """The job's image, else this release's where the job does not say how the trainer comes to the node; None: it is installed."""
    r = job.resources
    if r.image is not None or r.container == "none" or not job.env.keys().isdisjoint(OWN_ENVIRONMENT):
        return r.image
    return image_of_release(train.device)


def _container(job: JobSpec, places: Sequence[Place], image: str | None) -> str:
    """What the node is told: settled here where every place agrees, decided there where they differ."""
    container = job.resources.container
    if container in ("image", "docker") and image is None:
        raise BadUsage(
            f"resources.container: {container}, but no resources.image; build one (`docker build` with dolphin's Dockerfile), "
            "push it where the nodes can pull it, and name it, or use auto: the node then installs the trainer itself"
        )
    if container != "auto":
        return container
    return "none" if image is None or all(place.cloud == "slurm" for place in places) else "auto"


def _recovery(terms: Mapping[str, Any] | None) -> dict[str, Any]:
    """SkyPilot's `job_recovery`."""
    common = {"max_restarts_on_errors": 0, "recover_on_exit_codes": [int(ExitCode.PREEMPTED)]}
    return {**common, "strategy": STRATEGY, KEY: dict(terms)} if terms else common


def _resources(
    job: JobSpec, places: Sequence[Place], recovery: Mapping[str, Any] | None, image: str | None
) -> dict[str, Any]:
    r = job.resources
    common: dict[str, Any] = {}
    if r.accelerators:
        common["accelerators"] = r.accelerators if ":" in r.accelerators else f"{r.accelerators}:1"
    if r.memory_gb is not None:
        common["memory"] = f"{r.memory_gb}+"
    if r.max_hourly_cost is not None:
        common["max_hourly_cost"] = r.max_hourly_cost
    if recovery is not None:
        common["job_recovery"] = dict(recovery)
    entries = [_entry(job, place, image) | common for place in _by_price(places)]
    # Not any_of: SkyPilot's jobs controller makes a list of that in the order of a set, and tries it in that order.
    return entries[0] if len(entries) == 1 else {"ordered": entries}


def _entry(job: JobSpec, place: Place, image: str | None) -> dict[str, Any]:
    r = job.resources
    entry: dict[str, Any] = {"use_spot": place.spot}
    if place.infra:
        entry["infra"] = place.infra
    can_be_image = r.container == "auto" and image is not None and place.cloud not in NO_DOCKER_IMAGE
    wants_image = r.container == "image" or can_be_image
    if wants_image:
        if place.cloud in NO_DOCKER_IMAGE - {"slurm"}:
            raise BadUsage(
                f"resources.container: image, but {place.infra} runs no docker images as nodes; use auto or docker"
            )
        entry["image_id"] = f"docker:{image}"
    is_stated = "disk_gb" in r.model_fields_set
    if place.cloud not in NO_DISK_SIZE and (is_stated or place.cloud not in DISK_OF_POD):
        entry["disk_size"] = r.disk_gb
    if place.cloud in DISK_TIERS:
        entry["disk_tier"] = r.disk_tier
    if place.cloud not in NO_AUTOSTOP:
        entry["autostop"] = {"idle_minutes": IDLE_MINUTES, "down": True}
    return entry


def _by_price(places: Sequence[Place]) -> list[Place]:
    """Cheapest first; those of unknown price after them, in the job's order."""
    known = sorted((p for p in places if p.price_usd_per_hour is not None), key=lambda p: p.price_usd_per_hour or 0.0)
    return known + [p for p in places if p.price_usd_per_hour is None]
