"""A provider dialect as a plugin: the invented Acme format, one prompt in, lines of JSON out.

    POST {base_url}/generate    {"model": "m", "prompt": "user: hi", "limit": 50}

    {"token": "Hel"}
    {"token": "lo"}
    {"done": true, "why": "end", "tokens": {"in": 3, "out": 2}}

A status that is no 200 comes with `{"problem": "..."}`; the same line may come in the middle of an answer.

Rule 1: no I/O here. Bytes may come cut anywhere; what is not a whole line yet waits.
Rule 2: what the format can not say is refused by name, never dropped in silence.
Rule 3: a provider can send anything: broken bytes are a `Failed` event, not an exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from clawproxy.config import ProviderConfig
from clawproxy.context import Registry
from clawproxy.dialects.base import OutboundRequest
from clawproxy.dialects.translate import leftovers, refuse, refuse_operation
from clawproxy.errors import ProviderFault
from clawproxy.events import Batch, Begin, End, Event, Failed, Finish, Text, UsageReport
from clawproxy.hookspecs import hookimpl
from clawproxy.messages import ChatRequest, Route, Usage

NO_PLACE = "has no place in the Acme format"
LONGEST_LINE = 1024 * 1024
FAULTS = {401: "auth", 404: "not_found", 429: "rate_limited", 503: "overloaded"}


@hookimpl
def register(registry: Registry) -> None:
    registry.add_provider_dialect("acme", Acme())


class Acme:
    """`ProviderDialect` for `POST {base_url}/generate`."""

    name = "acme"
    auth_header = "x-api-key"

    def configured(self, provider: ProviderConfig) -> Acme:
        return self

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        if request.operation != "chat":
            refuse_operation(request, route, self.name)
        for name in (
            "tools",
            "response_format",
            "temperature",
            "top_p",
            "top_k",
            "frequency_penalty",
            "presence_penalty",
            "stop",
            "seed",
        ):
            if getattr(request, name) not in (None, ()):
                refuse(name, NO_PLACE)
        notices = leftovers(request, self.name, NO_PLACE)
        lines = []
        for number, message in enumerate(request.messages):
            if message.tool_calls or message.content is None:
                refuse(f"messages[{number}]", NO_PLACE)
            lines.append(f"{message.role}: {message.text()}")
        body: dict[str, Any] = {"model": route.model, "prompt": "\n".join(lines)}
        if request.max_tokens is not None:
            body["limit"] = request.max_tokens
        return OutboundRequest("/generate", json.dumps(body).encode(), stream=request.stream, notices=notices)

    def decoder(self, request: ChatRequest) -> Decoder:
        return Decoder()

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        """By the status alone: a provider's own words may hold anything."""
        slug = FAULTS.get(status, "server" if status >= 500 else "rejected")
        return ProviderFault(f"provider_error.{slug}", provider_status=status)


class Decoder:
    """One answer, line by line."""

    def __init__(self) -> None:
        self.done = False
        self._failed = False
        self._begun = False
        self._rest = b""

    def feed(self, data: bytes) -> Batch | None:
        if self.done or self._failed:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        events: list[Event] = []
        for line in lines:
            if not self._line(line, events):
                return Batch(events)
        if len(self._rest) > LONGEST_LINE:
            events.append(self._fail("too_large"))
        return Batch(events) if events else None

    def close(self) -> Batch | None:
        if self.done or self._failed:
            return None
        return Batch([self._fail("cut")])

    def _line(self, line: bytes, events: list[Event]) -> bool:
        """Append what one line says; whether the answer goes on."""
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            events.append(self._fail("malformed"))
            return False
        if "problem" in said:
            events.append(self._fail("server"))
            return False
        if not self._begun:
            self._begun = True
            events.append(Begin())
        if isinstance(said.get("token"), str) and said["token"]:
            events.append(Text(said["token"]))
        if said.get("done") is True:
            self.done = True
            events.append(Finish("length" if said.get("why") == "limit" else "stop", str(said.get("why"))[:64]))
            if isinstance(tokens := said.get("tokens"), dict):
                events.append(UsageReport(Usage(_count(tokens.get("in")), _count(tokens.get("out")))))
            events.append(End())
        return not self.done

    def _fail(self, slug: str) -> Failed:
        self._failed = True
        return Failed(ProviderFault(f"provider_error.{slug}"))


def _count(value: Any) -> int | None:
    """A figure that can be one; what is missing is None, not 0."""
    return value if type(value) is int and 0 <= value < 2**31 else None
