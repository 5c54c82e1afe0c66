"""The stores give the same answers to whatever is done to them, restarts included."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, get_args

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.stores.base import GroupBy
from clawproxy.stores.memory import MemoryStore
from clawproxy.stores.sqlite import SqliteStore

from .conftest import make_close, make_open

ids = st.sampled_from(["a", "b", "c", "d"])
tokens = st.none() | st.integers(-1, 100)
openings = st.builds(
    lambda id_, **changes: ("open", make_open(id=id_, **changes)),
    ids,
    request_id=st.sampled_from(["r1", "r2"]),
    opened=st.floats(0, 9) | st.floats(0, 1e8),
    key=st.text(max_size=3),
    user=st.none() | st.text(max_size=2),
    reserved_input=st.integers(0, 50),
    reserved_output=st.none() | st.integers(0, 50),
    reserved_nano=st.none() | st.integers(0, 50),
    provider_model=st.sampled_from(["x", "y"]),
)
closings = st.builds(
    lambda id_, **changes: ("close", make_close(id_, **changes)),
    ids,
    sent=st.booleans(),
    input_tokens=tokens,
    output_tokens=tokens,
    cost_nano=tokens,
    cached_tokens=tokens,
    source=st.sampled_from(["measured", "estimated", "none", "cache"]),
    outcome=st.sampled_from(["complete", "client_gone"]),
)
steps = st.lists(openings | closings | st.sampled_from([("flush", None), ("restart", None)]), max_size=25)


async def agree(done: list[tuple[str, Any]], state_dir: Path) -> None:
    memory, kept = MemoryStore(), SqliteStore.open(state_dir, "one")
    for what, record in done:
        if what == "open":
            await memory.open_row(record)
            await kept.open_row(record)
        elif what == "close":
            await memory.close_row(record)
            await kept.close_row(record)
        elif what == "flush":
            await kept.flush()
        else:
            await kept.aclose()
            kept = SqliteStore.open(state_dir, "one")
            left = [row.opened.id for row in await memory.rows() if row.closed is None]
            orphans = [row.closed for row in await kept.rows() if row.opened.id in left]
            assert len(orphans) == len(left)
            for closed in orphans:
                assert closed is not None
                assert closed.outcome == "orphaned"
                await memory.close_row(closed)
    assert await kept.rows() == await memory.rows()
    for group_by in (None, *get_args(GroupBy)):
        assert await kept.usage(group_by) == await memory.usage(group_by)
        assert await kept.usage(group_by, 2.0, 7.0) == await memory.usage(group_by, 2.0, 7.0)
        for key in ("k1", "k2", "nobody"):
            assert await kept.usage(group_by, 2.0, None, key) == await memory.usage(group_by, 2.0, None, key)
    for by in ([], ["key", "user", "hour"], ["month", "outcome"]):
        for where in ({"user": None}, {"outcome": "complete", "provider_model": "x"}, {"outcome": None}):
            assert await kept.usage(by, where=where) == await memory.usage(by, where=where)  # type: ignore[arg-type]
    await kept.aclose()


@settings(max_examples=40, deadline=None)
@given(steps)
def test_memory_and_sqlite_agree(done: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(agree, done, Path(folder))
