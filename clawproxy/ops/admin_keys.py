"""Client keys over the admin listener: make, list, rotate, revoke.

    POST   /admin/keys                 {"name": "app", "models": ["gpt-*"], "expires": "30d"}: the key, once
    GET    /admin/keys, /admin/keys/NAME
    POST   /admin/keys/NAME/rotate     {"overlap": "24h"}: the new secret, once
    DELETE /admin/keys/NAME            revoked, and what it made with it

Rule 1: who asks is settled first: the operator (`server.admin_token`), or a client's key of which a role says `make_keys`.
Rule 2: what a key makes has no right that its maker has not, lives no longer, makes no keys, and uses its maker's budgets.
Rule 3: a field that is not known is a 400, and nothing is changed (THREATS.md A-15). What goes beyond the maker is a 403 (A-16).
Rule 4: who may not see a key is told the same as where there is none.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from clawproxy.config import Config
from clawproxy.context import App
from clawproxy.dialects import jsonio
from clawproxy.errors import ClawError
from clawproxy.keys import digest
from clawproxy.messages import Credentials, Principal
from clawproxy.ops.admin import JSON, AdminResponse
from clawproxy.ops.keyrecords import (
    MOST_OVERLAP,
    NAME,
    booked_under,
    described,
    is_good,
    moment_of,
    new_record,
    newest,
    successor,
    when,
)
from clawproxy.ops.logs import log_event
from clawproxy.secrets import Secret
from clawproxy.stores.base import KeyRecord

PATH: Final = "/admin/keys"
MOST_BODY: Final = 64 * 1024
MOST_WORDS: Final = 256
"""Items of one list."""
MOST_TEXT: Final = 256
"""Characters of one word."""
MOST_MADE: Final = 1000
"""Secrets that one key may have made: those that are good, and all of the last day. The store forgets none."""
_NOT_KEPT: Mapping[str, str] = {"cache-control": "no-store"}
_DAY: Final = 86400.0


class KeyService(Protocol):
    """The gateway, as far as keys go."""

    @property
    def app(self) -> App: ...

    @property
    def config(self) -> Config: ...

    async def authenticate(self, credentials: Credentials) -> Principal: ...

    def forget_credentials(self) -> None: ...


def serves(path: str) -> bool:
    return path == PATH or path.startswith(PATH + "/")


class AdminKeys:
    """Make one for each process."""

    def __init__(self, service: KeyService) -> None:
        self._service = service
        self._one = trio.Lock()
        """A name is looked for and taken in one go."""

    async def handle(self, method: str, path: str, credentials: Credentials, body: bytes) -> AdminResponse:
        """Raises ClawError: auth.*, forbidden, endpoint_not_found, method_not_allowed, invalid_request, duplicate_id."""
        maker = await self._maker(credentials)
        method = "GET" if method == "HEAD" else method
        name, _, action = path.removeprefix(PATH).removeprefix("/").partition("/")
        if path == PATH:
            if method == "GET":
                return _answer(200, {"keys": [described(each, time.time()) for each in await self._visible(maker)]})
            if method == "POST":
                async with self._one:
                    return await self._make(maker, _fields(body, _MADE_OF), credentials)
            raise ClawError("method_not_allowed", extra={"allow": "GET, HEAD, POST"})
        if NAME.fullmatch(name) is None or action not in ("", "rotate") or path.endswith("/"):
            raise ClawError("endpoint_not_found")
        if action == "rotate":
            if method != "POST":
                raise ClawError("method_not_allowed", extra={"allow": "POST"})
            async with self._one:
                return await self._rotate(maker, name, _fields(body or b"{}", _ROTATED_WITH), credentials)
        if method == "DELETE":
            return await self._revoke(maker, name, credentials)
        if method != "GET":
            raise ClawError("method_not_allowed", extra={"allow": "DELETE, GET, HEAD"})
        named = await self._named(maker, name)
        return _answer(200, {"name": name, "keys": [described(each, time.time()) for each in named]})

    async def _maker(self, credentials: Credentials) -> Principal | None:
        """Who asks: None is the operator. Raises ClawError: auth.*, forbidden."""
        app, token = self._service.app, credentials.token
        ref = self._service.config.server.admin_token
        if ref is not None and token is not None:
            try:
                operator = app.resolve_secret(ref)
            except LookupError:  # the file is gone: nobody is the operator until it is there again
                operator = Secret("")
            if operator.reveal() and hmac.compare_digest(digest(app.pepper, token), digest(app.pepper, operator.reveal())):
                return None
        principal = await self._service.authenticate(credentials)
        if principal.maker is not None or not any(grant.make_keys for grant in principal.grants or ()):
            raise ClawError("forbidden", "This credential may make no keys: none of its roles says make_keys.")
        return principal

    async def _visible(self, maker: Principal | None) -> Sequence[KeyRecord]:
        """Whoever vouches for many (an issuer) has makers of one name: those of one user see theirs."""
        records = await self._service.app.store.keys()
        if maker is None:
            return records
        return [each for each in records if each.maker == maker.key and (maker.may_assert or each.user == maker.user)]

    async def _named(self, maker: Principal | None, name: str) -> Sequence[KeyRecord]:
        named = [each for each in await self._visible(maker) if each.name == name]
        if not named:
            if maker is None and name in self._service.config.keys:
                raise ClawError("endpoint_not_found", f"The key {name} is in the configuration; look, and change it, there.")
            raise ClawError("endpoint_not_found", "There is no such key.")
        return named

    async def _make(self, maker: Principal | None, fields: dict[str, Any], by: Credentials) -> AdminResponse:
        name = fields.pop("name", None)
        if name is None or NAME.fullmatch(name) is None:
            raise _wrong("name", "is letters, digits, `_`, `.`, `@` and `-`, at most 64 of them")
        now, config, app = time.time(), self._service.config, self._service.app
        expires = fields.pop("expires", None)
        until = None if expires is None else _moment(expires, now)
        unknown = [role for role in fields.get("roles", ()) if config.roles and role not in config.roles]
        if unknown and maker is None:
            raise _wrong("roles", "names a role that is not configured")
        if maker is not None:
            fields, until = within(maker, fields, until)
        records = await app.store.keys()
        taken = [each for each in records if each.name == name and (maker is not None or is_good(each, now))]
        if taken or name in config.keys or booked_under(name, config):
            raise ClawError("duplicate_id", "There is a key of this name already.", param="name")
        if maker is not None:
            _leaves_room(maker, records, now)
            fields["maker"] = maker.key
        secret, record = new_record(name, app.pepper, expires=until, **fields)
        await app.store.add_key(record)
        log_event("keys.made", key=name, user=record.user, peer=by.peer, action="make")
        return _answer(201, {"key": secret.reveal(), **described(record, now)})

    async def _rotate(self, maker: Principal | None, name: str, fields: dict[str, Any], by: Credentials) -> AdminResponse:
        now, app = time.time(), self._service.app
        overlap = _DAY
        if (said := fields.get("overlap")) is not None:
            overlap = _moment(said, now) - now if said not in ("0", "0s") else 0.0
            if overlap > MOST_OVERLAP:
                raise _wrong("overlap", "is 90d at most")
        expires = fields.get("expires")
        until = None if expires is None else _moment(expires, now)
        known = newest(await self._named(maker, name), name, now)
        if known is None:
            raise ClawError("endpoint_not_found", "There is no good key of this name.")
        if maker is not None:
            _leaves_room(maker, await app.store.keys(), now)
            until = _end(maker, until if until is not None else known.expires)
        secret, record = successor(known, app.pepper, until)
        if not await app.store.rotate_key(record, now + overlap):
            raise ClawError("endpoint_not_found", "There is no good key of this name.")
        self._service.forget_credentials()
        log_event("keys.rotated", key=name, peer=by.peer, action="rotate")
        return _answer(200, {"key": secret.reveal(), "old_until": when(now + overlap), **described(record, now)})

    async def _revoke(self, maker: Principal | None, name: str, by: Credentials) -> AdminResponse:
        await self._named(maker, name)
        await self._service.app.store.revoke_key(name, time.time())
        self._service.forget_credentials()
        log_event("keys.revoked", key=name, peer=by.peer, action="revoke")
        return _answer(200, {"name": name, "state": "revoked"})


def within(maker: Principal, fields: dict[str, Any], until: float | None) -> tuple[dict[str, Any], float | None]:
    """What `maker` may give a key it makes: what is not said is the maker's own. Raises ClawError("forbidden")."""
    made = dict(fields)
    for field in ("user", "team", "app"):
        own = getattr(maker, field)
        if made.setdefault(field, own) != own and not (maker.may_assert and field != "team"):
            raise _beyond(field)
    if not all(_covered(pattern, maker.models) for pattern in made.setdefault("models", maker.models)):
        raise _beyond("models")
    roles = made.setdefault("roles", maker.roles)
    if not roles or not set(roles) <= set(maker.roles):  # without any role its `models` alone would count
        raise _beyond("roles")
    if set(made.setdefault("tags", maker.tags)) != set(maker.tags):  # a tag may restrict as well as allow
        raise _beyond("tags")
    if made.setdefault("may_assert", False) and not maker.may_assert:
        raise _beyond("may_assert")
    return made, _end(maker, until)


