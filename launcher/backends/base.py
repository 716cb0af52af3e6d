"""Backend: what the launcher asks of a place where runs run, and the registry of such places.

Owns the protocol and its plain data. Refuses to know any particular backend, the terminal and the training settings.
Every implementation passes the suite in tests/contract. A backend never prints and never asks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from launcher.runs.errors import BackendError, BadUsage
from launcher.runs.states import RunState

if TYPE_CHECKING:
    from launcher.backends.checks import Check
    from launcher.jobfile.settle import Placement
    from launcher.jobfile.spec import JobSpec
    from launcher.runs.ledger import RunRecord
    from trainer.run.spec import NodeJob

Handle = dict[str, Any]
"""What a backend needs to find its run again, as JSON values without secrets; kept in the ledger."""

Cursor = str
"""A place in a run's log, made and understood by one backend alone; it survives a reconnect and another process."""

BEGINNING: Cursor = ""

Fetchable = Literal["model", "checkpoints", "log"]


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to get the resources of a job."""

    backend: str
    infra: str
    """Where, as SkyPilot writes it: aws/us-east-1/us-east-1a, slurm/cluster; `local` or `docker` at home."""
    accelerator: str | None
    """Name such as L40S; None is a CPU."""
    count: int
    """Accelerators per node; ranks on a CPU."""
    spot: bool = False
    price_usd_per_hour: float = 0.0
    """Of all nodes; 0 at home."""
    accelerator_memory_mib: int | None = None
    instance_type: str | None = None
    num_nodes: int = 1
    host_memory_gib: float | None = None
    """Of one node."""


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What is paid for beside a run's nodes, as long as the run lasts."""

    what: str
    """In a sentence, for example `SkyPilot's jobs controller (a VM of 4 vCPUs)`."""
    price_usd_per_hour: float
    note: str = ""
    """How to do without it, or when it ends."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One start of a run. The record's folder holds `train` as train.json already; a backend whose node sees other
    paths ships a copy of its own. `record.submissions` counts the starts, `record.options` holds the backend's own
    options of the command line."""

    record: RunRecord
    job: JobSpec
    train: NodeJob
    offers: tuple[Offer, ...] = ()
    """Those of the plan that was shown; a backend asks anew only where there are none."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Name and value of the job's `secrets`: never written, logged or put into an argument."""
    tell: Callable[[str], None] = lambda line: None
    """Takes a line for a person while a submit takes long (an image is built, a node is made)."""


@dataclass(frozen=True, slots=True)
class NodeAttempt:
    """One node that worked on the run, for the price of each attempt."""

    started_at: float
    """Seconds since the epoch."""
    ended_at: float | None
    node: str | None = None
    infra: str | None = None
    price_usd_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """What the backend knows of a run now."""

    state: RunState
    detail: str = ""
    """One line for a person: why it is so, what next."""
    exit_code: int | None = None
    """The trainer's, once it ended."""
    node: str | None = None
    price_usd_per_hour: float | None = None
    """None: not known; 0: costs nothing."""
    price_usd_so_far: float | None = None
    recoveries: int = 0
    """Nodes taken away and replaced by the backend."""
    attempts: tuple[NodeAttempt, ...] = ()
    model_url: str | None = None
    """Where the model of a run that is done lies for good; None where that is where the trainer wrote it."""


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Whole lines of the log (the last one of a dead run may lack its newline), and where to go on after them."""

    text: str
    cursor: Cursor
    time: float | None = None
    """When the lines were written, where the backend knows: seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class DownReport:
    """What `down` left. `is_gone` was checked, not assumed."""

    is_gone: bool
    left: tuple[str, ...] = ()
    """What still runs or exists, each with how to remove it by hand."""
    detail: str = ""
    """One line: what was stopped and how, or that nothing was running."""
    was_killed: bool = False
    """The grace ran out (or was 0): the trainer had no time to save."""
    price_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a backend can do beyond the methods that all have. Commands ask this, and never for a backend's name."""

    has_many_nodes: bool = False
    """`resources.num_nodes` above 1."""
    chooses_machine: bool = False
    """It picks a machine among many, so that a launch asks for the host memory that its plan needs."""
    options: frozenset[str] = frozenset()
    """Options of `dolphin launch` that only it understands, as `yes_lose_progress`; kept in the record."""


