"""The protocol page, message by message, over a raw socket."""

from __future__ import annotations

import base64
import json
import time
from typing import Literal

import pytest
import trio

from clawproxy.config import Config, ServerConfig
from clawproxy.context import Exchange
from clawproxy.messages import Principal

from .kit import FakeService, Raw, connect, frame, gateway, message, request


async def test_the_sample_client_of_the_protocol_page() -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        await raw.send(
            frame(1, b'{"type":"auth","token":"good"}'),
            frame(
                1,
                b'{"type":"llm_request","model":"gpt-4-turbo","prompt":"say a b c",'
                b'"parameters":{"max_tokens":500,"temperature":0.7,"stream":true},'
                b'"metadata":{"user_id":"user123","priority":"normal"}}',
            ),
        )
        frames = await raw.until("llm_response_end")
        assert frames[0]["type"] == "auth_ok"
        assert frames[0]["principal"] == {"key": "test-key"}
        assert frames[0]["limits"]["in_flight"] == 32
        assert frames[1]["type"] == "llm_response_start"
        assert frames[1]["model"] == "scripted-1"
        assert frames[1]["provider"] == "scripted"
        assert frames[1]["route"] == {"strategy": "priority", "reason": "priority", "attempt": 1}
        assert "".join(f["content"] for f in frames if f["type"] == "llm_token") == "abc"
        assert [f["seq"] for f in frames[1:]] == list(range(len(frames) - 1))
        assert len({(f["id"], f["request_id"]) for f in frames[1:]}) == 1
        end = frames[-1]
        assert (end["finish_reason"], end["outcome"]) == ("stop", "complete")
        assert end["usage"]["total_tokens"] == 8
        assert end["cost"] == {"usd": 0.00125, "source": "measured"}
        assert end["timing_ms"]["total"] > 0
        seen = gw.service.requests[0]
        assert (seen.max_tokens, seen.temperature, seen.stream, seen.user) == (500, 0.7, True, "user123")
        await raw.send(frame(1, b'{"type":"llm_request","model":"m","prompt":{"no":1}}'))
        error = await raw.json()
        assert (error["type"], error["code"], error["error"], error["param"]) == ("error", 400, "invalid_request", "prompt")
        assert error["message"].startswith("Invalid prompt format")


@pytest.mark.parametrize("way", ["header", "subprotocol", "frame"])
async def test_a_credential_comes_three_ways(way: str) -> None:
    async with gateway() as gw:
        bearer = base64.urlsafe_b64encode(b"good").rstrip(b"=").decode()
        headers = (f"Sec-WebSocket-Protocol: claw.v1, bearer.{bearer}",) if way == "subprotocol" else ()
        async with connect(gw.port, *headers, token="good" if way == "header" else None, auth=False) as raw:
            if way == "frame":
                await raw.send(message(type="auth", token="good"))
            assert (await raw.json())["type"] == "auth_ok"
            assert (b"sec-websocket-protocol: claw.v1" in raw.head) == (way == "subprotocol")
            assert b"bearer" not in raw.head
            assert gw.service.authenticated[0].token == "good"
            assert gw.service.authenticated[0].surface == "claw"


async def refused(raw: Raw) -> tuple[dict[str, object], int | None]:
    error = await raw.json()
    return error, await raw.closed()


@pytest.mark.parametrize("token", ["bad", "throttled", "boom"])
async def test_a_refused_credential_gets_an_error_and_the_close_code(token: str) -> None:
    code, slug, close = {"bad": (401, "auth.invalid", 4401), "throttled": (429, "auth.throttled", 4429),
                         "boom": (500, "internal", 1011)}[token]  # fmt: skip
    async with gateway() as gw:
        async with connect(gw.port, token=None) as raw:  # by frame, with a request right behind that must not run
            await raw.send(message(type="auth", token=token), request("a", "hi"), frame(8))
            error, closed = await refused(raw)
            assert (error["code"], error["error"], closed) == (code, slug, close)
        async with connect(gw.port, token=token, auth=False) as raw:
            await raw.send(frame(8))
            error, closed = await refused(raw)
            assert (error["code"], closed) == (code, close)
        assert gw.service.requests == []


