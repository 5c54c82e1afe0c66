"""Tokens that others issue: JSON Web Tokens (RFC 7519) of configured issuers, checked here.

Rule 1: who may issue, for whom, and by which algorithms, is the configuration's. Of a token's header only `alg` and `kid` are
        read, to look up what is configured; a header that names a key or a place of keys (`jwk`, `jku`, `x5u`, `x5c`), or asks
        for something to be understood (`crit`, `b64`), is refused.
Rule 2: algorithms are asymmetric, and a key is used with the algorithms of its own type: a public key is nobody's HMAC secret.
Rule 3: the signature is joserfc's to check, the claims ours: `iss` and `aud` exactly, `exp` required, times as finite numbers.
Rule 4: whatever is wrong with a token, its owner hears `auth.invalid`, or `auth.expired` where all else was right.
"""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from attrs import field, frozen, validators

from clawproxy.config import Duration
from clawproxy.errors import ClawError
from clawproxy.messages import Principal

ALGORITHMS: Final[Mapping[str, str]] = {
    "RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
    "ES256": "EC", "ES384": "EC", "ES512": "EC", "EdDSA": "OKP", "Ed25519": "OKP",
}  # fmt: skip
"""By the type of key that goes with each (RFC 7518, 8037, 9864)."""
REFUSED: Final = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64"})
MOST_HEADER: Final = 4096
MOST_CLAIM: Final = 256
MOST_LEEWAY: Final = 60.0


@frozen
class IssuerSettings:
    """`[plugins.auth.issuers.NAME]`. The name is the key that its tokens' requests are booked under."""

    issuer: str = field(validator=validators.min_len(1))
    """Exactly the tokens' `iss`."""
    audiences: tuple[str, ...] = field(validator=validators.min_len(1))
    """A token must name one of them, exactly."""
    algorithms: tuple[str, ...] = field(default=("RS256", "ES256", "EdDSA"), validator=validators.min_len(1))
    jwks: str | None = None
    """Where its keys are: a URL, or `file:PATH`. Else discovered, at `ISSUER/.well-known/openid-configuration`."""
    ca_file: Path | None = None
    leeway: Duration = field(
        default=Duration(30.0), validator=[validators.ge(Duration(0.0)), validators.le(Duration(MOST_LEEWAY))]
    )
    refresh: Duration = field(default=Duration(600.0), validator=validators.gt(Duration(0.0)))
    """How old keys may be before they are fetched again."""
    keep: Duration = field(default=Duration(86400.0), validator=validators.gt(Duration(0.0)))
    """How long the last good keys are used where new ones can not be had."""
    user: str = "sub"
    """The claim that says whose the requests are."""
    team: str | None = None
    app: str | None = None
    roles: str | None = None
    """The claim with a list, or a text with spaces."""
    models: tuple[str, ...] = ("*",)
    tags: tuple[str, ...] = ()
    grants: tuple[str, ...] = ()
    """Roles that each of its tokens has, beside those it names."""

    @algorithms.validator
    def _known(self, _: object, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in ALGORITHMS:
                raise ValueError(f"algorithms: {name!r} can not be used; known are {', '.join(ALGORITHMS)}")


@frozen(slots=True)
class Unverified:
    """A token as it is written: nothing of it is true yet."""

    token: str
    algorithm: str
    key_id: str | None
    claims: Mapping[str, Any]


def parse(token: str) -> Unverified | None:
    """None for what is no JWT at all. Raises ClawError("auth.invalid") for one that must not be used."""
    parts = token.split(".")
    if len(parts) != 3 or not token.startswith("ey"):
        return None
    header, claims = _json(parts[0]), _json(parts[1])
    if header is None or claims is None:
        return None
    algorithm, key_id = header.get("alg"), header.get("kid")
    if not REFUSED.isdisjoint(header) or not parts[2] or not isinstance(algorithm, str):
        raise ClawError("auth.invalid")
    if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= MOST_CLAIM):
        raise ClawError("auth.invalid")
    return Unverified(token, algorithm, key_id, claims)


def _json(part: str) -> dict[str, Any] | None:
    if len(part) > MOST_HEADER * 2:
        return None
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
        found = msgspec.json.decode(data)
    except (binascii.Error, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def principal_of(name: str, settings: IssuerSettings, claims: Mapping[str, Any]) -> Principal:
    """Who the claims of a token, whose signature is good, say it is.

    Raises ClawError: auth.expired where nothing but its time is over, else auth.invalid.
    """
    if claims.get("iss") != settings.issuer or not _audience(claims.get("aud"), settings.audiences):
        raise ClawError("auth.invalid")
    user = _text(claims.get(settings.user))
    if user is None:
        raise ClawError("auth.invalid")
    now, leeway = time.time(), settings.leeway
    expires = _moment(claims.get("exp"))
    begins, issued = (_moment(claims[name]) if name in claims else -math.inf for name in ("nbf", "iat"))
    if expires is None or begins is None or issued is None or begins > now + leeway or issued > now + leeway:
        raise ClawError("auth.invalid")
    if expires <= now - leeway:
        raise ClawError("auth.expired")
    return Principal(
        key=name,
        user=user,
        team=_text(claims.get(settings.team)) if settings.team else None,
        app=_text(claims.get(settings.app)) if settings.app else None,
        roles=(*settings.grants, *(_list(claims.get(settings.roles)) if settings.roles else ())),
        tags=settings.tags,
        models=settings.models,
        expires=expires + leeway,
        # Whose tokens name their roles: one that names none has none, rather than all that `models` says.
        grants=() if settings.roles or settings.grants else None,
    )


def _audience(said: object, wanted: tuple[str, ...]) -> bool:
    return said in wanted if isinstance(said, str) else isinstance(said, list) and any(each in wanted for each in said)


def _moment(said: object) -> float | None:
    """A NumericDate (RFC 7519, 2)."""
    if isinstance(said, bool) or not isinstance(said, int | float):
        return None
    moment = float(said) if abs(said) < 1e11 else math.inf
    return moment if math.isfinite(moment) else None


def _text(said: object) -> str | None:
    return said if isinstance(said, str) and 0 < len(said) <= MOST_CLAIM and said.isprintable() else None


def _list(said: object) -> tuple[str, ...]:
    names = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
    return tuple(name for name in names[:64] if _text(name) is not None)
