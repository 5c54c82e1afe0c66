"""Flow control by the client: no credit, no content, and the provider is not read."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from clawproxy.events import Batch, Outcome, Reasoning, Text, ToolCallDelta
from clawproxy.service import Call, Client
from clawproxy.transport.websocket.credit import MOST, Credit

from .kit import FakeService, Raw, connect, gateway, message, request, until

CONTENT = ("llm_token", "llm_reasoning", "llm_tool_call")


async def opt_in(raw: Raw) -> dict[str, Any]:
    await raw.send(message(type="auth", token="good", credit=True))
    return await raw.json()


def credit(count: Any, ident: Any = "a") -> bytes:
    return message(type="credit", id=ident, n=count)


async def nothing(raw: Raw) -> None:
    """The server has said nothing: the answer to a ping comes first."""
    await raw.send(message(type="ping", t="now"))
    assert await raw.json() == {"type": "pong", "t": "now"}


async def test_a_token_costs_a_credit() -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        welcome = await opt_in(raw)
        assert welcome["limits"]["credit"] == 0, "what each request begins with"
        await raw.send(request("a", "say a b c d"))
        assert (await raw.json())["type"] == "llm_response_start"
        await nothing(raw)
        await raw.send(credit(1))
        assert (await raw.json())["content"] == "a"
        await nothing(raw)
        await raw.send(credit(2))
        assert [(await raw.json())["content"] for _ in range(2)] == ["b", "c"]
        await nothing(raw)
        await raw.send(credit(1))
        frames = await raw.until("llm_response_end")  # which needs none
        assert [f["type"] for f in frames] == ["llm_token", "llm_response_end"]
        assert [f["seq"] for f in frames] == [4, 5]
        assert frames[-1]["outcome"] == "complete"
        await raw.send(credit(5))  # it crossed the end on its way
        await nothing(raw)


async def test_without_asking_for_it_there_is_none() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        assert "credit" not in (await _auth(raw, credit=False))["limits"]
        await raw.send(request("a", "say a b"))
        await raw.until("llm_response_end")
        await raw.send(credit(1))
        assert (await raw.json())["error"] == "invalid_request"


async def _auth(raw: Raw, **fields: Any) -> dict[str, Any]:
    await raw.send(message(type="auth", token="good", **fields))
    return await raw.json()


async def test_a_connection_that_is_open_may_ask_for_it() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await opt_in(raw)
        await raw.send(request("a", "say a"))
        assert (await raw.json())["type"] == "llm_response_start"
        await nothing(raw)
        assert (await _auth(raw))["limits"]["credit"] == 0, "it stays"


async def test_the_provider_is_not_read_without_credit() -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        await opt_in(raw)
        await raw.send(request("a", "flood 1000"))
        await raw.until("llm_response_start")
        await raw.send(credit(10))
        for _ in range(10):
            await raw.json()
        await nothing(raw)
        assert gw.service.sent == 10, "one batch waits, and no more were asked for"
        await raw.send(request("b", "say x"), credit(1, "b"))
        assert (await raw.until("llm_response_end"))[-1]["id"] == "b", "others go on"
        await raw.send(credit(MOST))
        await raw.until("llm_response_end", "a")
        assert gw.service.sent == 1000


class Mixed(FakeService):
    """One batch of everything."""

    async def _answer(self, call: Call, client: Client, exchange: Any) -> Outcome:
        client.attach(exchange, call.decode())
        exchange.notice("redacted", "x")
        call_of_a_tool = ToolCallDelta(0, "c", "f", "{}")
        await client.send(Batch([Reasoning("r"), Text("a"), Text("b"), call_of_a_tool, Text("c")]))
        self.sent += 1
        await client.finish(Outcome("complete", finish="stop"), None)
        return Outcome("complete", finish="stop")


async def test_each_message_of_content_costs_one() -> None:
    async with gateway(Mixed()) as gw, connect(gw.port, token=None) as raw:
        await opt_in(raw)
        await raw.send(request("a", ""))
        assert [(await raw.json())["type"] for _ in range(1)] == ["error"]  # an empty prompt
        await raw.send(request("a", "x"))
        assert [(await raw.json())["type"] for _ in range(2)] == ["llm_response_start", "llm_notice"]
        got = []
        for _ in range(4):
            await nothing(raw)
            await raw.send(credit(1))
            got.append(await raw.json())
        assert [f["type"] for f in got] == ["llm_reasoning", "llm_token", "llm_tool_call", "llm_token"]
        assert [f["seq"] for f in got] == [2, 3, 4, 5]
        assert (await raw.json())["type"] == "llm_response_end"


async def test_a_whole_answer_costs_one() -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        await opt_in(raw)
        await raw.send(request("a", "say a b c", parameters={"stream": False}))
        assert (await raw.json())["type"] == "llm_response_start"
        await nothing(raw)
        await raw.send(credit(1))
        assert [(await raw.json())["type"] for _ in range(2)] == ["llm_token", "llm_response_end"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["say a b", "say a"])
async def test_a_client_that_gives_none_is_at_fault(stream: bool, prompt: str) -> None:
    async with gateway(write=0.03) as gw, connect(gw.port, token=None) as raw:
        await opt_in(raw)
        await raw.send(request("a", prompt, parameters={"stream": stream}))
        error = (await raw.until("error"))[-1]
        assert (error["code"], error["error"], error["id"]) == (408, "timeout.write", "a")
        assert (error["setting"], error["limit_ms"]) == ("deadlines.write", 30)
        assert "at fault: client" in error["message"]
        assert "credit" in error["message"]
        await raw.send(request("b", "say x"), credit(9, "b"))
        frames = await raw.until("llm_response_end")
        assert {f["id"] for f in frames} == {"b"}, "the connection goes on, and that one is over"
        assert frames[-1]["outcome"] == "complete"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancel_needs_no_credit(stream: bool) -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        await opt_in(raw)
        await raw.send(request("a", "say a b", parameters={"stream": stream}))
        await raw.until("llm_response_start")
        await raw.send(message(type="llm_cancel", id="a"))
        end = await raw.json()
        assert (end["type"], end["outcome"], end["seq"]) == ("llm_response_end", "cancelled", 1)


async def test_an_error_needs_no_credit() -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        await opt_in(raw)
        await raw.send(request("a", "fail provider_error.cut"))
        assert (await raw.json())["error"] == "provider_error.cut"


async def test_a_client_that_leaves_without_giving_any() -> None:
    """`gateway` asserts that nothing is left."""
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        await opt_in(raw)
        await raw.send(*(request(f"r{n}", "flood 100") for n in range(10)))
        await until(lambda: gw.service.running == 10)
        await trio.aclose_forcefully(raw.stream)
        await until(lambda: not gw.active)
        assert {outcome.label for _, outcome, _ in gw.service.closed} == {"client_gone"}


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "1", None, 2**31])
async def test_credit_that_is_none(count: Any) -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        await opt_in(raw)
        await raw.send(request("a", "say a"))
        await raw.until("llm_response_start")
        await raw.send(credit(count))
        error = await raw.json()
        assert (error["error"], error["param"], error["ref"]) == ("invalid_request", "n", "a")
        assert "id" not in error


async def test_credit_adds_up_to_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    own = Credit(0)
    own.grant(MOST)
    own.grant(MOST)
    assert own.left == MOST
    await own.spend(1)
    assert own.left == MOST - 1
    empty = Credit(0)
    with trio.move_on_after(1):
        await empty.spend(5)
    empty.grant(1)
    assert empty.left == 1, "a wait that was cancelled takes nothing"
