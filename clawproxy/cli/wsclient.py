"""A small client of the Claw WebSocket, for `chat` and `demo`: one request at a time, cancellable.

Rule 1: `ask` returns when the answer has ended, however it ended; only a lost connection raises.
Rule 2: what went wrong is a `Lost` with a sentence for a terminal.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio_websocket
from attrs import define, field

from clawproxy.cli import leaves
from clawproxy.secrets import Secret

LARGEST = 16 * 1024 * 1024
OPEN_WITHIN = 10.0
"""Seconds for connection, handshake and `auth_ok` together."""
Frame = Mapping[str, Any]


class Lost(Exception):
    """There is no connection, or no longer one. `str` is a sentence."""


@define
class Chat:
    """One authenticated connection. Made by `connect`."""

    socket: trio_websocket.WebSocketConnection
    hello: Frame = field(factory=dict)
    _number: int = 0
    _current: str | None = None

    async def ask(self, model: str, messages: Sequence[Mapping[str, str]], on_frame: Callable[[Frame], None]) -> Frame:
        """Send one request; `on_frame` gets each of its frames. Returns the last: `llm_response_end` or `error`.

        Raises:
            Lost: the connection ended first.
        """
        self._number += 1
        self._current = name = f"chat-{self._number}"
        try:
            request = {"type": "llm_request", "id": name, "model": model, "messages": list(messages)}
            await self.send({**request, "parameters": {"stream": True}})
            while True:
                frame = await self.receive()
                if frame.get("id") == name:
                    on_frame(frame)
                    if frame["type"] in ("llm_response_end", "error"):
                        return frame
                elif frame["type"] == "error":
                    raise Lost(f"the gateway says: {frame.get('message', 'error')}")
        finally:
            self._current = None

    async def cancel(self) -> bool:
        """Cancel the answer under way; False where there is none. It still ends with its last frame."""
        if self._current is None:
            return False
        await self.send({"type": "llm_cancel", "id": self._current})
        return True

    async def send(self, frame: Frame) -> None:
        try:
            await self.socket.send_message(json.dumps(frame))
        except trio_websocket.ConnectionClosed as closed:
            raise Lost(_why_closed(closed)) from None

    async def receive(self) -> Frame:
        try:
            message = await self.socket.get_message()
        except trio_websocket.ConnectionClosed as closed:
            raise Lost(_why_closed(closed)) from None
        try:
            frame = json.loads(message)
        except ValueError:
            frame = None
        if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
            raise Lost("what answers there does not speak the Claw protocol")
        return frame


@asynccontextmanager
async def connect(url: str, key: Secret | None) -> AsyncIterator[Chat]:
    """A connection to `ws://...` or `wss://...`, authenticated.

    Raises:
        Lost: nobody listens there, the upgrade was refused, or the key was.
    """
    headers = [] if key is None else [(b"authorization", f"Bearer {key.reveal()}".encode())]
    context = ssl.create_default_context() if url.startswith("wss:") else None
    try:
        with trio.fail_after(OPEN_WITHIN) as clock:
            async with trio_websocket.open_websocket_url(
                url, ssl_context=context, extra_headers=headers, max_message_size=LARGEST, disconnect_timeout=2
            ) as socket:
                chat = Chat(socket)
                chat.hello = await chat.receive()
                if chat.hello["type"] != "auth_ok":
                    raise Lost(f"the gateway says: {chat.hello.get('message', 'no')}")
                clock.deadline = float("inf")
                yield chat
    except trio.TooSlowError:
        raise Lost(f"nothing answered at {url} within {OPEN_WITHIN:g} seconds") from None
    except Exception as error:
        raise _translated(error, url) from None


def _translated(error: Exception, url: str) -> Exception:
    """What trio-websocket raised, as a sentence; other exceptions as they are."""
    for leaf in leaves(error):
        if isinstance(leaf, Lost):
            return leaf
        if isinstance(leaf, trio_websocket.ConnectionRejected):
            return Lost(f"{url} refused the connection with HTTP status {leaf.status_code}")
        if isinstance(leaf, ssl.SSLError):
            return Lost(f"{url}: no TLS ({leaf.reason or 'handshake failed'})")
        if isinstance(leaf, (trio_websocket.HandshakeError, OSError, ValueError)):
            return Lost(f"nobody speaks WebSocket at {url}; is the gateway running? (`clawproxy serve`)")
    return error


def _why_closed(closed: trio_websocket.ConnectionClosed) -> str:
    code = getattr(closed.reason, "code", None)  # reason is None where only TCP was closed
    words = {
        1001: "the gateway is going away",
        1012: "the gateway is restarting",
        1013: "the gateway is overloaded",
        4401: "the gateway does not accept the key",
        4403: "the gateway does not allow that",
        4408: "a clock ran out",
        4429: "the gateway asks to slow down",
    }
    return f"the connection was closed: {words.get(code or 0, f'code {code}' if code else 'without a word')}"
