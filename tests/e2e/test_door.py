"""Who gets in, over raw sockets to a whole gateway: A-03, A-13, A-14, A-18, A-19 and W-20 to W-29 of the threat table."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from clawproxy.config import SecretRef, ServerConfig
from clawproxy.keys import digest
from clawproxy.ops.keyrecords import new_record

from .harness import KEY, Running, gateway
from .test_admin_keys import ADMIN, at, chat
from .websocket_client import Frames, masked, open_raw

APP = "https://app.example"
GUESSES = int(os.environ.get("CLAW_GUESSES", "24"))
"""Wrong secrets; a thousand in the long form."""


@asynccontextmanager
async def door(tmp_path: Path) -> AsyncIterator[Running]:
    server = ServerConfig(
        listen=("127.0.0.1:0",),
        admin="127.0.0.1:0",
        state_dir=tmp_path / "state",
        admin_token=SecretRef("", ADMIN),
        origins=(APP,),
    )
    async with gateway(tmp_path, server=server) as running:
        yield running


async def said(url: str, data: bytes) -> tuple[int, bytes]:
    """What comes for these bytes, until the gateway stops or closes: the status (0: nothing came) and all of it."""
    parts = urlsplit(url)
    answer = b""
    async with await trio.open_tcp_stream(str(parts.hostname), parts.port or 0) as stream:
        with trio.move_on_after(5):
            try:
                await stream.send_all(data)
                while b"\r\n\r\n" not in answer:
                    answer += (more := await stream.receive_some(65536))
                    if not more:
                        break
            except trio.BrokenResourceError:
                pass
    return (int(answer.split(b" ", 2)[1]) if answer else 0), answer


def head(target: str = "/v1/models", *lines: str, method: str = "GET", host: str = "127.0.0.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode("latin-1")


def upgrade(*lines: str, target: str = "/websocket", host: str = "127.0.0.1") -> bytes:
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    return head(target, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", key, *lines, host=host)


async def test_a03_a_hash_is_no_credential(tmp_path: Path) -> None:
    """A-03"""
    async with door(tmp_path) as running:
        app = running.server.gateway.app
        secret, record = new_record("app", app.pepper)
        await app.store.add_key(record)
        hashes = [record.digest.hex(), record.digest.hex().upper(), digest(app.pepper, KEY).hex(), record.prefix, record.id]
        for shown in hashes:
            assert (await at(running.url, "GET", "/v1/models", shown)).status == 401
        assert (await at(running.url, "GET", "/v1/models", secret.reveal())).status == 200


@pytest.mark.parametrize("shown", ["' OR '1'='1", "x'; DROP TABLE keys", "%00", "';--", "\xff\xfe", "x" * 1_000_000, "a\tb", "*"])
async def test_a13_what_is_no_credential_reaches_no_query(tmp_path: Path, shown: str) -> None:
    """A-13: a 401 (a head that is too large: 431; bytes no head may have: 400), and its text is in no statement, log or file."""
    statements: list[str] = []
    async with door(tmp_path) as running:
        store = running.server.gateway.app.store
        for lane in store._lanes:  # type: ignore[attr-defined]
            lane.connection.set_trace_callback(statements.append)
        status, _ = await said(running.url, head("/v1/models", f"Authorization: Bearer {shown}"))
        assert status == {1_000_000: 431}.get(len(shown), 401)
        assert (await chat(running, KEY)).status == 200
        for lane in store._lanes:  # type: ignore[attr-defined]
            lane.connection.set_trace_callback(None)
    if len(shown) > 3:
        assert not [each for each in statements if shown[:20] in each]
    kept = sqlite3.connect(tmp_path / "state" / "clawproxy.db")
    assert kept.execute("SELECT count(*) FROM keys").fetchone() == (0,)
    kept.close()


TARGETS = (
    "//admin/keys", "/v1/health/../admin/keys", "/v1/health/%2e%2e/admin/keys", "/ADMIN/keys", "/Admin/Keys", "/admin/keys/",
    "/admin//keys", "/admin/keys;x", "/admin;x/keys", "/%61dmin/keys", "/admin%2fkeys", "/admin/keys%00", "/admin/keys/../keys",
    "/./admin/keys", "/admin/./keys", "/metrics/../admin/keys", "/healthz/../admin/keys", "/admin\\keys", "/admin/keys#x",
    "/healthz/admin/keys", "/admin/keys/.", "/admin/keys/a/rotate/x", "/admin", "/admin/", "/admin/config", "/admin/keysx",
    "http://127.0.0.1/admin/keys", "http://evil.example/admin/keys", "*", "/v1/health?/admin/keys",
)  # fmt: skip


async def test_a14_no_way_of_writing_a_path_gets_to_the_admin_pages(tmp_path: Path) -> None:
    """A-14: no answer of theirs without the operator's credential, on either listener; on the data port not even with it."""
    async with door(tmp_path) as running:
        for target in ("/admin/keys", *TARGETS):
            for url in (running.url, running.admin):
                for method in ("GET", "POST", "DELETE", "HEAD", "PUT"):
                    extra = ["Content-Length: 2", "Content-Type: application/json"] if method in ("POST", "PUT") else []
                    body = b"{}" if extra else b""
                    status, answer = await said(url, head(target, f"Authorization: Bearer {KEY}", *extra, method=method) + body)
                    assert b'"keys"' not in answer
                    if target != "/v1/health?/admin/keys":
                        assert status >= 400, (url, target, method, answer)
                status, answer = await said(url, head(target))
                assert b'"keys"' not in answer
                if url == running.url or not target.removeprefix("http://127.0.0.1").startswith("/admin/keys"):
                    _, answer = await said(url, head(target, f"Authorization: Bearer {ADMIN}"))
                    assert b'"keys"' not in answer or target.startswith("http://"), answer
        for name in ("gw.test/v1/health?", "127.0.0.1/admin/keys", "127.0.0.1@evil"):
            status, _ = await said(running.url, head("/admin/keys", host=name))
            assert status >= 400


