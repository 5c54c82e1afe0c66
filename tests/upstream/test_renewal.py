"""Renewing credentials, in virtual time (B5): when, how often, and what requests see of it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from clawproxy.secrets import Secret
from clawproxy.upstream.renewal import EARLY, Obtained, Renewal, Unobtainable


@attrs.define(eq=False)
class Source:
    """Gives `s1`, `s2`, ...; takes `takes` seconds; fails with what is in `failures` first."""

    lasts: float = 10.0
    takes: float = 0.1
    failures: list[Unobtainable] = attrs.field(factory=list)
    asked_at: list[float] = attrs.field(factory=list)
    at_once: int = 0
    made: int = 0
    uses: int = 0
    given: list[str | None] = attrs.field(factory=list)

    async def obtain(self) -> Obtained:
        self.asked_at.append(trio.current_time())
        self.at_once += 1
        assert self.at_once == 1, "one at a time"
        try:
            await trio.sleep(self.takes)
        finally:
            self.at_once -= 1
        if self.failures:
            raise self.failures.pop(0)
        self.made += 1
        return Obtained(Secret(f"s{self.made}"), self.lasts)

    def give(self, secret: Secret | None) -> None:
        self.given.append(None if secret is None else secret.reveal())


@asynccontextmanager
async def renewing(source: Source, **options: Any) -> AsyncIterator[Renewal]:
    renewal = Renewal("providers.p.oauth", source.obtain, lambda: source.uses, source.give, random=Random(1), **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(renewal.run)
        yield renewal
        nursery.cancel_scope.cancel()


async def test_nothing_is_asked_before_somebody_needs_it(autojump_clock: MockClock) -> None:
    source = Source()
    async with renewing(source):
        await trio.sleep(1000)
    assert source.asked_at == []


async def test_a_hundred_that_wait_are_one_renewal(autojump_clock: MockClock) -> None:
    source, got = Source(), []
    async with renewing(source) as renewal:

        async def need() -> None:
            got.append((await renewal.another(None)).reveal())

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(need)
    assert got == ["s1"] * 100
    assert len(source.asked_at) == 1


@pytest.mark.parametrize("lasts", [1.0, 5.0, 3600.0, 86400.0])
async def test_it_is_renewed_before_its_end_once(lasts: float, autojump_clock: MockClock) -> None:
    source = Source(lasts=lasts)
    async with renewing(source) as renewal:
        await renewal.another(None)
        for _ in range(200):
            source.uses += 1
            await trio.sleep(lasts / 20)
    gaps = [after - before for before, after in itertools.pairwise(source.asked_at)]
    assert len(gaps) >= 9
    lead = min(lasts / 4, 300.0)
    assert all(lasts - 1.21 * lead <= gap <= lasts - 0.79 * lead for gap in gaps), gaps
    assert len({round(gap, 6) for gap in gaps}) > 1, "with jitter"
    assert None not in source.given, "what was there stayed until the new one was"


async def test_what_nobody_uses_lapses(autojump_clock: MockClock) -> None:
    source = Source(lasts=10.0)
    async with renewing(source) as renewal:
        await renewal.another(None)
        await trio.sleep(1000)
        assert source.given == ["s1", None]
        assert len(source.asked_at) == 1
        assert (await renewal.another(None)).reveal() == "s2"


async def test_a_renewal_that_fails_is_tried_again_and_the_old_one_stays(autojump_clock: MockClock) -> None:
    source = Source(lasts=3600.0)
    async with renewing(source) as renewal:
        await renewal.another(None)
        source.failures = [Unobtainable("down")] * 5
        for _ in range(400):
            source.uses += 1
            await trio.sleep(10)
        assert source.given == ["s1", "s2"]
        assert len(source.asked_at) == 7
    pauses = [after - before for before, after in itertools.pairwise(source.asked_at[1:])]
    assert pauses == sorted(pauses), "later each time"
    assert pauses[0] < 1 < pauses[-1]


async def test_whoever_waits_waits_through_failures(autojump_clock: MockClock) -> None:
    source = Source(failures=[Unobtainable("down"), Unobtainable("down")])
    async with renewing(source) as renewal:
        with trio.fail_after(5):
            assert (await renewal.another(None)).reveal() == "s1"


async def test_where_there_is_no_hope_nobody_waits(autojump_clock: MockClock) -> None:
    source = Source(failures=[Unobtainable("invalid_client", final=True)])
    async with renewing(source) as renewal:
        for _ in range(5):
            with pytest.raises(Unobtainable, match="invalid_client"):
                await renewal.another(None)
        assert len(source.asked_at) == 1, "and the server is not asked for each of them"
        await trio.sleep(1)
        assert (await renewal.another(None)).reveal() == "s1"


async def test_nobody_waits_any_more(autojump_clock: MockClock) -> None:
    source = Source(failures=[Unobtainable("down")] * 1000)
    async with renewing(source) as renewal:
        with trio.move_on_after(3):
            await renewal.another(None)
        asked = len(source.asked_at)
        await trio.sleep(1000)
        assert len(source.asked_at) <= asked + 1


async def test_a_refusal_brings_one_renewal_forward(autojump_clock: MockClock) -> None:
    source = Source(lasts=3600.0)
    async with renewing(source) as renewal:
        first = await renewal.another(None)
        assert all(renewal.refused(first) for _ in range(50)), "of fifty that were under way"
        second = await renewal.another(first)
        assert second.reveal() == "s2"
        assert renewal.refused(first), "the new one is there already"
        assert not renewal.refused(second), "that one is refused, too: no storm"
        assert len(source.asked_at) == 2
        await trio.sleep(EARLY)
        assert renewal.refused(second)
        await renewal.another(second)
        assert len(source.asked_at) == 3


async def test_read_anew(autojump_clock: MockClock) -> None:
    """A reload: whatever is kept elsewhere may have changed; what is there is used until the new one is."""
    source = Source(lasts=3600.0)
    async with renewing(source) as renewal:
        renewal.ask()
        await trio.sleep(1)
        assert source.asked_at == [], "nobody has needed it yet"
        await renewal.another(None)
        renewal.ask()
        await trio.sleep(1)
        assert source.given == ["s1", "s2"]


@pytest.mark.parametrize(("lasts", "every", "gap"), [(float("inf"), 60.0, 60.0), (3600.0, 60.0, 60.0), (20.0, 60.0, 20.0)])
async def test_a_life_of_the_operators_own(lasts: float, every: float, gap: float, autojump_clock: MockClock) -> None:
    source = Source(lasts=lasts)
    async with renewing(source, every=every) as renewal:
        await renewal.another(None)
        while len(source.asked_at) < 3:
            source.uses += 1
            await trio.sleep(gap / 20)
    assert gap * 0.69 < source.asked_at[2] - source.asked_at[1] < gap * 0.81


async def test_another_generation_takes_over(autojump_clock: MockClock) -> None:
    """A reload starts the task again before the old one has ended."""
    source = Source(takes=1.0)
    renewal = Renewal("p", source.obtain, lambda: source.uses, source.give)
    async with trio.open_nursery() as nursery:
        old = trio.CancelScope()

        async def run(scope: trio.CancelScope) -> None:
            with scope:
                await renewal.run()

        nursery.start_soon(run, old)
        await trio.lowlevel.checkpoint()
        got: list[Secret] = []

        async def need(then: Callable[[Secret], None]) -> None:
            then(await renewal.another(None))

        nursery.start_soon(need, got.append)
        await trio.sleep(0.5)
        old.cancel()
        nursery.start_soon(run, trio.CancelScope())
        with trio.fail_after(5):
            while not got:
                await trio.sleep(0.1)
        assert got[0].reveal() == "s1"
        nursery.cancel_scope.cancel()
