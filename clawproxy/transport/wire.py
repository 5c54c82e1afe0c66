"""The bytes of one client connection: reading, and writing that counts what was accepted.

Rule 1: one writer at a time. The exchange writes; the keep-alive ticker writes only while nobody else does, never waits, and
        what it could not write goes out before the next bytes (`_owed`).
Rule 2: after a write that failed, ran out of time or was cancelled, an unknown part of it is on the wire: the connection is
        `broken` for ever, and nothing is written to it again.
Rule 3: plain TCP is written with a non-blocking system call; only what the kernel does not take costs a scope and a wait.
Rule 4: the descriptor is asked for anew at each call (-1 once closed), with no await before its use: a kept number might be
        another connection's by then.
"""

from __future__ import annotations

import errno
import os
import socket as stdlib_socket

import trio

from clawproxy.clocks import expired
from clawproxy.errors import ClawError

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
READ = 64 * 1024
PIECE = 64 * 1024
NOT_SENT = 128 * 1024
"""What the kernel may hold of an answer that a client does not read, on top of what is in flight (TCP_NOTSENT_LOWAT)."""
LINGER = 1.0
"""Seconds to wait for the other side's end after ours (RFC 9112, 9.6)."""
_LINGER_BYTES = 1024 * 1024
_GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
_DIRECT = os.name == "posix"


class Wire:
    __slots__ = ("_owed", "_tls", "_tls_busy", "_writing", "broken", "sock", "stream", "touched")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        tls = isinstance(stream, trio.SSLStream)
        self._tls = tls or not _DIRECT
        self._tls_busy = trio.Lock() if self._tls else None
        self.sock: trio.socket.SocketType = (stream.transport_stream if isinstance(stream, trio.SSLStream) else stream).socket
        self.broken = False
        self.touched = False
        """Something was written since the ticker last looked."""
        self._owed = b""
        self._writing = False
        self._set_options()

    def _set_options(self) -> None:
        tcp = stdlib_socket.IPPROTO_TCP
        if self.sock.family not in (stdlib_socket.AF_INET, stdlib_socket.AF_INET6):
            return
        try:
            self.sock.setsockopt(tcp, stdlib_socket.TCP_NODELAY, 1)
            if hasattr(stdlib_socket, "TCP_NOTSENT_LOWAT"):
                self.sock.setsockopt(tcp, stdlib_socket.TCP_NOTSENT_LOWAT, NOT_SENT)
        except OSError:  # the client has already left; the first read will say so
            pass

    # --- reading -----------------------------------------------------------------------------------------------------------

    async def receive(self, *, wait_first: bool = False) -> bytes:
        """The next bytes, at most 64 KiB; b"" where the client ended or broke the connection.

        Args:
            wait_first: nothing is expected to be here yet, so a first look would be a system call for nothing (4 us).
        """
        if self._tls:
            try:
                return bytes(await self.stream.receive_some(READ))
            except _GONE:
                return b""
        sock = self.sock
        if not wait_first:
            try:
                data = os.read(sock.fileno(), READ)
            except BlockingIOError:
                pass
            except OSError:
                return b""
            else:
                await trio.lowlevel.checkpoint()
                return data
        while True:
            try:
                await trio.lowlevel.wait_readable(sock)
                return os.read(sock.fileno(), READ)
            except BlockingIOError:
                continue
            except _GONE:
                return b""

    def receive_now(self) -> bytes:
        """What is already here, at most 64 KiB; b"" where nothing is, it ended, or that can not be told without waiting (TLS)."""
        if self._tls:
            return b""
        try:
            return os.read(self.sock.fileno(), READ)
        except OSError:
            return b""

    # --- writing -----------------------------------------------------------------------------------------------------------

    async def write(self, data: bytes, limit: float) -> None:
        """Returns when the kernel has accepted all of it.

        Args:
            limit: the `write` clock in seconds, begun anew whenever bytes were accepted.

        Raises:
            ClawError: client_gone.
            ClockExpired: timeout.write.
        """
        if self.broken:
            raise ClawError("client_gone")
        self.touched = True
        if self._tls:
            await self._write_pieces(data, limit)
            return
        if self._owed:
            data, self._owed = self._owed + data, b""
        try:
            sent = os.write(self.sock.fileno(), data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.broken = True
            raise ClawError("client_gone") from None
        if sent != len(data):
            await self._write_rest(memoryview(data)[sent:], limit)

    async def _write_rest(self, view: memoryview, limit: float) -> None:
        self._writing = self.broken = True  # until it is known to be whole
        with trio.CancelScope(deadline=trio.current_time() + limit) as scope:
            while view:
                try:
                    await trio.lowlevel.wait_writable(self.sock)
                    sent = os.write(self.sock.fileno(), view)
                except BlockingIOError:
                    continue
                except _GONE:
                    raise ClawError("client_gone") from None
                view = view[sent:]
                scope.deadline = trio.current_time() + limit
            self._writing = self.broken = False
        if self.broken:
            raise expired("write", limit)

    async def _write_pieces(self, data: bytes, limit: float) -> None:
        """Over TLS: what the engine encrypted is not counted, so the clock is armed for each piece."""
        assert self._tls_busy is not None
        whole = False
        try:
            async with self._tls_busy:
                if self.broken:
                    raise ClawError("client_gone")
                with trio.CancelScope(deadline=trio.current_time() + limit) as scope:
                    for at in range(0, len(data), PIECE):
                        try:
                            await self.stream.send_all(data[at : at + PIECE])
                        except _GONE:
                            raise ClawError("client_gone") from None
                        scope.deadline = trio.current_time() + limit
                    whole = True
        finally:
            # Not before: whoever writes next meanwhile is to wait for its turn, and not to take the client for gone.
            self.broken |= not whole
        if not whole:
            raise expired("write", limit)

    def write_now(self, data: bytes) -> bool:
        """Write what can be written without waiting, and keep the rest for the next write; False where another write is under
        way, nothing was taken, or this connection can not do that (TLS)."""
        if self.broken or self._writing or self._tls:
            return False
        data = self._owed or data  # the ticker's own last bytes come first
        try:
            sent = os.write(self.sock.fileno(), data)
        except BlockingIOError:
            return False
        except OSError:
            self.broken = True
            return False
        self._owed = data[sent:]
        return True

    @property
    def busy(self) -> bool:
        """A write is under way."""
        return self._writing or (self._tls_busy is not None and self._tls_busy.locked())

    @property
    def needs_task(self) -> bool:
        """Whether `write_now` can not serve this connection."""
        return self._tls

    # --- the end -----------------------------------------------------------------------------------------------------------

    async def end(self, *, linger: bool) -> None:
        """Close. With `linger`: our FIN at once, then read until the client's own end, one second at most, so that a reset
        for unread bytes does not destroy the answer on its way."""
        if linger and not self.broken:
            try:
                self.sock.shutdown(stdlib_socket.SHUT_WR)
            except OSError as error:
                if error.errno not in (errno.ENOTCONN, errno.EPIPE, errno.EBADF, errno.ECONNRESET):
                    raise
            else:
                await self._drain()
        self.close()

    async def _drain(self) -> None:
        with trio.move_on_after(LINGER):
            left = _LINGER_BYTES
            while left > 0:
                try:
                    data = await self.sock.recv(READ)
                except _GONE:
                    return
                if not data:
                    return
                left -= len(data)

    def close(self) -> None:
        """At once, whatever is under way. Synchronous, so that it can stand in a `finally`."""
        self.broken = True
        self.sock.close()
