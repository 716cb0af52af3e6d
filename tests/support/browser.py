"""A real headless Chromium, through playwright. Debian's package is installed where it is asked for and root may."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.require import is_asked_for, lacking

if TYPE_CHECKING:
    from playwright.sync_api import Page

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def path_of_chromium() -> str:
    """Skips where there is none."""
    found = _installed()
    if found is None and is_asked_for("browser") and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"check": False, "stdout": subprocess.DEVNULL, "timeout": 900}
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], env=environment, **quiet).returncode:
            subprocess.run(["apt-get", "update", "-qq"], env=environment, **quiet)
            subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], env=environment, **quiet)
        found = _installed()
    return found or lacking("browser", "there is no Chromium; apt-get install chromium")


def _installed() -> str | None:
    return next((path for path in map(shutil.which, _NAMES) if path), None)


@contextmanager
def browser_page(width: int = 1280, height: int = 900, scheme: str = "light") -> Iterator[tuple[Page, list[str]]]:
    """A page, and what its console or its scripts complained of."""
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path_of_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
        try:
            yield page, complaints
        finally:
            browser.close()
