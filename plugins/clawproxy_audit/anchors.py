"""Where a chain was at times, kept apart from it: `anchors/INSTANCE`, one statement a line, each under the chain's key.

    {"time": "...", "chain": "gw-1", "kind": "anchor", "seq": 120, "mac": "<MAC of row 120>", "sig": "<HMAC-SHA256>"}
    {"time": "...", "chain": "gw-1", "kind": "pruned", "seq": 40, "mac": "<MAC of row 40>", "sig": "..."}

Rule 1: an anchor says that row `seq` was there, and was this one. Rows after the last anchor may be cut off unseen.
Rule 2: `pruned` says that retention removed the rows up to `seq`: else a chain that does not begin with row 1 is broken.
Rule 3: each anchor is also a line of the gateway's own log (`said`), which usually is kept on another machine: who can write the
        anchors' folder too is found out by those.
Rule 4: bounded: of more than `MOST` statements of a chain the older half goes, but for the last `pruned`. The file is locked
        meanwhile, and for each statement: `pruned` may come from another process.

All functions block. They raise OSError.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from clawproxy_audit.chain import mac_of

MOST: Final = 4096
_SAYS: Final = b"anchor\0"
_BESIDE: Final = ".new"
"""Of a chain's name there is no full stop."""
_IN_A_LOG: Final = re.compile(r"audit anchor ([A-Za-z0-9_-]{1,64}) (\d{1,18}) ([0-9a-f]{64})")

Kind = Literal["anchor", "pruned"]


class Anchor(msgspec.Struct, frozen=True, gc=False):
    time: str
    chain: str
    kind: Kind
    seq: int
    mac: str
    sig: str = ""
    """Empty for one that was read from a log."""


def said(chain: str, seq: int, mac: str) -> str:
    """The words in which the log has it."""
    return f"audit anchor {chain} {seq} {mac}"


class Anchors:
    """The folder. One writer for each chain, but for `pruned`, which whoever cleans up writes."""

    def __init__(self, folder: Path, key: bytes) -> None:
        self.folder = folder
        self._key = key

    def write(self, chain: str, kind: Kind, seq: int, mac: str) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        statement = Anchor(datetime.now(UTC).isoformat(timespec="milliseconds"), chain, kind, seq, mac)
        line = msgspec.json.encode(msgspec.structs.replace(statement, sig=self._sig(statement))) + b"\n"
        path = self.folder / chain
        fd = _locked(path)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":  # a crash tore the last one
                line = b"\n" + line
            os.write(fd, line)
            if size > MOST * len(line):
                self._shorten(path)
        finally:
            os.close(fd)

    def read(self, chain: str) -> tuple[list[Anchor], int]:
        """The statements on a chain, and how many lines are none: torn, or not under the key."""
        try:
            lines = (self.folder / chain).read_bytes().split(b"\n")
        except FileNotFoundError:
            return [], 0
        good: list[Anchor] = []
        bad = 0
        for line in lines:
            if not line:
                continue
            try:
                statement = msgspec.json.decode(line, type=Anchor)
            except msgspec.MsgspecError:
                bad += 1
                continue
            if statement.chain == chain and hmac.compare_digest(statement.sig.encode(), self._sig(statement).encode()):
                good.append(statement)
            else:
                bad += 1
        return good, bad

    def chains(self) -> list[str]:
        try:
            return sorted(path.name for path in self.folder.iterdir() if path.is_file() and path.suffix != _BESIDE)
        except FileNotFoundError:
            return []

    def _shorten(self, path: Path) -> None:
        lines = [line for line in path.read_bytes().split(b"\n") if line]
        kept = lines[len(lines) // 2 :]
        pruned = [line for line in lines[: len(lines) // 2] if b'"kind":"pruned"' in line]
        beside = path.with_name(path.name + _BESIDE)
        beside.unlink(missing_ok=True)  # a crash left it
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(b"\n".join([*pruned[-1:], *kept, b""]))
        os.replace(beside, path)

    def _sig(self, statement: Anchor) -> str:
        words = "\0".join((statement.time, statement.chain, statement.kind, str(statement.seq), statement.mac))
        return mac_of(self._key, _SAYS + words.encode())


def _locked(path: Path) -> int:
    """Open for appending, and nobody else's meanwhile: the file that is there now, not one that was just replaced."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_ino == path.stat().st_ino:
                return fd
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def from_log(lines: Iterable[str]) -> Iterator[Anchor]:
    """The anchors that stand in a log."""
    for line in lines:
        found = _IN_A_LOG.search(line)
        if found is not None:
            yield Anchor("", found[1], "anchor", int(found[2]), found[3])
