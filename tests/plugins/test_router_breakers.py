"""The circuit breaker and the retry budget as values: what holds for every sequence of results and times."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clawproxy.config import Duration
from clawproxy_router.breakers import JITTER, LOST, Breaker, BreakerSettings, Probe, State, Window
from clawproxy_router.retries import Budget, RetrySettings

SETTINGS = BreakerSettings(
    consecutive=3, requests=6, window=Duration(10.0), open=Duration(1.0), longest=Duration(4.0), probes=2
)  # fmt: skip
NEXT: dict[State, set[State]] = {"closed": {"open"}, "open": {"half_open"}, "half_open": {"open", "closed"}}


class Machine(RuleBasedStateMachine):
    """A breaker beside the plainest account of what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.now, self.random = Breaker(), 1000.0, Random(1)
        self.told: list[tuple[float, bool]] = []
        """While closed, since it was last."""
        self.opened = 0
        self.state: State = "closed"

    def moved(self, change: State | None) -> None:
        assert (change is None) == (self.breaker.state == self.state)
        if change is not None:
            assert change == self.breaker.state
            assert change in NEXT[self.state]
            if change == "open":
                most = min(SETTINGS.longest, SETTINGS.open * 2**self.opened)
                assert (1 - JITTER) * most <= self.breaker.until - self.now <= most + 1e-9
                self.opened += 1
            if change == "closed":
                self.told.clear()
            self.state = change

    @rule(seconds=st.floats(0.0, 6.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.moved(self.breaker.look(self.now))

    @rule(good=st.booleans())
    def a_request_ends(self, good: bool) -> None:
        before = self.state
        change = self.breaker.tell(good, self.now, SETTINGS, self.random)
        if before != "closed":
            assert change is None, "what was under way when it opened says nothing new"
            return
        self.told.append((self.now, good))
        row = next((n for n, (_, each) in enumerate(reversed(self.told)) if each), len(self.told))
        inside = [each for at, each in self.told if at > self.now - 0.9 * SETTINGS.window]
        around = [each for at, each in self.told if at > self.now - SETTINGS.window - 1e-9]
        if row >= SETTINGS.consecutive:
            assert change == "open"
        elif change == "open":
            assert not good
            assert len(around) >= SETTINGS.requests
        elif not good and inside == around:  # no piece of the window is on its edge
            assert len(inside) < SETTINGS.requests or inside.count(False) < SETTINGS.rate * len(inside)
        self.moved(change)

    @precondition(lambda self: self.state == "half_open" and self.breaker.probe is None)
    @rule()
    def a_probe_begins(self) -> None:
        assert self.breaker.wait(self.now) == 0.0
        self.breaker.probe = Probe(1, [], self.now)
        assert self.breaker.wait(self.now) > 0.0, "one at a time"

    @precondition(lambda self: self.breaker.probe is not None)
    @rule(good=st.booleans())
    def the_probe_ends(self, good: bool) -> None:
        goods = self.breaker.good
        change = self.breaker.probed(good, self.now, SETTINGS, self.random)
        assert change == ("open" if not good else "closed" if goods + 1 == SETTINGS.probes else None)
        self.moved(change)

    @invariant()
    def nobody_is_sent_to_an_open_one(self) -> None:
        if self.state == "open" and self.now < self.breaker.until:
            assert self.breaker.wait(self.now) > 0.0
        if self.state == "closed":
            assert self.breaker.wait(self.now) == 0.0
            assert self.breaker.probe is None

    @invariant()
    def it_is_forgotten_only_when_it_is_well(self) -> None:
        if self.breaker.well(self.now, SETTINGS):
            assert self.state == "closed"
            self.now += 0.0
            assert self.breaker.rate(self.now, SETTINGS)[0] == 0.0 or self.now - self.breaker.noted >= SETTINGS.window


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestBreaker = Machine.TestCase


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.booleans()), max_size=60), st.floats(1.0, 20.0))
def test_a_window_holds_what_happened_within_it(events: list[tuple[float, bool]], length: float) -> None:
    window, now, told = Window(), 0.0, []
    for step, good in events:
        now += step
        window.add(good, now, length)
        told.append((now, good))
        requests, failures = window.counts(now, length)
        surely = [good for at, good in told if at > now - 0.9 * length + 1e-6]
        perhaps = [good for at, good in told if at > now - length - 1e-6]
        assert len(surely) <= requests <= len(perhaps)
        assert surely.count(False) <= failures <= perhaps.count(False)
        assert len(window.pieces) <= 10


def test_a_probe_that_never_began_is_given_up() -> None:
    breaker = Breaker(state="half_open", probe=Probe(1, [], 100.0))
    breaker.look(100.0 + LOST)
    assert breaker.wait(100.0 + LOST) > 0
    breaker.look(100.1 + LOST)
    assert breaker.wait(100.1 + LOST) == 0


def test_it_stays_open_longer_each_time_until_it_was_well_for_a_while() -> None:
    breaker, now, random = Breaker(), 0.0, Random(3)
    lengths = []
    for _ in range(5):
        while breaker.tell(False, now, SETTINGS, random) is None and breaker.state == "closed":
            pass
        lengths.append(breaker.until - now)
        now = breaker.until
        assert breaker.look(now) == "half_open"
        for _ in range(SETTINGS.probes):
            breaker.probed(True, now, SETTINGS, random)
        assert breaker.state == "closed"
        assert not breaker.well(now, SETTINGS), "it is remembered for a window"
    assert lengths[0] <= 1.0
    assert lengths[1] > lengths[0]
    assert all(4.0 * (1 - JITTER) <= length <= 4.0 for length in lengths[2:])
    assert breaker.well(now + SETTINGS.window, SETTINGS)


@given(st.lists(st.tuples(st.integers(0, 40), st.floats(0.0, 2.0)), max_size=60))
def test_retries_are_a_bounded_share_of_requests(steps: list[tuple[int, float]]) -> None:
    budget, settings, requests, now, taken = Budget(), RetrySettings(share=0.2, floor=1.0, burst=5), 0, 0.0, 0
    for more, seconds in steps:
        requests, now = requests + more, now + seconds
        taken += budget.take(requests, now, settings)
        assert taken <= 5 + 0.2 * requests + now + 1e-6


def test_a_budget_that_is_used_up_comes_back() -> None:
    budget, settings = Budget(), RetrySettings(share=0.0, floor=2.0, burst=2)
    assert [budget.take(0, 10.0, settings) for _ in range(3)] == [True, True, False]
    assert not budget.take(0, 10.4, settings)
    assert budget.take(0, 10.5, settings)
