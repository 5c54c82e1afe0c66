"""Tokens that others issue: JWT (A-04 to A-11) and introspection, against a real issuer over TLS."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trustme

import clawproxy_auth
from clawproxy.config import Config, KeyConfig, SecretRef
from clawproxy.config.schema import Duration
from clawproxy.context import App
from clawproxy.errors import ClawError, ConfigError
from clawproxy.fetch import FetchError, fetch, problem_with
from clawproxy.messages import Principal
from clawproxy.secrets import Secret
from clawproxy.stores.base import Store
from clawproxy.testing.factories import make_credentials
from clawproxy_auth import keysets
from clawproxy_auth.introspection import IntrospectionSettings
from clawproxy_auth.issuers import IssuerSettings
from clawproxy_auth.keyring import AuthSettings, Keyring
from clawproxy_auth.keysets import read_keys
from tests.e2e.harness import gateway
from tests.e2e.http_client import chat
from tests.plugins.issuing import BAD, EC, ED, KEYS, OTHER, POISON, RSA, Issuer, issuing


class NoStore:
    async def find_key(self, digest: bytes) -> None:
        await trio.lowlevel.checkpoint()


def app_of(**keys: Any) -> App:
    def resolve(ref: SecretRef) -> Secret:
        return Secret(ref.value)

    return App(Config(keys=keys), cast(Store, NoStore()), "test", None, resolve_secret=resolve, pepper=b"p" * 32)


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[Issuer]:
    async with issuing(tmp_path) as issuer:
        yield issuer


def ring_of(app: App, **settings: Any) -> Keyring:
    return clawproxy_auth.configure(AuthSettings(**settings), app)


async def verdict(app: App, ring: Keyring, token: str) -> Principal | str:
    try:
        principal = await clawproxy_auth.authenticate(make_credentials(token), ring, app)
    except ClawError as error:
        return error.slug
    assert principal is not None
    return principal


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("key", [RSA, EC, ED], ids=lambda key: key.key_type)
async def test_a_token_of_a_configured_issuer_is_a_credential(issuer: Issuer, key: Any) -> None:
    app = app_of()
    settings = issuer.settings(team="team", roles="roles", models=("gpt*",), tags=("region:eu",))
    ring = ring_of(app, issuers={"corp": settings})
    found = await verdict(app, ring, issuer.token(key, team="t", roles="reader writer", aud=["x", "gateway"]))
    assert isinstance(found, Principal)
    assert (found.key, found.user, found.team, found.roles) == ("corp", "alice", "t", ("reader", "writer"))
    assert (found.models, found.tags, found.may_assert) == (("gpt*",), ("region:eu",), False)
    assert found.expires is not None
    assert 80 < found.expires - time.time() < 91
    assert issuer.asked == ["/jwks"]


async def test_keys_are_discovered(issuer: Issuer) -> None:
    app = app_of()
    ring = ring_of(app, issuers={"corp": issuer.settings(jwks=None)})
    assert isinstance(await verdict(app, ring, issuer.token()), Principal)
    assert issuer.asked == ["/.well-known/openid-configuration", "/jwks"]


async def test_keys_in_a_file(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(KEYS))
    app = app_of()
    ring = ring_of(app, issuers={"corp": issuer.settings(jwks=f"file:{path}")})
    assert isinstance(await verdict(app, ring, issuer.token()), Principal)
    assert issuer.asked == []


@pytest.mark.parametrize("name", BAD)
async def test_what_must_not_be_believed(issuer: Issuer, name: str) -> None:
    app = app_of()
    ring = ring_of(app, issuers={"corp": issuer.settings()}, failures=1000)
    assert isinstance(await verdict(app, ring, issuer.token()), Principal)
    asked = len(issuer.asked)
    for _ in range(3):
        assert await verdict(app, ring, BAD[name](issuer)) == "auth.invalid"
    assert len(issuer.asked) == asked, "nothing a token says makes the gateway ask anybody"
    assert isinstance(await verdict(app, ring, issuer.token()), Principal)


async def test_a_token_whose_time_is_over_says_so(issuer: Issuer) -> None:
    app = app_of()
    ring = ring_of(app, issuers={"corp": issuer.settings()})
    assert await verdict(app, ring, issuer.token(exp=time.time() - 120)) == "auth.expired"
    assert isinstance(await verdict(app, ring, issuer.token(exp=time.time() - 5)), Principal), "within the leeway"
    assert await verdict(app, ring, issuer.token(OTHER, exp=time.time() - 120)) == "auth.invalid"


async def test_an_unknown_kid_fetches_at_most_once_a_minute(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A-06. A key that was added is found, too."""
    app = app_of()
    ring = ring_of(app, issuers={"corp": issuer.settings()}, failures=1000)
    issuer.pages["/jwks"] = {"keys": [EC.as_dict(private=False)]}
    assert isinstance(await verdict(app, ring, issuer.token(EC)), Principal)
    issuer.pages["/jwks"] = KEYS
    for _ in range(20):
        assert await verdict(app, ring, issuer.token()) == "auth.invalid"
    assert issuer.asked == ["/jwks"]
    monkeypatch.setattr(keysets, "PAUSE", 0.0)
    assert isinstance(await verdict(app, ring, issuer.token()), Principal)
    assert issuer.asked == ["/jwks"] * 2


