"""Ledger and key records with every field defaulted."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.context import new_id
from clawproxy.stores import schema
from clawproxy.stores.base import KeyRecord, LedgerClose, LedgerOpen
from clawproxy.stores.statedir import make_private_dir


@contextlib.contextmanager
def database_of(version: int, state_dir: Path) -> Iterator[sqlite3.Connection]:
    """What that version of the schema left in a state directory, to be written into."""
    make_private_dir(state_dir)
    with contextlib.closing(sqlite3.connect(state_dir / "clawproxy.db")) as connection:
        for step in range(1, version + 1):
            for statement in schema._STEPS[step].split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version}")
        yield connection
        connection.commit()


def make_open(**changes: Any) -> LedgerOpen:
    values: dict[str, Any] = {
        "id": new_id(),
        "request_id": new_id(),
        "number": 1,
        "reason": "first",
        "opened": 1000.0,
        "instance": "one",
        "generation": 1,
        "key": "bench",
        "user": None,
        "team": None,
        "app": None,
        "model": "m",
        "provider": "p",
        "provider_model": "pm",
        "reserved_input": 40,
        "reserved_output": None,
    }
    return LedgerOpen(**(values | changes))


def make_close(id_: str, **changes: Any) -> LedgerClose:
    values: dict[str, Any] = {
        "id": id_,
        "closed": 1001.0,
        "outcome": "complete",
        "sent": True,
        "input_tokens": 7,
        "output_tokens": 5,
        "source": "measured",
    }
    return LedgerClose(**(values | changes))


def make_key(name: str = "alice", **changes: Any) -> KeyRecord:
    id_ = new_id()
    values: dict[str, Any] = {
        "id": id_,
        "name": name,
        "digest": hashlib.sha256(id_.encode()).digest(),
        "prefix": "ck-abc",
        "created": 5.0,
    }
    return KeyRecord(**(values | changes))


async def eventually(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while True:
            if condition():
                return
            await trio.sleep(0.01)


@pytest.fixture
def opening() -> Callable[..., LedgerOpen]:
    return make_open


@pytest.fixture
def closing() -> Callable[..., LedgerClose]:
    return make_close


@pytest.fixture
def a_key() -> Callable[..., KeyRecord]:
    return make_key
