"""`GET /api/tags`, `POST /api/show` and `GET /api/version`, beside the model list of the other formats.

Rule: all of them ask who is there, and tell of the models that one may use and of no others.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from clawproxy.config.groups import flat_routes
from clawproxy.dialects import jsonio
from clawproxy.dialects.ollama.pages import show_body, tags_body, version_body
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.messages import Principal
from clawproxy.service import Service
from clawproxy.transport.access import read_credentials
from clawproxy.transport.http import PlainHandler, PlainResponse

METHODS: Mapping[str, str] = {"/api/tags": "GET", "/api/version": "GET", "/api/show": "POST"}


def page(service: Service, method: str, path: str) -> PlainHandler | None:
    """What serves this page; None where it is none of them."""
    if METHODS.get(path) != method:
        return None
    return functools.partial(_page, service, path)


async def _page(service: Service, path: str, head: Head, body: bytes, peer: str) -> PlainResponse:
    """Raises ClawError: as `Service.authenticate`; invalid_json, invalid_request, model_not_found."""
    principal = await service.authenticate(read_credentials(head, peer, "models"))
    if path == "/api/version":
        return PlainResponse(body=version_body())
    if path == "/api/tags":
        return PlainResponse(body=tags_body(name for name, _ in service.models(principal)))
    return PlainResponse(body=show_body(_context(service, principal, _asked(body))))


def _asked(body: bytes) -> str:
    fields = jsonio.decode(body)
    name = fields.get("model") or fields.get("name") if isinstance(fields, dict) else None  # `name` in old clients
    if not isinstance(name, str) or not name:
        raise ClawError("invalid_request", "`model` must be a string.", param="model")
    return name


def _context(service: Service, principal: Principal, name: str) -> int | None:
    """The smallest window of the model's routes: what fits there, fits wherever it goes."""
    if all(model != name for model, _ in service.models(principal)):
        raise ClawError("model_not_found")
    windows = [route.context_tokens for route in flat_routes(service.config.models, name)]
    stated = [window for window in windows if window is not None]
    return min(stated) if stated and len(stated) == len(windows) else None