def _leaves_room(maker: Principal, records: Sequence[KeyRecord], now: float) -> None:
    """Raises ClawError("forbidden") where `maker` has made too many."""
    made = [each for each in records if each.maker == maker.key]
    if sum(is_good(each, now) or each.created > now - _DAY for each in made) >= MOST_MADE:
        raise ClawError("forbidden", f"This credential has made {MOST_MADE} keys already; wait a day.")


def _end(maker: Principal, until: float | None) -> float | None:
    if maker.expires is None:
        return until
    if until is not None and until > maker.expires:
        raise _beyond("expires")
    return maker.expires if until is None else until


def _covered(pattern: str, own: Sequence[str]) -> bool:
    """Whether all that fits the pattern fits one of the maker's."""
    return any(each == pattern or (each.endswith("*") and pattern.startswith(each[:-1])) for each in own)


def _beyond(field: str) -> ClawError:
    return ClawError("forbidden", f"`{field}` goes beyond what this credential may do itself.", param=field)


# --- what is said in a body --------------------------------------------------------------------------------------------------


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MOST_TEXT and value.isprintable()


def _texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST_WORDS and all(_text(each) for each in value)


def _patterns(value: Any) -> bool:
    return bool(value) and _texts(value) and all("*" not in each[:-1] for each in value)


