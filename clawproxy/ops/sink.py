"""Where log lines wait to be written: a batch at a time, never longer than the reader of the log lets us.

Rule 1: the event loop is not blocked. A pipe, socket or terminal is asked first whether it takes a page (poll), and given whole
        lines of at most a page; a file is given all. What is not taken waits.
Rule 2: at most `MOST_LINES` wait. Beyond that lines are dropped and counted: `lost`.
Rule 3: any thread may call; only flushing takes the lock.
Rule 4: a line waits at most `EVERY` seconds while the log is read; warnings and errors, and what came before them, not at all.
"""

from __future__ import annotations

import os
import select
import stat
import threading

EVERY = 0.05
"""Seconds between two looks."""
MOST_LINES = 10_000
_BATCH = 63
"""A mask: as many lines and one are written without waiting for the time."""
_PAGE = 4096
"""PIPE_BUF on Linux: what poll's promise is about, and what no other process's line gets into."""


class Sink:
    """The open end of a log. `lost` counts lines that nobody took."""

    def __init__(self, fd: int) -> None:
        """Raises OSError where `fd` is not open."""
        self._fd = fd
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lock = threading.Lock()
        self.waiting: list[bytes] = []
        self.lost = 0

    def put(self, line: bytes) -> None:
        """Keep a line, with its LF, for the next batch."""
        waiting = self.waiting
        if len(waiting) >= MOST_LINES:
            self.lost += 1
            return
        waiting.append(line)
        if not len(waiting) & _BATCH:
            self.flush()

    def flush(self, patience: float = 0.0) -> None:
        """Write what waits, as far as it is taken; waits `patience` seconds for each page. Raises nothing."""
        waiting = self.waiting
        with self._lock:
            try:
                while waiting:
                    if not self._is_file and not self._poll.poll(patience * 1000):
                        return
                    self._write_some()
            except BlockingIOError:
                return  # somebody made it non-blocking, and it is full
            except OSError:
                self.lost += len(waiting)  # nobody reads the log any more: the requests go on
                waiting.clear()

    def _write_some(self) -> None:
        waiting = self.waiting
        count = len(waiting)
        if not self._is_file:
            count, size = 1, len(waiting[0])
            while count < len(waiting) and (size := size + len(waiting[count])) <= _PAGE:
                count += 1
        batch = b"".join(waiting[:count])
        if not self._is_file:
            batch, rest = batch[:_PAGE], batch[_PAGE:]  # a single long line goes in pieces
        else:
            rest = b""
        written = os.write(self._fd, batch)
        rest = batch[written:] + rest
        waiting[:count] = [rest] if rest else []
