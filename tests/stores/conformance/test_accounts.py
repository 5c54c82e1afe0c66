"""What every store's accounts do: hold all or nothing, never pass a limit, charge once, keep to their windows."""

from __future__ import annotations

from calendar import timegm
from collections.abc import Callable, Sequence

import pytest
import trio
import trio.testing

from clawproxy.context import new_id
from clawproxy.stores.base import (
    UNLIMITED,
    Account,
    Charge,
    Claim,
    LedgerClose,
    LedgerOpen,
    Shortage,
    Standing,
    Store,
    Unit,
    Window,
)

Opening = Callable[..., LedgerOpen]
Closing = Callable[..., LedgerClose]

NOON = float(timegm((2026, 11, 22, 12, 0, 0)))
MIDNIGHT = NOON + 43_200
KEY = Account("key:bench", "requests", "day", False)


def claim(account: Account = KEY, amount: int = 1, limit: int = 10, name: str = "b") -> Claim:
    return Claim(*account, amount, limit, name)


def charge(account: Account = KEY, amount: int = 1, overrun: int = 0) -> Charge:
    return Charge(*account, amount, overrun)


async def stands(store: Store, account: Account = KEY, now: float = NOON) -> Standing:
    [standing] = await store.standing([account], now)
    return standing


async def totals(store: Store) -> dict[tuple[Account, int], tuple[int, int]]:
    return {(total.account, total.period): (total.used, total.overrun) for total in await store.totals()}


async def spend(store: Store, opening: Opening, closing: Closing, at: float, *claims: Claim) -> Shortage | None:
    """Reserves, and uses all of it."""
    row = opening(opened=at)
    short = await store.reserve(row, claims)
    if short is None:
        await store.close_row(closing(row.id), [Charge(c.scope, c.unit, c.window, c.sliding, c.amount) for c in claims])
    return short


async def test_reserve_holds_and_close_charges(store: Store, opening: Opening, closing: Closing) -> None:
    tokens = Account("user:ann", "tokens", "total", False)
    row = opening(opened=NOON)
    assert await store.reserve(row, [claim(), claim(tokens, 500, 1000)]) is None
    assert await stands(store) == Standing(KEY, 0, 1, 0, MIDNIGHT)
    assert await stands(store, tokens) == Standing(tokens, 0, 500, 0, None)
    assert await store.holding() == 1
    await store.close_row(closing(row.id), [charge(), charge(tokens, 320)])
    assert await stands(store) == Standing(KEY, 1, 0, 0, MIDNIGHT)
    assert await stands(store, tokens) == Standing(tokens, 320, 0, 0, None)
    assert await store.holding() == 0
    assert await totals(store) == {(KEY, int(NOON) - 43_200): (1, 0), (tokens, 0): (320, 0)}
    [found] = await store.rows()
    assert found.opened == row
    assert found.closed == closing(row.id)


async def test_no_claims_is_open_row(store: Store, opening: Opening, closing: Closing) -> None:
    row = opening()
    assert await store.reserve(row, ()) is None
    await store.close_row(closing(row.id), [charge()])
    assert [found.opened for found in await store.rows()] == [row]
    assert await store.totals() == []


async def test_all_or_nothing(store: Store, opening: Opening) -> None:
    """The last of three is short: no row, and nothing held of the other two."""
    team, everyone = KEY._replace(scope="team:red"), KEY._replace(scope="global")
    short = await store.reserve(opening(opened=NOON), [claim(), claim(team), claim(everyone, 11, name="all")])
    assert short == Shortage(claim(everyone, 11, name="all"), 0, 0, None)
    assert await store.rows() == []
    for account in (KEY, team, everyone):
        assert (await stands(store, account)).held == 0
    assert await store.holding() == 0


async def test_of_several_that_are_short_the_one_that_frees_last_is_told(store: Store, opening: Opening) -> None:
    minute, month = KEY._replace(window="minute"), KEY._replace(window="month")
    claims = [claim(minute, 1, 0), claim(minute, 10), claim(month, 10), claim(KEY, 10)]
    assert await store.reserve(opening(opened=NOON), claims[1:]) is None
    short = await store.reserve(opening(opened=NOON), claims[1:])
    assert short is not None
    assert short == Shortage(claims[2], 0, 10, float(timegm((2026, 12, 1, 0, 0, 0))))
    never = await store.reserve(opening(opened=NOON), [claim(KEY, 10), claim(minute, 11)])
    assert never is not None
    assert never.frees_at is None


