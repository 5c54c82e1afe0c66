"""The file of one writer: `audit/INSTANCE.jsonl`, its rows chained by MAC, older ones put aside as `INSTANCE.NUMBER.jsonl`.

    {"seq": 7, "prev": "<MAC of row 6>", ..., "mac": "<HMAC-SHA256 under the key, of all of the line before `,"mac"`, in hex>"}

Rule 1: the head of the chain is read back from the last row, never stored apart, so that no crash can part them. A last line that
        a crash tore is no row: it is removed when the next writer begins.
Rule 2: one writer. The open file is locked (flock); its descriptor dies with the process.
Rule 3: what can not be written whole is taken back; the chain moves on only with what is in the file.
Rule 4: the key is not in the folder (`key_of`): who can write the files, and nothing else, can change no row unseen. That rows
        were cut off the end, only an anchor (`anchors`) shows.

All functions block. They raise OSError.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

log = logging.getLogger("clawproxy.audit")

FIRST = "0" * 64
"""The `prev` of a chain's first row."""
MOST_FILES = 1000
_BLOCK = 1024 * 1024
_PURPOSE: Final = b"clawproxy audit chain 1"
_ROW: Final = re.compile(rb'\{"seq":(\d{1,18}),"prev":"([0-9a-f]{64})",.*,"mac":"([0-9a-f]{64})"\}', re.DOTALL)
_END: Final = len(',"mac":""}') + 64


Pruned = Callable[[str, int, str], object]
"""Told of a chain, and the last of its rows that retention removes: its number and its MAC."""


class Busy(OSError):
    """Another process writes this chain."""


def key_of(secret: bytes) -> bytes:
    """The chain's key, from the operator's own secret or the pepper: neither is used for two things."""
    return hmac.digest(secret, _PURPOSE, "sha256")


def mac_of(key: bytes, covered: bytes | memoryview) -> str:
    return hmac.digest(key, covered, "sha256").hex()


def read_row(line: bytes) -> tuple[int, str, bytes, str] | None:
    """`seq`, `prev`, what the MAC covers and the MAC, of a line without its LF; None where it has not the form of a row."""
    found = _ROW.fullmatch(line)
    return None if found is None else (int(found[1]), found[2].decode(), line[:-_END], found[3].decode())


def chain_name(instance: str) -> str:
    """What an instance's files are called."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", instance)[:64] or "instance"


class Chain:
    """An open audit file, at its end."""

    def __init__(self, folder: Path, instance: str, key: bytes) -> None:
        """Raises Busy; OSError."""
        self.folder = folder
        self.name = chain_name(instance)
        self.key = key
        self._keyed = hmac.new(key, digestmod="sha256")
        """`mac_of` before anything is covered: a copy of it takes the key once for all rows."""
        self.path = folder / f"{self.name}.jsonl"
        self.seq, self.prev = 0, FIRST
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        self._fd = self._open()
        self._begun = time.time()
        """When this file was begun, as far as is known."""
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
            row = read_row(last)
            if row is None:
                log.error("%s: its last row can not be read; the chain goes on from it, and will not verify", self.path)
            else:
                self.seq, self.prev = row[0], row[3]
        return whole

    def append(self, rows: Iterable[bytes]) -> None:
        """All of them, or, where OSError is raised, none."""
        seq, prev = self.seq, self.prev
        lines = bytearray()
        for row in rows:
            seq += 1
            covered = b'{"seq":%d,"prev":"%b",%b' % (seq, prev.encode(), row[1:-1])
            mac = self._keyed.copy()
            mac.update(covered)
            prev = mac.hexdigest()
            lines += b'%b,"mac":"%b"}\n' % (covered, prev.encode())
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(lines)
        self.seq, self.prev = seq, prev

    def replace(self, beside: Path, inode: int, size: int) -> bool:
        """Go on in the file `beside`, which has what the first `size` bytes of this one came to; the rest is added to it. False,
        and nothing done, where this one is not the file of that inode any more."""
        if os.fstat(self._fd).st_ino != inode or self._size < size:
            return False
        fd = os.open(beside, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while size < self._size:
                piece = os.pread(self._fd, min(_BLOCK, self._size - size), size)
                size += len(piece)
                while piece:
                    piece = piece[os.write(fd, piece) :]
            os.fsync(fd)
            whole = os.fstat(fd).st_size
            os.rename(beside, self.path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._size = fd, whole
        return True

    # --- retention -----------------------------------------------------------------------------------------------------------

    def rotate(self, max_bytes: int, keep: int, retain: float, pruned: Pruned) -> None:
        """Put the file aside where it has grown enough, or is as old as a tenth of what rows are kept for, and remove what is too
        much. `retain`: seconds a file put aside is kept for. `pruned`: told before a file is removed."""
        if self._size < max_bytes and not (self._size and time.time() - self._begun > retain / 10):
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
        self._begun = time.time()
        self.prune(max_bytes, keep, retain, pruned)

    def prune(self, max_bytes: int, keep: int, retain: float, pruned: Pruned) -> None:
        """Our own files put aside: the newest `keep`, none older than `retain`. All writers' files together: `(keep + 1) *
        max_bytes`, oldest first; never one that is being written."""
        aside = self._aside()
        for _, path in aside[: len(aside) - keep]:
            _remove(path, self.name, pruned)
        oldest = time.time() - retain
        files = []
        for path in self.folder.glob("*.jsonl"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            files.append((stat.st_mtime, stat.st_size, path))
        files.sort()
        total = sum(size for _, size, _ in files)
        while files and (total > (keep + 1) * max_bytes or len(files) > MOST_FILES or files[0][0] < oldest):
            _, size, path = files.pop(0)
            total -= size
            _remove_unless_open(path, pruned)

    def _aside(self) -> list[tuple[int, Path]]:
        pattern = re.compile(rf"{re.escape(self.name)}\.(\d+)\.jsonl")
        found = [(pattern.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in found if match)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _remove_unless_open(path: Path, pruned: Pruned) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path, path.name.partition(".")[0], pruned)
    except BlockingIOError:
        pass  # its writer holds it
    finally:
        os.close(fd)


def _remove(path: Path, chain: str, pruned: Pruned) -> None:
    """Said first, then done: a crash between the two leaves a file too many, and no gap that nobody can explain."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _, last = _last_line(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    row = None if last is None else read_row(last)
    if row is not None:
        pruned(chain, row[0], row[3])
    path.unlink(missing_ok=True)


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