@pytest.mark.parametrize("path", ["/v1/models", "/websocket"])
async def test_a18_ten_wrong_ones_then_429_and_the_right_one_still_gets_in(tmp_path: Path, path: str) -> None:
    """A-18, W-27, W-28: from 127.0.0.1, the same whatever else stands in the request."""
    async with door(tmp_path) as running:
        told = []
        for number in range(GUESSES):
            wrong = f"{number:030}"
            if path == "/v1/models":
                extra = [f"X-Device-Token: {number}"] if number % 2 else []
                told.append((await said(running.url, head(path, f"Authorization: Bearer {wrong}", *extra)))[0])
            else:
                frame = {"type": "auth", "token": wrong, **({"deviceToken": "x", "role": "admin"} if number % 2 else {})}
                async with await running.connect() as stream:
                    await stream.send_all(upgrade())
                    answer = b""
                    while b"\r\n\r\n" not in answer:
                        answer += await stream.receive_some(65536)
                    await stream.send_all(masked(json.dumps(frame).encode()))
                    frames = Frames(stream, answer.partition(b"\r\n\r\n")[2])
                    code = (await frames.next())["code"]
                    assert await frames.close_code() == {401: 4401, 429: 4429}[code]
                    told.append(code)
        assert told == [401] * 10 + [429] * (GUESSES - 10)
        assert (await said(running.url, head("/v1/models", f"Authorization: Bearer {KEY}")))[0] == 200


