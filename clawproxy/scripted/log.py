"""What reached this provider, by its own account: the ground truth that tests of a gateway compare with.

Rule 1: bounded. The oldest entries go first, beyond `max_entries` or `max_bytes` of kept bodies; counters never shrink.
Rule 2: no secret in a `repr` or in JSON. A credential's header shows a fingerprint, so that two can be compared and none read.
Rule 3: times are Unix seconds, so that they stand beside a ledger's.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal

import trio
from attrs import define, field

State = Literal["in_progress", "finished", "closed_by_peer", "cut_by_script", "closed_by_provider"]

SENSITIVE = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"})


def fingerprint(value: str) -> str:
    """How a credential's header stands in the log: `***` and the start of its SHA-256."""
    return "***" + hashlib.sha256(value.encode("latin-1", "replace")).hexdigest()[:16]


@define(slots=True, eq=False)
class Entry:
    """One request."""

    serial: int
    """From 1, in the order of arrival."""
    connection: int
    received_at: float
    """When it was here whole."""
    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    """As received: names as written, in order; credentials as fingerprints."""
    credential: str | None = None
    """The fingerprint of the credential's header, None where none came."""
    credential_ok: bool | None = None
    """Whether it was the expected one; None where none is expected."""
    body_bytes: bytes = field(default=b"", repr=False)
    body: Any = field(default=None, repr=False)
    """The JSON body; None where there is none or it is not JSON."""
    model: str | None = None
    stream: bool = False
    request_id: str | None = None
    """X-Request-ID, else X-Client-Request-Id, else the body's `metadata.request_id`."""
    script: str | None = None
    """What was played."""
    status: int | None = None
    """Of the answer, once its head went out."""
    first_byte_at: float | None = None
    bytes_sent: int = 0
    """On the wire, head and framing included, as far as the kernel took them."""
    events_sent: int = 0
    """Events (or pieces of the body) handed over whole."""
    state: State = "in_progress"
    closed_at: float | None = None
    """When the answer was over, or when the peer's leaving was noticed."""

    def header(self, name: str) -> str | None:
        """The first header of this name, whatever its case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def as_json(self) -> dict[str, Any]:
        return {
            "serial": self.serial,
            "connection": self.connection,
            "received_at": self.received_at,
            "method": self.method,
            "target": self.target,
            "headers": [list(pair) for pair in self.headers],
            "credential": self.credential,
            "credential_ok": self.credential_ok,
            "body": self.body,
            "model": self.model,
            "stream": self.stream,
            "request_id": self.request_id,
            "script": self.script,
            "status": self.status,
            "first_byte_at": self.first_byte_at,
            "bytes_sent": self.bytes_sent,
            "events_sent": self.events_sent,
            "state": self.state,
            "closed_at": self.closed_at,
        }


@define(slots=True, eq=False)
class ConnectionEntry:
    """One TCP connection."""

    serial: int
    opened_at: float
    peer: str = ""
    requests: int = 0
    closed_at: float | None = None
    closed_by: Literal["peer", "provider"] | None = None

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("serial", "opened_at", "peer", "requests", "closed_at", "closed_by")}


_ENDS: tuple[State, ...] = ("finished", "closed_by_peer", "cut_by_script", "closed_by_provider")


class ProviderLog:
    """Every request and connection, newest last; and counters since the start or the last `clear`."""

    def __init__(self, *, max_entries: int = 1000, max_bytes: int = 64 * 1024 * 1024) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self._changed = trio.lowlevel.ParkingLot()
        self._serial = 0
        self._connections_made = 0
        self.clear()

    def clear(self) -> None:
        """Forget what is over; requests and connections that are still open stay. Serial numbers go on."""
        kept = [entry for entry in getattr(self, "entries", ()) if entry.state == "in_progress"]
        open_now = [row for row in getattr(self, "connections", ()) if row.closed_at is None]
        self.entries: deque[Entry] = deque(kept)
        """The requests, oldest first."""
        self.connections: deque[ConnectionEntry] = deque(open_now)
        self.malformed: deque[str] = deque(maxlen=100)
        """What broke HTTP/1.1 in what was received, one sentence each. A gateway under test should leave it empty."""
        self.counts: dict[State, int] = dict.fromkeys(("in_progress", *_ENDS), 0)
        self.counts["in_progress"] = len(kept)
        self.requests = len(kept)
        self.connections_opened = len(open_now)
        self.sockets = 0
        """How many connections became WebSockets."""
        self.open_connections = len(open_now)
        self.bytes_sent = 0
        self._kept_bytes = sum(len(entry.body_bytes) for entry in kept)

    # --- reading ---

    @property
    def in_progress(self) -> int:
        """Requests being answered now."""
        return self.counts["in_progress"]

    @property
    def last(self) -> Entry:
        """The newest request. Raises IndexError where there is none."""
        return self.entries[-1]

    async def wait_for(self, ready: Callable[[ProviderLog], object]) -> None:
        """Return once `ready(log)` is true; it is asked again after each change. The caller's cancel scope bounds it."""
        await trio.lowlevel.checkpoint()
        while not ready(self):
            await self._changed.park()

    def stats(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "connections": self.connections_opened,
            "open_connections": self.open_connections,
            "malformed": len(self.malformed),
            "bytes_sent": self.bytes_sent,
            **{str(state): count for state, count in self.counts.items()},
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "requests": [entry.as_json() for entry in self.entries],
            "connections": [row.as_json() for row in self.connections],
            "malformed": list(self.malformed),
        }

    def __repr__(self) -> str:
        return f"<ProviderLog {self.stats()}>"

    # --- writing: the server's ---

    def opened(self, peer: str) -> ConnectionEntry:
        self._connections_made += 1
        row = ConnectionEntry(self._connections_made, time.time(), peer)
        self.connections.append(row)
        self.connections_opened += 1
        self.open_connections += 1
        while len(self.connections) > self.max_entries:
            self.connections.popleft()
        self.changed()
        return row

    def closed(self, row: ConnectionEntry, by: Literal["peer", "provider"]) -> None:
        if row.closed_at is None:
            row.closed_at, row.closed_by = time.time(), by
            self.open_connections -= 1
            self.changed()

    def forget(self, row: ConnectionEntry) -> None:
        """This connection asks for the log itself: it is no provider traffic."""
        if row.closed_at is None and row.requests == 0:
            row.closed_at, row.closed_by = time.time(), "provider"
            self.connections_opened -= 1
            self.open_connections -= 1
            if row in self.connections:
                self.connections.remove(row)
            self.changed()

    def received(
        self, row: ConnectionEntry, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes, key: str | None
    ) -> Entry:
        """A new request; `key` is the expected credential."""
        self._serial += 1
        row.requests += 1
        shown, credential, matches = _without_secrets(headers, key)
        entry = Entry(self._serial, row.serial, time.time(), method, target, shown, credential, matches, body)
        self.entries.append(entry)
        self.requests += 1
        self.counts["in_progress"] += 1
        self._kept_bytes += len(body)
        while len(self.entries) > self.max_entries or (self._kept_bytes > self.max_bytes and len(self.entries) > 1):
            self._kept_bytes -= len(self.entries.popleft().body_bytes)
        self.changed()
        return entry

    def over(self, entry: Entry, state: State) -> None:
        if entry.closed_at is None:
            entry.state, entry.closed_at = state, time.time()
            self.counts["in_progress"] -= 1
            self.counts[state] += 1
            self.bytes_sent += entry.bytes_sent
            self.changed()

    def changed(self) -> None:
        self._changed.unpark_all()


def _without_secrets(
    headers: Sequence[tuple[str, str]], key: str | None
) -> tuple[Sequence[tuple[str, str]], str | None, bool | None]:
    """The headers as logged, the credential's fingerprint, and whether it is `key`."""
    shown: list[tuple[str, str]] = []
    credential = None
    matches = None if key is None else False
    for name, value in headers:
        lower = name.lower()
        if lower not in SENSITIVE:
            shown.append((name, value))
            continue
        shown.append((name, fingerprint(value)))
        if lower in ("cookie", "proxy-authorization"):
            continue
        credential = fingerprint(value)
        token = value[7:] if value[:7].lower() == "bearer " else value
        if key is not None:
            matches = hmac.compare_digest(token.encode("latin-1", "replace"), key.encode())
    return shown, credential, matches
