"""Who asks: the keys in the configuration, then those in the store, then whom configured issuers vouch for.

Rule 1: a key is known by its HMAC only (`clawproxy.keys`); comparing is a dictionary look-up by digest, then
        `hmac.compare_digest`.
Rule 2: throttling refuses attempts that fail anyway. A valid credential is never refused by it.
Rule 3: the verdict depends on the token, the client's certificate and the address, on no other field of the request. Two of the
        credentials that lead to two keys are nobody's.
"""

from __future__ import annotations

import hmac
import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio
from attrs import evolve

from clawproxy.config import KeyConfig, action_of
from clawproxy.errors import ClawError, ConfigError
from clawproxy.fetch import problem_with
from clawproxy.hookspecs import hookimpl
from clawproxy.keys import digest
from clawproxy.messages import ChatRequest, Credentials, Principal
from clawproxy.stores.base import KeyRecord
from clawproxy_auth.introspection import Introspection
from clawproxy_auth.issuers import IssuerSettings, parse, principal_of
from clawproxy_auth.keyring import AuthSettings, Keyring, is_credential
from clawproxy_auth.places import Places
from clawproxy_auth.throttle import Throttle

if TYPE_CHECKING:
    from clawproxy.context import App, Exchange, Registry
    from clawproxy_auth.keysets import KeySet

__all__ = ["AuthSettings"]

_FILE: Final = "file:"


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("auth", AuthSettings)


@hookimpl
def configure(config: AuthSettings, app: App) -> Keyring:
    """Raises ConfigError: a key whose secret can not be found or used, or two keys with one secret."""
    problems: list[str] = []
    config = evolve(config, issuers={name: _placed(issuer, app) for name, issuer in config.issuers.items()})
    caps = any(role.max_output is not None for role in app.config.roles.values())
    ring = Keyring(config, app.pepper, _issuers(config, app, problems), _introspection(config, app, problems), caps=caps)
    for name, key in app.config.keys.items():
        for identity in key.certificates:
            ring.certificates[identity] = _static(name, key)
        if key.secret is None:
            continue
        try:
            token = app.resolve_secret(key.secret).reveal()
        except LookupError as error:
            problems.append(f"keys.{name}.secret: {error.args[0] if error.args else 'not found'}")
            continue
        if not is_credential(token):
            problems.append(f"keys.{name}.secret: a key is 1 to 8192 visible ASCII characters, without spaces.")
            continue
        twin = ring.add(digest(app.pepper, token), _static(name, key))
        if twin is not None:
            problems.append(f"keys.{name}.secret: the same secret as keys.{twin.key}; each key needs its own.")
    if problems:
        raise ConfigError(problems)
    return ring


@hookimpl
async def authenticate(credentials: Credentials, state: Keyring, app: App) -> Principal | None:
    """Raises ClawError: auth.missing, auth.invalid, auth.expired, auth.ambiguous, auth.throttled, store_unavailable."""
    certificate = credentials.certificate
    owner = None if certificate is None else state.owner(certificate)
    if credentials.token:
        principal = await _by_token(credentials.token, credentials.peer, state, app)
        if owner is not None and owner.key != principal.key:
            raise ClawError("auth.ambiguous")
        return principal
    if owner is None:
        raise ClawError("auth.missing")
    assert certificate is not None
    until = certificate.expires if owner.expires is None else min(certificate.expires, owner.expires)
    return _current(attrs.evolve(owner, expires=until))


async def _by_token(token: str, peer: str, state: Keyring, app: App) -> Principal:
    """Raises ClawError: auth.invalid, auth.expired, auth.throttled, store_unavailable."""
    if is_credential(token):
        mark = digest(state.pepper, token)
        known = state.find(mark)
        if known is not None:
            return _current(known)
        record = await app.store.find_key(mark)
        # The store looked it up by the digest; it is compared once more, so that a store that collates or truncates
        # can not let anyone in.
        if record is not None and hmac.compare_digest(record.digest, mark):
            return _stored(record)
        principal = await _vouched(token, mark, peer, state, app)
        if principal is not None:
            return principal
    wait = _throttle(app, state.settings).failed(peer, token, trio.current_time())
    if wait is not None:
        raise ClawError("auth.throttled", retry_after_ms=max(1, round(wait * 1000)))
    raise ClawError("auth.invalid")


@hookimpl
async def prepare_request(exchange: Exchange, request: ChatRequest) -> ChatRequest | None:
    """No longer answers than a role allows: where several allow the request, the most generous counts."""
    principal = exchange.principal
    if not principal.grants or request.operation != "chat":
        return None
    grants = principal.granting(request.model, action_of(exchange.surface, request.operation))
    caps = [grant.max_output for grant in grants if grant.max_output is not None]
    if not caps or len(caps) < len(grants):
        return None
    cap, asked = max(caps), request.max_tokens
    if asked is not None and asked <= cap:
        return None
    if asked is not None:
        exchange.notice("max_tokens_clamped", f"max_tokens was lowered to {cap}.", asked=asked, max_tokens=cap)
    return evolve(request, max_tokens=cap)


