"""What the exchange asks of the providers' side of I/O."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from clawproxy.dialects.base import OutboundRequest, ProviderDialect
from clawproxy.events import Batch
from clawproxy.messages import ChatRequest, Route


class Phases(Protocol):
    """How opening a stream tells its owner which clock should run: the owner holds the clocks (`exchange.py`)."""

    def enter(self, clock: str) -> None:
        """`queue` (waiting for a place), `connect` (DNS, TCP, TLS), then `first_token` (the request is on its way)."""
        ...

    sent: bool
    """Set true just before the first byte of a request goes out."""

    step: str
    """While it connects: `dns`, `tcp` or `tls` (`errors.STEPS`)."""


class ProviderStream(Protocol):
    """One answer under way. A class, not a generator: `async with upstream.open(...) as stream`, then `receive` until None."""

    status: int

    async def receive(self) -> Batch | None:
        """One batch per network read that made an event whole; None after the end. Raises ProviderFault (`cut`, `malformed`,
        `too_large`) where the connection fails before the terminal marker."""
        ...

    def close(self) -> None:
        """Synchronous. Whole answers give their connection back to the pool; anything else closes it at once."""
        ...


class KeptStream(ProviderStream, Protocol):
    """One that was taken out of its opening, to be read on by somebody else."""

    def leave(self, well: bool) -> None:
        """`close`; a connection is only kept where `well`: its reader came to the end."""
        ...


class Opening(Protocol):
    """The async context manager `Upstream.open` returns: entering connects, sends and reads the head; leaving closes,
    synchronously, whatever happened, Cancelled included."""

    async def __aenter__(self) -> ProviderStream: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...


class Upstream(Protocol):
    """All providers of one configuration generation: their pools, credentials, dialects."""

    def dialect(self, provider: str) -> ProviderDialect: ...

    def open(self, route: Route, request: ChatRequest, outbound: OutboundRequest, phases: Phases, fair_key: str) -> Opening:
        """Open a stream. Entering raises ProviderFault (unreachable, a status from 300 up as `decode_error` has it) or is
        cancelled by the owner's clock. `fair_key`: waiters for a pool place are served round-robin by it."""
        ...

    async def aclose(self) -> None: ...
