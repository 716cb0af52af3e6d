"""Unit tests reach no network (a connection is an error here, not a slow test somewhere else) and no catalog of the person's."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest


@pytest.fixture(autouse=True)
def _no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: Any) -> NoReturn:
        raise RuntimeError(f"a unit test tried to connect to {address}; it belongs in tests/process")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)


@pytest.fixture(autouse=True)
def _no_catalog(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("DOLPHIN_CATALOGS", str(Path(tmp_path_factory.getbasetemp()) / "no-catalogs"))