@pytest.mark.parametrize("sliding", [False, True])
async def test_ten_of_two_hundred_at_once(store: Store, opening: Opening, closing: Closing, sliding: bool) -> None:
    scopes = ("key:bench", "user:ann", "team:red", "global")
    accounts = [Account(scope, "nano", "day", sliding) for scope in scopes]
    shorts: list[Shortage | None] = []
    together = trio.Event()

    async def one(row: LedgerOpen) -> None:
        await together.wait()
        short = await store.reserve(row, [claim(account, 1_000, 10_999) for account in accounts])
        shorts.append(short)
        await trio.lowlevel.checkpoint()
        if short is None:
            await store.close_row(closing(row.id), [charge(account, 1_007) for account in accounts])

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(one, opening(opened=NOON))
        await trio.testing.wait_all_tasks_blocked()
        together.set()
    assert shorts.count(None) == 10
    for standing in await store.standing(accounts, NOON):
        assert (standing.used, standing.held, standing.overrun) == (10_000, 0, 70)
    assert len(await store.rows()) == 10


async def test_the_first_ever_requests_of_an_entity(store: Store, opening: Opening) -> None:
    granted = [await store.reserve(opening(opened=NOON), [claim(limit=1)]) for _ in range(8)]
    assert granted.count(None) == 1


async def test_what_goes_beyond_the_hold_is_an_overrun(store: Store, opening: Opening, closing: Closing) -> None:
    soft = Account("user:ann", "tokens", "day", False)
    row = opening(opened=NOON)
    await store.reserve(row, [claim(amount=6), claim(soft, 6, UNLIMITED)])
    await store.close_row(closing(row.id), [charge(amount=9, overrun=2), charge(soft, 9)])
    assert await stands(store) == Standing(KEY, 6, 0, 5, MIDNIGHT)
    assert await stands(store, soft) == Standing(soft, 9, 0, 0, MIDNIGHT), "what is only counted is counted whole"
    assert await store.reserve(opening(opened=NOON), [claim(amount=4)]) is None, "the overrun takes nothing from others"


async def test_an_account_that_was_not_claimed_is_counted(store: Store, opening: Opening, closing: Closing) -> None:
    model = Account("model:m", "output_tokens", "hour", False)
    row = opening(opened=NOON)
    await store.reserve(row, [claim()])
    await store.close_row(closing(row.id), [charge(), charge(model, 77)])
    assert (await stands(store, model)).used == 77


async def test_two_budgets_on_one_account_are_one_use(store: Store, opening: Opening, closing: Closing) -> None:
    row = opening(opened=NOON)
    await store.reserve(row, [claim(amount=3, name="soft", limit=UNLIMITED), claim(amount=2, name="hard")])
    assert (await stands(store)).held == 3
    await store.close_row(closing(row.id), [charge(amount=2), charge(amount=2)])
    assert (await stands(store)).used == 2
    short = await store.reserve(opening(opened=NOON), [claim(limit=UNLIMITED), claim(limit=2, name="hard")])
    assert short is not None
    assert short.claim.name == "hard"


async def test_everything_happens_once(store: Store, opening: Opening, closing: Closing) -> None:
    row = opening(opened=NOON)
    for _ in range(3):
        assert await store.reserve(row, [claim(amount=6)]) is None
    assert (await stands(store)).held == 6
    for _ in range(3):
        await store.close_row(closing(row.id), [charge(amount=5)])
    assert await store.reserve(row, [claim(amount=6)]) is None, "it is over, and not taken again"
    assert await stands(store) == Standing(KEY, 5, 0, 0, MIDNIGHT)
    assert await store.holding() == 0
    assert len(await store.rows()) == 1


async def test_a_refused_attempt_may_ask_again(store: Store, opening: Opening, closing: Closing) -> None:
    first, second = opening(opened=NOON), opening(opened=NOON)
    await store.reserve(first, [claim(amount=10)])
    assert await store.reserve(second, [claim()]) is not None
    await store.close_row(closing(first.id, sent=False))
    assert await store.reserve(second, [claim()]) is None
    assert await stands(store) == Standing(KEY, 0, 1, 0, MIDNIGHT), "what was never sent is free"


