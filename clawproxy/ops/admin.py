"""What the admin listener answers: is it alive, would it admit a request, what has it counted; and to operators, reports.

Rule 1: `/readyz` says ready exactly when a request would be admitted; else every reason, from the closed set `REASONS`.
Rule 2: only `localhost`, addresses and configured names are served (THREATS.md W-25): a page in a browser on this machine can
        make its name point here, but it can not make its Host header say localhost.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from attrs import field, frozen

from clawproxy.ops.adminapi import AdminApi
from clawproxy.ops.metrics import Metrics
from clawproxy.ops.reports import encode

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"
METRICS = "text/plain; version=0.0.4; charset=utf-8"
REASONS: tuple[str, ...] = ("starting", "draining", "overloaded", "store", "config")

MOST_PROBLEMS = 16
"""Sentences about a refused reload that `/readyz` repeats; the log has them all."""


@frozen(slots=True)
class AdminResponse:
    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(factory=dict)


class ServiceView(Protocol):
    """What the pages look at."""

    @property
    def metrics(self) -> Metrics: ...

    def not_ready(self) -> Sequence[str]:
        """Why a new request would be refused now, from `REASONS`; empty when ready. Synchronous and cheap."""
        ...

    @property
    def reload_problems(self) -> Sequence[str]:
        """Why the last reload was refused, a sentence each; empty where it was not."""
        ...

    def provider_states(self) -> Mapping[str, Mapping[str, object]]:
        """What the providers that are checked came to."""
        ...


def _lowered(hosts: Collection[str]) -> frozenset[str]:
    return frozenset(host.lower() for host in hosts)


@frozen
class AdminPages:
    view: ServiceView
    hosts: frozenset[str] = field(default=frozenset(), converter=_lowered)
    """Names served beside this machine's own: `[server] hosts`."""
    api: AdminApi | None = None
    """What answers below `/admin/`."""

    def admits(self, host: str | None) -> bool:
        """Whether a Host header may be served: `localhost`, addresses (a rebinding needs a name), and configured names.
        Without one (HTTP/1.0): yes, no browser leaves it out."""
        if host is None:
            return True
        name = host.lower()
        if name in self.hosts:
            return True
        if name.startswith("["):
            name, bracket, port = name[1:].partition("]")
            if not bracket or (port and not _is_port(port)):
                return False
        elif ":" in name:
            name, _, port = name.partition(":")
            if not _is_port(":" + port):
                return False
        if name in self.hosts or name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    async def handle(self, method: str, path: str, query: str = "", authorization: str | None = None) -> AdminResponse:
        """One page. `path` without its query. The caller asked `admits` before (`misdirected` says no) and leaves the body
        out for HEAD."""
        if path.startswith("/admin/") and self.api is not None:
            if method != "GET":
                return AdminResponse(405, TEXT, b"Only GET.\n", {"allow": "GET"})
            status, document, headers = await self.api.handle(path, query, authorization)
            return AdminResponse(status, JSON, encode(document) + b"\n", headers)
        if path not in ("/healthz", "/readyz", "/metrics"):
            return AdminResponse(404, TEXT, b"Not here. There are /healthz, /readyz and /metrics.\n")
        if method not in ("GET", "HEAD"):
            return AdminResponse(405, TEXT, b"Only GET.\n", {"allow": "GET, HEAD"})
        if path == "/healthz":
            return AdminResponse(200, TEXT, b"ok\n")
        if path == "/metrics":
            return AdminResponse(200, METRICS, self.view.metrics.expose())
        reasons = list(self.view.not_ready())
        said: dict[str, object] = {"ready": not reasons, "reasons": reasons}
        refused = list(self.view.reload_problems)
        if refused:  # ready all the same, with the configuration it had
            said["reload_failed"] = refused[:MOST_PROBLEMS]
        providers = self.view.provider_states()
        if providers:  # ready all the same: requests that need one that is down have their own answer
            said["providers"] = providers
        body = json.dumps(said).encode() + b"\n"
        return AdminResponse(503 if reasons else 200, JSON, body, {"cache-control": "no-store"})

    def misdirected(self) -> AdminResponse:
        """The answer to a Host that is not served."""
        return AdminResponse(421, TEXT, b"This host is not served here.\n")


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isdecimal() and len(text) <= 6
