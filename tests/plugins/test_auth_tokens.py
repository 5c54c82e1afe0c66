"""Tokens that others issue: JWT (A-04 to A-11) and introspection, against a real issuer over TLS."""

from __future__ import annotations

import base64
import hmac
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import h11
import pytest
import trio
import trustme
from joserfc import jwk, jws

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

AUTHORITY = trustme.CA()
RSA = jwk.RSAKey.generate_key(2048, {"kid": "rsa"})
OTHER = jwk.RSAKey.generate_key(2048, {"kid": "rsa"})
EC = jwk.ECKey.generate_key("P-256", {"kid": "ec"})
ED = jwk.OKPKey.generate_key("Ed25519", {"kid": "ed"})
KEYS = {"keys": [each.as_dict(private=False) for each in (RSA, EC, ED)]}


class NoStore:
    async def find_key(self, digest: bytes) -> None:
        await trio.lowlevel.checkpoint()


@attrs.define
class Issuer:
    """An authorization server: what it says by path, and what it was asked."""

    url: str
    ca_file: Path
    pages: dict[str, Any]
    asked: list[str] = attrs.field(factory=list)
    bodies: list[bytes] = attrs.field(factory=list)

    def settings(self, **changes: Any) -> IssuerSettings:
        values: dict[str, Any] = {
            "issuer": self.url,
            "audiences": ("gateway",),
            "jwks": f"{self.url}/jwks",
            "ca_file": self.ca_file,
        }
        return IssuerSettings(**(values | changes))

    def token(self, key: Any = RSA, header: dict[str, Any] | None = None, **changes: Any) -> str:
        claims = {"iss": self.url, "aud": "gateway", "sub": "alice", "exp": time.time() + 60} | changes
        algorithm = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[key.key_type]
        return signed(
            key, {"alg": algorithm, "kid": key.kid, **(header or {})}, {k: v for k, v in claims.items() if v is not None}
        )


def signed(key: Any, header: dict[str, Any], claims: dict[str, Any]) -> str:
    data = json.dumps(claims).encode()
    return jws.serialize_compact(
        {"alg": header["alg"], **{k: v for k, v in header.items() if v is not None}}, data, key, [header["alg"]]
    )


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def app_of(**keys: Any) -> App:
    def resolve(ref: SecretRef) -> Secret:
        return Secret(ref.value)

    return App(Config(keys=keys), cast(Store, NoStore()), "test", None, resolve_secret=resolve, pepper=b"p" * 32)


