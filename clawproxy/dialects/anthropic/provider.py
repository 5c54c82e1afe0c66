"""The provider side: Anthropic, and hosts that speak like it (Bedrock's Mantle, DeepSeek, Moonshot, ...).

`base_url` may be written both ways that are in use: with the version as other vendors' are (`https://api.anthropic.com/v1`), or
without, as Anthropic's own SDKs want it (`https://api.anthropic.com`, `https://api.deepseek.com/anthropic`). What follows is
`/messages` or `/v1/messages`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from clawproxy.config import ProviderConfig
from clawproxy.dialects.anthropic.provider_answer import CountDecoder, StreamDecoder, WholeDecoder
from clawproxy.dialects.anthropic.provider_request import encode_body
from clawproxy.dialects.anthropic.words import NAME, VERSION
from clawproxy.dialects.base import OutboundRequest, ProviderDecoder
from clawproxy.dialects.openai_chat import provider_faults
from clawproxy.errors import ProviderFault
from clawproxy.messages import ChatRequest, Route

UNSIGNED_HOSTS = ("deepseek.com",)
"""Hosts whose thinking has no signature, and who want it back all the same."""
_VERSIONED = re.compile(r".*/v[0-9]+/?")


class AnthropicProvider:
    """`ProviderDialect` for `POST {base_url}[/v1]/messages[/count_tokens]`.

    Args:
        version: `anthropic-version` for every request; None is the client's own, where it speaks this dialect, else 2023-06-01.
        prefix: what stands between the base URL and `/messages`.
        unsigned: see `UNSIGNED_HOSTS`.
    """

    name = NAME
    auth_header = "x-api-key"

    def __init__(self, version: str | None = None, prefix: str = "", *, unsigned: bool = False) -> None:
        self._version = version
        self._path = f"{prefix}/messages"
        self._unsigned = unsigned
        headers = (("accept", "application/json"), ("anthropic-version", version or VERSION))
        self.models_page = OutboundRequest(f"{prefix}/models", b"", headers, "GET")

    def configured(self, provider: ProviderConfig) -> AnthropicProvider:
        parts = urlsplit(provider.base_url or "")
        host = parts.hostname or ""
        unsigned = provider.profile == "deepseek" or any(host == name or host.endswith(f".{name}") for name in UNSIGNED_HOSTS)
        return AnthropicProvider(provider.api_version, "" if _VERSIONED.fullmatch(parts.path) else "/v1", unsigned=unsigned)

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        own = dict(request.headers) if request.dialect == NAME else {}
        version = self._version or own.get("anthropic-version") or VERSION
        body, notices = encode_body(request, route, version, unsigned=self._unsigned)
        headers = [
            ("content-type", "application/json"),
            ("accept", "text/event-stream" if request.stream else "application/json"),
            ("anthropic-version", version),
        ]
        if "anthropic-beta" in own:
            headers.append(("anthropic-beta", own["anthropic-beta"]))
        path = f"{self._path}/count_tokens" if request.operation == "count_tokens" else self._path
        return OutboundRequest(path, body, tuple(headers), "POST", request.stream, tuple(notices))

    def decoder(self, request: ChatRequest) -> ProviderDecoder:
        if request.operation == "count_tokens":
            return CountDecoder()
        return StreamDecoder() if request.stream else WholeDecoder()

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        return provider_faults.decode_error(status, headers, body)
