"""The cloud lab for tests, and `dolphin` in it. Needs root, Debian and network: `tests/lab/cloud/lab` says for what."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.cloud.places import INSTANCES, KEY, REGION, SECRET, URL, ask
from tests.support.require import is_asked_for
from tests.support.sky_lab import ROOT, STEP_S, SkyLab

SCRIPT = [sys.executable, str(ROOT / "tests" / "lab" / "cloud" / "lab")]
BUCKET = "dolphin-lab"
GPUS = "g6e"
"""Beginning of the names of the types that have L40S."""
GONE = ("terminated", "shutting-down")
FINISHED = ("SUCCEEDED", "CANCELLED", "FAILED")


class CloudLab(SkyLab):
    """moto's AWS: tests/lab/cloud/lab."""

    def job(self, name: str, **changes: str) -> list[str]:
        """The command line of `launch` for the quickstart, on two CPU ranks of an instance with eight pretend L40S."""
        settings = {
            "name": name, "resources.infra": "aws", "resources.accelerators": "L40S:8", "checkpoint.store": self.store,
            "env.DOLPHIN_DEVICE": "cpu", "env.DOLPHIN_PYTHON": str(self.folder / "trainer/bin/python"), **changes,
        }  # fmt: skip
        return self.launch_with(settings, 2)

    @property
    def store(self) -> str:
        """A bucket, made at the first use; again does nothing."""
        self._s3().create_bucket(Bucket=BUCKET)
        return f"s3://{BUCKET}"

    def in_bucket(self, name: str) -> bytes:
        found: bytes = self._s3().get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return found

    def has_saved(self, run: str, step: int) -> bool:
        """Whether the bucket holds the checkpoint of this step, whole."""
        from trainer.checkpoint.manifest import MANIFEST

        prefix = f"{run}/checkpoints/step-{step:08}/"
        found = self._s3().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return any(one["Key"].endswith(f"/{MANIFEST}") for one in found)

    @staticmethod
    def _s3() -> Any:
        import boto3

        return boto3.client(
            "s3", endpoint_url=URL, region_name=REGION, aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )

    def instances(self, run: str = "") -> list[dict[str, Any]]:
        """Every instance that was started for the run, those that are gone too; without a run all that there were."""
        return [one for one in ask(INSTANCES) if one["cluster"].startswith(run)]

    def controller(self) -> dict[str, Any]:
        return self.instances("sky-jobs-controller")[-1]

    def node(self, run: str) -> dict[str, Any] | None:
        """The run's instance that runs now."""
        return next((one for one in self.instances(run) if one["state"] == "running"), None)

    def jobs(self, name: str) -> list[str]:
        """SkyPilot's lines about managed jobs of this name that are not over."""
        lines = [line for line in self.sky("jobs", "queue", "--all-users").splitlines() if name in line]
        return [line for line in lines if not any(word in line for word in FINISHED)]

    def left_of(self, run: str) -> list[str]:
        """What there is of the run, or could still come: requests that start something, jobs, instances."""
        requests = [line for line in self.sky("api", "status").splitlines() if "launch" in line]
        return requests + self.jobs(run) + [str(one) for one in self.instances(run) if one["state"] not in GONE]

    @contextlib.contextmanager
    def shortage(self, **of: str) -> Iterator[None]:
        """While it lasts, the cloud has none of these (`tests.lab.cloud.capacity`)."""
        ask("/lab/short", **of)
        try:
            yield
        finally:
            ask("/lab/plenty")

    @contextlib.contextmanager
    def unreachable(self, instance: dict[str, Any]) -> Iterator[None]:
        ask("/lab/cut", id=instance["id"])
        try:
            yield
        finally:
            ask("/lab/mend", id=instance["id"])

    def lab(self, *command: str) -> str:
        done = subprocess.run(
            [*SCRIPT, *command], env=self.environment, check=True, timeout=STEP_S, capture_output=True, text=True
        )
        return done.stdout


def require_cloud() -> None:
    """Skip where nobody asked for it: it takes most of an hour."""
    if not is_asked_for("cloud"):
        pytest.skip("cloud: `make cloud` runs it (DOLPHIN_REQUIRE=cloud): it takes root, Debian and most of an hour")
    if os.geteuid() != 0:
        pytest.fail("DOLPHIN_REQUIRE asks for cloud, but only root makes namespaces and mounts", pytrace=False)
