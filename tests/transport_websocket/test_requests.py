"""The tasks of requests: one waits for the next, each request is its own, and one given up early is told."""

from __future__ import annotations

import pytest
import trio
from attrs import define, field

from clawproxy.errors import ClawError
from clawproxy.events import Outcome
from clawproxy.messages import Credentials, Principal
from clawproxy.service import Call, Client
from clawproxy.transport.websocket.client import ClawClient

from .kit import FakeService, connect, gateway, message, request, until


@define(eq=False)
class Watching(FakeService):
    """Remembers the task of each request."""

    tasks: list[trio.lowlevel.Task] = field(factory=list)

    async def handle(self, call: Call, client: Client) -> Outcome:
        self.tasks.append(trio.lowlevel.current_task())
        return await FakeService.handle(self, call, client)


async def test_one_task_serves_requests_in_turn_and_as_many_as_it_takes_at_once() -> None:
    service = Watching()
    async with gateway(service) as gw, connect(gw.port) as raw:
        for turn in range(4):
            await raw.send(request(f"r{turn}", f"say {turn}"))
            assert (await raw.until("llm_response_end", f"r{turn}"))[1]["content"] == str(turn)
        assert len(set(service.tasks)) == 1
        service.tasks.clear()
        await raw.send(request("a", "hang"), request("b", "hang"), request("c", "say it"), request("d", "say it"))
        await until(lambda: len(service.tasks) == 4)
        assert len(set(service.tasks)) >= 3
        await until(lambda: service.running == 2)
        await raw.send(message(type="llm_cancel", id="a"), message(type="llm_cancel", id="b"))
        await until(lambda: service.running == 0)
        first = set(service.tasks)
        service.tasks.clear()
        await raw.send(request("e", "say it"))
        await raw.until("llm_response_end", "e")
        assert set(service.tasks) <= first


@pytest.mark.parametrize("answered", [False, True])
async def test_a_request_that_is_cancelled_while_it_is_authenticated(answered: bool) -> None:
    """Its task ends or goes on, as it happens; the connection, and the other requests, do not notice."""

    class Slow(Watching):
        async def authenticate(self, credentials: Credentials) -> Principal:
            principal = await FakeService.authenticate(self, credentials)
            if answered and self.gate is not None:
                sessions = list(gw.connections._open)
                client = sessions[0].streams["a"]
                assert isinstance(client, ClawClient)
                client.cancel_by_client()  # in the very turn in which the answer is there
            return principal

    service = Slow()
    async with gateway(service) as gw, connect(gw.port) as raw:
        await raw.send(request("hanging", "hang"))
        await raw.until("llm_token", "hanging")
        for _ in range(2):
            gate = service.gate = trio.Event()
            service.authenticated.clear()
            await raw.send(request("a", "say no"))
            await until(lambda: service.authenticated)
            if answered:
                gate.set()
            else:
                await raw.send(message(type="llm_cancel", id="a"))
            end = (await raw.until("llm_response_end", "a"))[-1]
            assert (end["outcome"], end["seq"]) == ("cancelled", 0)
            service.gate = None
            await raw.send(request("b", "say yes"))
            assert (await raw.until("llm_response_end", "b"))[-1]["outcome"] == "complete"
        assert service.running == 1
        assert [ident for ident, _, _ in service.closed] == ["b", "b"]


async def test_a_client_that_leaves_while_its_message_is_authenticated() -> None:
    service = Watching()
    async with gateway(service) as gw, connect(gw.port) as raw:
        service.gate = trio.Event()
        service.authenticated.clear()
        await raw.send(request("a", "say no"))
        await until(lambda: service.authenticated)
        await raw.stream.aclose()
        await until(lambda: not gw.active)
    assert service.tasks == []


async def test_a_request_refused_at_its_message_ends_the_connection() -> None:
    service = Watching()
    async with gateway(service) as gw, connect(gw.port) as raw:
        await raw.send(request("a", "say yes"))
        await raw.until("llm_response_end", "a")
        service.principals.clear()
        await raw.send(request("b", "say no"))
        assert (await raw.until("error", "b"))[-1]["error"] == "auth.invalid"
        assert await raw.closed() == ClawError("auth.invalid").kind.close
