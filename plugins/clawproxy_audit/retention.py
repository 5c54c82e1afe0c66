"""How long a team's rows, and what was said, are kept: what is due is cut out of the files, and the chain still verifies.

    {"seq": 7, "prev": "<MAC of row 6>", "time": "...", "removed": "retention", "cut": "<HMAC>", "mac": "<MAC of row 7 as was>"}

Rule 1: a row's place and its MAC stay, its text goes; `cut`, under the chain's key, says that this is what retention left of the
        row with that MAC. So nobody else can cut one, and `verify` tells the two apart. Content alone is cut the same way.
Rule 2: nothing is changed in place: the rest is written beside the file, and takes its place whole (`Cutting`). A row at a time
        is in memory, however large the file is.
Rule 3: a file that has nothing due is not read again before something in it is.

All functions block. They raise OSError.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from attrs import define, field, frozen

from clawproxy_audit.chain import FIRST, mac_of, read_row
from clawproxy_audit.settings import AuditSettings

LEAST_PAUSE, MOST_PAUSE = 1.0, 3600.0
"""Seconds between two looks."""
_SAYS: Final = b"cut\0"
_CUT: Final = re.compile(rb',"cut":"([0-9a-f]{64})"\Z')
_CONTENT: Final = re.compile(rb',"content":\{"alg":"[A-Z0-9]{1,16}","key":"[0-9a-f]{1,64}","data":"[A-Za-z0-9+/=]*"\}\Z')
_SEQ: Final = re.compile(rb'\{"seq":\d{1,18},"prev":"[0-9a-f]{%d}"' % len(FIRST))
_NEVER: Final = float("inf")
_PIECE: Final = 64 * 1024
"""Bytes copied at once."""


class _Known(msgspec.Struct, gc=False):
    time: str
    team: str | None = None
    content: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    removed: str | None = None


_decode = msgspec.json.Decoder(_Known).decode


@frozen
class Terms:
    """Seconds that rows, and content, are kept: of teams of their own, and of everybody else."""

    content: float = _NEVER
    teams: Mapping[str, tuple[float, float]] = field(factory=dict)

    @classmethod
    def of(cls, settings: AuditSettings) -> Terms:
        everybody = settings.retain_content
        teams = {
            name: (team.retain, everybody if team.retain_content is None else team.retain_content)
            for name, team in settings.teams.items()
        }
        return cls(everybody, teams)

    @property
    def shortest(self) -> float:
        return min((self.content, *(each for pair in self.teams.values() for each in pair)))

    @property
    def pause(self) -> float:
        """How long to wait between two looks."""
        return min(max(self.shortest / 10, LEAST_PAUSE), MOST_PAUSE)

    def row(self, line: bytes, now: float) -> tuple[bytes | None, float]:
        """What is left of a row's line without its LF (None: all of it), and when something of that is due."""
        try:
            known = _decode(line)
            written = datetime.fromisoformat(known.time).timestamp()
        except (msgspec.MsgspecError, ValueError, OverflowError):
            return None, _NEVER
        if known.removed is not None:
            return None, _NEVER
        rows, content = self.teams.get(known.team or "", (_NEVER, self.content))
        if now >= written + rows:
            begin = _SEQ.match(line)
            if begin is None:
                return None, _NEVER
            return begin[0] + b',"time":%b,"removed":"retention"' % msgspec.json.encode(known.time), _NEVER
        if known.content is msgspec.UNSET:
            return None, written + rows
        if now < written + content:
            return None, written + min(rows, content)
        covered = read_row(line)
        left = b"" if covered is None else _CONTENT.sub(b',"content_removed":true', _CUT.sub(b"", covered[2]))
        return (left if left.endswith(b'"content_removed":true') else None), written + rows


def cut_to(key: bytes, rest: bytes, mac: str) -> bytes:
    """The line, without its LF, of a row with this MAC, of which `rest` is left."""
    return b'%b,"cut":"%b","mac":"%b"}' % (rest, _sig(key, rest, mac), mac.encode())


def is_cut(key: bytes, covered: bytes, mac: str) -> bool:
    """Whether retention cut the row with this MAC down to what its line covers."""
    found = _CUT.search(covered)
    return found is not None and hmac.compare_digest(found[1], _sig(key, covered[: found.start()], mac))


def _sig(key: bytes, rest: bytes, mac: str) -> bytes:
    return mac_of(key, _SAYS + mac.encode() + b"\0" + rest).encode()


@define(eq=False)
class Cutting:
    """One file, as it will be. `begin` reads and writes beside it; `finish` goes in its place, if it is still the same file."""

    path: Path
    beside: Path
    inode: int
    size: int
    """Bytes of it that were read: whole rows."""
    cut: int
    """Rows of which something goes."""
    due: float
    """When something of the rest is."""

    @classmethod
    def begin(cls, path: Path, beside: Path, key: bytes, terms: Terms, now: float) -> Cutting:
        """Reads all whole rows, one at a time. Where nothing is due nothing is written to `beside`."""
        cut, size, due = 0, 0, _NEVER
        rest: BinaryIO | None = None
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written, or torn
                    left, next_due = terms.row(line[:-1], now)
                    due = min(due, next_due)
                    row = None if left is None else read_row(line[:-1])
                    at, size = size, size + len(line)
                    if left is not None and row is not None:
                        if rest is None:
                            rest = _beginning(beside, file.fileno(), at)
                        cut += 1
                        line = cut_to(key, left, row[3]) + b"\n"
                    if rest is not None:
                        rest.write(line)
            if rest is not None:
                rest.flush()
                os.fsync(rest.fileno())
                os.utime(rest.fileno(), ns=(stat.st_atime_ns, stat.st_mtime_ns))  # by which the oldest files are told
        except BaseException:  # a full disk: the half of it would take the room that is missing
            if rest is not None:
                beside.unlink(missing_ok=True)
            raise
        finally:
            if rest is not None:
                rest.close()
        return cls(path, beside, stat.st_ino, size, cut, due)

    def is_current(self) -> bool:
        try:
            return os.stat(self.path).st_ino == self.inode
        except FileNotFoundError:
            return False

    def finish(self) -> bool:
        """For a file that nobody writes any more."""
        if self.cut and self.is_current() and os.stat(self.path).st_size == self.size:
            os.replace(self.beside, self.path)
            return True
        self.drop()
        return False

    def drop(self) -> None:
        if self.cut:
            self.beside.unlink(missing_ok=True)


def _beginning(beside: Path, fd: int, size: int) -> BinaryIO:
    """A new file with the first `size` bytes of another, which are as they are to be."""
    file = os.fdopen(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "wb")
    try:
        at = 0
        while at < size and (piece := os.pread(fd, min(_PIECE, size - at), at)):
            at += file.write(piece)
    except BaseException:
        file.close()
        beside.unlink(missing_ok=True)
        raise
    return file
