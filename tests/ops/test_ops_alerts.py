"""What alerts go by, without a socket: shares, percentiles, what is usual, what was told already, and the files (A32)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from clawproxy.config import AlertsConfig, Config, Duration
from clawproxy.context import Alert, App
from clawproxy.ops import alerts as module
from clawproxy.ops.alertrules import Habit, Slot, Watch, percentile, step_of
from clawproxy.ops.alerts import Alerts
from clawproxy.stores.base import UsageRow
from clawproxy.stores.memory import MemoryStore

HOUR = 3600.0


class Told(list[tuple[str, str, dict[str, Any]]]):
    def __call__(self, event: str, about: str, message: str, **details: Any) -> None:
        self.append((event, about, details))


def habit(**changes: Any) -> tuple[Watch, Told]:
    told = Told()
    return Watch(AlertsConfig(unusual_use=3.0, unusual_least=1000, **changes), told), told


def test_unusual_use_is_beyond_what_the_hours_before_had() -> None:
    watch, told = habit()
    for hour in range(5):
        watch.used("k", 1000, hour * HOUR)
    watch.used("k", 3000, 5 * HOUR)
    assert not told, "three times the usual is not more than that"
    watch.used("k", 1, 5 * HOUR)
    [(event, about, details)] = told
    assert (event, about) == ("unusual_use", "k 5")
    assert (details["key"], details["tokens"], details["usual"]) == ("k", 3001, 1000)


def test_whoever_is_new_has_no_usual_and_little_is_never_unusual() -> None:
    watch, told = habit()
    watch.used("new", 10**9, 0)
    watch.used("new", 10**9, HOUR)
    watch.used("new", 10**9, 2 * HOUR)
    for hour in range(9):
        watch.used("small", 1, hour * HOUR)
    watch.used("small", 900, 9 * HOUR)
    assert not told


def test_hours_without_use_are_not_usual() -> None:
    watch, told = habit()
    for day in range(4):
        watch.used("k", 10_000, day * 24 * HOUR)
    watch.used("k", 20_000, 4 * 24 * HOUR)
    assert not told, "at nine in the morning it is as it always is"


def test_what_is_usual_is_learnt_from_the_ledger() -> None:
    watch, told = habit()
    watch.used("k", 50, 10 * HOUR)  # before the ledger was read
    rows = [UsageRow("k", 1, 1, 600, 400, 0, ("k", "h"), first=hour * HOUR) for hour in range(6)]
    watch.learn([*rows, UsageRow("j", 1, 1, 5, 5, 0, ("j", "h"), first=HOUR)])
    watch.used("k", 2900, 10 * HOUR)
    assert not told
    watch.used("k", 100, 10 * HOUR)
    assert [each[2]["tokens"] for each in told] == [3050]


def test_the_average_moves() -> None:
    one = Habit(0)
    for hour, tokens in enumerate((100, 100, 200, 0, 0)):
        one.add(hour, tokens)
    assert one.hours == 3
    assert one.usual == pytest.approx(100 + 0.2 * 100)
    one.add(2, 5)
    assert one.hour == 4, "time does not go back"


def test_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clawproxy.ops.alertrules.MOST_KEYS", 10)
    watch, _ = habit()
    for number in range(100):
        watch.used(str(number), 1, 0)
    assert len(watch._habits) == 10


def test_the_percentile_is_right_within_its_step() -> None:
    draw = random.Random(7)
    values = sorted(draw.lognormvariate(0, 1) for _ in range(2000))
    slots = [Slot(0.0) for _ in range(3)]
    for value in values:
        late = draw.choice(slots).late
        late[step_of(value)] = late.get(step_of(value), 0) + 1
    count, found = percentile(slots, 0.95)
    truth = values[int(0.95 * len(values)) - 1]
    assert count == 2000
    assert found is not None
    assert truth <= found <= truth * 1.0906 * 1.001
    assert percentile([Slot(0.0)], 0.95) == (0, None)


def filled(requests: int, failed: int, at: float, watch: Watch) -> None:
    slot = watch._slot("", at)
    slot.requests += requests
    slot.failed += failed
    slot.late[step_of(2.0)] = slot.late.get(step_of(2.0), 0) + requests


def test_a_share_is_told_when_it_comes_over_and_again_after_it_was_under() -> None:
    told = Told()
    watch = Watch(AlertsConfig(error_rate="10%", latency=Duration(1.0), least=10, window=Duration(100.0)), told)
    filled(9, 9, 0, watch)
    watch.look(1)
    assert not told, "too few to say"
    filled(1, 0, 1, watch)
    for now in (2, 3, 4):
        watch.look(now)
    assert [each[0] for each in told] == ["error_rate", "latency"]
    watch.look(500)
    assert not watch._slots, "what is past is forgotten"
    filled(20, 10, 500, watch)
    watch.look(501)
    assert [each[0] for each in told].count("error_rate") == 2


async def make(tmp_path: Path, **changes: Any) -> tuple[Alerts, list[Alert]]:
    seen: list[Alert] = []
    await trio.lowlevel.checkpoint()
    config = Config(alerts=AlertsConfig(**changes))
    return Alerts(App(config, MemoryStore(), "one", tmp_path), seen.append), seen


async def test_the_same_is_told_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("clawproxy.ops.alerts.time.monotonic", lambda: now[0])
    alerts, seen = await make(tmp_path, repeat=Duration(60.0))
    for at in (100.0, 110.0, 159.0, 161.0):
        now[0] = at
        alerts.tell("latency", "a", "late")
        alerts.tell("latency", "b", "late", none=None, p95_ms=5)
    assert [alert.message for alert in seen] == ["late"] * 4
    assert seen[1].details == {"p95_ms": 5}


async def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    alerts, seen = await make(tmp_path, file=False)
    for number in range(module.MOST_REMEMBERED + 100):
        alerts.tell("latency", str(number), "late")
    assert len(alerts._quiet) <= module.MOST_REMEMBERED
    assert len(seen) == module.MOST_REMEMBERED + 100


async def test_what_waits_at_the_end_is_written_and_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 1000)
    alerts, _ = await make(tmp_path)
    for number in range(120):
        alerts.tell("latency", str(number), "late" * 10)
        if number % 5 == 0:
            with trio.move_on_after(0):
                await alerts.write()
    with trio.move_on_after(0):
        await alerts.write()
    files = sorted(path.name for path in (tmp_path / "events").iterdir())
    assert files == ["alerts.1.jsonl", "alerts.2.jsonl", "alerts.3.jsonl", "alerts.jsonl"]
    last = (tmp_path / "events" / "alerts.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["event"] == "latency"
    assert all(path.stat().st_size < 4000 for path in (tmp_path / "events").iterdir())


async def test_a_file_that_can_not_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("in the way")
    alerts, seen = await make(tmp_path)
    alerts.tell("latency", "a", "late")
    with trio.move_on_after(0.05):
        await alerts.write()
    assert len(seen) == 1


class Broken(MemoryStore):
    async def usage(self, *_: object, **__: object) -> list[UsageRow]:
        await trio.lowlevel.checkpoint()
        raise OSError("disk I/O error")


async def test_a_ledger_that_breaks_and_a_defect_end_no_watch(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AlertsConfig(unusual_use=3.0, error_rate="10%", least=10, window=Duration(100.0))
    seen: list[Alert] = []
    alerts = Alerts(App(Config(alerts=config), Broken(), "one", tmp_path), seen.append)
    alerts.configure(config)
    watch = alerts.watching
    assert watch is not None
    looks = 0

    def look(now: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise ZeroDivisionError
        Watch.look(watch, now)

    monkeypatch.setattr(watch, "look", look)
    filled(10, 10, trio.current_time(), watch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alerts.watch)
        await trio.sleep(35)
        nursery.cancel_scope.cancel()
    assert looks >= 3
    assert [each.event for each in seen] == ["error_rate"]
