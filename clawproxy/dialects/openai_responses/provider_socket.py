"""The WebSocket mode of Responses towards a provider: what is sent, and how its messages are read.

    -> {"type": "response.create", ...the body of POST /responses, but for `stream`}
    <- the events of the stream, one a message; errors as {"type": "error", "status": 400, "error": {...}}

Rule 1: a message is the `data` of an event of the stream, and is read by the decoder of the stream. So nothing is understood
        over a socket that is not over HTTP, and clients of this dialect get the same bytes.
Rule 2: an answer that was not to be streamed is what the terminal event holds: the whole `response`.
Rule 3: an `error` with a status, before anything else, is what a status is over HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from attrs import frozen
from msgspec import Struct

from clawproxy.dialects.base import OutboundRequest, ProviderDecoder
from clawproxy.dialects.figures import mapping
from clawproxy.dialects.sse import encode_event
from clawproxy.events import Batch, Failed

PATH = "/responses"
LIMIT_REACHED = "websocket_connection_limit_reached"
"""What a socket that is too old (60 minutes) answers to a `response.create`: it was not taken."""

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TYPE = b'{"type":"response.create",'


class _Message(Struct, gc=False):
    type: Any = None
    status: Any = None
    error: Any = None
    code: Any = None
    response: msgspec.Raw = msgspec.Raw()


_read = msgspec.json.Decoder(_Message).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def create_message(outbound: OutboundRequest) -> bytes | None:
    """The message that asks what this request does; None where only HTTP can (`background`)."""
    if outbound.path != PATH or outbound.method != "POST":
        return None
    fields = _fields(outbound.body)
    if "background_options" in fields or bytes(fields.pop("background", msgspec.Raw(b"false"))) not in (b"false", b"null"):
        return None
    fields.pop("stream", None)
    fields.pop("type", None)
    return _TYPE + msgspec.json.encode(fields)[1:]


@frozen(slots=True)
class Refusal:
    """An `error` that came instead of an answer.

    Attributes:
        status: as HTTP would have had it; None where it does not say.
        headers: of those names and values that are strings.
        body: what HTTP's body would be.
    """

    code: str
    status: int | None
    headers: Mapping[str, str]
    body: bytes

    @property
    def limit_reached(self) -> bool:
        return self.code == LIMIT_REACHED


def read_refusal(message: bytes) -> Refusal | None:
    """None where it is anything but an error."""
    try:
        said = _read(message)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if said.type != "error":
        return None
    error = mapping(said.error)
    code = error.get("code") or said.code
    status = said.status if type(said.status) is int and 400 <= said.status <= 599 else None
    headers = {
        name.lower(): value if isinstance(value, str) else str(value)
        for name, value in mapping(error.get("headers")).items()
        if isinstance(value, (str, int, float))
    }
    return Refusal(code if isinstance(code, str) else "", status, headers, msgspec.json.encode({"error": said.error}))


class SocketDecoder:
    """One answer. `over`: nothing more will come of it."""

    __slots__ = ("_decoder", "_streams", "over")

    def __init__(self, decoder: ProviderDecoder, *, streams: bool) -> None:
        """`decoder`: the dialect's own, for this request. `streams`: whether it was to be streamed."""
        self._decoder = decoder
        self._streams = streams
        self.over = False

    @property
    def done(self) -> bool:
        """The terminal event was seen."""
        return self._decoder.done

    def feed(self, messages: Sequence[bytes]) -> Batch | None:
        """The events that are whole now; None where none is. Broken messages become `Failed`, never an exception."""
        if self.over:
            return None
        batch = self._feed_stream(messages) if self._streams else self._feed_whole(messages)
        self.over = self._decoder.done or (batch is not None and any(type(event) is Failed for event in batch.events))
        return batch

    def _feed_stream(self, messages: Sequence[bytes]) -> Batch | None:
        return self._decoder.feed(b"".join([_as_event(message) for message in messages]))

    def _feed_whole(self, messages: Sequence[bytes]) -> Batch | None:
        for message in messages:
            try:
                said = _read(message)
            except (msgspec.DecodeError, ValueError, RecursionError):
                return self._document(b"{")  # no document at all: malformed
            if said.type in _ENDS:
                return self._document(bytes(said.response) or b"{}")
            if said.type == "error":
                return self._document(msgspec.json.encode({"error": said.error or {"code": said.code}}))
        return None

    def _document(self, body: bytes) -> Batch | None:
        return self._decoder.feed(body) or self._decoder.close()


def _as_event(message: bytes) -> bytes:
    """As the stream has it. A CR can only be white space in JSON, and would end a line here."""
    if b"\r" in message:
        message = message.replace(b"\r", b" ")
    try:
        kind = _read(message).type
    except (msgspec.DecodeError, ValueError, RecursionError):
        kind = None
    return encode_event(message, kind.encode() if isinstance(kind, str) and _NAME.fullmatch(kind) else b"")
