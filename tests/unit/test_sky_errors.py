"""What people meet on a cloud, in one or two lines with the next step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from launcher.backends.base import Offer
from launcher.backends.sky.errors import Server, explain
from launcher.backends.sky.offers import offers_of, priced, refuse_losing_progress
from launcher.backends.sky.task import Place, places_of
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BackendError, BadUsage, NoCapacity


def raised(name: str, text: str) -> BaseException:
    return type(name, (Exception,), {})(text)


@pytest.mark.parametrize("error, kind, words", [
    (raised("ApiServerConnectionError", "Could not connect"), BackendError, "sky api start"),
    (raised("NoCloudAccessError", "No cloud access"), BackendError, "sky check"),
    (raised("ClientError", "An error occurred (ExpiredToken) when calling"), BackendError, "renew them"),
    (raised("ResourcesUnavailableError", "\x1b[31mFailed to provision\x1b[0m\nmore"), NoCapacity, "Failed to provision; try"),
    (raised("ProvisionError", "VcpuLimitExceeded: You have requested more vCPU capacity"), NoCapacity, "quota"),
    (raised("RuntimeError", "docker: manifest for me/x:1 not found"), BackendError, "resources.image"),
    (raised("ResourcesUnavailableError", "Failed to provision 1x(cpus=4+, mem=4x, disk_size=50)"), BackendError, "jobs.controller.resources"),
    (raised("ProvisionError", "sky-jobs-controller-1a2b: VcpuLimitExceeded"), BackendError, "not for the job's own sake"),
    (raised("ProvisionError", "sky-jobs-controller-1a2b: ExpiredToken"), BackendError, "renew them"),
    (raised("RequestCancelled", "Request r-1 cancelled"), BackendError, "was withdrawn"),
    (raised("Odd", ""), BackendError, "no reason given"),
])  # fmt: skip
def test_an_error_says_what_to_do_next(error: BaseException, kind: type, words: str) -> None:
    found = explain(error, what="demo: submitting")
    assert type(found) is kind
    assert words in str(found)
    assert str(found).startswith("demo: submitting: ")
    assert len(str(found).splitlines()) <= 2


MISMATCH = (
    "\x1b[33mYour SkyPilot API server version is too old: 0.5.0\n\x1b[0mThe client is running on 0.14.1 and the minimum "
    "compatible version is 0.11.0.\nContact your administrator to upgrade the remote API server or downgrade your client "
    'with:\n\x1b[33mpip install -U "skypilot==0.5.0"\x1b[0m'
)


def said_of(name: str, text: str, server: Server) -> str:
    return str(explain(raised(name, text), what="submitting", server=lambda: server))


def test_a_remote_server_of_another_version_is_told_with_both_versions_and_its_address() -> None:
    said = said_of("APIVersionMismatchError", MISMATCH, Server("http://sky.lab", False))
    for part in ("0.5.0", "0.14.1", "http://sky.lab", 'pip install -U "skypilot==0.5.0"'):
        assert part in said
    assert "sky api start" not in said, "a remote server is not started from here"
    assert len(said.splitlines()) == 1


def test_a_local_server_of_another_version_is_restarted() -> None:
    said = said_of(
        "APIVersionMismatchError",
        "The local SkyPilot API server is not compatible",
        Server("http://127.0.0.1:46580", True),
    )
    assert "sky api stop" in said
    assert "pip install" not in said


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (Server("http://127.0.0.1:46580", True), "sky api start"),
        (Server("https://sky.lab", False), "https://sky.lab; is the address right"),
        (Server("https://sky.lab", False, "a web page"), "https://sky.lab answers with a web page"),
        (Server("https://sky.lab", False, "404 (Not Found)"), "https://sky.lab answers with 404"),
    ],
)
def test_what_does_not_answer_as_skypilot_is_told_apart(server: Server, words: str) -> None:
    said = said_of("ApiServerConnectionError", "Could not connect", server)
    assert words in said
    assert ("sky api start" in said) == (server.is_local and server.answer is None)


class Catalog:
    """A client that knows two prices."""

    def offers(self, gpu: str, count: int, infra: str) -> list[Offer]:
        if (gpu, count, infra) != ("L40S", 8, "aws"):
            return []
        return [
            Offer("sky", "aws/us-east-1", "L40S", 8, False, 30.13),
            Offer("sky", "aws/eu-south-2", "L40S", 8, True, 3.41),
        ]

    def accelerators(self, clouds: list[str]) -> list[str]:
        return ["A100", "H100", "L40S"]

    def enabled(self) -> list[str]:
        return ["aws"]


def job_of(**resources: Any) -> JobSpec:
    data = {"sources": [{"path": "hf://owner/data"}]}
    return JobSpec.model_validate({"name": "demo", "model": {"base": "a/b"}, "data": data, "resources": resources})


def test_a_gpu_that_does_not_exist_is_named_with_the_nearest_that_does() -> None:
    with pytest.raises(BadUsage, match=r"'L41S'; did you mean L40S\?"):
        offers_of(Catalog(), job_of(accelerators="L41S:8"), None)


def test_a_gpu_that_nobody_offers_here_is_no_capacity_and_not_a_misspelling() -> None:
    with pytest.raises(NoCapacity, match="nobody offers A100:8 at aws"):
        offers_of(Catalog(), job_of(accelerators="A100:8"), None)


def test_a_price_cap_below_every_offer_names_the_cheapest() -> None:
    with pytest.raises(NoCapacity, match=r"\$2.00 is below every offer.*aws/eu-south-2, spot, for \$3.41/h"):
        offers_of(Catalog(), job_of(accelerators="L40S:8", max_hourly_cost=2), None)


def test_a_place_above_the_cap_is_not_tried() -> None:
    job = job_of(accelerators="L40S:8", max_hourly_cost=10)
    places = priced(job, places_of(job, ["aws"]), offers_of(Catalog(), job, None))
    assert places == [Place("aws/eu-south-2", True, 3.41)]


def test_a_run_that_would_lose_everything_with_its_node_is_refused_unless_the_person_says_so() -> None:
    job = job_of(accelerators="L40S:8")
    with pytest.raises(BadUsage, match="--yes-lose-progress"):
        refuse_losing_progress(job, {})
    refuse_losing_progress(job, {"yes_lose_progress": True})
    stored = job.model_copy(update={"checkpoint": SimpleNamespace(store="s3://b/x")})
    refuse_losing_progress(stored, {})
