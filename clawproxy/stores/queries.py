"""The questions the database answers, and the keys it holds. Blocking functions of a connection; they raise sqlite3.Error.

Rule: values go in as parameters, always. The only names put into SQL are columns of this file's own tables.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from typing import Any

import attrs
import msgspec

from clawproxy.stores.base import KeyRecord, LedgerClose, LedgerOpen, LedgerRow
from clawproxy.stores.database import immediate
from clawproxy.stores.ledger import COLUMNS
from clawproxy.stores.records import OPEN_FIELDS

_KEY_FIELDS = tuple(field.name for field in attrs.fields(KeyRecord))
_LISTS = frozenset({"roles", "tags", "models"})
_SENT = COLUMNS.index("sent")


def _columns(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


# --- ledger ------------------------------------------------------------------------------------------------------------------

_ROWS = f"SELECT {_columns(COLUMNS)} FROM attempts WHERE opened >= ? AND opened < ? ORDER BY opened, id"


def rows(connection: sqlite3.Connection, since: float, until: float | None) -> list[LedgerRow]:
    found = connection.execute(_ROWS, (since, math.inf if until is None else until))
    return [_ledger_row(values) for values in found]


def _ledger_row(values: tuple[Any, ...]) -> LedgerRow:
    at = len(OPEN_FIELDS)
    opened = LedgerOpen(*values[:at])
    if values[at] is None:
        return LedgerRow(opened, None)
    closed = (values[0], *values[at:_SENT], bool(values[_SENT]), *values[_SENT + 1 :])
    return LedgerRow(opened, LedgerClose(*closed))


# --- keys --------------------------------------------------------------------------------------------------------------------

_SELECT_KEY = f"SELECT {_columns(_KEY_FIELDS)} FROM keys"
_ADD_KEY = f"INSERT INTO keys ({_columns(_KEY_FIELDS)}) VALUES ({', '.join('?' * len(_KEY_FIELDS))}) ON CONFLICT (id) DO NOTHING"


def add_key(connection: sqlite3.Connection, record: KeyRecord) -> None:
    """Raises ValueError where another key has this digest."""
    with immediate(connection):
        _add(connection, record)


def _add(connection: sqlite3.Connection, record: KeyRecord) -> None:
    values = [
        msgspec.json.encode(value).decode() if name in _LISTS else value
        for name, value in zip(_KEY_FIELDS, attrs.astuple(record, recurse=False), strict=True)
    ]
    try:
        connection.execute(_ADD_KEY, values)
    except sqlite3.IntegrityError as error:
        raise ValueError("another key has this digest") from error


def rotate_key(connection: sqlite3.Connection, record: KeyRecord, until: float) -> bool:
    """As `Store.rotate_key`."""
    with immediate(connection):
        if connection.execute("SELECT 1 FROM keys WHERE id = ?", (record.id,)).fetchone() is not None:
            return True
        good = "name = ? AND revoked IS NULL AND (expires IS NULL OR expires > ?)"
        named = (record.name, record.created)
        if connection.execute(f"SELECT 1 FROM keys WHERE {good}", named).fetchone() is None:
            return False
        connection.execute(f"UPDATE keys SET expires = min(coalesce(expires, ?), ?) WHERE {good}", (until, until, *named))
        _add(connection, record)
        return True


def find_key(connection: sqlite3.Connection, digest: bytes) -> KeyRecord | None:
    """Revoked and expired keys are found too: the caller tells why it refuses."""
    found = connection.execute(f"{_SELECT_KEY} WHERE digest = ?", (digest,)).fetchone()
    return _key(found) if found else None


def keys(connection: sqlite3.Connection) -> list[KeyRecord]:
    return [_key(values) for values in connection.execute(f"{_SELECT_KEY} ORDER BY created, id")]


def revoke_key(connection: sqlite3.Connection, name: str, at: float) -> bool:
    """All keys of that name (it may be used again, so there may be several) and those they made."""
    with immediate(connection):
        connection.execute("UPDATE keys SET revoked = ? WHERE (name = ? OR maker = ?) AND revoked IS NULL", (at, name, name))
        return connection.execute("SELECT 1 FROM keys WHERE name = ?", (name,)).fetchone() is not None


def _key(values: tuple[Any, ...]) -> KeyRecord:
    given = dict(zip(_KEY_FIELDS, values, strict=True))
    for name in _LISTS:
        given[name] = tuple(msgspec.json.decode(given[name], type=list[str]))
    given["may_assert"] = bool(given["may_assert"])
    return KeyRecord(**given)
