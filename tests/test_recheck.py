"""Credentials in use are asked for once a round, however many connections there are; others have their turns meanwhile."""

from __future__ import annotations

import io
import json

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from clawproxy.config import Config
from clawproxy.config.schema import ServerConfig
from clawproxy.errors import ClawError
from clawproxy.lifetime import Lifetime
from clawproxy.messages import Credentials, Principal
from clawproxy.ops.logs import LOG, Ration
from clawproxy.recheck import EVERY, Rechecks
from clawproxy.transport.websocket import Connections


class Asked:
    """Stands where the gateway does."""

    def __init__(self, verdict: Principal | ClawError) -> None:
        self.config = Config(server=ServerConfig(on_revoke="cut"))
        self.calls: set[Opened] = set()
        self.verdict = verdict
        self.asked: list[Credentials] = []

    async def authenticate(self, credentials: Credentials) -> Principal:
        self.asked.append(credentials)
        if isinstance(self.verdict, ClawError):
            raise self.verdict
        return self.verdict


@define(eq=False)
class Opened:
    """Stands where a WebSocket's session does, or a call over HTTP."""

    credentials: Credentials
    barred: bool = False
    streams: tuple[()] = ()
    principal: Principal | None = None
    refused: list[ClawError] = field(factory=list)
    lifetime: Lifetime = field(factory=Lifetime)

    def refuse(self, error: ClawError) -> None:
        self.refused.append(error)


VERDICTS: dict[str, Principal | ClawError] = {
    "good": Principal("bench"),
    "gone": ClawError("auth.expired"),
    "unknown": ClawError("store_unavailable"),
}


@pytest.mark.parametrize("known", VERDICTS)
async def test_a_round_asks_once_for_each_and_lets_others_run(known: str) -> None:
    gateway, websockets, turns = Asked(VERDICTS[known]), Connections(), 0
    sessions = [Opened(Credentials(f"key-{number % 4}", "127.0.0.1", "claw")) for number in range(1000)]
    for session in sessions:
        websockets.add(session)  # type: ignore[arg-type]
    gateway.calls = calls = {Opened(Credentials(f"key-{number % 4}")) for number in range(1000)}

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await Rechecks(gateway, websockets).round()  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()
    assert turns >= 30
    assert len(gateway.asked) == len(set(gateway.asked)) == 8
    assert all(bool(session.refused) == (known == "gone") for session in sessions)
    assert all((call.lifetime.cause is not None) == (known == "gone") for call in calls)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(LOG, "stream", stream)
    monkeypatch.setattr(LOG, "ration", Ration(50, 5))
    return stream


class Torn(Opened):
    """One with a defect."""

    def refuse(self, error: ClawError) -> None:
        raise ZeroDivisionError


class Broken(Asked):
    """One whose plugins, or store, have a defect that nobody foresaw: for one of the keys."""

    async def authenticate(self, credentials: Credentials) -> Principal:
        if credentials.token == "key-1":
            self.asked.append(credentials)
            raise ZeroDivisionError
        return await super().authenticate(credentials)


async def test_a_defect_ends_neither_the_service_nor_what_the_others_are_asked_for(
    log: io.StringIO, autojump_clock: MockClock
) -> None:
    gateway, websockets = Broken(ClawError("auth.expired")), Connections()
    sessions = [Opened(Credentials(f"key-{number}")) for number in range(3)] + [Torn(Credentials("key-3"))]
    for session in sessions:
        websockets.add(session)  # type: ignore[arg-type]
    gateway.calls = {Opened(Credentials(f"key-{number}")) for number in range(3)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Rechecks(gateway, websockets).run)  # type: ignore[arg-type]
        await trio.sleep(EVERY * 5.5)
        nursery.cancel_scope.cancel()
    assert [bool(each.refused) for each in sessions] == [True, False, True, False]
    assert {each.credentials.token: each.lifetime.cause is not None for each in gateway.calls} == {
        "key-0": True,
        "key-1": False,
        "key-2": True,
    }
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    crashes = [
        line["error_type"] for line in lines if line["event"] == "recheck.crashed"
    ]  # a slow machine says other things, too
    assert crashes == ["ZeroDivisionError"], "said once"


async def test_a_round_that_fails_as_a_whole_is_tried_again(log: io.StringIO, autojump_clock: MockClock) -> None:
    gateway, websockets = Asked(ClawError("auth.expired")), Connections()
    session = Opened(Credentials("key"))
    websockets.add(session)  # type: ignore[arg-type]
    whole, gateway.config = gateway.config, None  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Rechecks(gateway, websockets).run)  # type: ignore[arg-type]
        for _ in range(2):  # said again where it was well between
            await trio.sleep(EVERY * 3)
            gateway.config = whole
            await trio.sleep(EVERY * 2)
            gateway.config = None  # type: ignore[assignment]
        nursery.cancel_scope.cancel()
    assert [json.loads(line)["event"] for line in log.getvalue().splitlines()] == ["recheck.crashed"] * 2
