"""The WebSocket mode of Responses, as a provider has it: `GET /v1/responses` with an upgrade, then a message for each event.

Rule 1: scripts play here as they do over HTTP. What they do to a head has no place; `status` is an `error` message with that
        status, `comment` a ping, `raw` bytes between frames (an event as a message); `cut`, `reset`, `stall`, `split`, `drip` act
        on the frames.
Rule 2: messages of one socket are answered one after the other. A `stream_id` comes back with each event of its answer.
Rule 3: wsproto reads; as a server's frames are not masked, they are written by hand.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import trio
from attrs import evolve
from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import generate_accept_token

from clawproxy.scripted import faults as f
from clawproxy.scripted.checks import Step
from clawproxy.scripted.connection import Connection, PeerGone
from clawproxy.scripted.log import ConnectionEntry
from clawproxy.scripted.player import BrokenOff, Player
from clawproxy.scripted.reader import Malformed, Request, RequestReader

if TYPE_CHECKING:
    from clawproxy.scripted.server import ScriptedProvider

PATHS = ("/v1/responses", "/responses")
_EVENTS = (b"data:", b"event:", b":")
_CLOSE = b"\x88\x02\x03\xe8"
_LIMIT = {
    "type": "invalid_request_error",
    "code": "websocket_connection_limit_reached",
    "message": "This WebSocket connection has reached its time limit.",
}


def asks_upgrade(request: Request) -> bool:
    said = {name.lower(): value.lower() for name, value in request.headers}
    return request.method == "GET" and request.path in PATHS and said.get("upgrade") == "websocket"


async def converse(provider: ScriptedProvider, connection: Connection, row: ConnectionEntry, request: Request) -> None:
    """The socket that `request` asks for, to its end. Raises PeerGone, BrokenOff, Malformed."""
    if not await _upgrade(provider, connection, request):
        return
    connection.reader = reader = _MessageReader()
    player: Player | None = None
    answered = 0
    while player is None or player.keep_alive:
        if player is not None and player.at_reuse:
            await connection.wait_readable()
            connection.close_unread()
            return
        with trio.move_on_after(player.idle if player is not None and player.idle is not None else float("inf")):
            while not reader.messages:
                await connection.receive()
                await connection.send(reader.pongs())
        if not reader.messages:
            break
        message = reader.messages.popleft()
        if provider.socket_answers is not None and answered >= provider.socket_answers:
            await connection.send(frame(_error_message(400, _LIMIT)))
            continue
        answered += 1
        player = await provider.exchange(connection, row, evolve(request, body=message), over_socket=True)
        if provider.socket_coda:
            await connection.send(provider.socket_coda)
    await connection.send(_CLOSE)


async def _upgrade(provider: ScriptedProvider, connection: Connection, request: Request) -> bool:
    how = provider.upgrade
    if how == "hang":
        await connection.hang()
    if how == "cut":
        raise BrokenOff(reset=False)
    said = {name.lower(): value for name, value in request.headers}
    wanted = provider.wants_key(request)
    if wanted is not None or isinstance(how, int):
        status = wanted if wanted is not None else how
        await connection.send(f"HTTP/1.1 {status} Refused\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        return False
    accept = generate_accept_token(said.get("sec-websocket-key", "").encode()).decode()
    head = ["HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "connection: Upgrade", f"sec-websocket-accept: {accept}"]
    await connection.send("\r\n".join([*head, "", ""]).encode())
    provider.log.sockets += 1
    return True


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """One whole message, not masked."""
    length = len(payload)
    if length < 126:
        return bytes((0x80 | opcode, length)) + payload
    if length < 0x10000:
        return bytes((0x80 | opcode, 126)) + length.to_bytes(2, "big") + payload
    return bytes((0x80 | opcode, 127)) + length.to_bytes(8, "big") + payload


class _MessageReader(RequestReader):
    """Takes the place of the reader of requests once a connection is a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: deque[bytes] = deque()
        self._frames = Frames(ConnectionType.SERVER)
        self._held: list[str] = []
        self._pongs = b""

    def feed(self, data: bytes) -> None:
        """Raises PeerGone at a Close, Malformed for frames that break the protocol."""
        self._frames.receive_data(data)
        for event in self._frames.events():
            if isinstance(event, TextMessage):
                self._held.append(event.data)
                if event.message_finished:
                    self.messages.append("".join(self._held).encode())
                    self._held.clear()
            elif isinstance(event, Ping):
                self._pongs += self._frames.send(event.response())
            elif isinstance(event, BytesMessage):
                raise Malformed("a binary message")
            elif isinstance(event, CloseConnection):
                if int(event.code) in (1000, 1001, 1005):
                    raise PeerGone
                raise Malformed(f"the socket was closed with {int(event.code)}")

    def pongs(self) -> bytes:
        data, self._pongs = self._pongs, b""
        return data


class SocketPlayer(Player):
    """One answer on a socket."""

    async def answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        await self._say_status(status, body)

    async def _step(self, step: Step) -> None:
        if isinstance(step, f.Redirect):
            raise BrokenOff(reset=False)
        await super()._step(step)

    async def _answer_status(self, step: f.Status) -> None:
        body = self._format.error_body(step.code) if step.body is None else step.body.encode()
        headers = dict(step.headers)
        if step.retry_after is not None:
            headers["retry-after"] = step.retry_after
        await self._say_status(step.code, body, headers)

    async def _say_status(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            error = json.loads(body)["error"]
        except (ValueError, KeyError, TypeError):
            error = {"message": body.decode("utf-8", "replace")}
        self._entry.status, self._head_sent = status, True
        await self._message(_error_message(status, {**error, "headers": headers or {}}))
        await self._flush()

    async def _body(self, data: bytes) -> None:
        if not self._head_sent:
            await self._send_head()
        if not data.startswith(_EVENTS):
            await self._out(data)
            return
        for message in _messages(data):
            if message is None:
                await self._out(frame(b"scripted", opcode=9))
            else:
                await self._message(message)

    async def _message(self, message: bytes) -> None:
        body = self._entry.body
        lane = body.get("stream_id") if isinstance(body, dict) else None
        if lane is not None and message.startswith(b"{"):
            message = b'{"stream_id":' + json.dumps(lane).encode() + b"," + message[1:]
        if self._drip is None:
            await self._out(frame(message))
        else:
            await self._dripped(frame(message), self._drip)
        self._entry.events_sent += 1

    async def _finish(self) -> None:
        if not self._head_sent:
            await self._send_head()
        await self._flush()

    async def _send_head(self, over: float = 0.0) -> None:
        self._head_sent, self._entry.status = True, 200
        if over:
            await self._connection.wait(over)


def _messages(data: bytes) -> Iterator[bytes | None]:
    """What server-sent events are as messages; None for a comment."""
    for block in data.split(b"\n\n"):
        lines = block.split(b"\n")
        said = [line.removeprefix(b"data:").removeprefix(b" ") for line in lines if line.startswith(b"data:")]
        if said:
            yield _nested(b"\n".join(said))
        elif block.startswith(b":"):
            yield None


def _nested(message: bytes) -> bytes:
    """An `error` is flat in a stream, and holds an object here."""
    if not message.startswith(b'{"type":"error"'):
        return message
    said: dict[str, Any] = json.loads(message)
    error = {"type": said["code"], "code": said["code"], "message": said["message"], "param": None}
    return json.dumps({"type": "error", "error": error, "sequence_number": said["sequence_number"]}).encode()


def _error_message(status: int, error: dict[str, Any]) -> bytes:
    return json.dumps({"type": "error", "status": status, "error": error}).encode()
