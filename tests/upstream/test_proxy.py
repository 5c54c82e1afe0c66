"""Through an HTTP proxy, or past it."""

from __future__ import annotations

import base64
import ssl
from pathlib import Path

import pytest
import trio

from clawproxy.errors import ConfigError
from clawproxy.events import End, Text
from clawproxy.upstream.proxy import Proxy, proxy_for
from clawproxy.upstream.url import parse_base_url
from tests.upstream.kit import Conversation, Script, always, bench, make_providers, scripted_peer, whole


def tunnel(port: int, *, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> Script:
    """A CONNECT proxy that leads everywhere to one port of this machine."""

    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(answer)
        assert isinstance(talk.stream, trio.SocketStream)
        far = await trio.open_tcp_stream("127.0.0.1", port)

        async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            try:
                while data := await source.receive_some(65536):
                    await sink.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, talk.stream, far)
            nursery.start_soon(pump, far, talk.stream)
        far.socket.close()

    return script


async def test_https_goes_through_a_tunnel(server_tls: ssl.SSLContext, ca_file: Path) -> None:
    async with scripted_peer(always(whole(b"x.")), server_tls) as provider, scripted_peer(tunnel(provider.port)) as proxy:
        environ = {"HTTPS_PROXY": f"http://us%20er:p%40ss@127.0.0.1:{proxy.port}"}
        url = "https://provider.test/v1"
        async with bench(always(), base_url=url, environ=environ, ca_file=ca_file) as b:
            for _ in range(2):
                assert await b.ask(stream=False) == [Text("x."), End()]
        (connect,) = proxy.seen
        assert connect.line == "CONNECT provider.test:443 HTTP/1.1"
        assert connect.all("host") == ["provider.test:443"]
        assert connect.all("proxy-authorization") == ["Basic " + base64.b64encode(b"us er:p@ss").decode()]
        assert not connect.all("authorization")
        assert provider.seen[0].line == "POST /v1/say HTTP/1.1"
        assert provider.seen[0].all("host") == ["provider.test"]
        assert not provider.seen[0].all("proxy-authorization")


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n", "the proxy answered 407"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://evil.test\r\n\r\n", "the proxy answered 302"),
        (b"HTTP/1.1 200 OK\r\n\r\nextra", "the proxy spoke into the tunnel"),
        (b"SOCKS\r\n\r\n", "the proxy does not speak HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 5000, "the proxy's answer is too large"),
        (b"HTTP/1.1 200", "the proxy closed the connection"),
    ],
)
async def test_a_proxy_that_does_not_play(answer: bytes, cause: str) -> None:
    async def script(talk: Conversation) -> None:
        await talk.request()
        await talk.say(answer)

    async with scripted_peer(script) as proxy:
        environ = {"https_proxy": f"http://user:hunter2@127.0.0.1:{proxy.port}"}
        async with bench(always(), base_url="https://provider.test", environ=environ) as b:
            error = await b.fault()
            assert error.slug == "provider_error.unreachable"
            assert cause in error.message
            assert "hunter2" not in repr(error) + repr(b.providers)
            assert not error.sent


async def test_http_goes_to_the_proxy_in_absolute_form() -> None:
    async with scripted_peer(always(whole(b"x."))) as proxy:
        environ = {"http_proxy": f"u:p@127.0.0.1:{proxy.port}"}
        async with bench(always(), base_url="http://provider.test:8080/v1", environ=environ) as b:
            assert await b.ask(stream=False) == [Text("x."), End()]
        (seen,) = proxy.seen
        assert seen.line == "POST http://provider.test:8080/v1/say HTTP/1.1"
        assert seen.all("host") == ["provider.test:8080"]
        assert seen.all("proxy-authorization") == ["Basic dTpw"]


PROXY = {"http_proxy": "http://proxy.test:3128", "HTTPS_PROXY": "http://secure.test"}


@pytest.mark.parametrize(
    ("url", "no_proxy", "proxied"),
    [
        ("http://api.test", "", True),
        ("http://api.test", "*", False),
        ("http://api.test", "api.test", False),
        ("http://api.test", ".api.test", False),
        ("http://api.test", "*.api.test", False),
        ("http://eu.api.test", "api.test", False),
        ("http://eu.api.test", "API.test, other", False),
        ("http://notapi.test", "api.test", True),
        ("http://api.test.evil", "api.test", True),
        ("http://api.test:8080", "api.test:8080", False),
        ("http://api.test:8080", "api.test:80", True),
        ("http://api.test", "api.test:80", False),
        ("http://10.1.2.3", "10.0.0.0/8", False),
        ("http://11.1.2.3", "10.0.0.0/8", True),
        ("http://10.1.2.3", "10.1.2.3", False),
        ("http://10.1.2.3", "1.2.3", True),
        ("http://[2001:db8::1]", "2001:db8::/32", False),
        ("http://[2001:db8::1]", "2001:db8::1", False),
        ("http://[2001:db8::1]:81", "[2001:db8::1]:80", True),
        ("http://api.test", "10.0.0.0/99,,a b:c:d", True),
        ("http://127.0.0.1:11434", "", False),
        ("http://[::1]", "", False),
        ("http://localhost", "", False),
    ],
)
def test_who_is_proxied(url: str, no_proxy: str, proxied: bool) -> None:
    found = proxy_for(parse_base_url(url), {**PROXY, "NO_PROXY": no_proxy})
    assert found == (Proxy("proxy.test", 3128) if proxied else None)


def test_each_scheme_has_its_own_and_lower_case_wins() -> None:
    assert proxy_for(parse_base_url("https://api.test"), PROXY) == Proxy("secure.test", 80)
    both = {"HTTP_PROXY": "http://upper.test", "http_proxy": "http://lower.test"}
    assert proxy_for(parse_base_url("http://api.test"), both) == Proxy("lower.test", 80)
    assert proxy_for(parse_base_url("http://api.test"), {"http_proxy": ""}) is None


@pytest.mark.parametrize(
    "value", ["https://proxy.test", "socks5://proxy.test", "http://", "http://x:y", "http://a b", "http://x/y"]
)
def test_a_proxy_that_can_not_be_used_is_not_bypassed(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_providers("https://api.test", environ={"HTTPS_PROXY": value})
    assert "HTTPS_PROXY" in caught.value.problems[0]


def test_the_password_is_not_shown() -> None:
    proxy = proxy_for(parse_base_url("http://api.test"), {"http_proxy": "http://user:hunter2@proxy.test"})
    assert proxy is not None
    assert proxy.authorization is not None
    assert "hunter2" not in repr(proxy) + str(proxy)
    assert base64.b64encode(b"user:hunter2").decode() not in repr(proxy)
