"""The job's store as home and node reach it: tried from here before anything is paid, and by the same address from there.

Owns what of this machine's way to a bucket travels: its endpoint, its region, the name of a profile. No key does, but
through the job's `secrets`. Knows no SkyPilot.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from launcher.backends.checks import installed_version
from launcher.backends.sky.task import Place
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BackendError, BadUsage
from trainer.run.exits import BadInput
from trainer.run.run_folder import write_atomic
from trainer.run.stores import aws
from trainer.run.stores.base import CheckpointStore, StoreError
from trainer.run.stores.opening import open_store, probe

FILE = "store.json"
"""In the run's folder at home: the variables that its node was given, to reach the bucket from here by."""
PROBE_VARIABLE = "DOLPHIN_STORE_PROBE"
"""`off`: no trial from here, for a store that only the nodes reach."""
PATIENCE_S = 15.0
"""Of a command that a person waits for; the trainer waits longer."""
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_OWN_CREDENTIALS = {"kubernetes", "slurm", "ssh"}
"""Nodes that somebody set up: what they hold is not known here."""


def check(job: JobSpec, url: str, places: Sequence[Place]) -> list[str]:
    """Write, read and delete a small object below the URL, where that is a bucket. Lines to read before the answer.

    Raises BadUsage where the store refuses or does not answer, or where no node could reach it as this machine does."""
    if "://" not in url or os.environ.get(PROBE_VARIABLE) == "off":
        return []
    environment = {**os.environ, **job.env}
    store = open_at_home(url, environment)
    try:
        probe(store)
    except BadInput as error:
        raise BadUsage(f"{error} (tried from here; {PROBE_VARIABLE}=off tries nothing)") from None
    _refuse_written(store)
    return _credentials_there(job, url, places, environment)


def _refuse_written(store: CheckpointStore) -> None:
    """BadUsage where a node writes the run at this moment, whoever started it."""
    from trainer.run.stores.lease import LASTS_S, holder_of

    try:
        found = holder_of(store)
    except StoreError as error:
        raise BackendError(str(error)) from None
    if found is not None and found[1] < LASTS_S:
        held, age_s = found
        raise BadUsage(
            f"{store.url}: node {held.node} writes this run (attempt {held.attempt}, heard of {age_s:.0f} s ago); stop it where "
            "it was started, or wait until it is gone"
        )


def environment_of_node(job: JobSpec) -> dict[str, str]:
    """What the node is told to reach the job's buckets as this machine does. Asks for the buckets' regions."""
    urls = [job.checkpoint.store or "", *(source.path for _, source in job.data.inputs)]
    found = environment_sent(urls, {**os.environ, **job.env})
    if set(KEYS) & set(job.secrets):
        found.pop(aws.PROFILE_VARIABLE, None)
    return found


def environment_sent(urls: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Endpoint, regions and profile by which this environment reaches the buckets among the URLs."""
    buckets = sorted({urlsplit(url).netloc for url in urls if url.startswith("s3://")})
    if not buckets:
        return {}
    _require_library(f"s3://{buckets[0]}")
    found = {aws.REGIONS_VARIABLE: ",".join(f"{name}={aws.region(name, environment)}" for name in buckets)}
    address = aws.endpoint(environment)
    if address is not None:
        found[aws.ENDPOINT_VARIABLES[0]] = address
    if profile := environment.get("AWS_PROFILE"):
        found[aws.PROFILE_VARIABLE] = profile
    return found


def with_environment(job: JobSpec, folder: Path) -> JobSpec:
    """The job with these variables in its `env`, which are kept in the run's folder too."""
    found = environment_of_node(job)
    write_environment(folder, found)
    return job.model_copy(update={"env": {**found, **job.env}})


def write_environment(folder: Path, environment: Mapping[str, str]) -> None:
    write_atomic(folder / FILE, json.dumps(environment, indent=2) + "\n")


def environment_of_run(folder: Path) -> dict[str, str]:
    """This process's variables, with those that the run's node was given."""
    try:
        given = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return dict(os.environ)
    return {**os.environ, **{str(name): str(value) for name, value in dict(given).items()}}


def open_at_home(url: str, environment: Mapping[str, str]) -> CheckpointStore:
    """The store at the URL, given up after a quarter of a minute. BackendError where its library is missing here."""
    _require_library(url)
    return open_store(url, environment=environment, retry_s=PATIENCE_S)


def _require_library(url: str) -> None:
    for name in ("obstore", "botocore"):
        if installed_version(name) is None:
            raise BackendError(f"{url}: a bucket needs the package {name}; pip install 'dolphin-launcher[sky]'")


def _credentials_there(job: JobSpec, url: str, places: Sequence[Place], environment: Mapping[str, str]) -> list[str]:
    """Whether what opened the bucket here is there on the node too: SkyPilot sends ~/.aws/credentials, and nothing else."""
    if not url.startswith("s3://") or set(KEYS) <= set(job.secrets):
        return []
    source = aws.source(environment)
    if source in (None, "shared-credentials-file"):
        return []
    clouds = {place.cloud for place in places if place.cloud is not None}
    has_role = set() if aws.endpoint(environment) else {"aws"}
    without = sorted(clouds - has_role - _OWN_CREDENTIALS)
    if not without:
        return []
    said = (
        f"checkpoint.store {url}: this machine's credentials ({source}) do not travel, and a node at {', '.join(without)} "
        f"has none: write `secrets: [{', '.join(KEYS)}]`, or keep them in ~/.aws/credentials"
    )
    if clouds <= set(without):
        raise BadUsage(said)
    return [said]
