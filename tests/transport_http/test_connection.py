"""The loop of one connection: routing, authentication before the body, keep-alive, pipelining, answers."""

from __future__ import annotations

import json
import resource

import pytest
import trio

from clawproxy.config import Config, LimitsConfig, ServerConfig
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.transport.http import PlainResponse
from clawproxy.transport.surfaces import Surfaces

from .support import BODY, PATH, P, get, opened, post, take_websocket


async def test_whole_and_streamed_answers_on_one_connection() -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(post())
        answer = await raw.answer()
        assert (answer.status, json.loads(answer.body)) == (200, {"text": "hello world"})
        assert answer.headers["content-type"] == "application/json"
        await raw.send(post({"stream": True}))
        answer = await raw.answer()
        assert answer.body == b"data: hello\n\ndata:  world\n\ndata: [DONE]\n\n"
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["x-request-id"] == door.service.calls[1].request_id
        assert answer.headers["x-claw-route"] == "prov%0D%0Aider/m"
        assert answer.headers["x-claw-notice"] == "test_notice"
        assert door.connections == 1


async def test_a_1_0_client_reads_its_stream_to_the_end_of_the_connection() -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(post({"stream": True}, version="1.0"))
        answer = await raw.answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_nodelay_is_set() -> None:
    seen: list[int] = []

    async def look(head: Head, body: bytes, peer: str) -> PlainResponse:
        await trio.lowlevel.checkpoint()
        return PlainResponse(body=b"{}")

    def wrap(stream: trio.SocketStream) -> trio.SocketStream:
        streams.append(stream)
        stream.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 0)
        return stream

    streams: list[trio.SocketStream] = []
    async with opened(surfaces=Surfaces(plain={("GET", "/look"): look}), wrap=wrap) as door:
        raw = await door.connect()
        await raw.send(get("/look"))
        assert (await raw.answer()).status == 200
        seen.append(streams[0].socket.getsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY))
    assert seen == [1]


async def test_errors_before_and_after_the_first_byte() -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(post({"stream": True, "say": [], "fail": "budget.exhausted"}))
        answer = await raw.answer()
        assert answer.status == 429
        assert json.loads(answer.body)["error"]["code"] == "budget.exhausted"
        assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("2", "false")
        await raw.send(post({"stream": True, "say": ["a"], "fail": "provider_error.cut"}))
        answer = await raw.answer()
        assert answer.status == 200
        assert b"data: a\n\n" in answer.body
        assert b'"code":"provider_error.cut"' in answer.body
        assert b"[DONE]" not in answer.body
        await raw.send(post(b"{"))
        assert (await raw.answer()).status == 400
        await raw.send(get())
        assert (await raw.answer()).status == 200
        assert door.connections == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (("x-api-key: K",), 200),
        (("api-key: K",), 200),
        (("Authorization: Bearer K", "x-api-key: K"), 200),
        (("Authorization: bearer K",), 200),
        (("Authorization: Basic Szo=",), 401),
        ((), 401),
        (("Authorization: Bearer wrong",), 401),
        (("api-key: K", "x-api-key: L"), 400),
    ],
)
async def test_credentials(headers: tuple[str, ...], status: int) -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send("\r\n".join(["GET /v1/models HTTP/1.1", "Host: gw.test", *headers, "", ""]).encode())
        answer = await raw.answer()
        assert answer.status == status
        assert ("www-authenticate" in answer.headers) == (status == 401)


