"""The hooks, in the order a request meets them: the table of contents of the system.

An implementation may take any subset of a hook's arguments, by name. Order is the operator's list `[pipeline] order`: requests
go down it, responses come up it. `docs/plugins.md` says what happens when a hook raises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pluggy

from clawproxy.done import DONE as DONE
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Event, Outcome
from clawproxy.messages import ChatRequest, Credentials, Principal, Route
from clawproxy.values import value

if TYPE_CHECKING:
    from clawproxy.context import Alert, App, Attempt, Checked, Exchange, Registry

hookspec = pluggy.HookspecMarker("clawproxy")
hookimpl = pluggy.HookimplMarker("clawproxy")


@value
class Observe:
    """A tap that only looks. `see(batch)` is called for each batch, synchronously; `end()` once, when the attempt is over.
    If it raises it is dropped and logged once: the answer goes on."""

    see: Callable[[Batch], None]
    end: Callable[[], None] | None = None


@value
class Transform:
    """A tap that may change the answer.

    Args:
        change: gets a batch's events and returns those to pass on; the *same object* means "nothing changed". An empty
            sequence holds everything back.
        end: called once after the last batch of a good answer; gives back held events.
        streams: what it does with streams. `per_batch` and `window` pass text on as it comes (a window holds back what may
            begin a match); `hold_back` gets the whole answer in one call; `reject` refuses streaming requests. Silence means
            `hold_back`, so a filter can not be bypassed by streaming.
        raw: asked where `change` changed nothing: whether the provider's own bytes may go to a client of the same format. They
            hold more than events say: what no vocabulary has a word for, logprobs, the repetitions at an end. Where not, the
            events are written anew. Silence means that they may.
    If it raises, the answer ends with an error.
    """

    change: Callable[[Sequence[Event]], Sequence[Event]]
    end: Callable[[], Sequence[Event]] | None = None
    streams: Literal["per_batch", "window", "hold_back", "reject"] = "hold_back"
    raw: Callable[[bytes], bool] | None = None


class AttemptContext(Protocol):
    """Any async context manager is one. Where entering or leaving it has nothing to wait for, they may return `DONE`."""

    def __aenter__(self) -> Awaitable[object]: ...

    def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None, /
    ) -> Awaitable[bool | None]: ...


class Turn(Protocol):
    """A place in somebody's queue."""

    async def wait(self) -> None:
        """Until it is worth trying again."""
        ...

    def leave(self) -> None:
        """It is not needed any longer; more than once does no harm."""
        ...


class Detour(ClawError):
    """Raised by `open_attempt`: not this attempt, not now. It becomes none: nothing was sent.

    Args:
        error: what the request comes to where the detour leads nowhere.
        model: plan again, for this model.
        turn: or else wait for this, under the clock `queue`, and open the attempt anew.
    """

    def __init__(self, error: ClawError, *, model: str | None = None, turn: Turn | None = None) -> None:
        super().__init__(error.slug, error.message)
        self.details = error.details
        self.model = model
        self.turn = turn


class Plan(Protocol):
    """A router's answer: asked for the next route before each attempt, with the attempts so far.

    The route says what its attempt is for. After content was released, which must have been text and nothing else, only a route
    with the reason `continue` is taken, and only where the first one said `goes_on`: its attempt goes on where the last one was
    cut. While an attempt runs whose `hedge_after` is over, one with `hedge` is.

    `next` raises ClawError where it knows better than the last attempt why there is none (all of them rest)."""

    def next(self, history: Sequence[Attempt]) -> Route | None: ...

    @property
    def candidates(self) -> Sequence[Route]:
        """Every route it might give, best first."""


# --- once, or at each (re)load -----------------------------------------------------------------------------------------


@hookspec
def register(registry: Registry) -> None:
    """Once, at start: declare the plugin's settings class and what it adds (dialects, secret schemes)."""


@hookspec
def configure(config: Any, app: App) -> Any:
    """At start and at each reload: the plugin's own checked settings in, a fresh state for the new generation out.
    `app.config` is the whole configuration of the new generation. Raises ConfigError: nothing is changed then.

    The value returned is handed to the plugin's other hooks as `state`. Nothing shared is touched here. Hooks that it names in
    an attribute `unused_hooks` are not called in this generation, and so cost nothing.
    """


@hookspec
def lifespan(app: App) -> AbstractAsyncContextManager[None]:  # type: ignore[empty-body]  # a specification
    """An async context manager around the whole service; what it opens, it closes."""


# --- going down, once per prompt ------------------------------------------------------------------------------------------


@hookspec
async def authenticate(credentials: Credentials, state: Any, app: App) -> Principal | None:
    """Who is this? The first Principal wins; raise `ClawError("auth...")` to refuse; None to leave it to the next plugin."""


@hookspec
async def prepare_request(exchange: Exchange, request: ChatRequest, state: Any) -> ChatRequest | None:
    """Change or refuse the request. Each plugin gets the previous one's result; None means unchanged.

    Where the client adds to its prompt while it is answered, this and `choose_route` are asked again, with all that was said."""


@hookspec
async def choose_route(exchange: Exchange, request: ChatRequest, state: Any) -> Plan | None:
    """Where should it go? The first plan wins."""


# --- once per attempt ------------------------------------------------------------------------------------------------------


@hookspec
def open_attempt(exchange: Exchange, request: ChatRequest, route: Route, attempt: Attempt, state: Any) -> AttemptContext | None:
    """An async context manager around one attempt: entered in order, left shielded and bounded in reverse. May refuse, set
    `attempt.output_limit`, or ask for something else by raising `Detour`."""


@hookspec
def tap_response(exchange: Exchange, route: Route, attempt: Attempt, state: Any) -> Observe | Transform | None:
    """Look at, or change, what this attempt answers. Called once; what it returns is called per batch."""


@hookspec
def attempt_finished(exchange: Exchange, attempt: Attempt, state: Any) -> None:
    """An attempt is over: what it came to is in `attempt`."""


# --- beside all requests -----------------------------------------------------------------------------------------------------


@hookspec
def provider_checked(check: Checked, state: Any) -> None:
    """A provider with `[providers.NAME.health]` was asked whether it is there."""


# --- once per exchange ------------------------------------------------------------------------------------------------------


@hookspec
def exchange_closed(exchange: Exchange, outcome: Outcome, state: Any) -> Awaitable[None] | None:
    """Exactly once for each exchange that began, shielded, at most 5 s. An `async def`, or a plain one that has nothing to wait
    for and returns None or `DONE`."""


# --- whenever there is something to tell -------------------------------------------------------------------------------------


@hookspec
def alert(event: Alert, state: Any) -> None:
    """Something an operator should know at once (docs/alerts.md). Synchronous: hand on what takes time."""
