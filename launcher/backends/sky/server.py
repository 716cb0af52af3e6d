"""What answers at an address where SkyPilot's API server should be."""

from __future__ import annotations

import urllib.error
import urllib.request


def answer_of(endpoint: str) -> str | None:
    """What is at an address that is not SkyPilot's API: `404`, `a web page`; None where nothing answers."""
    try:
        with urllib.request.urlopen(f"{endpoint}/api/health", timeout=5) as response:
            kind = response.headers.get_content_type()
            return "a web page" if kind == "text/html" else f"a page of type {kind}"
    except urllib.error.HTTPError as error:
        return f"{error.code} ({error.reason})"
    except (OSError, ValueError):
        return None