async def test_continue_comes_only_after_the_credential_was_taken() -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(P.encode() + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert await raw.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert door.service.authenticated == 1
        await raw.send(BODY)
        assert (await raw.answer()).status == 200
        raw = await door.connect()
        await raw.send(P.replace("Bearer K", "Bearer L").encode() + b"Expect: 100-continue\r\nContent-Length: 99\r\n\r\n")
        assert (await raw.answer()).status == 401
        assert await raw.rest() == b""


async def test_refused_by_admission_before_the_body() -> None:
    async with opened() as door:
        door.service.refuse = ClawError("shutting_down")
        raw = await door.connect()
        await raw.send(P.encode() + b"Content-Length: 99\r\n\r\n")
        assert (await raw.answer()).status == 503
        assert door.service.handled == 0


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(post({"say": ["1"]}) + get("/nowhere") + post({"say": ["2"], "stream": True}) + get())
        assert [(await raw.answer()).status for _ in range(4)] == [200, 404, 200, 200]
        assert door.connections == 1


async def test_h41_pipelined_bytes_stay_with_the_client() -> None:
    """50 MB behind a request whose answer is under way: the sender blocks, our memory stays."""
    async with opened() as door:
        raw = await door.connect()
        await raw.send(post({"stream": True, "say": ["a"], "hold": True}))
        await door.service.started.wait()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sent = 0
        with trio.move_on_after(0.4) as scope:
            while sent < 50_000_000:
                sent += await raw.stream.socket.send(b"x" * 65536)
        assert scope.cancelled_caught
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB


async def test_s07_is_refused_before_anything_is_read() -> None:
    async with opened() as door:
        raw = await door.connect()
        begun = trio.current_time()
        await raw.send(P.encode() + b"Content-Length: 10737418240\r\n\r\n")
        assert (await raw.answer()).status == 413
        assert trio.current_time() - begun < 0.1
        assert await raw.rest() == b""


async def test_s10_errors_and_requests_of_one_connection_are_capped() -> None:
    async with opened(Config(limits=LimitsConfig(errors_per_connection=3, requests_per_connection=5))) as door:
        raw = await door.connect()
        for n in range(3):
            await raw.send(get("/nowhere"))
            answer = await raw.answer()
            assert answer.headers.get("connection") == ("close" if n == 2 else None)
        assert await raw.rest() == b""
        raw = await door.connect()
        for n in range(3):
            await raw.send(post({"fail": "invalid_request", "say": []}))
            assert (await raw.answer()).headers.get("connection") == ("close" if n == 2 else None)
        assert await raw.rest() == b""
        raw = await door.connect()
        for n in range(5):
            await raw.send(get())
            assert (await raw.answer()).headers.get("connection") == ("close" if n == 4 else None)
        assert await raw.rest() == b""


async def test_models() -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(get())
        listed = json.loads((await raw.answer()).body)
        assert [entry["id"] for entry in listed["data"]] == ["m", "prov/other"]
        await raw.send(get("/v1/models/prov%2Fother"))
        assert json.loads((await raw.answer()).body)["owned_by"] == "prov"
        await raw.send(get("/openai/v1/models/m"))
        assert (await raw.answer()).status == 200
        await raw.send(get("/v1/models/none"))
        assert json.loads((await raw.answer()).body)["error"]["code"] == "model_not_found"
        await raw.send(get("/v1/models", "anthropic-version: 2023-06-01"))
        assert json.loads((await raw.answer()).body)["has_more"] is False
        await raw.send(get(method="HEAD"))
        answer = await raw.answer(head_only=True)
        assert int(answer.headers["content-length"]) > 0
        await raw.send(get())
        assert (await raw.answer()).status == 200


async def test_methods_and_unknown_paths() -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(get(PATH))
        answer = await raw.answer()
        assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")
        await raw.send(get("/v1/nothing"))
        answer = await raw.answer()
        assert json.loads(answer.body)["error"].keys() == {"message", "type", "param", "code"}
        await raw.send(get("/v1/models", method="DELETE"))
        assert (await raw.answer()).headers["allow"] == "GET, HEAD, OPTIONS"


async def test_plain_routes() -> None:
    async def echo(head: Head, body: bytes, peer: str) -> PlainResponse:
        await trio.lowlevel.checkpoint()
        if head.query == "bad":
            raise ClawError("forbidden")
        if head.query == "bug":
            raise ZeroDivisionError
        return PlainResponse(200, "text/plain", body or peer.encode(), {"x-extra": "1"})

    surfaces = Surfaces(plain={("GET", "/e"): echo, ("POST", "/e"): echo}, models=False, plain_body=10)
    async with opened(surfaces=surfaces) as door:
        raw = await door.connect()
        await raw.send(get("/e"))
        answer = await raw.answer()
        assert (answer.body, answer.headers["x-extra"]) == (b"127.0.0.1", "1")
        await raw.send(b"POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
        assert (await raw.answer()).body == b"abc"
        await raw.send(get("/e?bad"))
        assert (await raw.answer()).status == 403
        await raw.send(get("/e?bug"))
        assert (await raw.answer()).status == 500
        await raw.send(get("/v1/models"))
        assert (await raw.answer()).status == 404
        await raw.send(b"POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nabcabcabcab")
        assert (await raw.answer()).status == 413


async def test_an_upgrade_is_handed_over_with_what_came_behind_the_head() -> None:
    async with opened(surfaces=Surfaces(websocket=take_websocket)) as door:
        raw = await door.connect()
        await raw.send(get("/websocket", "Connection: Upgrade", "Upgrade: websocket") + b"\x81\x00frame")
        assert (await raw.answer(head_only=True)).status == 101
        assert await raw.rest() == b"\x81\x00frame"
        assert len(door.front) == 0


async def test_origins() -> None:
    server = ServerConfig(origins=("https://app.example",), hosts=("gw.test",))
    async with opened(Config(server=server)) as door:
        for origin, status in [
            ("https://APP.example", 200),
            ("https://app.example:443", 200),
            ("https://evil.example", 403),
            ("null", 403),
            ("", 403),
            ("https://app.example.evil.com", 403),
            ("https://evilapp.example", 403),
            ("http://app.example", 403),
            ("https://app.example:444", 403),
            ("https://app.example, https://app.example", 403),
            ("https://app.example\r\nOrigin: https://app.example", 403),
        ]:
            raw = await door.connect()
            before = door.service.authenticated
            await raw.send(get("/v1/models", f"Origin: {origin}"))
            answer = await raw.answer()
            assert answer.status == status, origin
            assert door.service.authenticated - before == (1 if status == 200 else 0)
            assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
        await raw.send(get(PATH, "Origin: https://app.example", "Access-Control-Request-Method: POST", method="OPTIONS"))
        answer = await raw.answer()
        assert answer.status == 204
        assert "authorization" in answer.headers["access-control-allow-headers"]
        raw = await door.connect()
        await raw.send(get().replace(b"gw.test", b"evil.example"))
        assert (await raw.answer()).status == 421
        assert await raw.rest() == b""


async def test_a_page_can_not_rebind_a_name_to_loopback() -> None:
    async with opened(Config(server=ServerConfig(origins=("https://app.example",)))) as door:
        raw = await door.connect()
        await raw.send(get("/v1/models", "Origin: https://app.example").replace(b"gw.test", b"attacker.com"))
        assert (await raw.answer()).status == 421
        raw = await door.connect()
        await raw.send(get("/v1/models").replace(b"gw.test", b"attacker.com"))
        assert (await raw.answer()).status == 200


async def test_client_values_of_the_call() -> None:
    async with opened() as door:
        raw = await door.connect()
        await raw.send(post(BODY, "x-claw-deadline-ms: 1500", "X-Request-ID: mine"))
        assert (await raw.answer()).status == 200
        call = door.service.calls[0]
        assert (call.deadline, call.client_request_id, call.surface, call.peer) == (1.5, "mine", "openai_chat", "127.0.0.1")
        await raw.send(post(BODY, "X-Request-ID: " + "a" * 129))
        assert (await raw.answer()).status == 200
        assert door.service.calls[1].client_request_id is None
        await raw.send(post(BODY, "x-claw-deadline-ms: 1e9"))
        answer = await raw.answer()
        assert (answer.status, json.loads(answer.body)["error"]["param"]) == (400, "x-claw-deadline-ms")


async def test_draining_ends_idle_connections_and_lets_the_others_finish() -> None:
    async with opened() as door:
        idle, fresh, busy = [await door.connect() for _ in range(3)]
        await idle.send(get())
        assert (await idle.answer()).status == 200
        await busy.send(post({"stream": True, "say": ["a", "b"], "pause": 0.05}))
        await door.service.started.wait()
        door.front.drain()
        assert await idle.rest() == b""
        assert await fresh.rest() == b""
        answer = await busy.answer()
        assert answer.body.endswith(b"[DONE]\n\n")
        assert await busy.rest() == b""
