"""Client keys: those in the configuration, then those in the store.

Rule 1: a key is known by its HMAC only (`clawproxy.keys`); comparing is a dictionary look-up by digest, then
        `hmac.compare_digest`.
Rule 2: throttling refuses attempts that fail anyway. A valid credential is never refused by it.
Rule 3: the verdict depends on the token and the address, on no other field of the request.
"""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING, Any

import trio

from clawproxy.config import KeyConfig
from clawproxy.errors import ClawError, ConfigError
from clawproxy.hookspecs import hookimpl
from clawproxy.keys import digest
from clawproxy.messages import Credentials, Principal
from clawproxy.stores.base import KeyRecord
from clawproxy_auth.keyring import AuthSettings, Keyring, is_credential
from clawproxy_auth.throttle import Throttle

if TYPE_CHECKING:
    from clawproxy.context import App, Registry

__all__ = ["AuthSettings"]


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("auth", AuthSettings)


@hookimpl
def configure(config: AuthSettings, app: App) -> Keyring:
    """Raises ConfigError: a key whose secret can not be found or used, or two keys with one secret."""
    ring = Keyring(settings=config, pepper=app.pepper)
    problems: list[str] = []
    for name, key in app.config.keys.items():
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
    """Raises ClawError: auth.missing, auth.invalid, auth.expired, auth.throttled, store_unavailable."""
    token = credentials.token
    if not token:
        raise ClawError("auth.missing")
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
    wait = _throttle(app, state.settings).failed(credentials.peer, token, trio.current_time())
    if wait is not None:
        raise ClawError("auth.throttled", retry_after_ms=max(1, round(wait * 1000)))
    raise ClawError("auth.invalid")


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
        )
    )
