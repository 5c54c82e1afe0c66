"""WebSocket frames (RFC 6455 section 5) without I/O: ours are made by hand, theirs are read by wsproto, but for the plain
ones: a whole text message in one unfragmented frame that one read brought to its end.

Rule 1: a server's frames are never masked and never fragmented, so one is a 2 to 10 byte header and the payload.
Rule 2: sizes are bytes, never characters, and are refused by the length a header declares, before a byte of it is kept.
Rule 3: wsproto is only ever asked to read. Its state says nothing about what we sent.
        Plain frames never reach it; everything else does, and every judgement on what is wrong is its own. It is made when it is
        first needed: most connections never do (and keep 2 KiB less).
Rule 4: after the first protocol error nothing is parsed any more; what still arrives is thrown away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

from attrs import frozen
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, RsvBits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wsproto.events import Event
    from wsproto.frame_protocol import FrameProtocol, Opcode

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
    __slots__ = ("_decoder", "begun", "room")

    def __init__(self, room: int) -> None:
        self.room = room
        """Bytes the message under way may still bring."""
        self.begun = False
        """Whether the header of a data frame was seen since the last whole message."""
        self._decoder: FrameDecoder | None = None

    def resting(self) -> bool:
        """Whether wsproto stands between two messages and holds no byte of the next frame."""
        decoder = self._decoder
        return decoder is not None and not self.begun and decoder.header is None and not len(decoder.buffer)

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool | str:
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        if isinstance(proto, FrameDecoder):
            self._decoder = proto
        if not opcode.iscontrol():
            if payload_length > self.room:
                return CloseReason.MESSAGE_TOO_BIG
            self.begun = True
        return _CLEAR


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


Inbound = bytes | Control | PeerClosed | Broken
"""Bytes are a whole text message, as UTF-8."""


class Reader:
    """The peer's bytes in, whole messages and control frames out. Lazy: what was not taken stays unparsed.

    Args:
        limit: the most bytes one message may hold; may be raised while running.
    """

    __slots__ = ("_assembled", "_at", "_connection", "_data", "_events", "_fragments", "_guard", "_limit", "_pieces", "ended")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = b""
        self._at = 0
        """Where in `_data` the next frame begins."""
        self._guard: Guard | None = None
        self._connection: Connection | None = None
        self._events: Iterator[Event] | None = None
        """wsproto's, while it has been given bytes that it has not made whole messages of; None: plain frames may be read."""
        self._pieces: list[bytes] = []
        self._assembled = 0
        self._fragments = 0
        self.ended = False
        """A close frame came or the protocol was broken: bytes are thrown away."""

    @property
    def assembling(self) -> bool:
        """A message has begun and is not whole yet."""
        return self._guard is not None and self._guard.begun

    def raise_limit(self, limit: int) -> None:
        self._limit = limit
        if self._guard is not None:
            self._guard.room = limit - self._assembled

    def feed(self, data: bytes) -> None:
        if self.ended:
            return
        if self._events is None and not self._data:
            self._data = data
        else:
            self._hand_over().receive_data(data)

    def next(self) -> Inbound | None:
        """The next thing that is whole, or None where nothing is."""
        if self.ended:
            return None
        if self._data:
            message = self._plain()
            if message is not None:
                return message
            self._hand_over()
        while self._events is not None and not self.ended:
            assert self._connection is not None
            assert self._guard is not None
            event = next(self._events, None)
            if event is not None:
                inbound = self._read(event)
                if inbound is not None:
                    return inbound
            elif self._guard.resting():
                self._events = None
            else:
                self._events = self._connection.events()  # it is at its end, and asked anew when there are more bytes
                break
        return None

    def _plain(self) -> bytes | None:
        """The message of the next frame if the frame is whole, final, masked, without reserved bits, text, UTF-8, at most 64 KiB
        and within the limit; None for anything else, which is wsproto's to judge (2 us here, 15 us there)."""
        data, at = self._data, self._at
        size = len(data)
        if size - at < 6 or data[at] != 0x81:
            return None
        length = data[at + 1] - 0x80
        begin = at + 6
        if length == 126:
            if size - at < 8:
                return None
            length = data[at + 2] << 8 | data[at + 3]
            begin += 2
            if length < 126:
                return None
        elif not 0 <= length < 126:
            return None
        end = begin + length
        if end > size or length > self._limit:
            return None
        mask = int.from_bytes((data[begin - 4 : begin] * (length // 4 + 1))[:length], "little")
        payload = (int.from_bytes(data[begin:end], "little") ^ mask).to_bytes(length, "little")
        if not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                return None
        if end == size:
            self._data, self._at = b"", 0
        else:
            self._at = end
        return payload

    def _hand_over(self) -> Connection:
        """Give wsproto what is not parsed yet."""
        if self._connection is None:
            self._guard = Guard(self._limit)
            self._connection = Connection(ConnectionType.SERVER, [self._guard])
        if self._data:
            self._connection.receive_data(self._data[self._at :])
            self._data, self._at = b"", 0
        if self._events is None:
            self._events = self._connection.events()
        return self._connection

    def _read(self, event: Event) -> Inbound | None:
        """What an event of wsproto means."""
        if isinstance(event, TextMessage):
            return self._piece(event.data.encode(), event.frame_finished, event.message_finished)
        if isinstance(event, Ping):
            return Control(True, bytes(event.payload))
        if isinstance(event, Pong):
            return Control(False, bytes(event.payload))
        if isinstance(event, BytesMessage):
            self.ended = True
            return Broken(4400, "binary messages are not part of this protocol")
        if isinstance(event, CloseConnection):
            self.ended = True
            assert self._connection is not None
            if self._connection.state is ConnectionState.OPEN:  # wsproto's word for "this could not be parsed"
                return Broken(int(event.code), _REASONS.get(int(event.code), "protocol error"))
            return PeerClosed(None if event.code == CloseReason.NO_STATUS_RCVD else int(event.code))
        return None

    def _piece(self, data: bytes, frame_finished: bool, message_finished: bool) -> Inbound | None:
        assert self._guard is not None
        if message_finished:
            if self._pieces:
                self._pieces.append(data)
                data = b"".join(self._pieces)
                self._pieces.clear()
            self._assembled = self._fragments = 0
            self._guard.room = self._limit
            self._guard.begun = False
            return data
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
