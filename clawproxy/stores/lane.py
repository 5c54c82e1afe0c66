"""A connection to the database and its thread: what blocks, blocks there."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import trio

from clawproxy.errors import ClawError
from clawproxy.stores.database import connect

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Lane:
    """One connection and the single thread at a time that may use it."""

    def __init__(self, path: Path, busy: float) -> None:
        """Raises like `database.connect`."""
        self.connection = connect(path, busy)
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, work: Callable[[sqlite3.Connection, *Ts], T], *args: *Ts) -> T:
        """Never abandoned. Raises ClawError("store_unavailable")."""
        try:
            return await trio.to_thread.run_sync(work, self.connection, *args, limiter=self._limiter)
        except (sqlite3.Error, OSError) as error:
            raise ClawError("store_unavailable") from error

    async def aclose(self) -> None:
        """Stops a query that runs. Called shielded and bounded; where the thread does not end in time the connection stays."""
        self.connection.interrupt()
        async with self._limiter:
            self.connection.close()
