"""What a client certificate says it is, in the one way in which it is compared: as configured, and as a handshake brought it.

    sha256:HEX    san:dns:NAME    san:uri:URI    san:email:ADDRESS    san:ip:ADDRESS    cn:NAME

Rule 1: kinds are told apart: an authority that lets its clients choose a URI, or a mail address, has not vouched for a host
        name of the same letters.
Rule 2: a plain `san:NAME` is of the kind that its form says: an IP address, with a colon a URI, with an @ a mail address, else a
        DNS name. No text has two of these forms, so it never stands for two kinds.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from clawproxy.config.units import shown

KINDS: Final = {"dns": "DNS name", "uri": "URI", "email": "mail address", "ip": "IP address"}
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_FORMS: Final = '"sha256:HEX", "san:dns:NAME", "san:uri:URI", "san:email:ADDRESS", "san:ip:ADDRESS" or "cn:NAME"'


def san(kind: str, text: str) -> str:
    """The identity of a subject alternative name."""
    if kind == "dns":
        text = text.lower()
    elif kind == "ip":
        text = _address(text) or text
    return f"san:{kind}:{text}"


def canonical(identity: str) -> str:
    """A configured identity as it is compared; one that is none, as it was written."""
    kind, _, rest = identity.partition(":")
    if kind != "san" or not rest:
        return identity
    form, _, name = rest.partition(":")
    return san(form, name) if form in KINDS else san(_form(rest), rest)


def all_canonical(identities: Iterable[str]) -> tuple[str, ...]:
    return tuple([canonical(each) for each in identities])


def identity_problem(identity: str) -> str | None:
    """What is wrong with a canonical identity."""
    kind, _, rest = identity.partition(":")
    if kind not in ("sha256", "san", "cn") or not rest or rest != rest.strip():
        return f'"{shown(identity)}" is no identity; write {_FORMS}'
    if kind == "sha256" and not _SHA256.fullmatch(rest):
        return "is no digest of a certificate; write 64 hexadecimal digits in lower case, without colons"
    if kind != "san":
        return None
    form, _, name = rest.partition(":")
    if not name:
        return f'"{shown(identity)}" names nothing; write {_FORMS}'
    if name != name.strip():
        return f'"{shown(identity)}" is no identity: it has spaces at an end; write {_FORMS}'
    other = _form(name)
    if form != other:
        return f'"{shown(name)}" is no {KINDS[form]}; write "{shown(san(other, name))}"'
    return None


def _form(text: str) -> str:
    if _address(text) is not None:
        return "ip"
    return "uri" if ":" in text else "email" if "@" in text else "dns"


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return None