async def test_top_up(store: Store, opening: Opening, closing: Closing) -> None:
    row, other = opening(opened=NOON), KEY._replace(scope="global")
    await store.reserve(row, [claim(amount=4)])
    assert await store.top_up(row.id, [claim(amount=4), claim(other, 1)]) is None
    assert [(await stands(store, account)).held for account in (KEY, other)] == [8, 1]
    short = await store.top_up(row.id, [claim(other, 1), claim(amount=4)])
    assert short == Shortage(claim(amount=4), 0, 8, MIDNIGHT)
    assert [(await stands(store, account)).held for account in (KEY, other)] == [8, 1]
    await store.close_row(closing(row.id), [charge(amount=9), charge(other)])
    assert await stands(store) == Standing(KEY, 8, 0, 1, MIDNIGHT)
    with pytest.raises(LookupError):
        await store.top_up(row.id, [claim()])


async def test_other_limits_find_what_was_counted(store: Store, opening: Opening, closing: Closing) -> None:
    """A reload: the budget's name and limit change, what it counted does not."""
    held = opening(opened=NOON)
    await spend(store, opening, closing, NOON, claim(amount=4))
    await store.reserve(held, [claim(amount=3)])
    short = await store.reserve(opening(opened=NOON), [claim(limit=7, name="smaller")])
    assert short == Shortage(claim(limit=7, name="smaller"), 4, 3, MIDNIGHT)
    assert await store.reserve(opening(opened=NOON), [claim(limit=8, name="larger")]) is None
    await store.close_row(closing(held.id), [charge(amount=3)])
    assert (await stands(store)).used == 7


ENDS: list[tuple[Window, float]] = [
    ("minute", NOON + 60),
    ("hour", NOON + 3600),
    ("day", MIDNIGHT),
    ("month", float(timegm((2026, 12, 1, 0, 0, 0)))),
]


@pytest.mark.parametrize(("window", "end"), ENDS)
async def test_a_fixed_window_across_its_boundary(
    store: Store, opening: Opening, closing: Closing, window: Window, end: float
) -> None:
    account = KEY._replace(window=window)
    running = opening(opened=end - 2)
    assert await spend(store, opening, closing, NOON, claim(account, 7)) is None
    assert await store.reserve(running, [claim(account, 3)]) is None
    short = await store.reserve(opening(opened=end - 0.001), [claim(account)])
    assert short == Shortage(claim(account), 7, 3, end)
    assert await spend(store, opening, closing, end, claim(account, 10)) is None
    await store.close_row(closing(running.id), [charge(account, 3)])
    assert (await stands(store, account, end)).used == 10, "it counts in the window it was reserved in"
    by_period = [used for (_, period), (used, _) in sorted((await totals(store)).items())]
    assert by_period == [10, 10]


async def test_total_never_ends(store: Store, opening: Opening, closing: Closing) -> None:
    account = KEY._replace(window="total")
    assert await spend(store, opening, closing, NOON, claim(account, 10)) is None
    short = await store.reserve(opening(opened=NOON + 1e9), [claim(account)])
    assert short == Shortage(claim(account), 10, 0, None)


SLIDING: list[tuple[Window, float, float]] = [
    ("minute", 60, 1), ("hour", 3600, 60), ("day", 86_400, 900), ("month", 30 * 86_400, 21_600),
]  # fmt: skip


@pytest.mark.parametrize(("window", "length", "part"), SLIDING)
async def test_a_sliding_window(
    store: Store, opening: Opening, closing: Closing, window: Window, length: float, part: float
) -> None:
    account = KEY._replace(window=window, sliding=True)
    for share, amount in ((0.0, 4), (0.5, 6)):
        assert await spend(store, opening, closing, NOON + share * length, claim(account, amount)) is None
    short = await store.reserve(opening(opened=NOON + length), [claim(account)])
    assert short == Shortage(claim(account), 10, 0, NOON + length + part)
    assert short.frees_at is not None
    assert await store.reserve(opening(opened=short.frees_at - 0.001), [claim(account)]) is not None
    assert await spend(store, opening, closing, short.frees_at, claim(account, 4)) is None
    later = await store.reserve(opening(opened=short.frees_at), [claim(account, 2)])
    assert later is not None
    assert later.frees_at == NOON + 1.5 * length + part
    assert (await stands(store, account, later.frees_at)).used == 4


