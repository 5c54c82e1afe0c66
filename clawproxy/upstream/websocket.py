"""One WebSocket to a provider, as a client of RFC 6455 on a wire of our own: the upgrade, messages out, messages in.

Rule 1: no task of its own. Whoever holds it reads it; while it is idle, `quiet` does, which also answers pings.
Rule 2: as with HTTP connections, ProviderFault and Cancelled are raised, and `Unsent` where the kernel took nothing; besides them
        `Refused`, where it was no WebSocket in the end. `close` is synchronous.
Rule 3: wsproto reads the frames and judges them. No extension is offered, none is accepted.
Rule 4: a socket that holds a byte of anything but the answer just read is not `quiet`, and is not used again.
"""

from __future__ import annotations

import base64
import os

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits
from wsproto.utilities import generate_accept_token

from clawproxy.errors import ProviderFault
from clawproxy.upstream.connection import Unsent
from clawproxy.upstream.faults import Kind, cause_of, fault
from clawproxy.upstream.response_parser import MAX_HEAD, MAX_INTERIM, BadAnswer, parse_head
from clawproxy.upstream.wire import Wire

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of one message, however many frames it comes in."""
MAX_FRAGMENTS = 4096
"""Frames of one message: empty ones cost, too."""
_CLEAR = RsvBits(False, False, False)
_UPGRADE = b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: "
_GOODBYE = b"\x88\x82\x00\x00\x00\x00\x03\xe8"
"""Close, 1000. Nothing in it is worth hiding from a proxy, so its mask is zero."""


class Refused(Exception):
    """The upgrade was refused, or came to nothing. Nothing was asked yet. `status`: of the refusal, where there was one."""

    def __init__(self, cause: str, status: int | None = None) -> None:
        super().__init__(cause)
        self.status = status


class _Watch(Extension):
    """Never negotiated; it is how wsproto shows its decoder."""

    name = "clawproxy-watch"

    def __init__(self) -> None:
        self._decoder: FrameDecoder | None = None

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool | str:
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        if isinstance(proto, FrameDecoder):
            self._decoder = proto
        return CloseReason.MESSAGE_TOO_BIG if payload_length > MAX_MESSAGE else _CLEAR

    def resting(self) -> bool:
        """Whether no part of a frame is held, after the first one."""
        decoder = self._decoder
        return decoder is not None and decoder.header is None and not len(decoder.buffer)


class WebSocket:
    """Attributes `created` and `idle_since` are the pool's: seconds of `trio.current_time()`."""

    __slots__ = (
        "_ended",
        "_fragments",
        "_frames",
        "_held",
        "_left",
        "_limit",
        "_provider",
        "_received",
        "_watch",
        "_wire",
        "created",
        "idle_since",
    )

    def __init__(self, provider: str, wire: Wire, limit: int) -> None:
        """`limit`: the bytes one answer may hold, as received."""
        self._provider = provider
        self._wire = wire
        self._limit = limit
        self._watch = _Watch()
        self._frames = Connection(ConnectionType.CLIENT, [self._watch])
        self._held = bytearray()
        """Of the message under way."""
        self._fragments = self._received = 0
        self._left = b""
        """What came with the upgrade's head."""
        self._ended = False
        self.created = self.idle_since = trio.current_time()

    async def upgrade(self, head: bytes) -> None:
        """Ask for the upgrade. `head`: a GET without a body, ready but for what an upgrade adds. Raises Refused."""
        key = base64.b64encode(os.urandom(16))
        lines = (
            b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: " + key + b"\r\n\r\n"
        )
        try:
            await self._wire.send(head[:-2] + lines)
            status, fields = await self._answer()
        except (OSError, trio.ClosedResourceError) as error:
            raise Refused(cause_of(error) if isinstance(error, OSError) else "closed") from None
        except BadAnswer as error:
            raise Refused(str(error)) from None
        if status != 101:
            raise Refused(f"status {status}", status)
        said = {name.decode("ascii").lower(): value.strip(b" \t") for name, value in fields}
        if (
            said.get("upgrade", b"").lower() != b"websocket"
            or b"upgrade" not in said.get("connection", b"").lower()
            or said.get("sec-websocket-accept") != generate_accept_token(key)
            or "sec-websocket-extensions" in said
            or "sec-websocket-protocol" in said
        ):
            raise Refused("its upgrade is not RFC 6455's")

    async def _answer(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers of the answer to the upgrade. Raises BadAnswer, OSError."""
        held = b""
        for _ in range(MAX_INTERIM + 1):
            while (end := held.find(b"\r\n\r\n") + 4) < 4:
                if len(held) > MAX_HEAD:
                    raise BadAnswer("its head is too large")
                data = await self._wire.receive()
                if not data:
                    raise BadAnswer("it closed the connection")
                held += data
            head = parse_head(held[:end])
            held = held[end:]
            if head.status >= 200 or head.status == 101:
                self._left = held
                return head.status, head.fields
        raise BadAnswer("too many interim answers")

    # --- one answer ------------------------------------------------------------------------------------------------------

    async def send(self, message: bytes) -> None:
        """A text message. Raises Unsent where nothing of it was accepted; a send that fails half-way is a cut."""
        self._received = 0
        try:
            await self._wire.send(_text_frame(message))
        except OSError as error:
            self._ended = True
            if not self._wire.accepted:
                raise Unsent(cause_of(error)) from error
            raise self._fault("cut", cause_of(error)) from error

    async def receive(self) -> list[bytes]:
        """The messages that one read of the network made whole: none, for a read that held only part of one, or a ping."""
        if self._ended:
            raise self._fault("cut", "it closed the socket in its answer")
        data, self._left = self._left, b""
        if not data:
            try:
                data = await self._wire.receive()
            except (OSError, trio.ClosedResourceError) as error:
                self._ended = True
                cause = cause_of(error) if isinstance(error, OSError) else "the gateway closed the connection"
                raise self._fault("cut", cause) from (error if isinstance(error, OSError) else None)
        if not data:
            self._ended = True
            raise self._fault("cut", "connection closed in its answer")
        self._received += len(data)
        if self._received > self._limit:
            self._ended = True
            raise self._fault("too_large", "over limits.response")
        messages, pongs = self._feed(data)
        if self._is_over() and not messages:
            raise self._fault("cut", "it closed the socket in its answer")
        if pongs and not self._is_over():
            try:
                await self._wire.send(pongs)
            except OSError:
                self._ended = True  # the next read says so
        return messages

    def _feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """The messages, and the answers to pings. Raises ProviderFault where there is no good message before what is wrong."""
        messages: list[bytes] = []
        pongs = b""
        if self._ended:
            return messages, pongs
        self._frames.receive_data(data)
        for event in self._frames.events():
            if isinstance(event, TextMessage):
                self._piece(event.data.encode(), event.frame_finished, event.message_finished, messages)
            elif isinstance(event, Ping):
                pongs += self._frames.send(event.response())
            elif isinstance(event, BytesMessage):
                self._ended = True
                if not messages:
                    raise self._fault("malformed", "a binary message")
            elif isinstance(event, CloseConnection):
                self._ended = True
                if not messages and self._frames.state is ConnectionState.OPEN:  # wsproto's word for "this could not be parsed"
                    if event.code == CloseReason.MESSAGE_TOO_BIG:
                        raise self._fault("too_large", "a message over 16 MiB")
                    raise self._fault("malformed", "its frames break RFC 6455")
            if self._ended:
                break
        return messages, pongs

    def _piece(self, data: bytes, frame_finished: bool, whole: bool, messages: list[bytes]) -> None:
        self._held += data
        self._fragments += frame_finished
        if len(self._held) > MAX_MESSAGE or self._fragments > MAX_FRAGMENTS:
            self._ended = True
            self._held.clear()
            if not messages:
                raise self._fault("too_large", "a message over 16 MiB, or in too many frames")
        elif whole:
            messages.append(bytes(self._held))
            self._held.clear()
            self._fragments = 0

    # --- afterwards ------------------------------------------------------------------------------------------------------

    def quiet(self) -> bool:
        """Whether it is still open, and nothing came that belongs to no answer. Pings are answered."""
        if self._ended or not self._empty():
            return False
        try:
            data = self._wire.receive_nowait()
            if data is None:
                return True
            if not data:
                return False
            messages, pongs = self._feed(data)
        except (OSError, ProviderFault):
            return False
        if messages or self._is_over() or not self._empty():
            return False
        return self._wire.send_nowait(pongs) if pongs else True

    def _empty(self) -> bool:
        return not (self._left or self._held or self._fragments) and self._watch.resting()

    def close(self) -> None:
        """At once; with a word of goodbye where that costs no waiting."""
        if not self._ended:
            self._ended = True
            self._wire.send_nowait(_GOODBYE)
        self._wire.close()

    def _is_over(self) -> bool:
        return self._ended

    def abandon(self) -> None:
        """Close what never became a WebSocket."""
        self._wire.close()

    def _fault(self, kind: Kind, cause: str) -> ProviderFault:
        return fault(kind, self._provider, cause, sent=True, status=200)


def _text_frame(payload: bytes) -> bytes:
    """One whole text message, masked (RFC 6455, 5.3)."""
    length = len(payload)
    mask = os.urandom(4)
    if length < 126:
        head = bytes((0x81, 0x80 | length))
    elif length < 0x10000:
        head = b"\x81\xfe" + length.to_bytes(2, "big")
    else:
        head = b"\x81\xff" + length.to_bytes(8, "big")
    key = (mask * (length // 4 + 1))[:length]
    masked = int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")
    return b"".join((head, mask, masked.to_bytes(length, "little")))
