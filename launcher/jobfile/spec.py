"""JobSpec: what one job.yaml says. TrainSpec with the machines, the environment and the names of the secrets.

Owns the launcher's share of the settings, and the contradictions that show only with it. Refuses to know how a file is
read (`load`), what becomes of a job in one run (`settle`), prices, clouds and torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from launcher.config.problems import Finding
from launcher.jobfile import limits
from trainer.run.contradictions import problems as train_problems
from trainer.run.settings.base import PositiveInt, SpecModel
from trainer.run.spec import TrainSpec


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


_ONE_OR_MORE = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
OneOrMore = Annotated[tuple[str, ...], BeforeValidator(_one_or_more), WithJsonSchema(_ONE_OR_MORE)]


class ResourcesSpec(SpecModel):
    accelerators: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]*(:[1-9][0-9]*)?$")] | None = None
    """GPUs of a node as NAME:COUNT, for example L40S:8; a name alone is one. Not given: no GPU."""
    num_nodes: PositiveInt = 1
    """Nodes of a run, each with these GPUs. More than one needs a cluster and a `checkpoint.store` that all of them reach."""
    ranks_per_node: PositiveInt | None = None
    """Processes that train on a node, where that is not its number of GPUs (on a CPU, for example)."""
    spot: Literal["only", "prefer", "never"] = "prefer"
    """Spot instances: nothing else, whichever is cheaper, or none."""
    infra: OneOrMore = ()
    """Where to look, for example aws, [gcp, lambda] or slurm/cluster; everywhere that is enabled where not given."""
    regions: OneOrMore = ()
    """Regions to look in; all of them where not given."""
    image: str | None = None
    """Container image with dolphin in it. Where not given, a release takes its own; in a checkout docker builds one, and a cluster's node installs the trainer."""
    container: Literal["auto", "image", "docker", "none"] = "auto"
    """How the image runs: as the node itself (`image`), in docker on the node (`docker`), not at all (`none`); `auto` chooses."""
    disk_gb: PositiveInt = 512
    """Disk of a node in GiB, which SkyPilot and the clouds call GB."""
    disk_tier: Literal["low", "medium", "high", "best"] = "high"
    """How fast a node's disk is, where the cloud sells kinds of it (AWS, Azure, GCP, Nebius, OCI), in SkyPilot's words; `best` of AWS costs about 1.8 USD an hour more."""
    memory_gb: PositiveInt | None = None
    """Host memory of a node in GiB, which SkyPilot and the clouds call GB, at least. Where not given, a launch on GPUs asks for what the plan needs."""
    max_hourly_cost: Annotated[float, Field(gt=0)] | None = None
    """Take no node that costs more than this many US dollars per hour."""
    price_per_hour: Annotated[float, Field(gt=0)] | None = None
    """US dollars per hour of this machine, where you rent it yourself and the run is here (local, docker): what `budget` counts, and the bill. A cluster's nodes tell their own price."""
    max_upload_gb: Annotated[float, Field(gt=0)] = 20
    """Refuse a launch that would send more than this many gigabytes of this machine's files to a node."""

    @property
    def gpu_name(self) -> str | None:
        """`L40S` of `L40S:8`."""
        return self.accelerators.partition(":")[0] if self.accelerators else None

    @property
    def gpus_per_node(self) -> int:
        """8 of `L40S:8`; 0 where the job asks for no GPU."""
        return int(self.accelerators.partition(":")[2] or 1) if self.accelerators else 0

    @property
    def ranks(self) -> int | None:
        """Processes that train, over all nodes; None where the job leaves it to the backend."""
        per_node = self.ranks_per_node or self.gpus_per_node
        return per_node * self.num_nodes if per_node else None


_SECRET_WORDS = {
    "TOKEN", "KEY", "APIKEY", "PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "SECRET", "SECRETS", "CREDENTIAL", "CREDENTIALS"
}  # fmt: skip
_SECRET_VALUE = re.compile(
    r"^(hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[opsu]_\w{16,}|github_pat_\w+|xox[abp]-.+|(AKIA|ASIA)[A-Z0-9]{12,}|glpat-.+"
    r"|-----BEGIN .*|[a-z0-9+]+://[^/@\s:]+:[^/@\s]+@.*)$",
    re.DOTALL,
)


def _environment_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("is no name of an environment variable: letters, digits and underscores only")
    if _SECRET_WORDS & set(name.upper().split("_")):
        raise ValueError(_MOVE.format(name=name))
    return name


def _environment_value(value: str) -> str:
    if _SECRET_VALUE.match(value):
        raise ValueError(_MOVE.format(name="NAME"))
    return value


def _secret_name(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name) or _SECRET_VALUE.match(name):
        raise ValueError(
            "is not the name of an environment variable (A-Z, 0-9, _): write the name alone and set its value in your shell"
        )
    return name


_MOVE = "looks like a secret, which must not stand in a job: write `secrets: [{name}]` and set its value in your shell"


