"""What the WebSocket mode of Responses adds to the format: its messages, its errors, and what a connection keeps.

    -> {"type": "response.create", "stream_id": "lane"?, "previous_response_id"?, "generate": false?, ...the request}
    <- the events of the stream, each with its lane's `stream_id`

Rule 1: `previous_response_id` names a response of this connection. Its input and output are put before the new input, so that
        it works with every provider, stored or not.
Rule 2: `generate: false` warms up: nothing is asked of a provider; the input is kept under the id of an empty response.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from clawproxy.context import Exchange
from clawproxy.dialects import jsonio
from clawproxy.dialects.openai_chat import check
from clawproxy.dialects.openai_chat.client_answer import error_object
from clawproxy.dialects.openai_responses.client_answer import AnswerEvents, Written, blocks
from clawproxy.dialects.openai_responses.client_request import from_fields
from clawproxy.dialects.openai_responses.items import OWN_REASONING
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Outcome
from clawproxy.messages import ChatRequest, Usage

KEPT = 64
"""Responses kept for each connection, and ..."""
KEPT_BYTES = 32 * 1024 * 1024
"""... bytes of their items, as they were received and sent. The last one is always kept."""

_ENVELOPE = frozenset({"type", "stream_id", "generate", "stream"})


@frozen(slots=True)
class Create:
    """One `response.create`."""

    lane: str | None
    fields: dict[str, Any]
    """The request, less what belongs to the message."""
    generate: bool
    size: int

    @property
    def previous(self) -> str | None:
        said = self.fields.get("previous_response_id")
        return said if isinstance(said, str) else None


def read_create(frame: Mapping[str, Any], size: int) -> Create:
    """Raises ClawError("invalid_request") with `param`."""
    generate = frame.get("generate")
    fields = {name: value for name, value in frame.items() if name not in _ENVELOPE}
    return Create(lane_of(frame), fields, generate is None or check.flag(generate, "generate"), size)


def lane_of(frame: Mapping[str, Any]) -> str | None:
    said = frame.get("stream_id")
    return None if said is None else check.token(said, "stream_id", longest=128)


def error_event(error: ClawError, lane: str | None = None) -> bytes:
    """The event for what went wrong before anything was told of a response, or with the connection."""
    event: dict[str, Any] = {"type": "error", "status": error.status, "error": error_object(error)}
    if error.details.retry_after_ms is not None:
        event["error"]["headers"] = {"retry-after-ms": str(error.details.retry_after_ms)}
    return jsonio.encode(event if lane is None else {**event, "stream_id": lane})


# --- what is kept ------------------------------------------------------------------------------------------------------------


@frozen(slots=True)
class Kept:
    items: Sequence[Any]
    """All input and output up to here."""
    size: int
    """Bytes, about."""


class History:
    """The responses of one connection, the oldest forgotten first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def request(self, create: Create, longest: int) -> tuple[ChatRequest, Kept]:
        """The whole request, and all its input as it is to be kept.

        Args:
            longest: as `messages` in the configuration's limits.
        Raises:
            ClawError: previous_response_not_found; what `from_fields` raises.
        """
        fields = {**create.fields, "stream": True}
        before = Kept((), 0)
        if create.previous is not None:
            found = self._kept.get(create.previous)
            if found is None:
                raise ClawError("previous_response_not_found", param="previous_response_id")
            before = found
            del fields["previous_response_id"]
        said = fields.get("input", [])
        now = [{"type": "message", "role": "user", "content": said}] if isinstance(said, str) else said
        if create.previous is not None and isinstance(now, list):
            fields["input"] = [*before.items, *now]
        request = from_fields(fields, {"messages": longest})
        return request, Kept(fields["input"] if isinstance(fields.get("input"), list) else now, before.size + create.size)

    def keep(self, ident: str, before: Kept, output: Sequence[Any]) -> None:
        made = [item for item in output if _lasts(item)]
        kept = Kept([*before.items, *made], before.size + len(jsonio.encode(made)))
        self._forget(ident)
        self._kept[ident] = kept
        self._size += kept.size
        while len(self._kept) > 1 and (len(self._kept) > KEPT or self._size > KEPT_BYTES):
            self._forget(next(iter(self._kept)))

    def _forget(self, ident: str) -> None:
        kept = self._kept.pop(ident, None)
        if kept is not None:
            self._size -= kept.size


def _lasts(item: Any) -> bool:
    """Whether an output item may be sent back: reasoning without its encrypted content is known to nobody, unless it is the
    gateway's own."""
    if not isinstance(item, dict):
        return False
    if item.get("type") != "reasoning" or item.get("encrypted_content"):
        return True
    return str(item.get("id")).startswith(OWN_REASONING)


# --- the way back ------------------------------------------------------------------------------------------------------------


class SocketAnswer:
    """One response as messages: what `StreamEncoder` is for SSE."""

    def __init__(self, exchange: Exchange, request: ChatRequest, create: Create) -> None:
        self._events = AnswerEvents(exchange, request)
        self._events.response["previous_response_id"] = create.previous
        self._tag = b"" if create.lane is None else b'{"stream_id":' + jsonio.encode(create.lane) + b","

    @property
    def response(self) -> Mapping[str, Any]:
        """The Response as it is by now; after the end, with its output."""
        return self._events.response

    def content(self, batch: Batch) -> list[bytes]:
        if self._events.over:
            return []
        if self._events.passes(batch):
            return [self._tagged(data) for data in blocks(batch.raw or b"")]
        return self._all(self._events.write(batch))

    def finish(self, outcome: Outcome, usage: Usage | None) -> list[bytes]:
        return self._all(self._events.finish(outcome, usage))

    def fail(self, error: ClawError) -> list[bytes]:
        return self._all(self._events.fail(error))

    def _all(self, written: Written) -> list[bytes]:
        return [self._tagged(data) for _, data in written]

    def _tagged(self, data: bytes) -> bytes:
        """With its lane, which goes before everything else: the event itself is not decoded for it."""
        return self._tag + data.lstrip()[1:].lstrip() if self._tag else data
