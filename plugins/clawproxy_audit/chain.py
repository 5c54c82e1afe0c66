"""The file of one writer: `audit/INSTANCE.jsonl`, its rows chained by hash, older ones put aside as `INSTANCE.NUMBER.jsonl`.

    {"seq": 7, "prev": "<SHA-256 of row 6's line without its LF, in hex>", ...}

Rule 1: the head of the chain is read back from the last row, never stored apart, so that no crash can part them. A last line that
        a crash tore is no row: it is removed when the next writer begins.
Rule 2: one writer. The open file is locked (flock); its descriptor dies with the process.
Rule 3: what can not be written whole is taken back; the chain moves on only with what is in the file.

What it proves: no row was changed, dropped, swapped or put in between, up to the last one. Who can write the file can still
rewrite all of it, or cut its end: that takes a key or an anchor elsewhere.

All functions block. They raise OSError.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import msgspec

log = logging.getLogger("clawproxy.audit")

FIRST = "0" * 64
"""The `prev` of a chain's first row."""
MOST_FILES = 1000
_BLOCK = 1024 * 1024


class Busy(OSError):
    """Another process writes this chain."""


class _Row(msgspec.Struct):
    seq: int


class Chain:
    """An open audit file, at its end."""

    def __init__(self, folder: Path, instance: str) -> None:
        """Raises Busy; OSError."""
        self.folder = folder
        self.name = re.sub(r"[^A-Za-z0-9_-]", "_", instance)[:64] or "instance"
        self.path = folder / f"{self.name}.jsonl"
        self.seq, self.prev = 0, FIRST
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        self._fd = self._open()
        try:
            self._size = self._recover()
        except BaseException:
            self.close()
            raise

    def _open(self) -> int:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise Busy(f"{self.path} is being written by another process") from error
        return fd

    def _recover(self) -> int:
        """Find the last row, in this file or the newest one put aside; the size of what is whole."""
        size = os.fstat(self._fd).st_size
        whole, last = _last_line(self._fd, size)
        if whole != size:
            log.warning("%s ended in %d bytes of a row that was never finished: removed", self.path, size - whole)
            os.ftruncate(self._fd, whole)
        if last is None:
            aside = self._aside()
            if aside:
                fd = os.open(aside[-1][1], os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _, last = _last_line(fd, os.fstat(fd).st_size)
                finally:
                    os.close(fd)
        if last is not None:
            try:
                self.seq = msgspec.json.decode(last, type=_Row).seq
            except msgspec.MsgspecError:
                log.error("%s: its last row can not be read; the chain goes on from it, and will not verify", self.path)
            self.prev = sha256(last).hexdigest()
        return whole

    def append(self, rows: Iterable[bytes]) -> None:
        """All of them, or, where OSError is raised, none."""
        seq, prev = self.seq, self.prev
        lines = bytearray()
        for row in rows:
            seq += 1
            line = b'{"seq":%d,"prev":"%b",%b' % (seq, prev.encode(), row[1:])
            prev = sha256(line).hexdigest()
            lines += line + b"\n"
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(lines)
        self.seq, self.prev = seq, prev

    # --- retention -----------------------------------------------------------------------------------------------------------

    def rotate(self, max_bytes: int, keep: int) -> None:
        """Put the file aside where it has grown enough, and remove what is too much."""
        if self._size < max_bytes:
            return
        aside = self._aside()
        number = aside[-1][0] + 1 if aside else 1
        put_aside = self.folder / f"{self.name}.{number:06d}.jsonl"
        os.rename(self.path, put_aside)
        old = self._fd
        try:
            self._fd = self._open()
        except OSError:
            os.rename(put_aside, self.path)
            raise
        os.close(old)
        self._size = 0
        self.prune(max_bytes, keep)

    def prune(self, max_bytes: int, keep: int) -> None:
        """Our own files put aside: the newest `keep`. All writers' files together: `(keep + 1) * max_bytes`, oldest first; never
        one that is being written."""
        aside = self._aside()
        for _, path in aside[: len(aside) - keep]:
            path.unlink(missing_ok=True)
        files = []
        for path in self.folder.glob("*.jsonl"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            files.append((stat.st_mtime, stat.st_size, path))
        files.sort()
        total = sum(size for _, size, _ in files)
        while files and (total > (keep + 1) * max_bytes or len(files) > MOST_FILES):
            _, size, path = files.pop(0)
            total -= size
            _remove_unless_open(path)

    def _aside(self) -> list[tuple[int, Path]]:
        pattern = re.compile(rf"{re.escape(self.name)}\.(\d+)\.jsonl")
        found = [(pattern.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in found if match)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _remove_unless_open(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        pass  # its writer holds it
    finally:
        os.close(fd)


def _last_line(fd: int, size: int) -> tuple[int, bytes | None]:
    """Where the last whole line ends, and that line without its LF."""
    tail = b""
    at = size
    while at > 0:
        start = max(0, at - _BLOCK)
        tail = os.pread(fd, at - start, start) + tail
        at = start
        end = tail.rfind(b"\n")
        begin = tail.rfind(b"\n", 0, end) if end >= 0 else -1
        if end >= 0 and (begin >= 0 or at == 0):
            return at + end + 1, tail[begin + 1 : end]
    return 0, None
