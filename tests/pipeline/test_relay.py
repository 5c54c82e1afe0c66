"""Taps over batches: order, holding back, dropping, and the bytes that stand while nobody changed anything."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from clawproxy.errors import ClawError
from clawproxy.events import Batch, Event, Text
from clawproxy.hookspecs import Observe, Transform
from clawproxy.pipeline.relay import Relay


def text_of(batch: Batch | None) -> str:
    return "".join(event.text for event in (batch.events if batch else []) if isinstance(event, Text))


def upper(events: Sequence[Event]) -> list[Event]:
    return [Text(event.text.upper()) if isinstance(event, Text) else event for event in events]


def same(events: Sequence[Event]) -> Sequence[Event]:
    return events


def quiet(*_: str) -> None: ...


def test_no_taps_no_change() -> None:
    batch = Batch([Text("a")], raw=b"data", dialect="x")
    relay = Relay([], quiet)
    assert relay.take(batch) is batch
    assert relay.end() is None


def test_an_untouched_batch_keeps_its_bytes_and_a_changed_one_loses_them() -> None:
    batch = Batch([Text("a")], raw=b"data", dialect="x")
    assert Relay([("same", Transform(same, streams="per_batch"))], quiet).take(batch) is batch
    changed = Relay([("upper", Transform(upper, streams="per_batch"))], quiet).take(batch)
    assert changed is not None
    assert changed.raw is None
    assert text_of(changed) == "A"


def test_taps_run_in_reverse_of_the_operators_order() -> None:
    seen: list[str] = []
    audit = Observe(lambda batch: seen.append("audit " + text_of(batch)))
    meter = Observe(lambda batch: seen.append("meter " + text_of(batch)))
    relay = Relay([("audit", audit), ("sanitize", Transform(upper, streams="per_batch")), ("meter", meter)], quiet)
    relay.take(Batch([Text("a")]))
    assert seen == ["meter a", "audit A"], "the meter sees what was billed, the audit what the client got"


def test_silence_means_hold_back() -> None:
    relay = Relay([("upper", Transform(upper))], quiet)
    assert relay.take(Batch([Text("a")])) is None
    assert relay.take(Batch([Text("b")])) is None
    assert text_of(relay.end()) == "AB"


def test_what_one_transform_held_goes_through_those_above_it() -> None:
    above = Transform(upper, streams="per_batch")
    below = Transform(lambda events: [], end=lambda: [Text("tail")], streams="window")
    relay = Relay([("above", above), ("below", below)], quiet)
    assert relay.take(Batch([Text("x")])) is None
    assert text_of(relay.end()) == "TAIL"


def test_an_observer_that_raises_is_dropped_and_the_answer_goes_on() -> None:
    calls: list[int] = []
    reports: list[tuple[str, ...]] = []

    def see(_: Batch) -> None:
        calls.append(1)
        raise RuntimeError

    relay = Relay([("broken", Observe(see))], lambda *args: reports.append(args))
    for _ in range(3):
        assert relay.take(Batch([Text("a")])) is not None
    assert len(calls) == 1
    assert [report[:2] for report in reports] == [("broken", "tap_failed")]
    assert reports[0][2].startswith("RuntimeError at test_relay.py:")


def test_a_transform_that_raises_ends_the_answer() -> None:
    def change(_: Sequence[Event]) -> Sequence[Event]:
        raise RuntimeError("with a secret")

    relay = Relay([("broken", Transform(change, streams="per_batch"))], quiet)
    with pytest.raises(ClawError) as caught:
        relay.take(Batch([Text("a")]))
    assert caught.value.slug == "internal"
    assert "secret" not in caught.value.message


def test_a_slow_observer_is_named_then_dropped_but_a_slow_transform_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", itertools.count().__next__)
    reports: list[tuple[str, ...]] = []
    calls: list[int] = []
    relay = Relay(
        [("slow", Observe(lambda _: calls.append(1))), ("slower", Transform(upper, streams="per_batch"))],
        lambda *args: reports.append(args),
    )
    for _ in range(5):
        assert text_of(relay.take(Batch([Text("a")]))) == "A"
    assert len(calls) == 3
    assert [r for r in reports if r[0] == "slow"][-1][1] == "tap_dropped"
    assert len([r for r in reports if r[0] == "slower"]) == 5


def test_an_abandoned_answer_ends_the_observers_and_drops_what_was_held() -> None:
    ended: list[int] = []
    relay = Relay([("o", Observe(lambda _: None, end=lambda: ended.append(1))), ("t", Transform(upper))], quiet)
    relay.take(Batch([Text("held")]))
    relay.abandon()
    assert ended == [1]
