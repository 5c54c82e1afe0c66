"""Names to addresses, in threads of our own.

Rule 1: `trio.getaddrinfo` shares its 40 threads with everyone else's thread work, and a hung look-up keeps its token after its
        caller has gone. So look-ups have their own bound here and touch no other: fifty that hang cost nobody else anything.
Rule 2: one look-up per name at a time, whoever asks; its waiters come and go, and it is nobody's child: a waiter that is
        cancelled leaves the look-up to the others.
Rule 3: no bookkeeping across an await: a look-up starts, queues and ends synchronously.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    import outcome

Address = tuple[int, tuple[Any, ...]]
"""Address family and socket address, as `socket.connect` wants them."""

LOOKUPS = 20
"""Look-ups at work at once, for all names."""
TTL = 30.0
"""Seconds an answer is kept. getaddrinfo does not tell the record's own."""
JOINABLE = 5.0
"""Seconds during which a look-up under way serves further callers; an older one may hang while a new one would succeed."""

_Info = Sequence[tuple[Any, Any, Any, Any, tuple[Any, ...]]]


def _getaddrinfo(host: str) -> _Info:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)


class _Lookup:
    __slots__ = ("addresses", "done", "error", "host", "running", "started", "waiters")

    def __init__(self, host: str, started: float) -> None:
        self.host = host
        self.started = started
        self.running = False
        self.waiters = 0
        self.done = trio.Event()
        self.addresses: tuple[Address, ...] = ()
        self.error: OSError | None = None


class Resolver:
    """One per process; `lookup` runs in a thread and is `socket.getaddrinfo` but in tests."""

    def __init__(self, lookup: Callable[[str], _Info] = _getaddrinfo, limit: int = LOOKUPS, ttl: float = TTL) -> None:
        self._lookup = lookup
        self._limit = limit
        self._ttl = ttl
        self._running = 0
        self._queue: deque[_Lookup] = deque()
        self._under_way: dict[str, _Lookup] = {}
        self._known: dict[str, tuple[float, tuple[Address, ...]]] = {}

    def __repr__(self) -> str:
        return f"<Resolver [{self._running} running, {len(self._queue)} waiting | max {self._limit}]>"

    async def resolve(self, host: str, port: int) -> tuple[Address, ...]:
        """Addresses to try, in order, families alternating (RFC 8305, 4). A literal costs nothing, a known name neither.

        Raises socket.gaierror; waits as long as its caller lets it.
        """
        literal = _literal(host)
        if literal is not None:
            return _with_port((literal,), port)
        known = self._known.get(host)
        now = trio.current_time()
        if known is not None and now < known[0]:
            return _with_port(known[1], port)
        lookup = self._under_way.get(host)
        if lookup is None or now - lookup.started > JOINABLE:
            lookup = self._begin(host, now)
        lookup.waiters += 1
        try:
            await lookup.done.wait()
        finally:
            lookup.waiters -= 1
            if not lookup.waiters and not lookup.running and not lookup.done.is_set():
                self._queue.remove(lookup)
                if self._under_way.get(host) is lookup:
                    del self._under_way[host]
        if lookup.error is not None:
            raise type(lookup.error)(*lookup.error.args)  # one each: a raised exception collects its raiser's traceback
        return _with_port(lookup.addresses, port)

    def forget(self, host: str) -> None:
        """None of its addresses answered: ask again next time."""
        self._known.pop(host, None)

    def _begin(self, host: str, now: float) -> _Lookup:
        lookup = self._under_way[host] = _Lookup(host, now)
        if self._running < self._limit:
            self._start(lookup)
        else:
            self._queue.append(lookup)
        return lookup

    def _start(self, lookup: _Lookup) -> None:
        self._running += 1
        lookup.running = True
        token = trio.lowlevel.current_trio_token()

        def deliver(result: outcome.Outcome[tuple[Address, ...]]) -> None:
            try:
                token.run_sync_soon(self._finish, lookup, result)
            except trio.RunFinishedError:
                pass  # the loop has ended; nobody waits any more

        try:
            trio.lowlevel.start_thread_soon(lambda: _usable(self._lookup(lookup.host)), deliver, f"resolve {lookup.host}")
        except RuntimeError:  # the system gives no more threads
            self._settle(lookup, OSError(errno.EAGAIN, "no thread for a look-up"))

    def _finish(self, lookup: _Lookup, result: outcome.Outcome[tuple[Address, ...]]) -> None:
        """Runs in the loop, not in anybody's task: it must not raise."""
        try:
            self._settle(lookup, result.unwrap())
        except OSError as error:
            self._settle(lookup, error)
        except Exception:  # UnicodeError for a label that is too long; whatever else a resolver module may raise
            self._settle(lookup, socket.gaierror(socket.EAI_NONAME, "not a name"))
        while self._queue and self._running < self._limit:
            self._start(self._queue.popleft())

    def _settle(self, lookup: _Lookup, found: tuple[Address, ...] | OSError) -> None:
        self._running -= 1
        if isinstance(found, OSError):
            lookup.error = found
        else:
            lookup.addresses = found
            self._known[lookup.host] = (trio.current_time() + self._ttl, found)
        if self._under_way.get(lookup.host) is lookup:
            del self._under_way[lookup.host]
        lookup.done.set()


def _literal(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 6:
        return socket.AF_INET6, (host, 0, 0, 0)
    return socket.AF_INET, (host, 0)


def _usable(found: _Info) -> tuple[Address, ...]:
    """IPv4 and IPv6 only, each once, in the system's order (RFC 6724) but with families alternating."""
    seen: dict[Address, None] = {}
    for family, _, _, _, address in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            seen[int(family), tuple(address)] = None
    addresses = list(seen)
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    first = [a for a in addresses if a[0] == addresses[0][0]]
    second = [a for a in addresses if a[0] != addresses[0][0]]
    both = min(len(first), len(second))
    mixed = [a for pair in zip(first, second, strict=False) for a in pair]
    return (*mixed, *first[both:], *second[both:])


def _with_port(addresses: tuple[Address, ...], port: int) -> tuple[Address, ...]:
    return tuple((family, (address[0], port, *address[2:])) for family, address in addresses)
