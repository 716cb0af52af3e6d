"""A TCP proxy in front of an HTTP server that misbehaves on request: answers 503, says nothing, cuts in the middle.

Speaks HTTP/1.1 well enough for object stores: one request at a time on a connection, bodies with Content-Length.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    length: int
    signed_as: str = ""
    """`KEY/DATE/REGION/s3/aws4_request` of a request that is signed in Amazon's way."""


Rule = Callable[[Request], str | None]
"""-> None (let it through), "503", "403", "expired" (a token), "silence" (no answer, until the client gives up), "cut-request" (the
connection ends in the middle of the body), "cut-response" (in the middle of the answer), "lose-response" (the server
has done it, and the client never hears)."""


ANYBODY = b"Authorization: AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\n"


class FaultProxy:
    """`with FaultProxy(host, port) as proxy:` and point the client at `proxy.url`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.rule: Rule = lambda request: None
        self.faults: list[tuple[str, str]] = []
        """(what was done, method and path), in order."""
        self.requests: list[Request] = []
        self._closing = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, client.makefile("rb") as incoming:
            while self._exchange(client, incoming):
                pass

    def _exchange(self, client: socket.socket, incoming) -> bool:
        """One request; False ends the connection."""
        line = incoming.readline()
        if not line:
            return False
        headers = []
        while (header := incoming.readline()) not in (b"\r\n", b""):
            headers.append(header)
        named = {h.split(b":", 1)[0].strip().lower(): h.split(b":", 1)[1].strip() for h in headers}
        length = int(named.get(b"content-length", b"0"))
        method, path = line.decode().split()[:2]
        signature = named.get(b"authorization", b"").decode()
        request = Request(method, path, length, signature.partition("Credential=")[2].partition(",")[0])
        self.requests.append(request)
        fault = self.rule(request)
        if fault is not None:
            self.faults.append((fault, f"{method} {path}"))
        if fault == "silence":
            self._closing.wait()
            return False
        if fault == "cut-request":
            self._ask_for_body(client, named)
            incoming.read(length // 2)
            return False
        self._ask_for_body(client, named)
        body = incoming.read(length)
        if fault in ("503", "403", "expired"):
            status = {"503": "503 Slow Down", "403": "403 Forbidden", "expired": "400 Bad Request"}[fault]
            code = {"503": "SlowDown", "403": "AccessDenied", "expired": "ExpiredToken"}[fault]
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
            return True
        answer = self._forward(line, headers, body)
        if fault == "lose-response":
            return False
        if fault == "cut-response":
            client.sendall(answer[: max(1, len(answer) // 2)])
            return False
        client.sendall(answer)
        return True

    @staticmethod
    def _ask_for_body(client: socket.socket, headers: dict[bytes, bytes]) -> None:
        """Amazon's client sends the headers of a put alone, and waits a second for this before it sends the body anyway."""
        if headers.get(b"expect", b"").lower() == b"100-continue":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _forward(self, line: bytes, headers: list[bytes], body: bytes) -> bytes:
        dropped = (b"connection:", b"expect:", b"authorization: bearer")
        kept = [header for header in headers if not header.lower().startswith(dropped)]
        is_about_tokens = line.startswith(b"POST / ")
        if not (is_about_tokens or any(header.lower().startswith(b"authorization:") for header in kept)):
            kept.append(ANYBODY)  # Google's client signs otherwise; moto wants to see something of Amazon's
        with socket.create_connection(self._target) as server:
            server.sendall(line + b"".join(kept) + b"Connection: close\r\n\r\n" + body)
            parts = []
            while part := server.recv(1 << 16):
                parts.append(part)
        head, _, rest = b"".join(parts).partition(b"\r\n\r\n")
        lines = [one for one in head.split(b"\r\n") if not one.lower().startswith(b"connection:")]
        return b"\r\n".join(lines) + b"\r\n\r\n" + rest
