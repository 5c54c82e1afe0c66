"""What clients' TLS is made of: protocol, ciphers, the certificate for each name, and whose client certificates are taken.

Rule 1: a context is made whole, from files read now, and never changed: a reload makes another, for connections that come after.
Rule 2: TLS 1.2 and up, with forward secrecy and authenticated encryption only; no compression, no renegotiation; HTTP/1.1.
Rule 3: where clients are asked for a certificate no session is resumed: each handshake checks it anew, against the authorities
        and the clock of today.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from clawproxy.config import TLSConfig
from clawproxy.errors import ConfigError

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2; those of TLS 1.3 are all good."""
_ASKED: Final = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def tls_context(tls: TLSConfig) -> ssl.SSLContext:
    """A server context. Raises ConfigError."""
    context = _context(tls, tls.certificate, tls.key, "server.tls")
    by_name = {
        host.lower(): made
        for index, each in enumerate(tls.names)
        for made in [_context(tls, each.certificate, each.key, f"server.tls.names[{index}]")]
        for host in each.hosts
    }
    if by_name:

        def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            found = None if name is None else for_name(by_name, name)
            if found is not None:
                connection.context = found

        context.sni_callback = choose
    return context


def for_name(by_name: Mapping[str, ssl.SSLContext], name: str) -> ssl.SSLContext | None:
    """Whose certificate is for `name`: the name itself, else the wildcard one label above it (RFC 9525, 6.3)."""
    name = name.lower().rstrip(".")
    return by_name.get(name) or by_name.get(f"*.{name.partition('.')[2]}")


def _context(tls: TLSConfig, certificate: Path, key: Path, path: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # no password is asked for on the terminal
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            [f"{path}: {certificate} with {key} can not be used: {_why(error)}; give a PEM certificate and its key"]
        ) from error
    if tls.client_ca is not None:
        context.verify_mode = _ASKED[tls.client_auth]
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            context.load_verify_locations(tls.client_ca)
        except (OSError, ssl.SSLError) as error:
            problem = f"server.tls.client_ca: {tls.client_ca} can not be used: {_why(error)}; give PEM certificates"
            raise ConfigError([problem]) from error
    return context


def _why(error: OSError) -> str | None:
    return error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror
