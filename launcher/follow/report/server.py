"""`dolphin report --live`: the same page of every run, on loopback, updating itself. Reads and never writes.

The address holds a token of this start, so that another user of the machine, or a page in the same browser, finds nothing: paths
without it are answered as if nothing was there. uvicorn and starlette serve.
"""

from __future__ import annotations

import importlib.util
import secrets
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from launcher.follow.report.facts import facts_of
from launcher.follow.report.page import check_libraries, write_index, write_page
from launcher.runs import ledger
from launcher.runs.errors import BROKEN_FILES, BadUsage, LauncherError, broken

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
_HOSTS = ["127.0.0.1", "localhost"]
"""Names that a browser may ask for: another one's page that resolves to loopback is refused."""


def application(token: str) -> Starlette:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse
    from starlette.routing import Route

    def index(_: Request) -> Response:
        return HTMLResponse(write_index(ledger.all_runs()), headers=_HEADERS)

    def page(request: Request) -> Response:
        try:
            runs = [facts_of(ledger.find(name)) for name in request.path_params["names"].split("+")]
            return HTMLResponse(write_page(runs, is_live=True), headers=_HEADERS)
        except LauncherError as error:
            return PlainTextResponse(str(error), status_code=404, headers=_HEADERS)
        except BROKEN_FILES as error:
            return PlainTextResponse(broken(error), status_code=503, headers=_HEADERS)

    routes = [Route(f"/{token}/", index), Route(f"/{token}/{{names}}", page)]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)])


def serve(say: Callable[[str], Any]) -> int:
    """Until Ctrl-C; the address is said once it answers."""
    check_libraries()
    if importlib.util.find_spec("uvicorn") is None or importlib.util.find_spec("starlette") is None:
        raise BadUsage("--live is served by uvicorn and starlette: pip install 'dolphin-launcher[report]'")
    import uvicorn

    token = secrets.token_urlsafe(16)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1", 0))
        say(f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/ (Ctrl-C ends it)")
        config = uvicorn.Config(application(token), log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(config).run(sockets=[listening])
    return 0
