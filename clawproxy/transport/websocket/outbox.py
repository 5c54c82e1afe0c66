"""What waits to be written to one client, and the task that writes it when it does not go out at once.

Rule 1: whole frames go in, synchronously; so a cancelled sender never leaves half a frame behind (W-17).
Rule 2: one position. `run` writes; `flush` does so only while `run` is parked with nothing to write, and without awaiting. A
        frame that has begun is finished before anything else.
Rule 3: control frames overtake whole frames of data, never a frame that has begun.
Rule 4: everything that is due goes out in one system call (a burst of frames costs one).
Rule 5: producers of answers wait for `room`; the reader never waits here.
Rule 6: a write that makes no progress for `deadlines.write` ends the connection.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

import trio

from clawproxy.clocks import expired
from clawproxy.errors import ClawError

HIGH, LOW = 64 * 1024, 32 * 1024
"""Bytes unsent at which producers wait, and at which they go on."""
CHUNK = 64 * 1024
CONTROLS = 32
"""Control frames kept for a peer that does not read; RFC 6455 5.5.3 allows answering only the latest ping."""


class Outbox:
    """Bounded by its producers' good manners: each appends at most one batch beyond `HIGH` before it waits.

    Args:
        stream: the connection. Plain TCP is written without going through Trio's stream, which would cost a scheduling point a
            write; anything else (TLS) through `send_all`.
        limit: the `write` clock in seconds, asked anew at each stall.
        on_dead: called once, synchronously, when the connection failed; gets why.
        on_empty: called synchronously each time everything is with the kernel.
    """

    __slots__ = ("_cause", "_control", "_data", "_dead", "_empty", "_limit", "_on_dead", "_on_empty", "_sock", "_space", "_stop",
                 "_stream", "_tail", "_writer", "failure", "sealed", "size", "written_at")  # fmt: skip

    def __init__(
        self,
        stream: trio.abc.Stream,
        limit: Callable[[], float],
        on_dead: Callable[[ClawError], None],
        on_empty: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._sock = stream.socket if isinstance(stream, trio.SocketStream) else None
        self._limit = limit
        self._on_dead = on_dead
        self._on_empty = on_empty
        self._control: deque[bytes] = deque()
        self._data: deque[bytes] = deque()
        self._tail: bytes | memoryview = b""
        self._writer: trio.lowlevel.Task | None = None
        self._space: trio.Event | None = None
        self._empty: trio.Event | None = None
        self._stop = False
        self.size = 0
        """Bytes not yet with the kernel."""
        self._cause: ClawError | None = None
        self.sealed = False
        """The close frame is in: nothing is taken any more."""
        self.failure: ClawError | None = None
        self.written_at = trio.current_time()
        """When bytes were last accepted by the kernel."""

    # --- producers, synchronous ------------------------------------------------------------------------------------------

    def push(self, frame: bytes) -> None:
        """Append a whole frame (or the handshake's answer). Nothing happens once the outbox is sealed or has failed."""
        if self.sealed or self.failure is not None:
            return
        self._data.append(frame)
        self.size += len(frame)
        self.wake()

    def append(self, frame: bytes) -> None:
        """Append a whole frame as `push` does, but leave the writer asleep: `flush` or `wake` follows in the same go."""
        if self.sealed or self.failure is not None:
            return
        self._data.append(frame)
        self.size += len(frame)

    def flush(self) -> None:
        """Write what is queued, as far as the kernel takes it now, instead of waking the writer for it (4 us a burst). The
        rest is the writer's, and all of it where it is awake already."""
        if self._writer is None or not self.size:
            return
        if self._sock is not None:
            try:
                self._sent(self._write_now())
            except BlockingIOError:
                pass
            except OSError:
                self._fail(ClawError("client_gone"))
                return
        if self.size:
            self.wake()

    def wake(self) -> None:
        """Let the writer write what is queued, when all that runs in this turn has had its say."""
        if self._writer is not None:
            trio.lowlevel.reschedule(self._writer)
            self._writer = None

    def push_control(self, frame: bytes) -> None:
        """Append a ping or pong, ahead of data."""
        if self.sealed or self.failure is not None:
            return
        if len(self._control) >= CONTROLS:
            self.size -= len(self._control.popleft())
        self._control.append(frame)
        self.size += len(frame)
        self.wake()

    def seal(self, close: bytes, cause: ClawError) -> None:
        """Append the close frame behind everything that is queued, and take nothing more: producers get `cause`."""
        self.push(close)
        self.sealed = True
        self._cause = cause
        self._release()

    def stop(self) -> None:
        """End `run` as soon as it is idle or stalled; what is unsent is dropped."""
        self._stop = True
        self._fail(ClawError("client_gone"), tell=False)

    # --- producers, waiting ----------------------------------------------------------------------------------------------

    async def room(self) -> None:
        """Wait until there is room for another batch. Cancelling it loses nothing.

        Raises:
            ClawError: nobody will read it: `client_gone`, `timeout.write`, or why the connection is being closed.
        """
        while self.size > HIGH and not self.sealed and self.failure is None:
            if self._space is None:
                self._space = trio.Event()
            await self._space.wait()
        self.check()

    def check(self) -> None:
        """Raises ClawError as `room` does where nothing can be delivered any more."""
        if self._cause is not None:
            raise self._cause.with_traceback(None)
        if self.failure is not None:
            raise self.failure.with_traceback(None)

    async def flushed(self) -> None:
        """Wait until everything is with the kernel, or never will be."""
        while self.size and self.failure is None:
            if self._empty is None:
                self._empty = trio.Event()
            await self._empty.wait()

    # --- the writer ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until `stop`. Ends quietly when the connection fails, after `on_dead`."""
        try:
            while not self._stop:
                if not self.size:
                    await self._park()
                elif self._sock is not None:
                    try:
                        self._sent(self._write_now())
                    except BlockingIOError:
                        await self._writable(self._sock)
                else:
                    await self._send_all()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self._fail(ClawError("client_gone"))

    def _burst(self) -> bytes | memoryview:
        """The next bytes in their order: the rest of a begun frame, control frames, then data up to about `CHUNK`."""
        if not self._control and not self._tail and (self.size <= CHUNK or len(self._data) == 1):
            return b"".join(self._data)
        parts: list[bytes | memoryview] = []
        if self._tail:
            parts.append(self._tail)
        parts.extend(self._control)
        total = sum(map(len, parts))
        for frame in self._data:
            if total and total + len(frame) > CHUNK:
                break
            parts.append(frame)
            total += len(frame)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _write_now(self) -> int:
        assert self._sock is not None
        # fileno() is -1 once the socket is closed: a descriptor that was given to somebody else is never written to.
        return os.write(self._sock.fileno(), self._burst())

    def _sent(self, count: int) -> None:
        """`count` bytes of the last `_burst` were accepted: move the position by exactly that."""
        self.size -= count
        self.written_at = trio.current_time()
        if not self.size:
            self._control.clear()
            self._data.clear()
            self._tail = b""
        elif count < len(self._tail):
            self._tail = memoryview(self._tail)[count:]
            return
        else:
            count -= len(self._tail)
            self._tail = b""
            self._drop(count)
        if self.size <= LOW and self._space is not None:
            self._space.set()
            self._space = None
        if not self.size:
            if self._empty is not None:
                self._empty.set()
                self._empty = None
            self._on_empty()

    def _drop(self, count: int) -> None:
        """Take the first `count` bytes off the queues; the rest of a frame cut in the middle becomes the tail."""
        for queue in (self._control, self._data):
            while count and queue:
                frame = queue.popleft()
                if count < len(frame):
                    self._tail = memoryview(frame)[count:]
                    count = 0
                else:
                    count -= len(frame)

    async def _writable(self, sock: trio.socket.SocketType) -> None:
        limit = self._limit()
        with trio.move_on_after(limit) as scope:
            await trio.lowlevel.wait_writable(sock)
        if scope.cancelled_caught:
            self._fail(expired("write", limit))

    async def _send_all(self) -> None:
        if not self._tail:  # taken off the queues whole, because what comes meanwhile may not change it
            burst = self._burst()
            self._drop(len(burst))
            self._tail = memoryview(burst)
        data = self._tail[:CHUNK]
        limit = self._limit()
        with trio.move_on_after(limit) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            self._fail(expired("write", limit))
        elif self.failure is None:
            self._sent(len(data))

    async def _park(self) -> None:
        self._writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._unpark)

    def _unpark(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _release(self) -> None:
        if self._space is not None:
            self._space.set()
            self._space = None

    def _fail(self, error: ClawError, *, tell: bool = True) -> None:
        first = self.failure is None
        if first:
            self.failure = error
        self._stop = True
        self._control.clear()
        self._data.clear()
        self._tail = b""
        self.size = 0
        self._release()
        if self._empty is not None:
            self._empty.set()
            self._empty = None
        self.wake()
        if first and tell:
            self._on_dead(error)