@runtime_checkable
class Backend(Protocol):
    """A place where runs run. Every method may raise BackendError or NoCapacity, and nothing else on purpose.

    Methods that take a record work in any process at any time: on a record without a handle (the launcher died
    between submit and record) they look for the run by its label, as `find` does.
    """

    name: str
    abilities: Abilities
    poll_s: float
    """How long a follower waits between two looks."""

    def offers(self, job: JobSpec, nproc: int | None) -> list[Offer]:
        """Ways to get the job's resources, cheapest first; empty where there is none. Starts nothing."""
        ...

    def place(self, job: JobSpec, run_id: str, folder: Path, nproc: int | None) -> Placement:
        """Where the run would live, and on how many ranks. `folder` is the run's folder in the ledger. Starts nothing."""
        ...

    def preflight(self, job: JobSpec, train: NodeJob, options: Mapping[str, Any]) -> list[str]:
        """Raise whatever can be known to keep a start of this from succeeding: no engine, no library, no store, too much to
        send. Asked before the person is, and before the ledger. Returns lines to read before the answer: what leaves this
        machine. `options` are the backend's own of the command line. Starts and writes nothing."""
        ...

    def submit(self, submission: Submission) -> Handle:
        """Start the run, labelled with its run id, and return once it is accepted. A run of that id that is active
        already is an error: never two."""
        ...

    def find(self, run_id: str) -> Handle | None:
        """The active run that carries this label, whoever started it; None where there is none."""
        ...

    def status(self, record: RunRecord) -> BackendStatus:
        """Never raises for an unknown run: that is LOST."""
        ...

    def logs(self, record: RunRecord, after: Cursor = BEGINNING) -> Iterator[LogChunk]:
        """What the log holds after the cursor now; then ends. No line twice, none lost, over restarts and reconnects.
        A backend that streams may wait a few seconds for more before it ends."""
        ...

    def read_file(self, record: RunRecord, name: str, offset: int = 0) -> bytes | None:
        """Bytes from `offset` of a file of the run folder by its relative name (events.jsonl, metrics.jsonl,
        outcome.json, ...); None where the file does not exist, yet or at all."""
        ...

    def down(self, record: RunRecord, grace_s: float) -> DownReport:
        """Stop the run and remove what it holds, checkpoints and model excepted; wait; verify. `grace_s` is for the
        trainer's save; 0 kills at once. Twice is fine."""
        ...

    def fetch(self, record: RunRecord, what: Fetchable, target: Path) -> Path:
        """Copy the model folder or the checkpoints as the folder `target`, or the log into it, whole or not at all, and
        return the path of the copy (launcher.runs.copying). BackendError where there is none, or where target is in use."""
        ...


@dataclass(frozen=True, slots=True)
class Registered:
    """Where the parts of a backend are, as `module:name`. Each is imported when it is asked for, so that `--on local`
    loads neither docker nor sky."""

    backend: str
    """The class that satisfies `Backend`."""
    checks: str
    """A function without arguments: what `dolphin doctor` finds. It works best where everything is broken."""
    catalog: str | None = None
    """A function of a job: its offers as far as they are known without the backend's library and without a network."""
    caveats: str | None = None
    """A function of a job: lines that must be read with what `catalog` tells."""
    gpus: str | None = None
    """A function without arguments: name and memory (MiB) of each GPU that a run there would have at no price. Of a backend on
    this machine; it answers also where the backend's library is missing."""
    upkeep: str | None = None
    """A function of a job and the backend's own options: what else is paid for by the hour while the run lasts."""
    fix: str | None = None
    """A function without arguments: sets up what the backend can do without for most, and says what it did."""
    switching: str | None = None
    """A function without arguments, of a backend whose machines may be taken away: None where somebody changes between spot and
    on demand as a run's deadline asks, else why not and what to do."""