@pytest.mark.parametrize(
    ("data", "code", "slug", "close"),
    [
        (request("a", "hi"), 401, "auth.missing", 4401),
        (message(type="llm_cancel", id="a"), 401, "auth.missing", 4401),
        (message(type="auth"), 401, "auth.missing", 4401),
        (message(type="auth", token=7), 401, "auth.invalid", 4401),
        (frame(1, b"hello"), 400, "bad_frame", 4400),
        (frame(1, b"[1]"), 400, "bad_frame", 4400),
        (frame(1, b'{"tipe":"auth"}'), 400, "bad_frame", 4400),
        (frame(1, b'{"type":1}'), 400, "bad_frame", 4400),
        (frame(1, b"[" * 100), 400, "bad_frame", 4400),
        (frame(2, b'{"type":"auth","token":"good"}'), 400, "bad_frame", 4400),
    ],
)
async def test_what_may_not_come_first(data: bytes, code: int, slug: str, close: int) -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        await raw.send(data, frame(8))
        error, closed = await refused(raw)
        assert (error["code"], error["error"], closed) == (code, slug, close)
        assert gw.service.authenticated == []


async def test_frames_behind_auth_wait_for_the_verdict_even_large_ones() -> None:
    gate = trio.Event()
    async with gateway(FakeService(gate=gate)) as gw, connect(gw.port, token=None) as raw:
        long = "x" * 300_000
        with trio.move_on_after(0.1):  # larger than what is read meanwhile: the client's send waits too
            await raw.send(message(type="auth", token="good"))
            await trio.sleep(0.02)
            await raw.send(request("a", "say hello " + "y" * 20_000), request("b", long))
        gate.set()
        gw.service.gate = None
        frames = await raw.until("llm_response_end", "a")
        assert frames[0]["type"] == "auth_ok"


async def test_a_fresh_credential_for_the_same_key_is_welcome_and_another_key_is_not() -> None:
    service = FakeService()
    service.principals |= {"fresh": Principal(key="test-key"), "other": Principal(key="other")}
    async with gateway(service) as gw, connect(gw.port) as raw:
        await raw.send(message(type="auth", token="fresh"), request("a", "hi"))
        assert (await raw.json())["type"] == "auth_ok"
        await raw.until("llm_response_end")
        assert service.authenticated[-1].token == "fresh"
        await raw.send(message(type="auth", token="other"), frame(8))
        error, closed = await refused(raw)
        assert (error["error"], closed) == ("auth.ambiguous", 4400)


def on_revoke(said: Literal["finish", "cut"]) -> Config:
    return Config(server=ServerConfig(on_revoke=said))


async def test_policy_is_applied_to_every_message() -> None:
    async with gateway(FakeService(config=on_revoke("cut"))) as gw, connect(gw.port) as raw:
        await raw.send(request("hanging", "hang"))
        await raw.until("llm_token")
        gw.service.principals.clear()
        await raw.send(request("b", "hi"))
        error, closed = await refused(raw)
        assert (error["code"], error["id"], closed) == (401, "b", 4401)
        assert gw.service.closed[0][1].label == "refused.auth"


async def test_what_runs_may_finish_where_a_request_finds_its_credential_revoked() -> None:
    """W-33, `on_revoke = "finish"`."""
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("hanging", "hang"))
        await raw.until("llm_token")
        gw.service.principals.clear()
        for name in ("b", "c"):
            await raw.send(request(name, "hi"))
            error = await raw.json()
            assert (error["code"], error["id"]) == (401, name)
        assert gw.service.running == 1
        await raw.send(message(type="llm_cancel", id="hanging"))
        assert (await raw.until("llm_response_end"))[-1]["outcome"] == "cancelled"
        error, closed = await refused(raw)
        assert (error["error"], closed) == ("auth.expired", 4401)


async def test_32_requests_at_once_and_the_33rd_is_refused_not_closed() -> None:
    """W-19"""
    async with gateway() as gw, connect(gw.port) as raw:
        for index in range(32):
            await raw.send(request(f"r{index}", "hang"))
        for _ in range(64):
            assert (await raw.json())["type"] in ("llm_response_start", "llm_token")
        assert gw.service.running == 32
        await raw.send(request("more", "hi"))
        error = await raw.json()
        assert (error["code"], error["error"], error["id"], error["retryable"]) == (429, "limit.in_flight", "more", True)
        await raw.send(message(type="llm_cancel", id="r7"))
        assert (await raw.json())["outcome"] == "cancelled"
        await raw.send(request("more", "say one"))
        assert (await raw.until("llm_response_end"))[-1]["id"] == "more"


async def test_answers_are_multiplexed_and_each_is_whole_and_in_order() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(*(request(f"r{i}", "say " + " ".join(f"{i}.{n};" for n in range(40))) for i in range(32)))
        answers: dict[str, list[dict[str, object]]] = {}
        while sum(frames[-1]["type"] == "llm_response_end" for frames in answers.values()) < 32:
            got = await raw.json()
            answers.setdefault(got["id"], []).append(got)
        for index in range(32):
            frames = answers[f"r{index}"]
            assert [f["seq"] for f in frames] == list(range(len(frames)))
            assert "".join(str(f.get("content", "")) for f in frames) == "".join(f"{index}.{n};" for n in range(40))


