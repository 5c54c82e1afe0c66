"""A provider's pinned public key: `sha256/BASE64` of its SubjectPublicKeyInfo (as in RFC 7469, 2.4).

Rule: a pin comes on top of the verification of the chain and the name, never instead of it.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_BEFORE_KEY: Final = 5
"""serialNumber, signature, issuer, validity, subject (RFC 5280, 4.1)."""


def pin_of(certificate: bytes) -> str:
    """Of a certificate in DER. Raises ValueError where it is none."""
    return "sha256/" + base64.b64encode(hashlib.sha256(public_key_info(certificate)).digest()).decode("ascii")


def public_key_info(certificate: bytes) -> bytes:
    """`subjectPublicKeyInfo`, its own tag and length included. Raises ValueError."""
    inside, _ = _inside(certificate, 0)
    at, _ = _inside(certificate, inside)
    if certificate[at : at + 1] == bytes([_VERSION]):
        at = _end(certificate, at)
    for _ in range(_BEFORE_KEY):
        at = _end(certificate, at)
    if certificate[at : at + 1] != bytes([_SEQUENCE]):
        raise ValueError("not a certificate")
    return certificate[at : _end(certificate, at)]


def _inside(data: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` begins, and ends. Raises ValueError."""
    if at + 2 > len(data):
        raise ValueError("not a certificate")
    size, begin = data[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        if not 1 <= count <= 4:
            raise ValueError("not a certificate")
        size, begin = int.from_bytes(data[begin : begin + count], "big"), begin + count
    if begin + size > len(data):
        raise ValueError("not a certificate")
    return begin, begin + size


def _end(data: bytes, at: int) -> int:
    return _inside(data, at)[1]
