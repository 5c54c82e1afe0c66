"""What every store's ledger does. Rows are written in one order and read back in another, so that nothing relies on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clawproxy.stores.base import GroupBy, LedgerClose, LedgerOpen, Store

Opening = Callable[..., LedgerOpen]
Closing = Callable[..., LedgerClose]


async def sums(store: Store, by: GroupBy | None = None) -> list[tuple[object, ...]]:
    """Group, requests, attempts, input, output, cost."""
    rows = await store.usage(by)
    return [(row.group, row.requests, row.attempts, row.input_tokens, row.output_tokens, row.cost_nano) for row in rows]


async def test_a_row_comes_back_field_by_field(store: Store, opening: Opening, closing: Closing) -> None:
    row = opening(
        number=3, reason="failover", opened=12.25, instance="i-1", generation=4, key="k", user="u", team="t", app="a",
        model="gpt", provider="openai", provider_model="gpt-4o", reserved_input=11, reserved_output=22,
    )  # fmt: skip
    close = closing(
        row.id, closed=13.5, outcome="timeout.stall", sent=True, input_tokens=1, output_tokens=2, cached_tokens=3,
        reasoning_tokens=4, source="estimated", cost_nano=123456789012345,
    )  # fmt: skip
    await store.open_row(row)
    await store.close_row(close)
    [found] = await store.rows()
    assert found.opened == row
    assert found.closed == close
    assert type(found.closed.sent) is bool


async def test_an_open_row_is_seen_before_it_is_closed(store: Store, opening: Opening, closing: Closing) -> None:
    row = opening()
    await store.open_row(row)
    [found] = await store.rows()
    assert found.opened == row
    assert found.closed is None
    await store.close_row(closing(row.id))
    [found] = await store.rows()
    assert found.closed == closing(row.id)


@pytest.mark.parametrize("flush", [True, False])
async def test_opening_and_closing_are_idempotent_by_id(store: Store, opening: Opening, closing: Closing, flush: bool) -> None:
    row = opening(model="first")
    for model in ("first", "second"):
        await store.open_row(opening(id=row.id, request_id=row.request_id, model=model))
        if flush:
            await store.flush()
    for tokens in (10, 99):
        await store.close_row(closing(row.id, input_tokens=tokens))
        if flush:
            await store.flush()
    await store.open_row(row)
    [found] = await store.rows()
    assert found.opened.model == "first"
    assert found.closed is not None
    assert found.closed.input_tokens == 10


async def test_opened_again_and_closed_in_one_go_after_a_flush(store: Store, opening: Opening, closing: Closing) -> None:
    row = opening()
    await store.open_row(row)
    await store.flush()
    await store.open_row(row)
    await store.close_row(closing(row.id, output_tokens=3))
    [found] = await store.rows()
    assert found.closed is not None
    assert found.closed.output_tokens == 3


async def test_closing_an_unknown_row_is_ignored(store: Store, opening: Opening, closing: Closing) -> None:
    await store.close_row(closing("no-such-row"))
    assert await store.rows() == []
    await store.open_row(opening(id="no-such-row"))
    [found] = await store.rows()
    assert found.closed is None


async def test_rows_are_by_time_and_until_is_exclusive(store: Store, opening: Opening) -> None:
    for at in (30.0, 10.0, 20.0):
        await store.open_row(opening(opened=at))
    assert [row.opened.opened for row in await store.rows()] == [10.0, 20.0, 30.0]
    assert [row.opened.opened for row in await store.rows(10.0, 30.0)] == [10.0, 20.0]
    assert [row.opened.opened for row in await store.rows(since=10.5)] == [20.0, 30.0]


async def test_usage_of_nothing_is_one_row_of_zeros(store: Store) -> None:
    assert await sums(store) == [(None, 0, 0, 0, 0, None)]
    assert await store.usage("key") == []


async def test_usage_counts_requests_once_and_attempts_each(store: Store, opening: Opening, closing: Closing) -> None:
    first = opening(request_id="r1")
    retry = opening(request_id="r1", number=2, reason="retry")
    for row in (first, retry):
        await store.open_row(row)
    await store.close_row(closing(first.id, sent=False, source="none", input_tokens=None, output_tokens=None))
    await store.close_row(closing(retry.id, input_tokens=7, output_tokens=5, cost_nano=9))
    assert await sums(store) == [(None, 1, 2, 7, 5, 9)]


async def test_a_row_that_is_not_closed_counts_with_its_reserved_input(store: Store, opening: Opening) -> None:
    await store.open_row(opening(reserved_input=40))
    assert await sums(store) == [(None, 1, 1, 40, 0, None)]


async def test_sent_with_unknown_tokens_is_not_free(store: Store, opening: Opening, closing: Closing) -> None:
    row = opening(reserved_input=40)
    await store.open_row(row)
    await store.close_row(closing(row.id, sent=True, input_tokens=None, output_tokens=None, source="estimated"))
    assert await sums(store) == [(None, 1, 1, 40, 0, None)]


async def test_an_explicit_zero_stays_zero(store: Store, opening: Opening, closing: Closing) -> None:
    row = opening(reserved_input=40)
    await store.open_row(row)
    await store.close_row(closing(row.id, input_tokens=0, output_tokens=0, cost_nano=0))
    assert await sums(store) == [(None, 1, 1, 0, 0, 0)]


async def test_a_sum_with_an_unknown_cost_in_it_is_unknown(store: Store, opening: Opening, closing: Closing) -> None:
    rows = [opening() for _ in range(3)]
    for row in rows[:2]:
        await store.open_row(row)
    await store.close_row(closing(rows[0].id, cost_nano=5))
    await store.close_row(closing(rows[1].id, cost_nano=None, sent=False, source="none"))
    assert (await store.usage())[0].cost_nano == 5  # never sent is free
    await store.open_row(rows[2])
    assert (await store.usage())[0].cost_nano is None  # nobody knows what it will cost
    await store.close_row(closing(rows[2].id, cost_nano=None))
    assert (await store.usage())[0].cost_nano is None


async def test_usage_by_each_group(store: Store, opening: Opening, closing: Closing) -> None:
    ann = opening(key="k1", user="ann", team="red", app="x", model="m1", provider="p1", opened=10.0)
    bob = opening(key="k2", user="bob", team="red", app="y", model="m2", provider="p1", opened=20.0)
    nobody = opening(key="k1", opened=30.0, model="é", provider="Z", reserved_input=1, reserved_nano=0)
    for row in (nobody, bob, ann):
        await store.open_row(row)
    await store.close_row(closing(ann.id, input_tokens=1, output_tokens=10, cost_nano=100, outcome="complete"))
    await store.close_row(closing(bob.id, input_tokens=2, output_tokens=20, cost_nano=200, outcome="client_gone"))

    async def groups(group_by: GroupBy) -> list[str | None]:
        return [row.group for row in await store.usage(group_by)]

    assert await sums(store, "key") == [("k1", 2, 2, 2, 10, 100), ("k2", 1, 1, 2, 20, 200)]
    assert await groups("user") == [None, "ann", "bob"]
    assert await sums(store, "team") == [(None, 1, 1, 1, 0, 0), ("red", 2, 2, 3, 30, 300)]
    assert await groups("app") == [None, "x", "y"]
    assert await groups("model") == ["m1", "m2", "é"]
    assert await groups("provider") == ["Z", "p1"]
    assert await groups("outcome") == [None, "client_gone", "complete"]
    assert [row.group for row in await store.usage("user", since=15.0, until=30.0)] == ["bob"]


async def test_hostile_text_is_kept_as_data(store: Store, opening: Opening) -> None:
    nasty = "'; DROP TABLE attempts; --\n\x00\x1b[31m\u2028\"\\"
    await store.open_row(opening(model=nasty, user=nasty))
    await store.open_row(opening(model="after"))
    assert {row.opened.model for row in await store.rows()} == {nasty, "after"}
    assert [row.group for row in await store.usage("user")] == [None, nasty]


async def test_a_lone_surrogate_and_a_megabyte_do_not_stop_the_ledger(store: Store, opening: Opening) -> None:
    await store.open_row(opening(id="a", model="x\ud800y"))
    await store.open_row(opening(id="b", model="z" * 1_000_000))
    models = {row.opened.id: row.opened.model for row in await store.rows()}
    assert models["a"] == "x?y"
    assert models["b"] == "z" * 512


async def test_absurd_figures_can_not_break_the_sums(store: Store, opening: Opening, closing: Closing) -> None:
    for _ in range(20):
        row = opening()
        await store.open_row(row)
        await store.close_row(closing(row.id, input_tokens=10**30, output_tokens=-5, cost_nano=10**30))
    [total] = await store.usage()
    assert total.input_tokens == 20 * 2**40
    assert total.output_tokens == 0
    assert total.cost_nano == 20 * 2**53