async def _vouched(token: str, mark: bytes, peer: str, state: Keyring, app: App) -> Principal | None:
    """Whom an issuer, or the introspection endpoint, says it is. Raises ClawError: auth.expired, overloaded."""
    if state.issuers:
        try:
            written = parse(token)
            said = None if written is None else written.claims.get("iss")
            name = state.issuers.get(said) if isinstance(said, str) else None
            if written is not None and name is not None and await _keys(app, name, state.settings).verified(written):
                return principal_of(name, state.settings.issuers[name], written.claims)
        except ClawError as error:
            if error.slug != "auth.invalid":
                raise
            return None
    if state.introspection is None:
        return None
    places: Places = app.shared.setdefault("auth.places", Places())
    return await state.introspection.principal(token, mark, peer, places)


def _keys(app: App, name: str, settings: AuthSettings) -> KeySet:
    """The issuer's; begun anew where what is configured of it changed."""
    from clawproxy_auth.keysets import KeySet

    known: dict[str, KeySet] = app.shared.setdefault("auth.keysets", {})
    found = known.get(name)
    if found is None or found.settings != settings.issuers[name]:
        found = known[name] = KeySet(name, settings.issuers[name], app.count, app.nursery)
    return found


def _placed(issuer: IssuerSettings, app: App) -> IssuerSettings:
    """A file of keys is named from where the configuration is, like every other."""
    if issuer.jwks is None or not issuer.jwks.startswith(_FILE):
        return issuer
    base = Path.cwd() if app.config.path is None else app.config.path.absolute().parent
    return evolve(issuer, jwks=f"{_FILE}{base / issuer.jwks[len(_FILE) :]}")


def _unreadable(file: Path) -> str | None:
    try:
        file.open("rb").close()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a usable path"
        return f"{file} can not be read ({why}); name a file that this user may read"
    return None


def _issuers(config: AuthSettings, app: App, problems: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, issuer in config.issuers.items():
        where = f"plugins.auth.issuers.{name}"
        if name in app.config.keys:
            problems.append(f"{where}: there is a key `{name}` too, and requests are booked by name; choose another.")
        if issuer.issuer in found:
            problems.append(f"{where}.issuer: the same as of `{found[issuer.issuer]}`.")
        place, key = issuer.jwks, "jwks"
        if place is None:
            place, key = issuer.issuer, "issuer"
        wrong = _unreadable(Path(place[len(_FILE) :])) if place.startswith(_FILE) else problem_with(place)
        if wrong is not None:
            problems.append(f"{where}.{key}: {wrong}.")
        if issuer.ca_file is not None and (wrong := _unreadable(issuer.ca_file)) is not None:
            problems.append(f"{where}.ca_file: {wrong}.")
        found[issuer.issuer] = name
    if config.issuers and not _installed("joserfc"):
        problems.append("plugins.auth.issuers: needs the package joserfc; run `pip install clawproxy[control]`.")
    return found


def _introspection(config: AuthSettings, app: App, problems: list[str]) -> Introspection | None:
    settings = config.introspection
    if settings is None:
        return None
    if (wrong := problem_with(settings.url)) is not None:
        problems.append(f"plugins.auth.introspection.url: {wrong}.")
    if settings.ca_file is not None and (wrong := _unreadable(settings.ca_file)) is not None:
        problems.append(f"plugins.auth.introspection.ca_file: {wrong}.")
    for what, names in (("a key", app.config.keys), ("an issuer", config.issuers)):
        if settings.key in names:
            where = "plugins.auth.introspection.key"
            problems.append(f"{where}: there is {what} `{settings.key}` too, and requests are booked by name; choose another.")
    if not _installed("httpcore2"):
        problems.append("plugins.auth.introspection: needs the package httpcore2; run `pip install clawproxy[control]`.")
    try:
        return Introspection(settings, app.resolve_secret(settings.client_secret), app.nursery)
    except LookupError as error:
        problems.append(f"plugins.auth.introspection.client_secret: {error.args[0] if error.args else 'not found'}")
        return None


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _throttle(app: App, settings: AuthSettings) -> Throttle:
    """The counters outlive a reload; the limits are the new generation's."""
    throttle: Any = app.shared.get("auth")
    if throttle is None:
        throttle = app.shared["auth"] = Throttle()
    assert isinstance(throttle, Throttle)
    throttle.limit, throttle.window = settings.failures, settings.window
    return throttle


def _current(principal: Principal) -> Principal:
    if principal.expires is not None and principal.expires <= time.time():
        raise ClawError("auth.expired", key=principal.key)
    return principal


def _static(name: str, key: KeyConfig) -> Principal:
    return Principal(
        key=name,
        user=key.user,
        team=key.team,
        app=key.app,
        roles=key.roles,
        tags=key.tags,
        models=key.models,
        may_assert=key.may_assert,
        expires=key.expires,
    )


def _stored(record: KeyRecord) -> Principal:
    if record.revoked is not None:
        raise ClawError("auth.expired", key=record.name)
    return _current(
        Principal(
            key=record.name,
            user=record.user,
            team=record.team,
            app=record.app,
            roles=record.roles,
            tags=record.tags,
            models=record.models,
            may_assert=record.may_assert,
            expires=record.expires,
            maker=record.maker,
        )
    )
