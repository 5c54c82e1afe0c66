"""The upgrade: what is accepted, what is refused and how, by the numbers of the threat table."""

from __future__ import annotations

import pytest
import trio

from clawproxy.errors import ClawError

from .kit import FakeService, Gateway, Raw, alive, connect, gateway, opening


async def handshake(gw: Gateway, data: bytes) -> tuple[int, bytes]:
    """Send a head that is refused; status and the whole answer, which must end."""
    stream = await trio.open_tcp_stream("127.0.0.1", gw.port)
    raw = Raw(stream)
    async with stream:
        await raw.send(data)
        answer = b""
        with trio.fail_after(5):
            while more := await stream.receive_some(65536):
                answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert b"x-request-id: " in head
    return int(answer.split(b" ", 2)[1]), answer


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("Connection: Upgrade", "Connection: Upgrade, \xff", 400),  # W-01
        ("Host: gw.test", "Host: \xff", 400),
        ("Host: gw.test", "Host: gw.test\r\nSec-WebSocket-Protocol: \xe9", 400),
        ("Host: gw.test", "Host: gw.test\r\nSec-WebSocket-Extensions: \xff", 400),
        ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 7", 426),  # H-46
        ("Sec-WebSocket-Version: 13\r\n", "", 426),
        ("Upgrade: websocket", "Upgrade: h2c", 426),
        ("Upgrade: websocket\r\n", "", 426),
        ("Connection: Upgrade", "Connection: keep-alive", 426),
        ("GET ", "POST ", 405),
        ("Host: gw.test", "Host: gw.test\r\nContent-Length: 5", 400),  # H-45
        ("Host: gw.test", "Host: gw.test\r\nTransfer-Encoding: chunked", 400),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Key: short", 400),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", 400),
        ("Host: gw.test", "Host: gw.test\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", 400),
        ("Host: gw.test", "Host: gw.test\r\nSec-WebSocket-Protocol: claw.v1, claw.v1", 400),
        ("Host: gw.test", "Host: gw.test\r\nSec-WebSocket-Protocol: claw.v1, bearer.Z29v=", 400),
        ("Host: gw.test", "Host: gw.test\r\nSec-WebSocket-Protocol: bearer.Z29vZA, bearer.YmFk", 400),
        ("Host: gw.test", "Host: gw.test\r\nAuthorization: Bearer other\r\nSec-WebSocket-Protocol: bearer.Z29vZA", 400),
    ],
)
async def test_w01_h45_h46_upgrades_that_are_refused(old: str, new: str, status: int) -> None:
    async with gateway() as gw:
        smuggled = b"helloGET /smuggled HTTP/1.1\r\nHost: gw.test\r\n\r\n" if status == 400 else b""
        data = opening().decode("latin-1")
        assert old in data
        got, answer = await handshake(gw, data.replace(old, new, 1).encode("latin-1") + smuggled)
        assert got == status
        assert answer.count(b"HTTP/1.1") == 1
        if status == 426:
            assert b"sec-websocket-version: 13" in answer
        assert gw.service.authenticated == []
        await alive(gw)


async def test_a_gateway_that_is_shutting_down_does_not_upgrade() -> None:
    async with gateway(FakeService(refusing=ClawError("shutting_down", retry_after_ms=1500))) as gw:
        status, answer = await handshake(gw, opening())
        assert status == 503
        assert b"retry-after: 2" in answer


async def test_subprotocols_other_than_ours_are_not_selected() -> None:
    async with gateway() as gw, connect(gw.port, "Sec-WebSocket-Protocol: chat, superchat") as raw:
        assert b"sec-websocket-protocol" not in raw.head.lower()
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in raw.head  # RFC 6455's own example


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "https://app.example:444"])
async def test_w20_w21_a_foreign_origin_is_403_before_any_auth_work(origin: str) -> None:
    async with gateway() as gw:
        status, _ = await handshake(gw, opening(f"Origin: {origin}", "Authorization: Bearer good"))
        assert status == 403
        assert gw.service.authenticated == []


async def test_w23_no_origin_with_a_credential_is_a_program() -> None:
    async with gateway() as gw:
        await alive(gw)


async def test_w24_a_cookie_is_no_credential() -> None:
    async with gateway() as gw:
        assert (await handshake(gw, opening("Cookie: key=good")))[0] == 403
        async with connect(gw.port, "Cookie: lb=1"):  # with a real credential it does not matter
            pass


@pytest.mark.parametrize("query", ["token=good", "a=b&access_token=good", "api_key=good"])
async def test_w26_a_credential_in_the_query_is_refused_and_not_repeated(query: str) -> None:
    async with gateway() as gw:
        status, answer = await handshake(gw, opening(target=f"/websocket?{query}"))
        assert status == 400
        assert b"good" not in answer
        assert gw.service.authenticated == []
