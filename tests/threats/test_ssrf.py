"""SS-01 to SS-05: nothing that a client says makes the gateway connect anywhere, and nobody but the provider gets the key.

Every name that this process looks up and every address that it connects to is seen by an audit hook of the interpreter, so that
"no connection" is a fact about the process and not about one server.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from joserfc import jwk, jws

from clawproxy.fetch import FetchError, fetch
from tests.e2e.harness import Running, gateway
from tests.threats.kit import SAID, closed, document, post, say

_SEEN: list[tuple[str, Any]] | None = None


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if _SEEN is not None and event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        _SEEN.append((event, args[1] if event == "socket.connect" else args[0]))


sys.addaudithook(_watch)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with gateway(tmp_path) as running:
        yield running


@asynccontextmanager
async def only_the_provider(running: Running) -> AsyncIterator[None]:
    """Nothing else is looked up or connected to meanwhile."""
    global _SEEN
    _SEEN = []
    try:
        yield
        host, _, port = running.provider.url.removeprefix("http://").rpartition(":")
        ours = {running.address, (host, int(port))}
        strange = [(event, where) for event, where in _SEEN if tuple(where[:2] if event == "socket.connect" else ()) not in ours]
        assert not [each for each in strange if each != ("socket.getaddrinfo", running.address[0])]
    finally:
        _SEEN = None


STEERING = ("api_base", "base_url", "custom_llm_provider", "extra_headers", "proxy", "timeout", "api_key", "extra_body")
HEADERS = (
    "x-portkey-custom-host",
    "x-portkey-provider",
    "api-base",
    "base-url",
    "x-api-base",
    "custom-llm-provider",
    "proxy",
    "timeout",
)


@pytest.fixture
async def evil() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server nobody should visit, and what it heard."""
    heard: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def visit(stream: trio.SocketStream) -> None:
            heard.append(b"visited")
            heard.append(bytes(await stream.receive_some()))

        [listener] = await nursery.start(partial(trio.serve_tcp, visit, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}", heard
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", STEERING)
async def test_ss01_a_body_steers_no_connection(running: Running, evil: tuple[str, list[bytes]], name: str) -> None:
    url, heard = evil
    async with closed(running), only_the_provider(running):
        for value in (url, {"http": url}, 5, None):
            answer = await say(running.address, post(document(**{name: value})))
            assert answer.status == 400, (name, value)
            assert answer.code == "unknown_parameter"
    assert not heard


async def test_ss01_nor_does_a_header(running: Running, evil: tuple[str, list[bytes]]) -> None:
    url, heard = evil
    async with closed(running, calls=1), only_the_provider(running):
        answer = await say(running.address, post(document(), headers=dict.fromkeys(HEADERS, url)))
        assert answer.status == 200
        assert not set(HEADERS) & {name.lower() for name, _ in running.provider.log.last.headers}
    assert not heard


URLS = [
    "http://127.0.0.1", "http://2130706433", "http://0x7f.1", "http://0177.0.0.1", "http://[::1]", "http://[::ffff:127.0.0.1]",
    "http://[64:ff9b::7f00:1]", "http://0.0.0.0", "http://169.254.169.254/", "http://[fd00:ec2::254]",
    "http://metadata.google.internal", "http://localhost.", "http://evil\\@127.0.0.1", "http://a@127.0.0.1",
    "http://127.0.0.1%2f@x", "http://\u2460\u2461\u2466.0.0.1", "file:///etc/passwd", "gopher://127.0.0.1", "data:,x",
    "http://rebind.test/", "https://images.example/cat.png",
]  # fmt: skip


@pytest.mark.parametrize("url", URLS, ids=ascii)
async def test_ss02_a_pictures_address_is_never_fetched(running: Running, url: str) -> None:
    """It goes to the provider as it is, or is refused. SS-03: what is not looked up can not be looked up twice."""
    before = running.provider.log.requests
    async with only_the_provider(running):
        for path, part in (
            ("/v1/chat/completions", {"type": "image_url", "image_url": {"url": url}}),
            ("/v1/messages", {"type": "image", "source": {"type": "url", "url": url}}),
        ):
            body = document(messages=[SAID, {"role": "user", "content": [part, {"type": "text", "text": "script: say fine"}]}])
            answer = await say(running.address, post({**body, "max_tokens": 9}, path))
            assert answer.status in (200, 400), (path, answer.data)
            if answer.status == 200:
                assert url in json.dumps(running.provider.log.last.body, ensure_ascii=False).replace("\\\\", "\\")
            assert b"root:" not in answer.data
    async with closed(running):
        assert running.provider.log.requests - before <= 3


async def test_ss04_a_redirect_of_the_control_plane_is_not_followed(evil: tuple[str, list[bytes]]) -> None:
    """Of providers: `test_i06`. Of key sets, tokens and webhooks, which all come by `fetch`: here."""
    pytest.importorskip("httpcore2")
    url, heard = evil

    async def redirect(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(f"HTTP/1.1 302 Found\r\nlocation: {url}/\r\ncontent-length: 0\r\n\r\n".encode())

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, redirect, 0, host="127.0.0.1"))
        with trio.fail_after(5):
            answer = await fetch(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/keys")
        nursery.cancel_scope.cancel()
    assert (answer.status, heard) == (302, [])
    for where in (
        "http://169.254.169.254/",
        "http://metadata.google.internal/",
        "file:///etc/passwd",
        "https://a@b/",
        "gopher://b/",
    ):
        with pytest.raises(FetchError):
            await fetch(where)


async def test_ss05_a_token_names_no_keys_of_its_own(tmp_path: Path, evil: tuple[str, list[bytes]]) -> None:
    """`iss`, `jku` and `x5u` of a token are words of a stranger's: nobody is asked for keys because of them."""
    url, heard = evil
    key = jwk.ECKey.generate_key("P-256", {"kid": "a"})
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    issuer = {"issuer": "https://login.test", "audiences": ["gateway"], "jwks": f"file:{tmp_path}/keys.json"}

    def token(header: dict[str, Any], **claims: Any) -> str:
        said = {"iss": "https://login.test", "aud": "gateway", "sub": "alice", "exp": time.time() + 60, **claims}
        registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
        return jws.serialize_compact({"alg": "ES256", "kid": "a", **header}, json.dumps(said).encode(), key, registry=registry)

    def ask(shown: str) -> bytes:
        return post(document(), headers={"Authorization": f"Bearer {shown}"})

    async with gateway(tmp_path, sections={"auth": {"issuers": {"corp": issuer}}}) as running:
        async with closed(running, calls=1):
            assert (await say(running.address, ask(token({})))).status == 200
        async with closed(running), only_the_provider(running):
            for header in (
                {"jku": f"{url}/keys"},
                {"x5u": f"{url}/cert"},
                {"jwk": key.as_dict(private=False)},
                {"kid": f"{url}/keys"},
            ):
                assert (await say(running.address, ask(token(header)))).status == 401, header
            for iss in (url, "https://login.test.evil.test", "https://login.test/", "http://login.test"):
                assert (await say(running.address, ask(token({}, iss=iss)))).status in (401, 429), iss
    assert not heard
