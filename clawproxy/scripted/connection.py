"""One TCP connection of the provider, and every way of leaving it.

Rule 1: waiting is watching. Whoever waits here reads, so that a peer that leaves is noticed at once, behind pipelined bytes
        too. A half-closed peer counts as gone.
Rule 2: one task per connection. Only it sends, receives and closes.
"""

from __future__ import annotations

import socket
import struct

import trio

from clawproxy.scripted.reader import Malformed, RequestReader

READ_AHEAD = 1024 * 1024
"""What a peer may pipeline while it is being answered."""


class PeerGone(Exception):
    """The peer closed or reset the connection."""


class Connection:
    """Not for sharing between tasks. `sent` counts the bytes the kernel took since the start."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.socket = sock
        self.reader = RequestReader()
        self.sent = 0
        self.by_provider = False
        """Whether this side ended the connection."""
        self._open = True

    async def receive(self) -> None:
        """Read once, into `reader`. Raises PeerGone."""
        try:
            data = await self.socket.recv(65536)
        except OSError as error:
            raise PeerGone from error
        if not data:
            raise PeerGone
        self.reader.feed(data)

    async def send(self, data: bytes) -> None:
        """Raises PeerGone; `sent` tells how far it came."""
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                try:
                    count = await self.socket.send(view[at:])
                except OSError as error:
                    raise PeerGone from error
                at += count
                self.sent += count

    async def wait(self, seconds: float) -> None:
        """Let time pass. Raises PeerGone as soon as the peer leaves."""
        with trio.move_on_after(seconds):
            await self.hang()

    async def hang(self) -> None:
        """Wait for ever. Raises PeerGone as soon as the peer leaves."""
        while True:
            await self.receive()
            if self.reader.pending > READ_AHEAD:
                raise Malformed("more than 1 MiB was pipelined behind a request in progress")

    async def wait_readable(self) -> None:
        """Wait until the peer sent something or left, and read nothing."""
        await trio.lowlevel.wait_readable(self.socket)

    def close(self) -> None:
        """Close with a FIN. What the peer sent and nobody read is read first: left alone, it would turn the FIN into a RST."""
        if not self._open:
            return
        self._open = False
        fd = self.socket.detach()
        with socket.socket(fileno=fd) as plain:
            plain.setblocking(False)
            try:
                for _ in range(READ_AHEAD // 65536):  # bounded: a peer may send faster than this reads
                    if not plain.recv(65536):
                        break
            except OSError:
                pass

    def reset(self) -> None:
        """Close with a RST (SO_LINGER, zero seconds)."""
        if self._open:
            self._open = False
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.close()

    def close_unread(self) -> None:
        """Close as a process that dies does: a FIN, or a RST where bytes lie unread."""
        if self._open:
            self._open = False
            self.socket.close()