async def test_an_id_is_unique_among_open_requests() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "hang"))
        await raw.until("llm_token")
        await raw.send(request("a", "hi"))
        error = await raw.json()
        assert (error["code"], error["error"], error["ref"]) == (409, "duplicate_id", "a")
        assert "id" not in error  # an error with this id would end the open request in the client's eyes
        await raw.send(message(type="llm_cancel", id="a"))
        await raw.until("llm_response_end", "a")
        await raw.send(request("a", "say again"))
        assert (await raw.until("llm_response_end", "a"))[-1]["outcome"] == "complete"


@pytest.mark.parametrize("ident", ["", "x" * 129, "a\nb", 7, {}, True])
async def test_an_id_that_can_not_be_one(ident: object) -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(message(type="llm_request", id=ident, model="m", prompt="hi"))
        error = await raw.json()
        assert (error["code"], error["param"]) == (400, "id")


async def test_cancel_ends_with_outcome_cancelled_and_a_receipt() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "hang"))
        await raw.until("llm_token")
        await raw.send(message(type="llm_cancel", id="a"))
        end = await raw.json()
        assert (end["type"], end["outcome"], end["finish_reason"]) == ("llm_response_end", "cancelled", "cancelled")
        assert end["receipt"]["upstream_closed_at"] == 1234.5
        assert end["receipt"]["cancelled_at"] > 1e9
        assert gw.service.closed[0][1].label == "cancelled"
        await raw.send(message(type="llm_cancel", id="a"))
        error = await raw.json()
        assert (error["code"], error["error"]) == (404, "unknown_id")


async def test_a_cancel_right_behind_its_request_ends_it_once() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "hang"), message(type="llm_cancel", id="a"), message(type="ping", t=1))
        frames = [await raw.json(), await raw.json()]
        assert sorted(f["type"] for f in frames) == ["llm_response_end", "pong"]


async def test_stream_false_gives_start_one_token_end() -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "say a b c", parameters={"stream": False}))
        frames = await raw.until("llm_response_end")
        assert [f["type"] for f in frames] == ["llm_response_start", "llm_token", "llm_response_end"]
        assert frames[0]["model"] == "scripted-1"
        assert frames[1]["content"] == "abc"


async def test_notices_go_before_the_content() -> None:
    def notify(exchange: Exchange) -> None:
        exchange.notice("prompt_truncated", "The prompt was cut.", removed=3)

    async with gateway(FakeService(on_handle=notify)) as gw, connect(gw.port) as raw:
        for stream in (True, False):
            await raw.send(request("a", "say a", parameters={"stream": stream}))
            frames = await raw.until("llm_response_end")
            assert [f["type"] for f in frames] == ["llm_response_start", "llm_notice", "llm_token", "llm_response_end"]
            assert frames[1]["code"] == "prompt_truncated"
            assert frames[1]["details"] == {"removed": 3}


async def test_ping_pong() -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        await raw.send(message(type="ping", t=12.5), message(type="ping", t={"deep": 1}), frame(9, b"hi"))
        frames = [await raw.frame() for _ in range(3)]
        assert frames.pop([opcode for opcode, _ in frames].index(10)) == (10, b"hi")  # it may overtake
        assert [json.loads(payload) for _, payload in frames] == [{"type": "pong", "t": 12.5}, {"type": "pong"}]


@pytest.mark.parametrize(
    ("wrong", "slug"),
    [
        ({"type": "llm_prompt_chunk", "content": "x"}, "invalid_request"),  # its prompt is final
        ({"type": "llm_append", "content": ""}, "invalid_request"),
        ({"type": "llm_append"}, "invalid_request"),
        ({"type": "credit", "n": 1}, "invalid_request"),  # flow control was not asked for
    ],
)
async def test_what_is_wrong_about_a_request_leaves_it_alone(wrong: dict[str, str], slug: str) -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "hang"))
        await raw.until("llm_token")
        await raw.send(message(id="a", **wrong))
        error = await raw.json()
        assert (error["code"], error["error"], error["ref"]) == (400, slug, "a")
        assert "id" not in error  # an error with this id would end the open request in the client's eyes
        assert gw.service.running == 1


@pytest.mark.parametrize("kind", ["llm_prompt_chunk", "llm_append", "llm_cancel"])
async def test_a_message_about_no_open_request_is_an_error(kind: str) -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", "say x"))
        await raw.until("llm_response_end")
        for ident in ("a", "never", None, 7, ["a"]):
            await raw.send(message(type=kind, id=ident, content="x"))
            error = await raw.json()
            assert (error["code"], error["error"]) == (404, "unknown_id")
            assert error.get("ref") == (ident if isinstance(ident, str) else None)
        await raw.send(request("a", "say y"))
        assert (await raw.until("llm_response_end"))[-1]["outcome"] == "complete"


