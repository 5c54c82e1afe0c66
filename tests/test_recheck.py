"""Credentials in use are asked for once a round, however many connections there are; others have their turns meanwhile."""

from __future__ import annotations

import pytest
import trio
from attrs import define, field

from clawproxy.config import Config
from clawproxy.config.schema import ServerConfig
from clawproxy.errors import ClawError
from clawproxy.lifetime import Lifetime
from clawproxy.messages import Credentials, Principal
from clawproxy.recheck import Rechecks
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
