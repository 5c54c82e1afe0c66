"""How failures of sockets, names and TLS become rows of the error table.

Rule 1: OSError (ssl errors are among them) is caught in the function that made the call and turned into a `ProviderFault`
        here. Nothing above this package hears of OSError, httptools or h11.
Rule 2: a message names the provider as the configuration does, and a short cause in our own words. It never holds a key, a URL,
        or anything a provider sent.
Rule 3: what is the gateway's own shortage (descriptors, memory, local ports) is `overloaded`, not a fault of the provider: it
        must open no circuit breaker.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Literal

from attrs import evolve

from clawproxy.errors import KINDS, ClawError, ProviderFault

Kind = Literal["unreachable", "cut", "malformed", "too_large", "redirect", "auth"]

SHORTAGES = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})
_NAME_UNKNOWN = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


def fault(kind: Kind, provider: str, cause: str, *, sent: bool, status: int | None = None) -> ProviderFault:
    """The error for something the provider did, or failed to do. `sent`: some of the request may have reached it."""
    slug = f"provider_error.{kind}"
    error = ProviderFault(slug, f"{KINDS[slug].message} {provider}: {cause}.", provider=provider, provider_status=status)
    error.sent = sent
    return error


def unreachable(provider: str, error: OSError, step: str) -> ClawError:
    """The error for a connection that could not be made: `provider_error.unreachable`, or `overloaded` for a shortage here.
    `step`: how far it had got, one of `errors.STEPS`."""
    if error.errno in SHORTAGES and not isinstance(error, (socket.gaierror, ssl.SSLError)):
        return ClawError("overloaded", f"The gateway has no resources for another connection: {cause_of(error)}.")
    unreached = fault("unreachable", provider, cause_of(error), sent=False)
    unreached.details = evolve(unreached.details, step=step)
    return unreached


def cause_of(error: OSError) -> str:
    """A few fixed words: `connection refused`, `name not found`, `certificate verify failed: certificate has expired`."""
    match error:
        case socket.gaierror():
            if error.errno in _NAME_UNKNOWN:
                return "name not found"
            return "name look-up failed for now" if error.errno == socket.EAI_AGAIN else "name look-up failed"
        case ssl.SSLCertVerificationError():
            return f"certificate verify failed: {error.verify_message.rstrip('.')}"
        case ssl.SSLEOFError():
            return "connection closed without a TLS close"
        case ssl.SSLError():
            reason = (error.reason or "unknown").replace("_", " ").lower()
            return f"TLS failed: {reason}"
        case ConnectionRefusedError():
            return "connection refused"
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
            return "connection reset"
        case TimeoutError():
            return "connection timed out"
    return os.strerror(error.errno).lower() if error.errno else "connection failed"
