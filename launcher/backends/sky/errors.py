"""What SkyPilot's exceptions mean for a person: one or two lines with the next step. Pure: goes by class names and text.

SkyPilot hands errors over a wire and rebuilds them, so that classes and texts are all there is to go by.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.runs.errors import BackendError, BadUsage, LauncherError, NoCapacity

NOT_INSTALLED = "--on sky: SkyPilot is not installed here; pip install 'dolphin-launcher[sky]' (and 'skypilot[aws]' or another cloud's extra)"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_API_DOWN = (
    "ApiServerConnectionError",
    "ConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
    "ChunkedEncodingError",
)
_CREDENTIALS = re.compile(
    r"(expired|invalid|no|unable to locate|missing) (token|credential|security token|access key)|ExpiredToken|InvalidClientTokenId"
    r"|AuthFailure|UnauthorizedOperation|Reauthentication is needed|could not automatically determine credentials|Permission denied \(publickey",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"quota|LimitExceeded|limit exceeded|VcpuLimit", re.IGNORECASE)
_IMAGE = re.compile(
    r"(manifest|image|repository)[^\n]{0,80}(not found|unknown|does not exist)|pull access denied|ErrImagePull|ImagePullBackOff"
    r"|failed to (import|pull)[^\n]{0,40}image|Failed to pull",
    re.IGNORECASE,
)  # fmt: skip


_CONTROLLER = re.compile(r"jobs[- ]controller|cpus=4\+, mem(ory)?=4x", re.IGNORECASE)
"""Of the VM that SkyPilot makes for itself, by its name or by what it asks for."""
_PROVISIONING = (
    "ResourcesUnavailableError",
    "ResourcesMismatchError",
    "ProvisionError",
    "ClusterSetUpError",
    "CommandError",
)


@dataclass(frozen=True, slots=True)
class Server:
    """SkyPilot's API server as the client sees it."""

    endpoint: str
    """Without credentials."""
    is_local: bool
    """Of this machine, started by SkyPilot itself where it is missing."""
    answer: str | None = None
    """What answers there, where it is not SkyPilot: `404`, `a web page`; None where nothing does."""


def explain(
    error: BaseException, *, what: str, tried: Sequence[str] = (), server: Callable[[], Server | None] = lambda: None
) -> LauncherError:
    """The error to raise instead. `what` was being done; `tried` names the offers that were asked for; `server` is asked
    for where the trouble is with it."""
    name, text = type(error).__name__, clean(error)
    if name == "APIVersionMismatchError":
        return BackendError(f"{what}: {_of_another_version(text, server())}")
    if name == "ApiServerAuthenticationError":
        at = server()
        where = f" at {at.endpoint}" if at is not None else ""
        return BackendError(f"{what}: SkyPilot's API server{where} asks for a login; `sky api login`")
    if name == "RequestCancelled":
        return BackendError(f"{what}: was withdrawn (`dolphin down`, or `sky api cancel`)")
    if name in _API_DOWN or ("API server" in text and "connect" in text):
        return BackendError(f"{what}: {_without_answer(server())}")
    if _CREDENTIALS.search(text):
        return BackendError(
            f"{what}: credentials are missing or expired ({first_line(text)}); renew them, then `sky check`"
        )
    if name in _PROVISIONING and _CONTROLLER.search(text):
        return BackendError(
            f"{what}: not for the job's own sake: SkyPilot's jobs controller, a small VM of its own, cannot be had "
            f"({first_line(text)}); `jobs.controller.resources` in ~/.sky/config.yaml names another cloud or region for it"
        )
    if name == "NoCloudAccessError" or "No cloud access" in text or "No cloud is enabled" in text:
        return BackendError(f"{what}: SkyPilot has no cloud enabled; `sky check` says what each one lacks")
    if _QUOTA.search(text):
        return NoCapacity(
            f"{what}: no quota for this ({first_line(text)}); ask the cloud for more, or name other resources.infra"
        )
    if _IMAGE.search(text):
        return BackendError(
            f"{what}: the image cannot be had ({first_line(text)}); correct resources.image, or log in to its registry"
        )
    if name == "ResourcesUnavailableError":
        shown = f" (tried {', '.join(tried)})" if tried else ""
        return NoCapacity(
            f"{what}: nobody has these resources now{shown}: {first_line(text)}; try other regions, or again later"
        )
    if name in ("ResourcesMismatchError", "InvalidTaskSpecError", "InvalidSkyPilotConfigError"):
        return BadUsage(f"{what}: SkyPilot refuses it: {first_line(text)}")
    return BackendError(f"{what}: SkyPilot failed: {name}: {first_line(text)}")


def _of_another_version(text: str, server: Server | None) -> str:
    """SkyPilot's own words have both versions where the server is remote, and a hint to restart it where it is local."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    command = next((line for line in lines if line.startswith("pip install")), None)
    if server is None or server.is_local:
        return (
            "SkyPilot's API server on this machine is of another version than SkyPilot here; `sky api stop`, then "
            "`sky api start` (jobs go on)"
        )
    said = "; ".join(line.rstrip(".") for line in lines if line != command and not line.startswith("Contact"))
    remedy = f"`{command}` here, or ask its owner to upgrade it" if command else "install the server's version here"
    return f"{said} ({server.endpoint}); {remedy}"


def _without_answer(server: Server | None) -> str:
    if server is None or (server.is_local and server.answer is None):
        return "SkyPilot's API server does not answer; `sky api status`, then `sky api start`"
    if server.answer is None:
        return f"no SkyPilot API server answers at {server.endpoint}; is the address right, and can it be reached from here?"
    return (
        f"{server.endpoint} answers with {server.answer}, and not as a SkyPilot API server; correct the address "
        "(SKYPILOT_API_SERVER_ENDPOINT, `sky api info`), or log in (`sky api login`)"
    )


def refused(error: BaseException) -> BadUsage:
    """For what SkyPilot's parser says of a task."""
    return BadUsage(f"SkyPilot refuses the job's resources: {first_line(clean(error))}")


def unknown_gpu(name: str, known: Sequence[str]) -> BadUsage:
    """For `L41S`: did you mean L40S?"""
    near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "`sky gpus list --all` names them"
    return BadUsage(f"resources.accelerators: no GPU is called {name!r}; {hint}")


def too_cheap(cap: float, cheapest: Any) -> NoCapacity:
    """For a cap that no offer meets. `cheapest` is an Offer."""
    kind = "spot" if cheapest.spot else "on demand"
    return NoCapacity(
        f"resources.max_hourly_cost: ${cap:.2f} is below every offer; the cheapest is {cheapest.count} x {cheapest.accelerator} "
        f"at {cheapest.infra}, {kind}, for ${cheapest.price_usd_per_hour:.2f}/h"
    )


def clean(error: BaseException) -> str:
    return _ANSI.sub("", str(error)).strip()


def first_line(text: str) -> str:
    """The first line that says something, short enough to read."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[0] if lines else "no reason given"
    return line if len(line) <= 220 else f"{line[:217]}..."
