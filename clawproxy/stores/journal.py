"""The journal: an append-only file of records, written at once by the event loop and read later by the folder.

Rule 1: `append` is one short synchronous `os.write` with O_APPEND: what it returned from survives `kill -9` (the page cache
        keeps it; a power failure is another matter). No thread, no await, no fsync.
Rule 2: a record that could not be written whole is taken back, so that the next one begins on a line of its own.
Rule 3: a segment's name is never used twice (`state_dir/journal/NUMBER.INSTANCE.journal`): what was folded of it is known by
        its name.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from clawproxy.stores.statedir import open_private, safe_name

SUFFIX = ".journal"


def segments(folder: Path) -> list[Path]:
    """All segments, oldest first."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if number_of(path.name) is not None)


def number_of(name: str) -> int | None:
    head = name.partition(".")[0]
    return int(head) if head.isascii() and head.isdigit() else None


def segment_name(number: int, instance: str) -> str:
    return f"{number:012d}.{safe_name(instance)}{SUFFIX}"


class Segment:
    """One file being written. Only its writer makes one; readers open the path."""

    __slots__ = ("_fd", "_torn", "path", "size")

    def __init__(self, path: Path) -> None:
        """Raises OSError, also where the file is there already."""
        self._fd = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        self._torn = False
        self.path = path
        self.size = 0

    def append(self, line: bytes) -> None:
        """Raises OSError; then nothing of the line is in the journal."""
        if self._torn:
            line = b"\n" + line
        written = os.write(self._fd, line)
        if written == len(line):
            self.size += written
            self._torn = False
            return
        try:
            os.ftruncate(self._fd, self.size)
        except OSError:
            self.size += written
            self._torn = True
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