@pytest.mark.parametrize(
    "lines",
    [
        (f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"),
        (f"Authorization: Bearer {KEY}", "Authorization: Bearer other"),
        (f"Authorization: Bearer {KEY}, Bearer other",),
        (f"Authorization: Bearer {KEY},Bearer other",),
        (f"Authorization: Bearer {KEY}", "x-api-key: other"),
        ("x-api-key: other", f"Authorization: Bearer {KEY}"),
        (f"x-api-key: {KEY}", "api-key: other"),
        (f"x-goog-api-key: {KEY}", "x-api-key: other"),
    ],
)
async def test_a19_two_credentials_are_one_too_many(tmp_path: Path, lines: tuple[str, ...]) -> None:
    """A-19"""
    async with door(tmp_path) as running:
        for url, path in ((running.url, "/v1/models"), (running.admin, "/admin/keys")):
            assert (await said(url, head(path, *lines)))[0] == 400
        body = b'{"model": "test-model", "messages": [{"role": "user", "content": "hi"}]}'
        asked = head(
            "/v1/chat/completions", *lines, f"Content-Length: {len(body)}", "Content-Type: application/json", method="POST"
        )
        assert (await said(running.url, asked + body))[0] == 400
        assert not running.provider.log.entries


async def test_w20_to_w25_whose_page_may_open_a_socket(tmp_path: Path) -> None:
    """W-20, W-21, W-22, W-23, W-24, W-25"""
    bearer = f"Authorization: Bearer {KEY}"
    refused: list[tuple[str, ...]] = [
        ("Origin: https://evil.example", bearer),  # W-20
        ("Origin: null", bearer),  # W-21
        ("Origin:", bearer),
        (f"Origin: {APP}", f"Origin: {APP}", bearer),
        (f"Origin: {APP}", "Origin: https://evil.example", bearer),
        ("Origin: https://app.example.evil.com", bearer),  # W-22
        ("Origin: https://evilapp.example", bearer),
        ("Origin: http://app.example", bearer),
        ("Origin: https://app.example:444", bearer),
        (f"Origin: {APP}/", bearer),
        (f"Origin: {APP}.", bearer),
        (f"Cookie: token={KEY}",),  # W-24
    ]
    async with door(tmp_path) as running:
        for lines in refused:
            status, answer = await said(running.url, upgrade(*lines))
            assert status == 403, (lines, answer)
        for lines in ((bearer,), (f"Origin: {APP}", bearer), ("Origin: https://APP.example", bearer), (bearer, "Cookie: a=b")):
            assert (await said(running.url, upgrade(*lines)))[0] == 101, lines  # W-23, and the last of W-22
        # W-25: a rebinding has somebody's name in Host; the data listener minds it where a browser comes
        for host in ("attacker.com", "localhost.attacker.com", "127.0.0.1.attacker.com"):
            for path in ("/healthz", "/metrics", "/admin/keys"):
                asked = head(path, f"Authorization: Bearer {ADMIN}", host=host)
                assert (await said(running.admin, asked))[0] == 421
            assert (await said(running.url, upgrade(bearer, "Origin: http://attacker.com", host=host)))[0] in (403, 421)
            assert (await said(running.url, upgrade(bearer, f"Origin: {APP}", host=host)))[0] == 421
            assert (await said(running.url, upgrade(bearer, host=host)))[0] == 101


@pytest.mark.parametrize("query", [f"token={KEY}", f"access_token={KEY}", f"a=b&api_key={KEY}", f"key={KEY}"])
async def test_w26_a_credential_in_the_query_is_refused_and_not_kept(
    tmp_path: Path, query: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """W-26: also beside a good one; the value is in no answer and no log."""
    async with door(tmp_path) as running:
        for lines in ((), (f"Authorization: Bearer {KEY}",)):
            status, answer = await said(running.url, upgrade(*lines, target=f"/websocket?{query}"))
            assert status == 400
            assert KEY.encode() not in answer
        status, answer = await said(running.url, head(f"/v1/models?{query}"))
        assert status in (400, 401)
        assert KEY.encode() not in answer
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err


async def test_w29_a_client_gives_itself_no_rights(tmp_path: Path) -> None:
    """W-29: an unknown type says nothing, and what stands beside a token counts for nothing."""
    async with door(tmp_path) as running, await running.connect() as stream:
        frames = Frames(stream, await open_raw(stream, KEY))
        ok = await frames.next()
        for wish in (
            {"type": "connect", "scopes": ["admin"], "role": "operator"},
            {"type": "auth", "token": KEY, "scopes": ["admin"], "role": "operator", "models": ["*"], "key": "root"},
        ):
            await stream.send_all(masked(json.dumps(wish).encode()))
        again = await frames.next()
        assert (again["type"], again["principal"]) == ("auth_ok", ok["principal"])
        (session,) = running.server.websockets._open
        assert session.principal is not None
        assert (session.principal.key, session.principal.roles, session.principal.grants) == ("test", (), None)
