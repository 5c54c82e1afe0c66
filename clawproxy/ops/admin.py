"""What the admin listener answers: is it alive, would it admit a request, what has it counted.

Rule 1: `/readyz` says ready exactly when a request would be admitted; else every reason, as `REASONS` has it.
Rule 2: only `localhost`, addresses and configured names are served (THREATS.md W-25): a page in a browser on this machine can
        make its name point here, but it can not make its Host header say localhost.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from attrs import frozen

from clawproxy.config import Config
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.ops.metrics import Metrics, add_process
from clawproxy.transport.http import PlainHandler, PlainResponse

TEXT = "text/plain; charset=utf-8"
METRICS = "text/plain; version=0.0.4; charset=utf-8"
REASONS: Mapping[str, str] = {
    "shutting_down": "draining",
    "overloaded": "overloaded",
    "store_unavailable": "store",
}
"""Why a request would not be admitted: the error it would get, and the word `/readyz` has for it."""
PATHS = ("/healthz", "/readyz", "/metrics")


class ServiceView(Protocol):
    """What the pages look at."""

    @property
    def metrics(self) -> Metrics: ...

    def admit(self) -> ClawError | None:
        """Why a new request would be refused now; None when ready. Synchronous and cheap."""
        ...


@frozen
class AdminPages:
    view: ServiceView
    config: Config

    def __attrs_post_init__(self) -> None:
        add_process(self.view.metrics)

    def routes(self) -> Mapping[tuple[str, str], PlainHandler]:
        """What the admin listener serves. HEAD is served by GET's."""
        return {("GET", path): partial(self._serve, path) for path in PATHS}

    async def _serve(self, path: str, head: Head, _body: bytes, _peer: str) -> PlainResponse:
        if not self.admits(head.get("host")):
            raise ClawError("misdirected")
        return await self.handle("GET", path)

    def admits(self, host: str | None) -> bool:
        """Whether a Host header may be served: `localhost`, addresses (a rebinding needs a name), and configured names.
        Without one (HTTP/1.0): yes, no browser leaves it out."""
        if host is None:
            return True
        name = host.lower()
        hosts = {listed.lower() for listed in self.config.server.hosts}
        if name in hosts:
            return True
        if name.startswith("["):
            name, bracket, port = name[1:].partition("]")
            if not bracket or (port and not _is_port(port)):
                return False
        elif ":" in name:
            name, _, port = name.partition(":")
            if not _is_port(":" + port):
                return False
        if name in hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    async def handle(self, method: str, path: str) -> PlainResponse:
        """One page. `path` without its query; the caller leaves the body out for HEAD.

        Raises:
            ClawError: endpoint_not_found, method_not_allowed.
        """
        if path not in PATHS:
            raise ClawError("endpoint_not_found", f"There are {', '.join(PATHS)} here.")
        if method not in ("GET", "HEAD"):
            raise ClawError("method_not_allowed")
        if path == "/healthz":
            return PlainResponse(200, TEXT, b"ok\n")
        if path == "/metrics":
            return PlainResponse(200, METRICS, self.view.metrics.expose())
        refusal = self.view.admit()
        reasons = [] if refusal is None else [REASONS.get(refusal.slug, refusal.slug)]
        body = json.dumps({"ready": not reasons, "reasons": reasons}).encode() + b"\n"
        return PlainResponse(503 if reasons else 200, body=body, headers={"cache-control": "no-store"})


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isdecimal() and len(text) <= 6
