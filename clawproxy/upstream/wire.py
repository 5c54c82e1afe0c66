"""Bytes to and from a socket that is already connected: plain, or through TLS.

Rule 1: the socket is ours and non-blocking; a call is tried first and only waits where the kernel says so. `close` is
        synchronous: no TLS close_notify, nothing to await, so being cancelled anywhere leaves nothing open (TRIO.md P-05, P-12).
Rule 2: `accepted` counts the bytes the kernel took since the last `send` began. For TLS they are bytes of ciphertext: zero
        means that nothing of the request left this process.
Rule 3: OSError (ssl.SSLError is one) passes through; the callers in this package turn it into a fault.
"""

from __future__ import annotations

import socket
import ssl

import trio

READ_SIZE = 65536
STREAK = 8
"""Reads that found data waiting, after which the task lets others run: a provider that is always ahead must not keep the
loop (TRIO.md P-17), but a checkpoint at each read costs as much as the read."""
WRITE_SIZE = 262144
"""Bytes of plain text encrypted at a time."""


class Wire:
    """A plain TCP connection."""

    __slots__ = ("_more", "_socket", "_streak", "accepted")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._streak = 0
        self._more = False
        """The last read was as large as one can be: more may be here."""
        self.accepted = 0

    async def send(self, data: bytes) -> None:
        """Hand all of it to the kernel: one system call, unless the socket's buffer is full."""
        self.accepted = 0
        try:
            self.accepted = count = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        if count != len(data):
            await self._push(memoryview(data)[count:])

    async def receive_first(self) -> bytes:
        """As `receive`, for the first read after a request: an answer can not be here yet, so it is not looked for before waiting
        (1.5 us)."""
        self._streak = 0
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            data = self.receive_nowait()
            if data is not None:
                return data

    async def receive(self) -> bytes:
        """What one read of the network brings; b"" at the end.

        A read that brought less than it might have has emptied the socket: to look again at once would be a system call for
        nothing, at each token of a stream (6 us)."""
        data = self.receive_nowait() if self._more else None
        if data is not None:
            self._streak += 1
            if self._streak >= STREAK:
                self._streak = 0
                await trio.lowlevel.checkpoint()
            return data
        return await self.receive_first()

    def receive_nowait(self) -> bytes | None:
        """What is there now; b"" at the end, None where nothing is."""
        try:
            data = self._socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            self._more = False
            return None
        self._more = len(data) == READ_SIZE
        return data

    def send_nowait(self, data: bytes) -> bool:
        """Whether the kernel took all of these few bytes at once. After False the connection is of no more use."""
        try:
            return self._socket.send(data) == len(data)
        except OSError:
            return False

    def quiet(self) -> bool:
        """Whether the peer has neither closed nor sent anything. One system call."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def _push(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while True:
            try:
                count = self._socket.send(view)
            except (BlockingIOError, InterruptedError):
                await trio.lowlevel.wait_writable(self._socket)
                continue
            self.accepted += count
            if count == len(view):
                return
            view = view[count:]


class TLSWire(Wire):
    """TLS over memory buffers, so that we and not the TLS layer know which bytes the kernel has taken."""

    __slots__ = ("_ended", "_failure", "_incoming", "_outgoing", "_tls", "_unsent")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(sock)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._ended = False
        self._failure: OSError | None = None
        self._unsent = b""

    async def handshake(self) -> None:
        """Raises ssl.SSLCertVerificationError and its kin."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._push(self._outgoing.read())
                await self._pull()
            except ssl.SSLError:
                # A refused certificate is the peer's business too: tell it, if it costs no waiting.
                self._push_nowait()
                raise
            else:
                await self._push(self._outgoing.read())
                return

    def certificate(self) -> bytes:
        """The peer's, in DER; after the handshake."""
        return self._tls.getpeercert(binary_form=True) or b""

    async def send(self, data: bytes) -> None:
        self.accepted = 0
        view = memoryview(data)
        for start in range(0, len(view), WRITE_SIZE):
            self._tls.write(view[start : start + WRITE_SIZE])
            ciphertext = self._unsent + self._outgoing.read()
            self._unsent = b""
            await self._push(ciphertext)

    def send_nowait(self, data: bytes) -> bool:
        try:
            self._tls.write(data)
        except OSError:  # a damaged record came before: TLS has ended, whoever notices first
            return False
        self._push_nowait()
        return not self._unsent

    def receive_nowait(self) -> bytes | None:
        while True:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            try:
                data = self._socket.recv(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                self._more = False
                return None
            self._more = len(data) == READ_SIZE
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
            plain = self._decrypt()
            if plain:
                return plain

    def quiet(self) -> bool:
        """A session ticket may come at any time (RFC 8446, 4.6.1) and is no reason to throw the connection away."""
        if self._ended or self._failure is not None:
            return False  # it came with the last answer's end
        if super().quiet():
            return True
        try:
            return self.receive_nowait() is None
        except OSError:
            return False

    def _decrypt(self) -> bytes:
        """All the plain text there is. What ends it (close_notify, an alert, a bare EOF) is kept for the next read."""
        pieces: list[bytes] = []
        try:
            while piece := self._tls.read(READ_SIZE):
                pieces.append(piece)
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            self._failure = error
        if self._outgoing.pending:
            self._push_nowait()  # the answer to a key update
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _push_nowait(self) -> None:
        self._unsent += self._outgoing.read()
        try:
            count = self._socket.send(self._unsent)
        except OSError:
            return  # would block: goes out before the next request. Anything else shows at the next read or send
        self._unsent = self._unsent[count:]

    async def _pull(self) -> None:
        while True:
            try:
                data = self._socket.recv(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                await trio.lowlevel.wait_readable(self._socket)
                continue
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
            return
