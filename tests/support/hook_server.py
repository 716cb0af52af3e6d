"""A server for hooks on this machine's loopback: keeps what was posted, and misbehaves where asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HookServer:
    """Answers 200; 500 under /broken, 404 under /gone, nothing at all under /hangs until it is closed, a redirect under /moved."""

    def __init__(self, on_post: Callable[[str], None] = lambda path: None) -> None:
        self.posted: list[tuple[str, dict[str, Any]]] = []
        self._closing = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                on_post(self.path)
                owner.posted.append((self.path, body))
                if self.path.startswith("/hangs"):
                    owner._closing.wait(60)
                    return
                answers = {"/broken": 500, "/gone": 404, "/moved": 302}
                code = next((code for start, code in answers.items() if self.path.startswith(start)), 200)
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", f"{owner.url}/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def of(self, path: str) -> list[dict[str, Any]]:
        return [body for at, body in self.posted if at == path]

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
