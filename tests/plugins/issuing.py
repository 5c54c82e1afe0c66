"""An authorization server for tests, over TLS: its keys, its tokens, and those that must not be believed, by their row of the
threat catalogue."""

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
from typing import Any

import attrs
import h11
import trio
import trustme
from joserfc import jwk, jws

from clawproxy_auth.issuers import IssuerSettings

AUTHORITY = trustme.CA()
RSA = jwk.RSAKey.generate_key(2048, {"kid": "rsa"})
OTHER = jwk.RSAKey.generate_key(2048, {"kid": "rsa"})
EC = jwk.ECKey.generate_key("P-256", {"kid": "ec"})
ED = jwk.OKPKey.generate_key("Ed25519", {"kid": "ed"})
KEYS = {"keys": [each.as_dict(private=False) for each in (RSA, EC, ED)]}


@attrs.frozen
class Elsewhere:
    """A page that is a redirect."""

    url: str


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
            status = 302 if isinstance(page, Elsewhere) else 404 if page is None else 200
            body = page if isinstance(page, bytes) else b"" if status == 302 else json.dumps(page).encode()
            fields = [("content-length", str(len(body))), ("connection", "close")]
            if isinstance(page, Elsewhere):
                fields.append(("location", page.url))
            head = h11.Response(status_code=status, headers=fields)
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