@asynccontextmanager
async def issuing(tmp_path: Path) -> AsyncIterator[Issuer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    AUTHORITY.issue_cert("localhost").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(ca_file))
    issuer = Issuer("", ca_file, {})

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(bytes(await stream.receive_some()))
                elif isinstance(event, h11.Request):
                    issuer.asked.append(event.target.decode())
                elif isinstance(event, h11.Data):
                    issuer.bodies.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            page = issuer.pages.get(issuer.asked[-1])
            if callable(page):
                page = await page()
            status = 404 if page is None else 200
            body = page if isinstance(page, bytes) else json.dumps(page).encode()
            head = h11.Response(status_code=status, headers=[("content-length", str(len(body))), ("connection", "close")])
            await stream.send_all(connection.send(head) + connection.send(h11.Data(data=body)))
            await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
        except trio.BrokenResourceError:
            return

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_ssl_over_tcp, serve, 0, context, host="127.0.0.1"))
        issuer.url = f"https://localhost:{listener.transport_listener.socket.getsockname()[1]}"
        issuer.pages = {
            "/jwks": KEYS,
            "/.well-known/openid-configuration": {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/jwks"},
        }
        yield issuer
        nursery.cancel_scope.cancel()


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


PEM = RSA.as_pem(private=False)
SYMMETRIC = [PEM, PEM.strip(), json.dumps(RSA.as_dict(private=False)).encode(), RSA.as_der(private=False)]


def hmac_with(secret: bytes) -> Callable[[Issuer], str]:
    def make(issuer: Issuer) -> str:
        claims = {"iss": issuer.url, "aud": "gateway", "sub": "a", "exp": time.time() + 60}
        signing = f"{part({'alg': 'HS256', 'kid': 'rsa'})}.{part(claims)}"
        signature = hmac.digest(secret, signing.encode(), "sha256")  # by hand: the library knows better
        return f"{signing}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"

    return make


def unsigned(algorithm: str) -> Callable[[Issuer], str]:
    def make(issuer: Issuer) -> str:
        claims = {"iss": issuer.url, "aud": "gateway", "sub": "a", "exp": time.time() + 60}
        return f"{part({'alg': algorithm, 'kid': 'rsa'})}.{part(claims)}."

    return make


def claims(**changes: Any) -> Callable[[Issuer], str]:
    return lambda issuer: issuer.token(**changes)


def header(**changes: Any) -> Callable[[Issuer], str]:
    def make(issuer: Issuer) -> str:
        """The header is changed after signing where the library would not sign it, and the signature made by hand."""
        good = issuer.token()
        raw = json.loads(base64.urlsafe_b64decode(good.split(".")[0] + "=="))
        signing = f"{part({**raw, **changes})}.{good.split('.')[1]}"
        return f"{signing}.{base64.urlsafe_b64encode(rs256(signing.encode())).rstrip(b'=').decode()}"

    return make


def rs256(data: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    return RSA.private_key.sign(data, padding.PKCS1v15(), hashes.SHA256())  # type: ignore[union-attr]


BAD: dict[str, Callable[[Issuer], str]] = {
    **{f"A-04 {name or 'empty'}": unsigned(name) for name in ("none", "None", "nOnE", "NONE", "")},
    "A-04 stripped signature": lambda issuer: issuer.token().rpartition(".")[0] + ".",
    **{f"A-05 {number}": hmac_with(secret) for number, secret in enumerate(SYMMETRIC)},
    **{
        f"A-06 {number}": header(kid=kid)
        for number, kid in enumerate(
            ["../../../dev/null", "' OR 1=1--", "https://evil.test/", "x" * 10_000, ["rsa"], "unknown", 5]
        )
    },
    "A-07 jwk": header(jwk=OTHER.as_dict(private=False)),
    **{f"A-07 {name}": header(**{name: "https://localhost:1/keys"}) for name in ("jku", "x5u")},
    "A-07 x5c": header(x5c=["MIIB"]),
    "A-08 crit": header(crit=["exp"]),
    "A-08 empty crit": header(crit=[]),
    "A-08 b64": header(b64=False),
    "A-10 nbf": claims(nbf=time.time() + 3600),
    "A-10 iat": claims(iat=time.time() + 3600),
    "A-10 no exp": claims(exp=None),
    "A-10 exp text": claims(exp="9999999999"),
    "A-10 exp huge": claims(exp=1e20),
    "A-10 exp nan": claims(exp=float("nan")),
    "A-10 exp true": claims(exp=True),
    "A-10 aud prefix": claims(aud="gateway.evil"),
    "A-10 aud other": claims(aud=["other"]),
    "A-10 no aud": claims(aud=None),
    "A-10 aud number": claims(aud=5),
    "A-10 no sub": claims(sub=None),
    "A-10 sub number": claims(sub=5),
    "A-10 iss": lambda issuer: issuer.token(iss=issuer.url + ".evil"),
    "A-10 iss slash": lambda issuer: issuer.token(iss=issuer.url + "/"),
    "A-10 iss list": lambda issuer: issuer.token(iss=[issuer.url]),
    "another key": lambda issuer: issuer.token(OTHER),
    "another algorithm": lambda issuer: issuer.token(header={"alg": "RS512"}),
    "another type": lambda issuer: issuer.token(EC, header={"kid": "rsa"}),
    "A-11 same beginning": lambda issuer: issuer.token()[:-20] + "A" * 20,
    "no JSON": lambda issuer: "eyJ.eyJ.x",
    "two parts": lambda issuer: issuer.token().rpartition(".")[0],
}


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


async def hang() -> bytes:
    await trio.sleep(60)
    return b""


POISON: dict[str, Any] = {
    "huge": b"[" + b" " * 300_000,
    "many": {"keys": [{"kty": "RSA", "kid": str(number)} for number in range(10_000)]},
    "101 keys": {"keys": [EC.as_dict(private=False)] * 101},
    "HTML": b"<html>",
    "deep": b'{"keys":' + b"[" * 100_000,
    "a list": b"[]",
    "keys is no list": {"keys": {}},
    "symmetric": {"keys": [{"kty": "oct", "k": "AAAA", "kid": "rsa"}]},
    "private": {"keys": [RSA.as_dict(private=True)]},
    "for encryption": {"keys": [{**RSA.as_dict(private=False), "use": "enc"}]},
    "short RSA": {"keys": [{**RSA.as_dict(private=False), "n": base64.urlsafe_b64encode(b"\xff" * 128).decode()}]},
    "gone": None,
    "slow": hang,
}


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
