"""What a wire format offers, in both directions, without I/O. No module in this folder imports trio.

A dialect has up to two sides, in one file: the *client side* (their request in, our answer out) and the *provider side* (our
request out, their answer in). Decoders take bytes however they were cut; encoders give bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from clawproxy.config import ProviderConfig
from clawproxy.context import Exchange
from clawproxy.errors import ClawError, ProviderFault
from clawproxy.events import Batch, Notice, Outcome
from clawproxy.http1.head import Head
from clawproxy.messages import ChatRequest, Route, Usage
from clawproxy.values import value


@value
class OutboundRequest:
    """A provider request, ready but for the connection: `path` goes after the provider's base path, `headers` without
    credentials, host and length."""

    path: str
    body: bytes
    headers: Sequence[tuple[str, str]] = (("content-type", "application/json"),)
    method: str = "POST"
    stream: bool = False
    notices: Sequence[Notice] = ()
    """What could not be said in this format and changes nothing that matters (`parameter_dropped`)."""


# --- client side -----------------------------------------------------------------------------------------------------------


class AnswerEncoder(Protocol):
    """Turns one exchange's events into the bytes of one HTTP answer. Two lives: `stream` (SSE) or whole."""

    content_type: str

    def encode(self, batch: Batch) -> bytes:
        """Stream: the bytes to write now, the batch's own where they can stand. Whole: b"", the events are kept."""
        ...

    def finish(self, outcome: Outcome, usage: Usage | None) -> bytes:
        """Stream: terminal bytes (`[DONE]`), as far as passed-through bytes did not hold them. Whole: the body."""
        ...

    def fail(self, error: ClawError) -> bytes:
        """Stream only: the error event. No `[DONE]` follows."""
        ...

    def keepalive(self) -> bytes:
        """Stream only: a comment that clients ignore. b"" where the format has none."""
        ...


class ClientDialect(Protocol):
    """It may have a `request_id_header`: the name of the header in which its clients look for the id of their request, besides
    `x-request-id` (Anthropic's `request-id`)."""

    name: str

    def decode_request(self, body: bytes, config_limits: Mapping[str, int], head: Head) -> ChatRequest:
        """`head`: for formats that say part of it in the path or in headers.

        Raises ClawError("invalid_json" | "json_too_deep" | "invalid_request" | "unknown_parameter"...) with `param`."""
        ...

    def answer(self, exchange: Exchange, request: ChatRequest) -> AnswerEncoder: ...

    def error_body(self, error: ClawError, request_id: str) -> bytes:
        """The dialect's error document, for a status before any answer."""
        ...


# --- provider side ---------------------------------------------------------------------------------------------------------


class ProviderDecoder(Protocol):
    """One answer of a provider, fed as it arrives."""

    done: bool
    """The terminal marker was seen: the answer is complete whatever the socket does next."""

    def feed(self, data: bytes) -> Batch | None:
        """The events that are whole now; None where none is. Broken bytes become a `Failed` event, never an exception."""
        ...

    def close(self) -> Batch | None:
        """The body ended. What is still missing becomes `Failed(provider_error.cut)`."""
        ...


MODELS_PAGE = OutboundRequest("/models", b"", (("accept", "application/json"),), "GET")
"""What lists a provider's models, as most have it."""


class ProviderDialect(Protocol):
    """It may have a `models_page`: what lists the provider's models, where that is not `MODELS_PAGE`."""

    name: str
    auth_header: str
    """`authorization` (as `Bearer KEY`), `x-api-key`, `x-goog-api-key`, `api-key`: where the provider's key goes."""

    def configured(self, provider: ProviderConfig) -> ProviderDialect:
        """The dialect as this provider needs it (its `profile`, its `api_version`); itself where there is nothing to choose.

        Raises ConfigError, its problems as `KEY: sentence`."""
        ...

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        """Always encoded anew from what was authorised. Raises ClawError("unsupported_parameter") naming what would be lost, and
        for an `operation` that it has not (`translate.refuse_operation`)."""
        ...

    def decoder(self, request: ChatRequest) -> ProviderDecoder: ...

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        """From status, headers (lower-case names, allow-listed) and at most 64 KiB of body. Only allow-listed, redacted words
        of the provider pass."""
        ...