@pytest.mark.parametrize("sliding", [False, True])
async def test_a_clock_that_jumps_gives_no_window_twice(store: Store, opening: Opening, closing: Closing, sliding: bool) -> None:
    account = KEY._replace(window="minute", sliding=sliding)
    granted = 0
    for at in (NOON, NOON + 120, NOON, NOON - 1e6, NOON + 119, NOON + 120, float("nan"), float("-inf"), 1e300):
        for _ in range(12):
            granted += await spend(store, opening, closing, at, claim(account)) is None
    assert granted == 20, "ten before the jump forwards, ten after"


async def test_concurrent_counts_what_is_held_only(store: Store, opening: Opening, closing: Closing) -> None:
    account = Account("key:bench", "concurrent", "total", False)
    rows = [opening(opened=NOON + number * 100) for number in range(3)]
    for row in rows[:2]:
        assert await store.reserve(row, [claim(account, limit=2)]) is None
    assert await store.reserve(rows[2], [claim(account, limit=2)]) == Shortage(claim(account, limit=2), 0, 2, None)
    await store.close_row(closing(rows[0].id), [charge(account)])
    assert await store.reserve(rows[2], [claim(account, limit=2)]) is None
    for row in rows:
        await store.close_row(closing(row.id), [charge(account)])
    assert await stands(store, account) == Standing(account, 0, 0, 0, None)
    assert await store.totals() == []


async def test_zero_and_absurd_amounts(store: Store, opening: Opening, closing: Closing) -> None:
    units: Sequence[Unit] = ("tokens", "nano")
    for unit in units:
        account = Account("global", unit, "day", False)
        assert await spend(store, opening, closing, NOON, claim(account, 0, 0)) is None
        assert await store.reserve(opening(opened=NOON), [claim(account, 10**30)]) is not None
        row = opening(opened=NOON)
        assert await store.reserve(row, [claim(account, -5), claim(KEY._replace(unit=unit), 1)]) is None
        await store.close_row(closing(row.id), [charge(account, -(10**30), -1), charge(KEY._replace(unit=unit), 10**30)])
        assert (await stands(store, account)).used == 0
        assert (await stands(store, KEY._replace(unit=unit))).used == 1


async def test_hostile_scopes_are_names(store: Store, opening: Opening, closing: Closing) -> None:
    nasty = ["user:'; DROP TABLE totals; --", "user:\t\n\x00", "user:x\ud800", "user:" + "é" * 100_000]
    for scope in nasty:
        account = KEY._replace(scope=scope)
        assert await spend(store, opening, closing, NOON, claim(account, 10)) is None
        assert await store.reserve(opening(opened=NOON), [claim(account, 1)]) is not None
    assert [total.used for total in await store.totals()] == [10] * 4


async def test_many_accounts_that_came_and_went(store: Store, opening: Opening, closing: Closing) -> None:
    """Those that count still are not forgotten with the others."""
    kept = KEY._replace(window="total")
    assert await spend(store, opening, closing, NOON, claim(kept, 10)) is None
    running = opening(opened=NOON)
    assert await store.reserve(running, [claim(KEY._replace(window="minute"), 5)]) is None
    for number in range(1500):
        account = Account(f"user:{number}", "requests", "minute", number % 2 > 0)
        assert await spend(store, opening, closing, NOON + number, claim(account)) is None
    assert (await stands(store, kept, NOON)).used == 10
    await store.close_row(closing(running.id), [charge(KEY._replace(window="minute"), 5)])
    assert (await totals(store))[KEY._replace(window="minute"), int(NOON)] == (5, 0)


async def test_ids_are_the_callers(store: Store, opening: Opening, closing: Closing) -> None:
    """Closing what was never opened charges nothing."""
    await store.close_row(closing(new_id()), [charge()])
    assert await store.totals() == []
