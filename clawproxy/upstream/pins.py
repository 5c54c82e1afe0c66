"""A provider's pinned public key: `sha256/BASE64` of its SubjectPublicKeyInfo (as in RFC 7469, 2.4).

Rule: a pin comes on top of the verification of the chain and the name, never instead of it.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from clawproxy.config.certificates import SEQUENCE, field_of

_PUBLIC_KEY: Final = 5


def pin_of(certificate: bytes) -> str:
    """Of a certificate in DER. Raises ValueError where it is none."""
    return "sha256/" + base64.b64encode(hashlib.sha256(public_key_info(certificate)).digest()).decode("ascii")


def public_key_info(certificate: bytes) -> bytes:
    """`subjectPublicKeyInfo`, its own tag and length included. Raises ValueError."""
    info = field_of(certificate, _PUBLIC_KEY)
    if info[:1] != bytes([SEQUENCE]):
        raise ValueError("not a certificate")
    return info
