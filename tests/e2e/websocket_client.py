"""A small WebSocket client for tests: one task and no library, so that a sweep counts the gateway's steps and few of its own."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import trio


async def open_raw(stream: trio.abc.Stream, key: str | None, path: str = "/websocket") -> bytes:
    """Upgrade; returns what came behind the head. Raises EOFError where the gateway closed, AssertionError where it refused."""
    nonce = base64.b64encode(os.urandom(16)).decode()
    head = (
        f"GET {path} HTTP/1.1\r\nHost: gateway.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\n"
    )
    head += "\r\n" if key is None else f"Authorization: Bearer {key}\r\n\r\n"
    await stream.send_all(head.encode())
    data = b""
    while b"\r\n\r\n" not in data:
        data += await _more(stream)
    head_bytes, _, rest = data.partition(b"\r\n\r\n")
    assert head_bytes.startswith(b"HTTP/1.1 101"), head_bytes
    return rest


def masked(payload: bytes, opcode: int = 1) -> bytes:
    """A client's frame with a mask of zeros, which leaves the payload as it is."""
    length = len(payload)
    if length < 126:
        size = bytes((0x80 | length,))
    elif length < 65536:
        size = bytes((0x80 | 126,)) + length.to_bytes(2, "big")
    else:
        size = bytes((0x80 | 127,)) + length.to_bytes(8, "big")
    return bytes((0x80 | opcode,)) + size + b"\0\0\0\0" + payload


class Frames:
    """Whole frames of a server, one after another."""

    def __init__(self, stream: trio.abc.Stream, data: bytes = b"") -> None:
        self._stream = stream
        self._data = bytearray(data)

    async def next(self) -> dict[str, Any]:
        """The next text frame, decoded. Raises EOFError at a close frame or the connection's end."""
        while True:
            opcode, payload = await self._frame()
            if opcode == 8:
                raise EOFError
            if opcode == 1:
                return dict(json.loads(payload))

    async def close_code(self) -> int:
        """Of the close frame that comes next. Raises AssertionError where another frame does."""
        opcode, payload = await self._frame()
        assert opcode == 8, payload
        return int.from_bytes(payload[:2], "big")

    async def _frame(self) -> tuple[int, bytes]:
        await self._need(2)
        length, at = self._data[1] & 127, 2
        if length >= 126:
            at = 4 if length == 126 else 10
            await self._need(at)
            length = int.from_bytes(self._data[2:at], "big")
        await self._need(at + length)
        opcode, payload = self._data[0] & 15, bytes(self._data[at : at + length])
        del self._data[: at + length]
        return opcode, payload

    async def _need(self, count: int) -> None:
        while len(self._data) < count:
            self._data += await _more(self._stream)


async def _more(stream: trio.abc.Stream) -> bytes:
    try:
        data = bytes(await stream.receive_some(65536))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise EOFError from None
    if not data:
        raise EOFError
    return data
