"""What the ledger is asked for reports: groups, filters, time, what is not known and what was guessed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from clawproxy.stores.base import LedgerClose, LedgerOpen, Store

Opening = Callable[..., LedgerOpen]
Closing = Callable[..., LedgerClose]
DAY = datetime(2026, 11, 22, tzinfo=UTC).timestamp()


async def done(store: Store, opening: LedgerOpen, closing: Closing, **closed: object) -> None:
    await store.open_row(opening)
    await store.close_row(closing(opening.id, **closed))


async def test_several_dimensions_at_once(store: Store, opening: Opening, closing: Closing) -> None:
    for model, user in (("a", "ann"), ("a", None), ("b", "ann"), ("a", "ann")):
        await done(store, opening(model=model, user=user), closing, cost_nano=1)
    rows = await store.usage(["model", "user"])
    assert [(row.groups, row.attempts) for row in rows] == [(("a", None), 1), (("a", "ann"), 2), (("b", "ann"), 1)]
    assert [row.group for row in rows] == ["a", "a", "b"]
    [total] = await store.usage([])
    assert (total.groups, total.attempts, total.cost_nano) == ((), 4, 4)


async def test_hours_days_and_months_are_utc(store: Store, opening: Opening, closing: Closing) -> None:
    for at in (DAY - 0.0001, DAY, DAY + 3599.9999, DAY + 3600, DAY + 9 * 86_400):
        await done(store, opening(opened=at), closing)

    async def groups(by: str) -> list[tuple[str | None, int]]:
        return [(row.group, row.attempts) for row in await store.usage(by)]  # type: ignore[arg-type]

    assert await groups("day") == [("2026-11-21", 1), ("2026-11-22", 3), ("2026-12-01", 1)]
    assert await groups("month") == [("2026-11", 4), ("2026-12", 1)]
    hours = [("2026-11-21T23:00Z", 1), ("2026-11-22T00:00Z", 2), ("2026-11-22T01:00Z", 1), ("2026-12-01T00:00Z", 1)]
    assert await groups("hour") == hours
    [total] = await store.usage(since=DAY, until=DAY + 3600)
    assert (total.attempts, total.first, total.last) == (2, DAY, DAY + 3599.9999)


async def test_a_time_no_calendar_has_is_in_no_day(store: Store, opening: Opening) -> None:
    await store.open_row(opening(opened=1e18))
    assert [(row.group, row.attempts) for row in await store.usage("day")] == [(None, 1)]


async def test_filters_hold_together_and_none_means_without(store: Store, opening: Opening, closing: Closing) -> None:
    await done(store, opening(model="a", user="ann", key="k"), closing)
    await done(store, opening(model="a", key="k"), closing, outcome="client_gone")
    await store.open_row(opening(model="b", key="other"))

    async def attempts(**where: str | None) -> int:
        return (await store.usage(where=where))[0].attempts  # type: ignore[arg-type]

    assert await attempts(model="a") == 2
    assert await attempts(model="a", user="ann") == 1
    assert await attempts(user=None) == 2
    assert await attempts(outcome=None) == 1
    assert await attempts(outcome="client_gone", provider="p") == 1
    assert await attempts(model="' OR 1=1 --") == 0
    assert (await store.usage(key="k", where={"model": "b"}))[0].attempts == 0
    assert await store.usage("day", where={"model": "nobody"}) == []


async def test_a_dimension_that_is_not_known_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="grouped"):
        await store.usage(["model", "1; DROP TABLE attempts"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="told"):
        await store.usage(where={"day": "2026-01-01"})  # type: ignore[dict-item]


async def test_what_was_guessed_and_what_is_not_known_stands_beside_the_sums(
    store: Store, opening: Opening, closing: Closing
) -> None:
    await done(store, opening(), closing, input_tokens=10, output_tokens=5, cost_nano=100)
    await done(store, opening(), closing, input_tokens=3, output_tokens=2, cost_nano=7, source="estimated")
    await done(store, opening(), closing, input_tokens=1, output_tokens=1, cost_nano=None)
    [row] = await store.usage()
    assert (row.cost_nano, row.known_nano, row.unpriced) == (None, 107, 1)
    assert (row.estimated, row.estimated_tokens, row.estimated_nano) == (1, 5, 7)


async def test_what_is_open_counts_with_all_it_reserved(store: Store, opening: Opening, closing: Closing) -> None:
    await done(store, opening(), closing, cost_nano=5)
    await store.open_row(opening(reserved_input=40, reserved_output=60, reserved_nano=900))
    [row] = await store.usage()
    assert (row.input_tokens, row.output_tokens, row.cost_nano) == (47, 65, 905)
    assert (row.open, row.estimated, row.estimated_tokens, row.estimated_nano) == (1, 1, 100, 900)


async def test_every_class_of_tokens_is_summed_and_unsaid_is_not_zero(store: Store, opening: Opening, closing: Closing) -> None:
    names = [
        "cached_tokens", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens", "cached_audio_tokens",
        "audio_input_tokens", "audio_output_tokens", "image_input_tokens", "image_output_tokens",
    ]  # fmt: skip
    await done(store, opening(model="all"), closing, **{name: index for index, name in enumerate(names)})
    await done(store, opening(model="all"), closing, **{name: index for index, name in enumerate(names)})
    await done(store, opening(model="none"), closing)
    said, silent = await store.usage("model")
    assert [getattr(said, name) for name in names] == [2 * index for index in range(len(names))]
    assert {getattr(silent, name) for name in names} == {None}


async def test_overruns_are_what_was_measured_beyond_the_reservation(store: Store, opening: Opening, closing: Closing) -> None:
    held = {"reserved_input": 10, "reserved_output": 5, "reserved_nano": 100}
    await done(store, opening(**held), closing, input_tokens=10, output_tokens=5, cost_nano=100)
    await done(store, opening(**held), closing, input_tokens=12, output_tokens=9, cost_nano=150)
    await done(store, opening(**held), closing, input_tokens=99, output_tokens=9, source="estimated", cost_nano=0)
    await done(store, opening(reserved_input=10), closing, input_tokens=1, output_tokens=999, cost_nano=1)
    [row] = await store.usage()
    assert (row.overruns, row.overrun_tokens, row.overrun_nano) == (1, 6, 50)
