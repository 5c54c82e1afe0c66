"""What a certificate says of itself, read off its DER (X.690; RFC 5280, 4.1): no more of it than is asked for here.

Nothing is verified: that is the handshake's.
"""

from __future__ import annotations

import datetime
import re
import ssl
from pathlib import Path
from typing import Final

SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_TIMES: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}
"""UTCTime (of this century up to 49, as strptime reads it but for 50 to 68) and GeneralizedTime."""
_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def field_of(certificate: bytes, number: int) -> bytes:
    """A field of a certificate, its own tag and length included: 0 serialNumber, 1 signature, 2 issuer, 3 validity, 4 subject,
    5 subjectPublicKeyInfo. Raises ValueError."""
    inside, _ = within(certificate, 0)
    at, _ = within(certificate, inside)
    if certificate[at : at + 1] == bytes([_VERSION]):
        at = within(certificate, at)[1]
    for _ in range(number):
        at = within(certificate, at)[1]
    return certificate[at : within(certificate, at)[1]]


def within(data: bytes, at: int) -> tuple[int, int]:
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


def validity_of(certificate: bytes) -> tuple[float, float]:
    """From when, and until when, in Unix time, of a certificate in DER. Raises ValueError."""
    validity = field_of(certificate, 3)
    at, moments = within(validity, 0)[0], []
    for _ in range(2):
        begin, end = within(validity, at)
        form = _TIMES.get(validity[at])
        if form is None:
            raise ValueError("not a certificate")
        moment = datetime.datetime.strptime(validity[begin:end].decode("ascii") + "+0000", f"{form}%z")
        moments.append(moment.timestamp())
        at = end
    return moments[0], moments[1]


def validity_of_file(path: Path) -> tuple[float, float] | None:
    """Of the first certificate of a PEM file; None where that can not be told."""
    try:
        found = _PEM.search(path.read_text("latin-1"))
        return None if found is None else validity_of(ssl.PEM_cert_to_DER_cert(found[0]))
    except (OSError, ValueError):
        return None
