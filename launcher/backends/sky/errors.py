"""What SkyPilot's exceptions mean for a person: one or two lines with the next step. Pure: goes by class names and text.

SkyPilot hands errors over a wire and rebuilds them, so that classes and texts are all there is to go by.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
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
    "APIVersionMismatchError",
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


def explain(error: BaseException, *, what: str, tried: Sequence[str] = ()) -> LauncherError:
    """The error to raise instead. `what` was being done; `tried` names the offers that were asked for."""
    name, text = type(error).__name__, clean(error)
    if name in _API_DOWN or ("API server" in text and "connect" in text):
        return BackendError(f"{what}: SkyPilot's API server does not answer; `sky api status`, then `sky api start`")
    if _CREDENTIALS.search(text):
        return BackendError(
            f"{what}: credentials are missing or expired ({first_line(text)}); renew them, then `sky check`"
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