Kind = tuple[Callable[[Any], bool], str]
_TEXT: Kind = (_text, "is a text of 1 to 256 printable characters")
_TEXTS: Kind = (_texts, "is a list of such texts")
_SPAN: Kind = (_text, 'is a text, like "30d" or "2027-01-31T00:00:00Z"')
_MADE_OF: Mapping[str, Kind] = {
    "name": _TEXT,
    "user": _TEXT,
    "team": _TEXT,
    "app": _TEXT,
    "roles": _TEXTS,
    "tags": _TEXTS,
    "models": (_patterns, 'is a list of names, or "prefix*"'),
    "may_assert": (lambda value: isinstance(value, bool), "is true or false"),
    "expires": _SPAN,
}
_ROTATED_WITH: Mapping[str, Kind] = {"overlap": _SPAN, "expires": _SPAN}


def _fields(body: bytes, known: Mapping[str, Kind]) -> dict[str, Any]:
    """The body's fields, lists as tuples. Raises ClawError: invalid_json, unknown_parameter, invalid_request."""
    said = jsonio.decode(body, depth=4, values=1024)
    if not isinstance(said, dict):
        raise ClawError("invalid_request", "The body is one JSON object.")
    for field, value in said.items():
        if field not in known:
            raise ClawError("unknown_parameter", f"There are {', '.join(known)}, and nothing else.")
        fits, right = known[field]
        if not fits(value):
            raise _wrong(field, right)
    return {field: tuple(value) if isinstance(value, list) else value for field, value in said.items()}


def _wrong(field: str, right: str) -> ClawError:
    return ClawError("invalid_request", f"`{field}` {right}.", param=field)


def _moment(text: str, now: float) -> float:
    try:
        return moment_of(text, now)
    except ValueError:
        raise ClawError("invalid_request", 'Write a time to come like "30d", or "2027-01-31T00:00:00Z".') from None


def _answer(status: int, document: Mapping[str, Any]) -> AdminResponse:
    return AdminResponse(status, JSON, jsonio.encode(document) + b"\n", _NOT_KEPT)
