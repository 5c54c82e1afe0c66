"""Client keys as records: making one, giving one a new secret, telling of one. For `clawproxy keys` and the admin API alike.

Rule: a record never leaves with its digest; a secret leaves in the one place that made it.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from clawproxy.config import Config
from clawproxy.config.units import parse_duration
from clawproxy.context import new_id
from clawproxy.keys import digest, display_prefix, generate
from clawproxy.secrets import Secret
from clawproxy.stores.base import KeyRecord

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
INTROSPECTED: Final = "introspected"
"""What `[plugins.auth.introspection]` books under where it does not say."""
MOST_OVERLAP: Final = 90 * 86400.0
"""Seconds that an old secret may work beside its successor."""


def new_record(name: str, secret_pepper: bytes, **fields: Any) -> tuple[Secret, KeyRecord]:
    """A new key and what is stored of it."""
    secret = generate()
    token = secret.reveal()
    return secret, KeyRecord(new_id(), name, digest(secret_pepper, token), display_prefix(token), time.time(), **fields)


def booked_under(name: str, config: Config) -> str | None:
    """What of `[plugins.auth]` has this name for its requests already: a key of that name would be taken for it."""
    auth = config.plugins.get("auth", {})
    issuers, introspection = auth.get("issuers"), auth.get("introspection")
    if isinstance(issuers, Mapping) and name in issuers:
        return f"plugins.auth.issuers.{name}"
    if isinstance(introspection, Mapping) and name == introspection.get("key", INTROSPECTED):
        return "plugins.auth.introspection"
    return None


def is_good(record: KeyRecord, now: float) -> bool:
    return state_of(record.revoked, record.expires, now) == "good"


def newest(records: Iterable[KeyRecord], name: str, now: float) -> KeyRecord | None:
    """The key that a rotation of `name` goes on from."""
    good = [record for record in records if record.name == name and is_good(record, now)]
    return max(good, key=lambda record: (record.created, record.id), default=None)


def successor(known: KeyRecord, secret_pepper: bytes, expires: float | None = None) -> tuple[Secret, KeyRecord]:
    """A new secret for a key, all else of it as it was; `expires` where it gets another end."""
    secret, fresh = new_record(known.name, secret_pepper)
    kept = attrs.evolve(known, id=fresh.id, digest=fresh.digest, prefix=fresh.prefix, created=fresh.created)
    return secret, kept if expires is None else attrs.evolve(kept, expires=expires)


def described(record: KeyRecord, now: float) -> dict[str, Any]:
    return {
        "name": record.name,
        "state": state_of(record.revoked, record.expires, now),
        "from": "store",
        "begins": record.prefix,
        "created": when(record.created),
        "expires": when(record.expires),
        "revoked": when(record.revoked),
        "user": record.user,
        "team": record.team,
        "app": record.app,
        "roles": list(record.roles),
        "tags": list(record.tags),
        "models": list(record.models),
        "may_assert": record.may_assert,
        "made_by": record.maker,
    }


def moment_of(text: str, now: float) -> float:
    """Unix time of `30d` from now, or of a date and time with its offset. Raises ValueError with a sentence."""
    if re.match(r"[0-9]{4}-", text):
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError(f'"{text}" has no offset from UTC; write it like 2027-01-31T00:00:00Z')
        until = moment.timestamp()
    else:
        until = now + parse_duration(text)
    if not now < until < 1e11:
        raise ValueError(f'"{text}" is not in the future; leave it out for what does not expire')
    return until


def state_of(revoked: float | None, expires: float | None, now: float) -> str:
    """`good`, `revoked` or `expired`."""
    return "revoked" if revoked is not None else "expired" if expires is not None and expires <= now else "good"


def when(moment: float | None) -> str | None:
    """Unix time as the date and time in UTC."""
    return None if moment is None else datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
