"""What a listener serves: given to the connection loop, so that it imports neither the exchange nor the admin API."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import trio
from attrs import frozen

from clawproxy.config import Config
from clawproxy.dialects import jsonio
from clawproxy.dialects.base import ClientDialect
from clawproxy.dialects.gemini import models as gemini_models
from clawproxy.dialects.models import model_body, models_body
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.http1.headcheck import risky_target
from clawproxy.service import Service
from clawproxy.transport import ollama_pages
from clawproxy.transport.access import read_credentials
from clawproxy.transport.http import PlainHandler, PlainResponse
from clawproxy.transport.origins import check_origin, preflight_headers
from clawproxy.transport.wire import Stream

WebSocketSurface = Callable[[Stream, Head, bytes, Service, str], Awaitable[None]]
"""`await websocket(stream, head, leftover, service, peer)`: validates the upgrade, answers it, and serves until the end."""
MODEL_PATHS = (
    "/v1/models",
    "/openai/v1/models",
    "/v1beta/models",
    "/v1/native/gemini/v1beta/models",
    "/v1/native/google/v1beta/models",
)


Lazily = Callable[[], ClientDialect]
"""A dialect that is made when it is first needed."""


@frozen(slots=True)
class Surfaces:
    """Everything is matched by the raw path, exactly.

    Attributes:
        http: POST path -> the dialect spoken there.
        http_patterns: the same for paths that hold a name (`/v1beta/models/NAME:generateContent`), matched whole, in order.
        speakers: whose words an error has where no dialect's path was asked for; the first that knows its client.
        websocket: None where the listener takes no upgrades.
        websocket_paths: GET paths that upgrade.
        plain: (method, path) -> handler. HEAD is served by GET's.
        fallback: asked for every target that nothing else serves; it raises ClawError for what it does not know either.
        models: whether `/v1/models` is served, and Ollama's pages of that kind.
        http_prefixes: prefix of a path -> the dialect in whose words an error below it is told, where nothing is served there.
        check: Host and Origin policy, run first.
        plain_body: the most bytes of a plain route's body.
        websockets: GET path -> the surface that upgrades there, beside those of `websocket_paths`.
    """

    http: Mapping[str, ClientDialect] = MappingProxyType({})
    http_patterns: Sequence[tuple[re.Pattern[str], Lazily]] = ()
    speakers: Sequence[tuple[Callable[[Head], bool], Lazily]] = ()
    websocket: WebSocketSurface | None = None
    websocket_paths: frozenset[str] = frozenset({"/websocket"})
    plain: Mapping[tuple[str, str], PlainHandler] = MappingProxyType({})
    fallback: PlainHandler | None = None
    models: bool = True
    check: Callable[[Head, Config, bool], ClawError | None] = check_origin
    plain_body: int = 1024 * 1024
    http_prefixes: Mapping[str, Lazily] = MappingProxyType({})
    websockets: Mapping[str, WebSocketSurface] = MappingProxyType({})

    def by_pattern(self, path: str) -> ClientDialect | None:
        for pattern, dialect in self.http_patterns:
            if pattern.fullmatch(path) is not None:
                return dialect()
        return None

    def speaker(self, head: Head) -> ClientDialect | None:
        """In whose words an error is told where nothing is served for this head; None: in OpenAI's."""
        for prefix, dialect in self.http_prefixes.items():
            if head.path.startswith(prefix):
                return dialect()
        for knows, dialect in self.speakers:
            if knows(head):
                return dialect()
        return self.http.get(head.path)

    def upgrade_at(self, path: str) -> WebSocketSurface | None:
        """The WebSocket surface at this path."""
        if self.websocket is not None and path in self.websocket_paths:
            return self.websocket
        return self.websockets.get(path)

    def allowed(self, path: str) -> list[str]:
        """The methods that would be served at this path: empty where it is unknown."""
        methods = {method for method, plain in self.plain if plain == path}
        if path in self.http or self.by_pattern(path) is not None:
            methods.add("POST")
        if self.models and model_of(path) is not None:
            methods.add("GET")
        if self.models and path in ollama_pages.METHODS:
            methods.add(ollama_pages.METHODS[path])
        if self.upgrade_at(path) is not None:
            methods.add("GET")
        if "GET" in methods:
            methods.add("HEAD")
        return sorted(methods)

    def handler(self, head: Head, service: Service) -> PlainHandler:
        """What serves this request, which is for no dialect and no WebSocket.

        Raises:
            ClawError: method_not_allowed, endpoint_not_found.
        """
        method = "GET" if head.method == "HEAD" else head.method
        found = self.plain.get((method, head.path))
        if found is not None:
            return found
        if self.models and method == "GET":
            model = model_of(head.path)
            if model is not None:
                return functools.partial(_models, service, model)
        if self.models:
            page = ollama_pages.page(service, method, head.path)
            if page is not None:
                return page
        if head.path == "*":
            return functools.partial(_options, "GET, HEAD, POST, OPTIONS")
        methods = self.allowed(head.path)
        if methods:
            allowed = ", ".join([*methods, "OPTIONS"])
            if method == "OPTIONS":
                return functools.partial(_options, allowed)
            raise ClawError("method_not_allowed", extra={"allow": allowed})
        if self.fallback is not None and not risky_target(head.target):
            return self.fallback
        raise ClawError("endpoint_not_found")


def model_of(path: str) -> str | None:
    """`/v1/models` -> "", `/v1/models/a%2Fb` -> "a/b", other paths -> None. Decoded once; it is only looked up in a list."""
    for prefix in MODEL_PATHS:
        if path == prefix:
            return ""
        if path.startswith(prefix + "/") and len(path) > len(prefix) + 1:
            return unquote(path[len(prefix) + 1 :], errors="replace")
    return None


async def _models(service: Service, name: str, head: Head, body: bytes, peer: str) -> PlainResponse:
    """The model list, or one model, in OpenAI's shape; in Anthropic's where the client says `anthropic-version`, in Google's
    for whom `asks_gemini` knows.

    Raises:
        ClawError: as `Service.authenticate`; model_not_found.
    """
    principal = await service.authenticate(read_credentials(head, peer, "models"))
    pairs = service.models(principal)
    if name:
        pairs = [pair for pair in pairs if pair[0] == name][:1]
        if not pairs:
            raise ClawError("model_not_found")
    if gemini_models.asks_gemini(head):
        return PlainResponse(
            body=gemini_models.model_body(name) if name else gemini_models.models_body([model for model, _ in pairs])
        )
    if head.get("anthropic-version") is None:
        return PlainResponse(body=model_body(*pairs[0]) if name else models_body(pairs))
    entries = [_anthropic_entry(model) for model, _ in pairs]
    if name:
        return PlainResponse(body=jsonio.encode(entries[0]))
    ids = [entry["id"] for entry in entries]
    ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return PlainResponse(body=jsonio.encode({"data": entries, "has_more": False, **ends}))


async def _options(allowed: str, head: Head, body: bytes, peer: str) -> PlainResponse:
    await trio.lowlevel.checkpoint()
    headers = {"allow": allowed}
    if head.get("origin") is not None:
        headers.update(preflight_headers())
    return PlainResponse(204, "", b"", headers)


def _anthropic_entry(model: str) -> dict[str, Any]:
    return {"type": "model", "id": model, "display_name": model, "created_at": "1970-01-01T00:00:00Z", "lifecycle": "active"}
