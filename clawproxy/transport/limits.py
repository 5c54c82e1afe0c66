"""How many connections may be open: in all and per address; and what to do when descriptors run out anyway.

Rule: counting is synchronous; `admit` and `release` come in pairs, the second in a `finally`.
"""

from __future__ import annotations

import os
import socket as stdlib_socket
from collections import Counter
from typing import Protocol

from clawproxy.config import LimitsConfig
from clawproxy.errors import ClawError
from clawproxy.http1 import response

_BODY = (
    b'{"error":{"message":"The gateway has no room for another connection.","type":"api_error","param":null,"code":"overloaded"}}'
)
_FALLBACK = 1024


def refusal() -> bytes:
    """The whole 503 for a connection that is one too many; there is no request to go with it."""
    return response.whole(503, (("retry-after", "1"),), _BODY, content_type="application/json", close=True)


def raise_descriptor_limit() -> int:
    """Raise RLIMIT_NOFILE to its hard limit and return it."""
    try:
        import resource
    except ImportError:
        return _FALLBACK
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1_048_576
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            return soft
    return hard


class ConnectionLimits:
    """The count of one listener set. `configure` again after a reload; those already in stay."""

    def __init__(self, limits: LimitsConfig, descriptors: int | None = None) -> None:
        self.open = 0
        self._by_address: Counter[str] = Counter()
        self._descriptors = descriptors or raise_descriptor_limit()
        self.configure(limits)

    def configure(self, limits: LimitsConfig) -> None:
        # Half of the descriptors: each request may need one towards a provider.
        self.total = limits.connections or max(1, self._descriptors // 2)
        self.per_address = limits.connections_per_address

    def admit(self, address: str) -> ClawError | None:
        """Count a connection in, or say why not (then do not `release` it)."""
        if self.open >= self.total or (self.per_address and self._by_address[address] >= self.per_address):
            return ClawError("overloaded", "Too many connections.")
        self.open += 1
        self._by_address[address] += 1
        return None

    def release(self, address: str) -> None:
        self.open -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class HasDescriptor(Protocol):
    """A listening socket, trio's or the standard library's."""

    def fileno(self) -> int: ...


class ReserveDescriptor:
    """A descriptor kept back, so that a process out of descriptors can still accept a connection and say no.

    Use: when `accept` raises EMFILE or ENFILE, call `refuse(listener)`; then wait a little before accepting again.
    """

    def __init__(self) -> None:
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def refuse(self, listener: HasDescriptor) -> bool:
        """Accept one waiting connection, answer 503 and close it. Never waits; False where none was waiting."""
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
        try:
            return _accept_and_refuse(listener.fileno())
        except OSError:
            return False
        finally:
            try:
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # taken by somebody else meanwhile; tried again at the next refusal
                pass

    def close(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None


def _accept_and_refuse(listener: int) -> bool:
    accepting = stdlib_socket.socket(fileno=listener)  # borrowed: a duplicate would take the descriptor just freed
    try:
        accepting.setblocking(False)
        connection, _address = accepting.accept()
    finally:
        accepting.detach()
    with connection:
        connection.setblocking(False)
        connection.send(refusal())
        connection.shutdown(stdlib_socket.SHUT_WR)
    return True
