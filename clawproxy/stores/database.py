"""The embedded database: its schema, how a connection is opened, and folding journals into it.

Rule 1: how far a segment is folded is written in the transaction that folds it. Whoever folds, and however often it crashes,
        each record is folded exactly once.
Rule 2: within that, folding is idempotent by attempt id: the first opening and the first closing stay.
Rule 3: a database of a newer version is refused, never migrated down, never guessed at. An older one gets the columns it lacks
        (`_SINCE`) when it is opened, in one transaction.

All functions block, and run in a thread. They raise sqlite3.Error and OSError.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from attrs import frozen
from msgspec.structs import astuple

from clawproxy.errors import ConfigError
from clawproxy.stores import books
from clawproxy.stores.base import LedgerClose, LedgerOpen
from clawproxy.stores.journal import segments
from clawproxy.stores.records import CLOSE_FIELDS, OPEN_FIELDS, Line, Values, read_lines
from clawproxy.stores.statedir import open_private

log = logging.getLogger("clawproxy.store")

SCHEMA = 5
CHUNK = 256 * 1024
"""Bytes of journal folded in one transaction: short enough that nobody waits long for the lock."""
KEPT_SEGMENT_ROWS = 1000

_CLOSE = CLOSE_FIELDS[1:]  # without the id, which both have
COLUMNS = (*OPEN_FIELDS, *_CLOSE)

_TABLES = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL UNIQUE, prefix TEXT NOT NULL, created REAL NOT NULL,
    expires REAL, revoked REAL, "user" TEXT, team TEXT, app TEXT, roles TEXT NOT NULL, tags TEXT NOT NULL,
    models TEXT NOT NULL, may_assert INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX keys_name ON keys (name);
CREATE TABLE attempts (
    id TEXT PRIMARY KEY, request_id TEXT NOT NULL, number INTEGER NOT NULL, reason TEXT NOT NULL, opened REAL NOT NULL,
    instance TEXT NOT NULL, generation INTEGER NOT NULL, "key" TEXT NOT NULL, "user" TEXT, team TEXT, app TEXT,
    model TEXT NOT NULL, provider TEXT NOT NULL, provider_model TEXT NOT NULL,
    reserved_input INTEGER NOT NULL, reserved_output INTEGER,
    closed REAL, outcome TEXT, sent INTEGER, input_tokens INTEGER, output_tokens INTEGER, cached_tokens INTEGER,
    reasoning_tokens INTEGER, source TEXT, cost_nano INTEGER
) WITHOUT ROWID;
CREATE INDEX attempts_opened ON attempts (opened);
CREATE TABLE segments (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, folded INTEGER NOT NULL);
"""

_SINCE: dict[int, tuple[str, ...]] = {
    2: tuple(  # token classes that are billed apart, and what priced a row
        f"ALTER TABLE attempts ADD COLUMN {column}"
        for column in (
            "cache_write_tokens INTEGER",
            "cache_write_1h_tokens INTEGER",
            "cached_audio_tokens INTEGER",
            "audio_input_tokens INTEGER",
            "audio_output_tokens INTEGER",
            "image_input_tokens INTEGER",
            "image_output_tokens INTEGER",
            "service_tier TEXT",
            "card TEXT",
        )
    ),
    3: books.TABLES,
    4: ("ALTER TABLE keys ADD COLUMN maker TEXT",),
    5: ("ALTER TABLE attempts ADD COLUMN reserved_nano INTEGER",),
}
"""What came with a later schema. Rows of before have NULL in its columns: not known."""


class _Insert:
    """Statements that insert rows of some columns: one, and so many at once as any SQLite takes parameters for, so that the GIL
    changes hands once for all of them."""

    def __init__(self, columns: Sequence[str]) -> None:
        names, row = ", ".join(f'"{name}"' for name in columns), f"({', '.join('?' * len(columns))})"
        first_close = ", ".join(f"{name} = excluded.{name}" for name in columns if name in _CLOSE)
        self.rows = 999 // len(columns)
        self.one, self.many = (
            f"INSERT INTO attempts ({names}) VALUES {rows} ON CONFLICT (id) DO UPDATE SET {first_close} "
            "WHERE attempts.closed IS NULL AND excluded.closed IS NOT NULL"
            for rows in (row, ", ".join([row] * self.rows))
        )

    def __call__(self, connection: sqlite3.Connection, rows: list[Values]) -> int:
        """How many were not acceptable."""
        broken, whole = 0, len(rows) - len(rows) % self.rows
        for at in range(0, whole, self.rows):
            some = rows[at : at + self.rows]
            try:
                connection.execute(self.many, [value for row in some for value in row])
            except _BAD_VALUES:
                broken += _execute(connection, self.one, some)
        return broken + _execute(connection, self.one, rows[whole:])