async def test_resume_says_that_the_session_is_gone() -> None:
    async with gateway() as gw, connect(gw.port, token=None) as raw:
        await raw.send(message(type="auth", token="good", session_id="s", resume_token="t"))
        assert (await raw.json())["type"] == "auth_ok"
        assert (await raw.json())["error"] == "session.expired"
        await raw.send(message(type="resume", session_id="s", resume_token="t", streams=[]))
        assert (await raw.json())["code"] == 410


async def test_a_gateway_that_refuses_new_work_says_why() -> None:
    from clawproxy.errors import ClawError

    async with gateway() as gw, connect(gw.port) as raw:
        gw.service.refusing = ClawError("shutting_down")
        await raw.send(request("a", "hi"))
        error = await raw.json()
        assert (error["code"], error["error"], error["id"]) == (503, "shutting_down", "a")


@pytest.mark.parametrize(("prompt", "code"), [("fail model_not_found", 404), ("fail provider_error.cut", 502), ("boom", 500)])
async def test_a_failed_request_ends_with_one_error_and_the_connection_goes_on(prompt: str, code: int) -> None:
    async with gateway() as gw, connect(gw.port) as raw:
        await raw.send(request("a", prompt))
        error = await raw.json()
        assert (error["type"], error["code"], error["id"], error["seq"]) == ("error", code, "a", 0)
        await raw.send(request("b", "say x"))
        assert (await raw.json())["id"] == "b"


async def test_going_away_and_revocation_reach_open_connections() -> None:
    """W-33: the hook point."""
    async with gateway() as gw, connect(gw.port) as raw, connect(gw.port) as other:
        gw.connections.going_away(25)
        assert await raw.json() == {"type": "going_away", "deadline_ms": 25000}
        assert gw.connections.revoke("nobody") == 0
        assert gw.connections.revoke("test-key") == 2
        await raw.send(frame(8))
        error, closed = await refused(raw)
        assert (error["error"], closed) == ("auth.expired", 4401)
        await other.send(frame(8))
        assert await other.closed() == 4401


async def test_a_credential_that_expires_while_connected_ends_the_connection() -> None:
    """W-33, `on_revoke = "cut"`."""
    service = FakeService(principals={"good": Principal(key="k", expires=time.time() + 0.2)}, config=on_revoke("cut"))
    async with gateway(service) as gw, connect(gw.port, token=None) as raw:
        await raw.send(message(type="auth", token="good"), request("a", "hang"))
        assert (await raw.json())["expires_at"] > 1e9
        await raw.until("llm_token")
        error, closed = await refused(raw)
        assert (error["error"], closed) == ("auth.expired", 4401)


async def test_what_runs_when_a_credential_expires_may_finish() -> None:
    """W-33, `on_revoke = "finish"`: and a fresh credential comes in time until then."""
    service = FakeService(principals={"good": Principal(key="k", expires=time.time() + 0.1), "fresh": Principal(key="k")})
    async with gateway(service) as gw, connect(gw.port, token=None) as raw:
        await raw.send(message(type="auth", token="good"), request("a", "hang"))
        await raw.until("llm_token")
        (session,) = gw.connections._open
        with trio.fail_after(5):
            while not session.barred:
                await trio.sleep(0.01)
        assert service.running == 1
        await raw.send(message(type="auth", token="fresh"))
        await raw.until("auth_ok")
        assert [each.barred for each in gw.connections._open] == [False]
        assert gw.connections.revoke("k") == 1
        assert service.running == 1
        await raw.send(message(type="llm_cancel", id="a"))
        assert (await raw.until("llm_response_end"))[-1]["outcome"] == "cancelled"
        error, closed = await refused(raw)
        assert (error["error"], closed) == ("auth.expired", 4401)


async def test_a_lone_surrogate_in_an_answer_is_replaced_and_the_connection_lives() -> None:
    """W-18"""

    def surrogate(exchange: Exchange) -> None:
        exchange.notice("redacted", "x\ud800y\ud83d\ude00")

    async with gateway(FakeService(on_handle=surrogate)) as gw, connect(gw.port) as raw:
        await raw.send(request("a", "lone"), request("b", "say x"))
        frames = await raw.until("llm_response_end", "b")
        assert {f["message"] for f in frames if f["type"] == "llm_notice"} == {"x\ufffdy\U0001f600"}
        assert "x\ufffdy\U0001f600" in [f.get("content") for f in frames]
