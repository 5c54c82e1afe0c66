"""The embedded database: how a connection is opened, and folding journals into it.

Rule 1: how far a segment is folded is written in the transaction that folds it. Whoever folds, and however often it crashes,
        each record is folded exactly once.
Rule 2: within that, folding is idempotent by attempt id (`ledger`).

All functions block, and run in a thread. They raise sqlite3.Error and OSError.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from attrs import frozen

from clawproxy.errors import ConfigError
from clawproxy.stores.books import Booked
from clawproxy.stores.journal import segments
from clawproxy.stores.ledger import Names, put
from clawproxy.stores.records import read_lines
from clawproxy.stores.schema import bring_up
from clawproxy.stores.statedir import open_private

log = logging.getLogger("clawproxy.store")

CHUNK = 256 * 1024
"""Bytes of journal folded in one transaction: short enough that nobody waits long for the lock."""
KEPT_SEGMENT_ROWS = 1000


def connect(path: Path, busy: float) -> sqlite3.Connection:
    """An open connection in autocommit mode; `busy` is how long it waits for another's lock, in seconds.

    Raises ConfigError where the file is not ours or is newer than this version.
    """
    try:  # SQLite gives its -wal and -shm files the same mode
        os.close(open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass  # never opened here: closing it would let go of the POSIX locks of this process's other connections
    connection = sqlite3.connect(path, timeout=busy, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path, busy)
    except sqlite3.DatabaseError as error:
        connection.close()
        hint = "Another process holds it." if _is_busy(error) else "Restore it from a backup, or move it away."
        raise ConfigError([f"{path} can not be used: {error}. {hint}"]) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _prepare(connection: sqlite3.Connection, path: Path, busy: float) -> None:
    give_up = time.monotonic() + busy
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = wal")
            break
        except sqlite3.OperationalError as error:  # this switch does not wait for a lock by itself
            if not _is_busy(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.02)
    for setting in ("synchronous = normal", "trusted_schema = off", "temp_store = memory", "journal_size_limit = 16777216"):
        connection.execute(f"PRAGMA {setting}")
    with immediate(connection):
        bring_up(connection, path)


@contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that takes the write lock at once, so that it can not fail half-way for want of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


# --- folding -----------------------------------------------------------------------------------------------------------------


def next_number(connection: sqlite3.Connection, folder: Path) -> int:
    """A segment number no segment had before."""
    known: int = connection.execute("SELECT coalesce(max(number), 0) FROM segments").fetchone()[0]
    return 1 + max([known, *(number for _, number in _numbered(folder))])


def _numbered(folder: Path) -> list[tuple[Path, int]]:
    return [(path, int(path.name.partition(".")[0])) for path in segments(folder)]


@frozen(slots=True)
class Fresh:
    """What the writer appended to its segment since it last took a look, and still has in memory."""

    name: str
    """The segment's."""
    start: int
    end: int
    """From where to where it stands there, in bytes: whole lines."""
    lines: list[Booked] | None
    """Those lines; None where they must be read."""


def fold(connection: sqlite3.Connection, names: Names, folder: Path, fresh: Fresh | None = None) -> dict[str, int]:
    """Fold all that is in the journals of `folder`; how far each segment is folded now, in bytes. `names`: this connection's.

    Any process may do it while another one appends: it reads to the last whole line. The writer knows its newest lines: where
    all before them is folded, they need no reading (4 of 11 us an attempt). Its own segment it folds as far as `fresh.end`, so
    that the next lines begin where these end.
    """
    folded: dict[str, int] = {}
    for path, number in _numbered(folder):
        limit = None
        if fresh is not None and path.name == fresh.name:
            if fresh.lines is not None and _fold_fresh(connection, names, fresh, fresh.lines, number):
                folded[path.name] = fresh.end
                continue
            limit = fresh.end
        try:
            fd = open_private(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # folded and removed by the writer meanwhile
        try:
            folded[path.name] = _fold_segment(connection, names, fd, path.name, number, limit)
        finally:
            os.close(fd)
    return folded


@contextmanager
def _folding(connection: sqlite3.Connection, names: Names) -> Iterator[None]:
    try:
        with immediate(connection):
            yield
    except BaseException:
        names.forget()
        raise


def _fold_fresh(connection: sqlite3.Connection, names: Names, fresh: Fresh, lines: list[Booked], number: int) -> bool:
    """Whether it was done: not where something before is still to be folded, or another process was here."""
    if fresh.end == fresh.start:
        return _offset(connection, number) == fresh.end
    with _folding(connection, names):
        if _offset(connection, number) != fresh.start:
            return False
        broken = put(connection, names, lines)
        if broken:
            log.error("%d damaged lines in journal %s before byte %d are lost", broken, fresh.name, fresh.end)
        _set_offset(connection, number, fresh.name, fresh.end)
    return True


def _fold_segment(connection: sqlite3.Connection, names: Names, fd: int, name: str, number: int, limit: int | None = None) -> int:
    while True:
        offset = _offset(connection, number)
        data = _whole(os.pread(fd, CHUNK if limit is None else max(0, min(CHUNK, limit - offset)), offset))
        if not data:
            return offset
        with _folding(connection, names):
            if _offset(connection, number) != offset:
                continue  # another process folded it meanwhile
            lines, broken = read_lines(data.split(b"\n"))
            broken += put(connection, names, lines)
            if broken:
                log.error("%d damaged lines in journal %s before byte %d are lost", broken, name, offset + len(data))
            _set_offset(connection, number, name, offset + len(data))


def _set_offset(connection: sqlite3.Connection, number: int, name: str, offset: int) -> None:
    connection.execute(
        "INSERT INTO segments (number, name, folded) VALUES (?, ?, ?) "
        "ON CONFLICT (number) DO UPDATE SET folded = excluded.folded",
        (number, name, offset),
    )


def _offset(connection: sqlite3.Connection, number: int) -> int:
    row = connection.execute("SELECT folded FROM segments WHERE number = ?", (number,)).fetchone()
    return row[0] if row else 0


def _whole(data: bytes) -> bytes:
    """The lines that are there to their end. A chunk without any LF can only be damage: it is skipped whole."""
    end = data.rfind(b"\n") + 1
    return data if end == 0 and len(data) == CHUNK else data[:end]


def remove_folded(connection: sqlite3.Connection, folder: Path, active: str | None) -> None:
    """Only the writer does this: remove the segments that are folded to their end, except the active one."""
    done = [path for path, number in _numbered(folder) if path.name != active and _is_done(connection, path, number)]
    if not done:
        return
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # to the disk, before what it came from goes; waits for nobody
    for path in done:
        path.unlink(missing_ok=True)
    connection.execute("DELETE FROM segments WHERE number <= (SELECT max(number) FROM segments) - ?", (KEPT_SEGMENT_ROWS,))


def _is_done(connection: sqlite3.Connection, path: Path, number: int) -> bool:
    rest = path.stat().st_size - _offset(connection, number)
    if rest <= 0:
        return True
    with closing(os.fdopen(open_private(path, os.O_RDONLY), "rb")) as file:
        file.seek(-rest, os.SEEK_END)
        if b"\n" in file.read(rest):
            return False
    log.warning("journal %s ends in %d bytes of a line that was never finished", path.name, rest)
    return True