_RARE = slice(COLUMNS.index("cache_write_tokens"), COLUMNS.index("service_tier") + 1)
"""Token classes that few answers have. Without them a row is folded in two thirds of the time."""
_NO_RARE: Values = (None,) * len(COLUMNS[_RARE])
_insert = _Insert(COLUMNS)
_insert_short = _Insert(COLUMNS[: _RARE.start] + COLUMNS[_RARE.stop :])
_set_close = ", ".join(f"{name} = ?" for name in _CLOSE)
_UPDATE = f"UPDATE attempts SET {_set_close} WHERE id = ? AND closed IS NULL"
_NOT_CLOSED: Values = (None,) * len(_CLOSE)


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
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise ConfigError(
                [
                    f"{path} was written by a newer clawproxy (schema {version}; this one knows {SCHEMA}). "
                    "Run that version, or use another state_dir."
                ]
            )
        if version == 0:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            version = 1
        if version < SCHEMA:
            for schema in range(version + 1, SCHEMA + 1):
                for statement in _SINCE[schema]:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")


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
    rows: list[LedgerOpen | LedgerClose | Line] | None
    """Those lines' records, as kept, or the lines where they have entries; None where they must be read."""


def fold(connection: sqlite3.Connection, folder: Path, fresh: Fresh | None = None) -> dict[str, int]:
    """Fold all that is in the journals of `folder`; how far each segment is folded now, in bytes.

    Any process may do it while another one appends: it reads to the last whole line. The writer knows its newest lines: where
    all before them is folded, they need no reading (4 of 11 us an attempt). Its own segment it folds as far as `fresh.end`, so
    that the next lines begin where these end.
    """
    folded: dict[str, int] = {}
    for path, number in _numbered(folder):
        limit = None
        if fresh is not None and path.name == fresh.name:
            if fresh.rows is not None and _fold_fresh(connection, fresh, fresh.rows, number):
                folded[path.name] = fresh.end
                continue
            limit = fresh.end
        try:
            fd = open_private(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # folded and removed by the writer meanwhile
        try:
            folded[path.name] = _fold_segment(connection, fd, path.name, number, limit)
        finally:
            os.close(fd)
    return folded


def _fold_fresh(connection: sqlite3.Connection, fresh: Fresh, rows: list[LedgerOpen | LedgerClose | Line], number: int) -> bool:
    """Whether it was done: not where something before is still to be folded, or another process was here."""
    if fresh.end == fresh.start:
        return _offset(connection, number) == fresh.end
    with immediate(connection):
        if _offset(connection, number) != fresh.start:
            return False
        records: list[books.Booked] = [
            row if isinstance(row, Line) else ("o" if type(row) is LedgerOpen else "c", astuple(row), None) for row in rows
        ]
        broken = _apply(connection, records)
        if broken:
            log.error("%d damaged lines in journal %s before byte %d are lost", broken, fresh.name, fresh.end)
        _set_offset(connection, number, fresh.name, fresh.end)
    return True


def _fold_segment(connection: sqlite3.Connection, fd: int, name: str, number: int, limit: int | None = None) -> int:
    while True:
        offset = _offset(connection, number)
        data = _whole(os.pread(fd, CHUNK if limit is None else max(0, min(CHUNK, limit - offset)), offset))
        if not data:
            return offset
        with immediate(connection):
            if _offset(connection, number) != offset:
                continue  # another process folded it meanwhile
            records, broken = read_lines(data.split(b"\n"))
            broken += _apply(connection, records)
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


def _apply(connection: sqlite3.Connection, records: Sequence[books.Booked]) -> int:
    """How many records could not be applied."""
    opened: dict[str, Values] = {}
    closed: dict[str, Values] = {}
    later: list[Values] = []
    booked: list[books.Booked] = []
    for record in records:
        kind, values, entries = record
        id_ = values[0]
        if entries is not None:
            booked.append(record)
        if kind == "o":
            opened.setdefault(id_, values)
        elif kind == "t":
            continue
        elif id_ in opened:
            closed.setdefault(id_, values[1:])
        else:
            later.append((*values[1:], id_))
    if booked:
        books.apply(connection, booked)
    whole: list[Values] = []
    short: list[Values] = []
    start, stop = _RARE.start, _RARE.stop
    for id_, values in opened.items():
        row = values + closed.get(id_, _NOT_CLOSED)
        if row[start:stop] == _NO_RARE:
            short.append(row[:start] + row[stop:])
        else:
            whole.append(row)
    return _execute(connection, _UPDATE, later) + _insert(connection, whole) + _insert_short(connection, short)


_BAD_VALUES = (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError)


def _execute(connection: sqlite3.Connection, sql: str, rows: list[Values]) -> int:
    """All rows; where one of them is not acceptable, all but it. How many were not."""
    try:
        connection.executemany(sql, rows)
    except _BAD_VALUES:
        return sum(_is_bad(connection, sql, row) for row in rows)
    return 0


def _is_bad(connection: sqlite3.Connection, sql: str, row: Values) -> bool:
    try:
        connection.execute(sql, row)
    except _BAD_VALUES:
        return True
    return False


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
