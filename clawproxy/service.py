"""The border between transports and the exchange: what a transport hands over (`Call`, `Client`), and what it is
given (`Service`).

A transport knows bytes and its client; the exchange knows what happens to a request. Neither imports the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from attrs import define

from clawproxy.clocks import Deadlines
from clawproxy.config import Config, Residency
from clawproxy.context import Attribution, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Outcome
from clawproxy.lifetime import Lifetime
from clawproxy.messages import EMPTY, ChatRequest, Credentials, Principal, Usage
from clawproxy.steering import Steering


@define(slots=True, eq=False)
class Call:
    """One request as a transport hands it over: authenticated, whole, not yet decoded."""

    request_id: str
    surface: str
    principal: Principal
    decode: Callable[[], ChatRequest]
    """Raises ClawError: the exchange turns it into the answer, the audit row and the outcome like any other."""
    lifetime: Lifetime
    """The transport cancels it when the client leaves or cancels."""
    peer: str = ""
    client_request_id: str | None = None
    """The client's own `X-Request-ID`, already checked for length and characters. For the log only."""
    deadline: float | None = None
    """Seconds, where the client shortened `total`."""
    session_id: str | None = None
    attribution: Attribution | None = None
    cache_control: str | None = None
    steering: Steering | None = None
    """Where the client may say more while it is answered."""
    began: float | None = None
    """Trio time at which the request's first message came, where its prompt was streamed: `total` counts from there."""
    wanted: Mapping[str, str] = EMPTY
    """What the client asks of a route in its headers: `capabilities`, `quality`, `region`, unread."""
    parent: str | None = None
    """The `request_id` of the exchange within which a plugin asks this (`App.ask`)."""
    credentials: Credentials | None = None
    """As they were shown: whether they are still good is looked at while it runs. None: somebody else sees to that."""
    size: int = 0
    """Bytes it came in; 0: not known, but no more than a frame may have."""
    residency: Residency | None = None
    """What binds it beside its principal's own rules: those of the exchange within which a plugin asks it."""


class Sink(Protocol):
    """Where batches go."""

    async def send(self, batch: Batch) -> None: ...


class Client(Sink, Protocol):
    """The way back to whoever asked. One exchange talks to it, in this order: attach, send*, then finish or fail, once.

    After `send` raised or was cancelled the transport closes the connection; the exchange only closes its books.

    It may have a `seam(notice)`: told, before what comes next, that the answer goes on behind a cut (`continuing`), where notices
    can not be sent any more.
    """

    def attach(self, exchange: Exchange, request: ChatRequest) -> None:
        """The request was understood: prepare its encoder."""
        ...

    async def send(self, batch: Batch) -> None:
        """Release events. The first call commits the answer (status, route header, `llm_response_start`), and notices go first.

        Returns when the bytes are with the kernel or within a bounded outbox, so that a slow client slows its provider.
        Raises ClawError("timeout.write") or ClawError("client_gone").
        """
        ...

    async def finish(self, outcome: Outcome, usage: Usage | None) -> None:
        """The answer is whole (`complete`, `truncated`): terminal events, or the whole body of a request without `stream`."""
        ...

    async def fail(self, error: ClawError) -> None:
        """An error: as a proper status where nothing was sent, else as the dialect's error event and a clean end."""
        ...


class Service(Protocol):
    """What a transport is given."""

    @property
    def config(self) -> Config:
        """The current generation's; read it anew for each request."""
        ...

    @property
    def deadlines(self) -> Deadlines: ...

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Raises ClawError("auth.missing" | "auth.invalid" | "auth.expired" | "auth.throttled")."""
        ...

    def admit(self) -> ClawError | None:
        """Why a new request would be refused right now (`overloaded`, `shutting_down`), or None. Synchronous and cheap."""
        ...

    async def handle(self, call: Call, client: Client) -> Outcome:
        """Run the exchange. Raises nothing but Cancelled: every end is an Outcome and the client was told."""
        ...

    def models(self, principal: Principal) -> Sequence[tuple[str, str]]:
        """`(model, provider)` pairs this principal may use, for `/v1/models`. Nothing is asked of a provider."""
        ...

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter (`clawproxy_..._total`). Labels come from closed sets only."""
        ...

    def cut(self, clock: str, limit: float, *, surface: str, peer: str) -> None:
        """A connection's own clock ended it, or a request that was not yet an exchange: for the log and the metric."""
        ...
