"""What the suites share: one object store for all of them, which takes a second to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import object_stores


@pytest.fixture(scope="session")
def object_server() -> Iterator[tuple[str, int]]:
    """Host and port of an S3 server with one bucket. Each test writes below a prefix of its own."""
    with object_stores.serving() as address:
        yield address
