"""WebSocket frames (RFC 6455 section 5) without I/O: ours are made by hand, theirs are read by wsproto.

Rule 1: a server's frames are never masked and never fragmented, so one is a 2 to 10 byte header and the payload.
Rule 2: sizes are bytes, never characters, and are refused by the length a header declares, before a byte of it is kept.
Rule 3: wsproto is only ever asked to read. Its state says nothing about what we sent.
Rule 4: after the first protocol error nothing is parsed any more; what still arrives is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, final

from attrs import frozen
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, RsvBits

if TYPE_CHECKING:
    from wsproto.frame_protocol import FrameDecoder, FrameProtocol, Opcode

FRAGMENTS: Final = 1024
"""How many fragments a message may come in (W-04, W-05)."""
CODES: Final = frozenset({1000, 1001, 1002, 1007, 1008, 1009, 1011, 1012, 1013, 4400, 4401, 4403, 4408, 4429})
"""The close codes of ours: what may stand in a metric's label."""

_CLEAR = RsvBits(False, False, False)
_SHORT = tuple(bytes((0x81, length)) for length in range(126))


def text_frame(payload: bytes) -> bytes:
    """One whole text message. The caller answers for the payload being UTF-8."""
    length = len(payload)
    if length < 126:
        return _SHORT[length] + payload
    if length < 0x10000:
        return b"\x81\x7e" + length.to_bytes(2, "big") + payload
    return b"\x81\x7f" + length.to_bytes(8, "big") + payload


def ping_frame(payload: bytes = b"") -> bytes:
    return bytes((0x89, len(payload))) + payload


def pong_frame(payload: bytes) -> bytes:
    return bytes((0x8A, len(payload))) + payload


def close_frame(code: int | None, reason: str = "") -> bytes:
    """A close frame; the reason is cut to fit the 125 bytes of a control frame. Without a code the payload is empty."""
    if code is None:
        return b"\x88\x00"
    words = reason.encode("utf-8", "replace")[:123].decode("utf-8", "ignore").encode()
    return bytes((0x88, 2 + len(words))) + code.to_bytes(2, "big") + words


class Guard(Extension):
    """Refuses a data frame by its declared length. Never negotiated, so no header ever names it.

    It counts nothing: wsproto calls `frame_inbound_header` again each time a header arrives in pieces.
    """

    name = "clawproxy-guard"
    __slots__ = ("begun", "room")

    def __init__(self, room: int) -> None:
        self.room = room
        """Bytes the message under way may still bring."""
        self.begun = False
        """Whether the header of a data frame was seen since the last whole message."""

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool | str:
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        if not opcode.iscontrol():
            if payload_length > self.room:
                return CloseReason.MESSAGE_TOO_BIG
            self.begun = True
        return _CLEAR


@final
@frozen(slots=True)
class Message:
    """A whole text message, as UTF-8."""

    data: bytes


@final
@frozen(slots=True)
class Control:
    """A ping (`ping` true: answer with the payload) or a pong."""

    ping: bool
    payload: bytes


@final
@frozen(slots=True)
class PeerClosed:
    """The peer's close frame. `code` is None where it held none."""

    code: int | None


@final
@frozen(slots=True)
class Broken:
    """The peer broke the protocol: close with `code` (1002, 1007, 1008, 1009, 4400). Nothing more is read."""

    code: int
    reason: str


Inbound = Message | Control | PeerClosed | Broken


class Reader:
    """The peer's bytes in, whole messages and control frames out. Lazy: what was not taken stays unparsed.

    Args:
        limit: the most bytes one message may hold; may be raised while running.
    """

    __slots__ = ("_assembled", "_connection", "_fragments", "_guard", "_limit", "_pieces", "ended")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._guard = Guard(limit)
        self._connection = Connection(ConnectionType.SERVER, [self._guard])
        self._pieces: list[bytes] = []
        self._assembled = 0
        self._fragments = 0
        self.ended = False
        """A close frame came or the protocol was broken: bytes are thrown away."""

    @property
    def assembling(self) -> bool:
        """A message has begun and is not whole yet."""
        return self._guard.begun

    def raise_limit(self, limit: int) -> None:
        self._limit = limit
        self._guard.room = limit - self._assembled

    def feed(self, data: bytes) -> None:
        if not self.ended:
            self._connection.receive_data(data)

    def events(self) -> Iterator[Inbound]:
        """What is whole now. May be left at any event and asked again later."""
        if self.ended:
            return
        for event in self._connection.events():
            kind = type(event)
            if kind is TextMessage:
                assert isinstance(event, TextMessage)
                whole = self._piece(event.data.encode(), event.frame_finished, event.message_finished)
                if whole is not None:
                    yield whole
            elif isinstance(event, Ping):
                yield Control(True, bytes(event.payload))
            elif isinstance(event, Pong):
                yield Control(False, bytes(event.payload))
            elif isinstance(event, BytesMessage):
                self.ended = True
                yield Broken(4400, "binary messages are not part of this protocol")
            elif isinstance(event, CloseConnection):
                self.ended = True
                if self._connection.state is ConnectionState.OPEN:  # wsproto's word for "this could not be parsed"
                    yield Broken(int(event.code), _REASONS.get(int(event.code), "protocol error"))
                else:
                    yield PeerClosed(None if event.code == CloseReason.NO_STATUS_RCVD else int(event.code))
            if self.ended:
                return

    def _piece(self, data: bytes, frame_finished: bool, message_finished: bool) -> Inbound | None:
        if message_finished:
            if self._pieces:
                self._pieces.append(data)
                data = b"".join(self._pieces)
                self._pieces.clear()
            self._assembled = self._fragments = 0
            self._guard.room = self._limit
            self._guard.begun = False
            return Message(data)
        if data:
            self._pieces.append(data)
            self._assembled += len(data)
        if frame_finished:
            self._fragments += 1
            # Only between frames: within one, the guard has already counted the declared length.
            self._guard.room = self._limit - self._assembled
            if self._fragments >= FRAGMENTS:
                self.ended = True
                self._pieces.clear()
                return Broken(1008, "too many fragments")
        return None


_REASONS = {1002: "protocol error", 1007: "not valid UTF-8", 1009: "message too big"}
