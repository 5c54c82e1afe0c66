"""Authorization servers that are slow, or mean: who is let in meanwhile, and where their words can send the gateway."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
from joserfc import jwk, jws
from trio.testing import MockClock

import clawproxy_auth
from clawproxy.config import Config, SecretRef
from clawproxy.config.schema import Duration
from clawproxy.context import App
from clawproxy.errors import ClawError, ConfigError
from clawproxy.fetch import SECONDS, Fetched, FetchError
from clawproxy.gateway import HOOK_BUDGET_AUTH
from clawproxy.secrets import Secret
from clawproxy.stores.base import Store
from clawproxy.testing.factories import make_credentials
from clawproxy_auth import introspection, keysets
from clawproxy_auth.introspection import IntrospectionSettings
from clawproxy_auth.issuers import IssuerSettings
from clawproxy_auth.keyring import AuthSettings

URL = "https://issuer.example"
DISCOVERY = f"{URL}/.well-known/openid-configuration"
KEY = jwk.ECKey.generate_key("P-256", {"kid": "ec"})
KEYS = json.dumps({"keys": [KEY.as_dict(private=False)]}).encode()
Page = Callable[[], Awaitable[bytes]]


class NoStore:
    async def find_key(self, digest: bytes) -> None:
        await trio.lowlevel.checkpoint()


class Server:
    """What stands at each address, instead of `fetch`."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {DISCOVERY: says(discovered(f"{URL}/jwks")), f"{URL}/jwks": says(KEYS)}
        self.asked: list[str] = []

    async def fetch(self, url: str, *, seconds: float = SECONDS, **_: Any) -> Fetched:
        self.asked.append(url)
        page = self.pages.get(url)
        if page is None:
            raise FetchError("nobody is there")
        with trio.move_on_after(seconds):
            return Fetched(200, {}, await page())
        raise FetchError("did not answer")


def says(body: bytes, after: float = 0.0) -> Page:
    async def page() -> bytes:
        await trio.sleep(after)
        return body

    return page


def discovered(jwks: str) -> bytes:
    return json.dumps({"issuer": URL, "jwks_uri": jwks}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(keysets, "fetch", server.fetch)
    monkeypatch.setattr(introspection, "fetch", server.fetch)
    return server


def app_in(nursery: trio.Nursery) -> App:
    return App(
        Config(),
        cast(Store, NoStore()),
        "test",
        None,
        resolve_secret=lambda ref: Secret(ref.value),
        pepper=b"p" * 32,
        nursery=nursery,
    )


def settings(**changes: Any) -> AuthSettings:
    return AuthSettings(issuers={"corp": IssuerSettings(URL, ("gateway",), **changes)})


def token() -> str:
    claims = {"iss": URL, "aud": "gateway", "sub": "alice", "exp": time.time() + 600}
    return jws.serialize_compact({"alg": "ES256", "kid": "ec"}, json.dumps(claims).encode(), KEY, ["ES256"])


async def verdict(app: App, own: AuthSettings, credential: str) -> str:
    try:
        principal = await clawproxy_auth.authenticate(make_credentials(credential), clawproxy_auth.configure(own, app), app)
    except ClawError as error:
        return error.slug
    assert principal is not None
    return principal.key


async def test_a_client_that_leaves_takes_no_fetch_with_it(server: Server, autojump_clock: MockClock) -> None:
    """Else whoever shows a made-up token and hangs up, once a minute, keeps everybody out for ever."""
    server.pages[f"{URL}/jwks"] = says(KEYS, after=1.0)
    async with trio.open_nursery() as nursery:
        app = app_in(nursery)
        with trio.move_on_after(0.5):
            await verdict(app, settings(), token())
        assert await verdict(app, settings(), token()) == "corp"
    assert server.asked == [DISCOVERY, f"{URL}/jwks"]


async def test_keys_that_are_held_are_used_while_new_ones_do_not_come(server: Server, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        app, own = app_in(nursery), settings(refresh=Duration(600.0))
        assert await verdict(app, own, token()) == "corp"
        server.pages[f"{URL}/jwks"] = says(KEYS, after=1e6)
        await trio.sleep(601)
        began = trio.current_time()
        assert await verdict(app, own, token()) == "corp"
        assert trio.current_time() - began < 2.0
        began = trio.current_time()
        assert await verdict(app, own, token()) == "corp"
        assert trio.current_time() - began < 2.0
        nursery.cancel_scope.cancel()


async def test_new_keys_are_taken_where_they_come_soon(server: Server, autojump_clock: MockClock) -> None:
    """One that was taken back is not believed any more."""
    async with trio.open_nursery() as nursery:
        app, own = app_in(nursery), settings(refresh=Duration(600.0))
        assert await verdict(app, own, token()) == "corp"
        other = jwk.ECKey.generate_key("P-256", {"kid": "other"})
        server.pages[f"{URL}/jwks"] = says(json.dumps({"keys": [other.as_dict(private=False)]}).encode(), after=0.3)
        await trio.sleep(601)
        assert await verdict(app, own, token()) == "auth.invalid"


async def test_a_server_that_drips_is_no_defect_of_the_gateway(server: Server, autojump_clock: MockClock) -> None:
    """The verdict comes within the time a plugin has, else clients are told `internal`."""
    server.pages = {DISCOVERY: says(discovered(f"{URL}/jwks"), after=4.9), f"{URL}/jwks": says(KEYS, after=4.9)}
    async with trio.open_nursery() as nursery:
        app = app_in(nursery)
        began = trio.current_time()
        assert await verdict(app, settings(), token()) == "auth.invalid"
        assert trio.current_time() - began < HOOK_BUDGET_AUTH
        await trio.sleep(10)
        assert await verdict(app, settings(), token()) == "corp"
    assert server.asked == [DISCOVERY, f"{URL}/jwks"]


async def test_introspection_that_drips_is_no_defect_of_the_gateway(server: Server, autojump_clock: MockClock) -> None:
    server.pages["https://oauth.example/"] = says(b"{}", after=1e6)
    own = AuthSettings(introspection=IntrospectionSettings("https://oauth.example/", "gw", SecretRef("", "s")))
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        assert await verdict(app_in(nursery), own, "opaque") == "overloaded"
        assert trio.current_time() - began < HOOK_BUDGET_AUTH


@pytest.mark.parametrize("place", ["http://127.0.0.1:8643/admin/keys", "http://localhost/", "https://u:p@issuer.example/"])
async def test_a_discovery_document_sends_nobody_to_this_machine(server: Server, place: str, autojump_clock: MockClock) -> None:
    server.pages |= {DISCOVERY: says(discovered(place)), place: says(KEYS)}
    async with trio.open_nursery() as nursery:
        assert await verdict(app_in(nursery), settings(), token()) == "auth.invalid"
    assert server.asked == [DISCOVERY]


async def test_requests_of_two_are_not_booked_under_one_name(server: Server, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        app, issuers = app_in(nursery), settings().issuers
        own = IntrospectionSettings("https://oauth.example/", "gw", SecretRef("", "s"), key="corp")
        with pytest.raises(ConfigError, match=r"plugins.auth.introspection.key: there is an issuer `corp` too"):
            clawproxy_auth.configure(AuthSettings(issuers=issuers, introspection=own), app)
