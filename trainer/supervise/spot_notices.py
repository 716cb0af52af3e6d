"""Spot notices: asking the cloud's metadata service whether this machine is about to be taken away.

AWS: IMDSv2, /latest/meta-data/spot/instance-action, 120 s ahead. Google: /computeMetadata/v1/instance/preempted, 30 s
ahead. Addresses come from the environment or are the clouds' own link-local ones; a service that does not answer twice
at the start is not there, and is not asked again. Owns the protocols of both; refuses to know what follows a notice.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

POLL_EVERY_S = 5.0
TIMEOUT_S = 2.0
AWS_ADDRESS = "http://169.254.169.254"
GOOGLE_ADDRESS = "http://169.254.169.254"
TOKEN_LIFE_S = 21600


@dataclass(frozen=True, slots=True)
class Notice:
    text: str
    grace_s: float
    """Seconds between the notice and the end, as the cloud promises them."""


class Unreachable(Exception):
    """The metadata service does not answer, or is another cloud's."""


class Service(Protocol):
    def poll(self) -> Notice | None:
        """The notice, or None while there is none. Raises Unreachable."""


class AwsService:
    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._token: str | None = None
        self._token_until = 0.0

    def poll(self) -> Notice | None:
        now = time.monotonic()
        if self._token is None or now >= self._token_until:
            life = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFE_S)}
            status, self._token = _ask(f"{self._address}/latest/api/token", life, method="PUT")
            if status != 200:
                self._token = None
                raise Unreachable(f"no token: HTTP {status}")
            self._token_until = now + TOKEN_LIFE_S / 2
        key = {"X-aws-ec2-metadata-token": self._token}
        status, body = _ask(f"{self._address}/latest/meta-data/spot/instance-action", key)
        if status == 401:
            self._token = None
            return None
        if status == 404:
            return None
        if status != 200:
            raise Unreachable(f"HTTP {status}")
        return Notice(f"spot notice from AWS: {' '.join(body.split())[:200]}", grace_s=120.0)


class GoogleService:
    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")

    def poll(self) -> Notice | None:
        url = f"{self._address}/computeMetadata/v1/instance/preempted"
        status, body = _ask(url, {"Metadata-Flavor": "Google"})
        if status != 200 or body.strip().upper() not in ("TRUE", "FALSE"):
            raise Unreachable(f"HTTP {status}")
        if body.strip().upper() == "TRUE":
            return Notice("spot notice from Google Cloud: the machine is preempted", grace_s=30.0)
        return None


def services(environment: Mapping[str, str]) -> list[Service]:
    """Whom to ask. `DOLPHIN_NOTICES`: `off` asks nobody, `on` both clouds' own addresses; else those that are named
    (DOLPHIN_AWS_METADATA or AWS_EC2_METADATA_SERVICE_ENDPOINT; DOLPHIN_GCP_METADATA or GCE_METADATA_HOST).
    """
    wish = environment.get("DOLPHIN_NOTICES", "")
    if wish == "off":
        return []
    aws = environment.get("DOLPHIN_AWS_METADATA") or environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    google = environment.get("DOLPHIN_GCP_METADATA") or environment.get("GCE_METADATA_HOST")
    if wish == "on" and not aws and not google:
        aws, google = AWS_ADDRESS, GOOGLE_ADDRESS
    found: list[Service] = []
    if aws:
        found.append(AwsService(_with_scheme(aws)))
    if google:
        found.append(GoogleService(_with_scheme(google)))
    return found


def wait_for_notice(
    environment: Mapping[str, str], *, sleep: Callable[[float], None] = time.sleep, every_s: float = POLL_EVERY_S
) -> Notice | None:
    """Ask until there is a notice; None at once where there is nobody to ask. Blocks: run it in a daemon thread."""
    candidates = dict.fromkeys(services(environment), 0)
    answered: set[Service] = set()
    while candidates:
        for service in list(candidates):
            try:
                notice = service.poll()
            except Unreachable:
                candidates[service] += 1
                if service not in answered and candidates[service] >= 2:
                    del candidates[service]
                continue
            answered.add(service)
            if notice is not None:
                return notice
        if candidates:
            sleep(every_s)
    return None


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> tuple[int, str]:
    """Status and body. Raises Unreachable. No proxy: the address is this machine's own."""
    request = urllib.request.Request(url, headers=headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read(65536).decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except (OSError, ValueError) as error:
        raise Unreachable(str(error)) from error


def _with_scheme(address: str) -> str:
    return address if "://" in address else f"http://{address}"
