"""The certificate a client showed in its handshake, and how it travels from there to `authenticate`.

Rule 1: only what OpenSSL verified against `server.tls.client_ca` is read: without that nothing here believes a certificate.
Rule 2: what a certificate says is compared as text, exactly, and by its kind (`config.identities`); nothing in it is a pattern.
"""

from __future__ import annotations

import hashlib
import ssl
from typing import Any, Final

import trio

from clawproxy.config.identities import san
from clawproxy.messages import ClientCertificate, Credentials

MOST: Final = 64
"""Names that are read of one certificate."""
_KINDS: Final = {"DNS": "dns", "URI": "uri", "email": "email", "IP Address": "ip"}


class Peer(str):
    """A client's address, with the certificate it showed: handed to whatever authenticates on this connection."""

    __slots__ = ("certificate",)
    certificate: ClientCertificate


def peer_of(address: str, stream: object) -> str:
    """`address`; a `Peer` where the handshake on `stream` is over and brought a certificate."""
    if not isinstance(stream, trio.SSLStream):
        return address
    certificate = read(stream.getpeercert(), stream.getpeercert(binary_form=True))
    if certificate is None:
        return address
    peer = Peer(address)
    peer.certificate = certificate
    return peer


def shown(token: str | None, peer: str, surface: str) -> Credentials:
    """What `peer` showed: a token, its certificate, or both."""
    certificate = peer.certificate if isinstance(peer, Peer) else None
    return Credentials(token, str(peer), surface, certificate)


def read(said: Any, whole: bytes | None) -> ClientCertificate | None:
    """Args:
    said: as `ssl` gives it; empty where the certificate was not verified.
    whole: in DER.
    """
    if not said or not whole:
        return None
    digest = hashlib.sha256(whole).hexdigest()
    names = [(_KINDS[kind], text) for kind, text in said.get("subjectAltName", ()) if kind in _KINDS]
    common = [text for part in said.get("subject", ()) for kind, text in part if kind == "commonName"]
    identities = [f"sha256:{digest}", *(san(kind, text) for kind, text in names[:MOST])]
    if len(common) == 1:  # two say nothing
        identities.append(f"cn:{common[0]}")
    return ClientCertificate(digest, tuple(dict.fromkeys(identities)), ssl.cert_time_to_seconds(said["notAfter"]))