BACKENDS: dict[str, Registered] = {
    "local": Registered(
        "launcher.backends.home.local:LocalBackend",
        "launcher.backends.home.doctor:checks",
        gpus="launcher.backends.home.machine:gpus_for_trainer",
    ),
    "docker": Registered(
        "launcher.backends.docker.backend:DockerBackend",
        "launcher.backends.docker.doctor:checks",
        gpus="launcher.backends.docker.endpoint:gpus_for_containers",
    ),
    "sky": Registered(
        "launcher.backends.sky.client:SkyBackend",
        "launcher.backends.sky.doctor:checks",
        "launcher.backends.sky.catalog:offers_of_job",
        caveats="launcher.backends.sky.catalog:caveats",
        upkeep="launcher.backends.sky.controller:upkeep",
        fix="launcher.backends.sky.doctor:fix",
        switching="launcher.backends.sky.enforcement:deadline_is_enforced",
    ),
}


def default_backend(job: JobSpec) -> str:
    """Where a job runs if the command line does not say."""
    return job.on or ("sky" if job.resources.gpu_name is not None else "local")


def backend_for(job: JobSpec, on: str | None) -> Backend:
    """The backend that the command line names, else the job's. Where neither says and that one is not to be had, the error
    names the others."""
    try:
        return get_backend(on or default_backend(job))
    except BackendError as error:
        if on or job.on:
            raise
        others = " or ".join(f"--on {name}" for name in BACKENDS if name != default_backend(job))
        raise BackendError(f"{error}; resources.accelerators goes there unless told otherwise: {others}") from None


def get_backend(name: str) -> Backend:
    """The backend of this name; BadUsage for a name there is not, BackendError where its package is missing."""
    backend: Backend = backend_class(name)()
    return backend


def backend_class(name: str) -> type[Backend]:
    """As `get_backend`, without connecting to anything."""
    entry = _registered(name)
    try:
        found: type[Backend] = _load(entry.backend)
    except ModuleNotFoundError as error:
        if error.name == entry.backend.partition(":")[0]:
            raise BadUsage(f"--on {name}: is not part of this installation of dolphin") from None
        raise BackendError(
            f"--on {name}: needs the package {error.name}; pip install 'dolphin-launcher[{name}]'"
        ) from None
    return found


def able_backends(is_able: Callable[[Abilities], bool]) -> list[str]:
    """Names of the backends that can do something, for an error about one that cannot."""
    return [name for name in BACKENDS if is_able(backend_class(name).abilities)]


def checks_of(name: str) -> list[Check]:
    """What `dolphin doctor` finds of a backend; it needs nothing that could be missing."""
    found: list[Check] = _load(_registered(name).checks)()
    return found


def fixed_of(name: str) -> list[str]:
    """Have a backend set up what `dolphin doctor --fix` can; lines about what was done. Raises LauncherError."""
    fix = _registered(name).fix
    found: list[str] = [] if fix is None else _load(fix)()
    return found


def catalog_of(name: str) -> Callable[[JobSpec], list[Offer]] | None:
    """What tells a backend's offers without its library; None where it has no such thing."""
    catalog = _registered(name).catalog
    return None if catalog is None else _load(catalog)


def caveats_of(name: str, job: JobSpec) -> list[str]:
    """What must be read with the offers of the backend's cached list."""
    caveats = _registered(name).caveats
    found: list[str] = [] if caveats is None else _load(caveats)(job)
    return found


def owned_gpus(name: str) -> list[tuple[str, int | None]]:
    """Name and memory (MiB) of the GPUs that a run of this backend has at no price; none where it has none."""
    gpus = _registered(name).gpus
    found: list[tuple[str, int | None]] = [] if gpus is None else _load(gpus)()
    return found


def upkeep_of(name: str, job: JobSpec, options: Mapping[str, Any]) -> list[Upkeep]:
    """What a run of this backend pays for besides its nodes. `options` are the backend's own of the command line."""
    upkeep = _registered(name).upkeep
    found: list[Upkeep] = [] if upkeep is None else _load(upkeep)(job, options)
    return found


def why_not_switched(name: str) -> str | None:
    """Why nobody changes machines for a run's deadline; None where somebody does, or there is one machine alone."""
    switching = _registered(name).switching
    found: str | None = None if switching is None else _load(switching)()
    return found


def _registered(name: str) -> Registered:
    if name not in BACKENDS:
        raise BadUsage(f"--on {name}: there is no such backend; choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