@pytest.mark.parametrize("name", POISON)
async def test_poisoned_keys_change_nothing(issuer: Issuer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A-09: the last good ones stay, and it is counted."""
    app = app_of()
    counts: list[str] = []
    app.count = lambda _, **labels: counts.append(labels["result"])
    settings = issuer.settings(refresh=Duration(1e-9))
    ring = ring_of(app, issuers={"corp": settings})
    assert isinstance(await verdict(app, ring, issuer.token()), Principal)
    issuer.pages["/jwks"] = POISON[name]
    monkeypatch.setattr(keysets, "PAUSE", 0.0)
    monkeypatch.setitem(cast(dict[str, Any], fetch.__kwdefaults__), "seconds", 0.2)
    assert isinstance(await verdict(app, ring, issuer.token()), Principal)
    assert counts == ["ok", "failed"]


async def test_old_keys_are_not_believed_for_ever(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    app = app_of()
    ring = ring_of(app, issuers={"corp": issuer.settings(refresh=Duration(1e-9), keep=Duration(0.05))})
    assert isinstance(await verdict(app, ring, issuer.token()), Principal)
    issuer.pages["/jwks"] = None
    monkeypatch.setattr(keysets, "PAUSE", 0.0)
    await trio.sleep(0.06)
    assert await verdict(app, ring, issuer.token()) == "auth.invalid"


async def test_a_certificate_nobody_vouches_for(issuer: Issuer, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    app = app_of()
    ring = ring_of(app, issuers={"corp": issuer.settings(ca_file=other)})
    assert await verdict(app, ring, issuer.token()) == "auth.invalid"
    with pytest.raises(FetchError, match="certificate verify failed"):
        await fetch(f"{issuer.url}/jwks", ca_file=other)


async def test_authorities_that_are_replaced_are_believed(issuer: Issuer, tmp_path: Path) -> None:
    """Without a restart, and those before are not any more."""
    path = tmp_path / "authorities.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    with pytest.raises(FetchError, match="certificate verify failed"):
        await fetch(f"{issuer.url}/jwks", ca_file=path)
    path.write_bytes(issuer.ca_file.read_bytes())
    assert (await fetch(f"{issuer.url}/jwks", ca_file=path)).status == 200
    path.unlink()
    with pytest.raises(FetchError, match="FileNotFoundError"):
        await fetch(f"{issuer.url}/jwks", ca_file=path)


async def test_a_redirect_is_not_followed(issuer: Issuer) -> None:
    issuer.pages["/jwks"] = None
    with pytest.raises(FetchError, match="sent more than 3 bytes"):
        await fetch(f"{issuer.url}/other", ca_file=issuer.ca_file, limit=3)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://localhost/",
        "https://",
        "https://u:p@h/",
        "https://h/#f",
        "https://h/a b",
        "x",
        "https://[::1",
    ],
)
def test_where_nothing_is_fetched_from(url: str) -> None:
    assert problem_with(url) is not None


def test_one_bad_key_takes_no_other_with_it() -> None:
    [key] = read_keys(
        json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "x": "!", "y": 5}, "x", EC.as_dict(private=False)]}).encode()
    )
    assert key.id == "ec"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"jwks": "http://issuer.example/keys"}, "issuers.corp.jwks: must begin with https://"),
        ({"issuer": "corp", "jwks": None}, "issuers.corp.issuer: is not a URL"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], sentence: str) -> None:
    values: dict[str, Any] = {"issuer": "https://i", "audiences": ("a",)}
    with pytest.raises(ConfigError, match=sentence):
        ring_of(app_of(), issuers={"corp": IssuerSettings(**(values | settings))})
    with pytest.raises(ConfigError, match="there is a key `corp` too"):
        ring_of(app_of(corp=KeyConfig(SecretRef("", "k" * 20))), issuers={"corp": IssuerSettings("https://i", ("a",))})
    with pytest.raises(ValueError, match="'HS256' can not be used"):
        IssuerSettings("https://i", ("a",), ("HS256",))
    with pytest.raises(ValueError, match="leeway"):
        IssuerSettings("https://i", ("a",), leeway=Duration(61.0))


async def test_over_http_a_token_asks(issuer: Issuer, tmp_path: Path) -> None:
    section = {
        "corp": {"issuer": issuer.url, "audiences": ["gateway"], "jwks": f"{issuer.url}/jwks", "ca_file": str(issuer.ca_file)}
    }
    async with gateway(tmp_path, sections={"auth": {"issuers": section}}) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                good = await chat(connection, "hello", key=issuer.token(EC))
                bad = await chat(connection, "hello", key=issuer.token(OTHER))
        await running.at_rest()
        await running.server.gateway.app.store.flush()
        [row] = await running.server.gateway.app.store.rows()
    assert (good.status, bad.status) == (200, 401)
    assert (row.opened.key, row.opened.user) == ("corp", "alice")


# --- introspection ---------------------------------------------------------------------------------------------------------


def introspecting(server: Issuer, **changes: Any) -> IntrospectionSettings:
    secret = SecretRef("", "s/ cret")
    return IntrospectionSettings(f"{server.url}/introspect", "gate way", secret, ca_file=server.ca_file, **changes)


async def test_an_opaque_token_is_introspected(issuer: Issuer) -> None:
    issuer.pages["/introspect"] = {"active": True, "sub": "bob", "client_id": "cli", "scope": "a b", "exp": time.time() + 60}
    app = app_of()
    found = await verdict(app, ring_of(app, introspection=introspecting(issuer)), "opaque-token/+&=x")
    assert isinstance(found, Principal)
    assert (found.key, found.user, found.app, found.roles) == ("introspected", "bob", "cli", ("a", "b"))
    assert issuer.bodies == [b"token=opaque-token%2F%2B%26%3Dx&token_type_hint=access_token"]


@pytest.mark.parametrize(
    ("answer", "slug"),
    [
        ({"active": False}, "auth.invalid"),
        ({"active": "true", "sub": "x"}, "auth.invalid"),
        ({"sub": "x"}, "auth.invalid"),
        ({"active": True}, "auth.invalid"),
        ({"active": True, "sub": "x", "aud": "gateway", "exp": 5}, "auth.expired"),
        ({"active": True, "sub": "x", "iss": "https://evil"}, "auth.invalid"),
        ({"active": True, "sub": "x", "aud": "other"}, "auth.invalid"),
        (b"<html>", "overloaded"),
        (None, "overloaded"),
    ],
)
async def test_who_is_not_let_in_by_introspection(issuer: Issuer, answer: Any, slug: str) -> None:
    issuer.pages["/introspect"] = answer
    app = app_of()
    ring = ring_of(app, introspection=introspecting(issuer, issuer=issuer.url, audiences=("gateway",)))
    assert await verdict(app, ring, "opaque") == slug