class JobSpec(TrainSpec):
    on: Literal["local", "docker", "sky"] | None = None
    """Where the run takes place: this machine, a container on it, or a cluster through SkyPilot. Where not given, a job with `resources.accelerators` goes to sky, and one without stays here."""
    resources: ResourcesSpec = ResourcesSpec()
    """The machines."""
    deadline: Annotated[str, AfterValidator(limits.deadline_text)] | None = None
    """When the run must be done, export included: a time from its launch on (72h, 90m, 3d), or a moment with its zone (2026-12-01T18:00+01:00). Before it passes, the run saves, exports what it has and ends."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """US dollars that the run may cost in all, over every node, preemption and restart. When the rest pays only for a save and the export, the run makes them and ends; `dolphin resume --set budget=...` goes on."""
    notify: Annotated[tuple[Annotated[str, AfterValidator(limits.hook_text)], ...], Field(max_length=8)] = ()
    """URLs to post to when the run starts, is preempted, recovers, runs short of time or money, ends or fails: as Slack, Discord or plain JSON, by the host. One that is a secret is named, as ${SLACK_WEBHOOK}, and its value comes from your shell."""
    env: dict[Annotated[str, AfterValidator(_environment_name)], Annotated[str, AfterValidator(_environment_value)]] = (
        Field(default_factory=dict)
    )
    """Environment variables of the run that are no secrets."""
    secrets: tuple[Annotated[str, AfterValidator(_secret_name)], ...] = ()
    """Names of environment variables that reach the run and are written down nowhere, for example HF_TOKEN."""

    @property
    def secret_names(self) -> tuple[str, ...]:
        """Of all that the run needs: its `secrets`, and the hooks that `notify` names."""
        return tuple(dict.fromkeys((*self.secrets, *limits.secret_names(self.notify))))

    def train_spec(self) -> TrainSpec:
        """The part that reaches the node."""
        stated = {name: getattr(self, name) for name in TrainSpec.model_fields if name in self.model_fields_set}
        return TrainSpec.model_validate(stated)


def job_findings(job: JobSpec) -> list[Finding]:
    """Contradictions between settings, both named. Empty where there are none. Looks at no file."""
    found = [Finding(problem.where, problem.message) for problem in train_problems(job)]
    t, r = job.train, job.resources

    def report(where: str, message: str) -> None:
        found.append(Finding(tuple(where.split(".")), message))

    if r.num_nodes > 1 and job.checkpoint.store is None:
        report(
            "resources.num_nodes",
            f"{r.num_nodes} nodes, but no checkpoint.store: nodes share no disk; name a bucket there, or a folder that they share",
        )
    if r.gpus_per_node and r.ranks_per_node and r.ranks_per_node > r.gpus_per_node:
        report(
            "resources.ranks_per_node",
            f"{r.ranks_per_node} ranks contradict resources.accelerators {r.accelerators}: each rank needs a GPU of its own",
        )
    if r.container == "none" and r.image is not None:
        report("resources.image", "contradicts resources.container none: nothing would run the image; remove one")
    if t.accumulation is not None and t.global_batch is None and r.ranks is None:
        report(
            "train.accumulation",
            "says no batch without a number of ranks: state resources.accelerators or resources.ranks_per_node, or train.global_batch",
        )
    if t.global_batch is not None and t.global_batch % t.micro_batch == 0 and r.ranks:
        found += indivisible(t.global_batch, t.micro_batch, r.ranks, "the ranks of resources")
    if job.track.wandb is not None and job.track.wandb.mode == "online" and "WANDB_API_KEY" not in job.secrets:
        report("track.wandb", "needs WANDB_API_KEY: add it to `secrets`, or set track.wandb.mode to offline")
    hooks = limits.secret_names(job.notify)
    found += [
        Finding(("notify",), f"{name} stands in `env` too, where it would be written down; remove it there")
        for name in hooks
        if name in job.env
    ]
    if len(set(job.notify)) < len(job.notify):
        report("notify", "names a hook twice; remove one")
    if r.price_per_hour is not None and (job.on == "sky" or r.num_nodes > 1):
        report(
            "resources.price_per_hour",
            "is of a machine of your own (local, docker); a cluster's nodes tell their price: remove it",
        )
    if job.push is not None and "HF_TOKEN" not in job.secrets:
        report("push", "needs a token of the hub that may write: add HF_TOKEN to `secrets`")
    for index, name in enumerate(job.secrets):
        if name in job.env:
            found.append(Finding(("secrets", index), f"{name} stands in `env` too; remove it there"))
        if name in job.secrets[:index]:
            found.append(Finding(("secrets", index), f"{name} is named twice; remove one"))
    return found


def indivisible(global_batch: int, micro_batch: int, ranks: int, of: str) -> list[Finding]:
    step = micro_batch * ranks
    if global_batch % step == 0:
        return []
    lower, upper = global_batch // step * step, -(-global_batch // step) * step
    choice = f"{lower} or {upper}" if lower else f"{upper}"
    message = f"{global_batch} does not divide into micro batches of {micro_batch} on {ranks} ranks ({of}); take {choice}, or change train.micro_batch"
    return [Finding(("train", "global_batch"), message)]
