"""The stores every test of this folder runs over. A new store joins by a line in `STORES`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from clawproxy.stores.base import Store
from clawproxy.stores.memory import MemoryStore
from clawproxy.stores.sqlite import SqliteStore

STORES = ("memory", "sqlite", "sqlite-folding")


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Store]:
    made: MemoryStore | SqliteStore
    if request.param == "memory":
        made = MemoryStore()
    else:
        made = SqliteStore.open(tmp_path / "state", "one")
        if request.param == "sqlite-folding":
            nursery.start_soon(made.run)
    yield made
    await made.aclose()
    nursery.cancel_scope.cancel()
