"""Counts failed attempts, by address and by token prefix.

Rule 1: memory is bounded: at most `ENTRIES` addresses and as many prefixes, the longest unused dropped first, in O(1).
Rule 2: of a token only the first characters are kept, and only as a keyed hash.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections import OrderedDict

ENTRIES = 10_000
PREFIX = 11
"""`claw_` and six characters."""


class Throttle:
    __slots__ = ("_addresses", "_key", "_prefixes", "limit", "window")

    def __init__(self, limit: int = 10, window: float = 60.0) -> None:
        self.limit = limit
        self.window = window
        self._addresses: OrderedDict[bytes, tuple[float, ...]] = OrderedDict()
        self._prefixes: OrderedDict[bytes, tuple[float, ...]] = OrderedDict()
        self._key = secrets.token_bytes(32)

    def failed(self, peer: str, token: str, now: float) -> float | None:
        """Note a failed attempt at `now` (seconds, any steady clock). Returns how long to wait where there were too many."""
        prefix = hashlib.blake2b(token[:PREFIX].encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()
        waits = (
            self._note(self._addresses, network(peer), now),
            self._note(self._prefixes, prefix, now),
        )
        return max((wait for wait in waits if wait is not None), default=None)

    def _note(self, table: OrderedDict[bytes, tuple[float, ...]], name: bytes, now: float) -> float | None:
        horizon = now - self.window
        known = table.pop(name, ())
        # One beyond the limit is enough to know the verdict. A tuple: nearly all have one time, and a deque takes 700 bytes.
        times = table[name] = (*[time for time in known if time > horizon], now)[-self.limit - 1 :]
        if len(table) > ENTRIES:
            table.popitem(last=False)
        return times[0] - horizon if len(times) > self.limit else None

    def __len__(self) -> int:
        return len(self._addresses) + len(self._prefixes)


def network(peer: str) -> bytes:
    """Who counts as one: an IPv4 address, an IPv6 /64 (one customer's line has all of it), else the text as it is."""
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return hashlib.blake2b(peer.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return address.packed[:8] if mapped is None else mapped.packed
    return address.packed
