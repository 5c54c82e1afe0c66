"""The task of requests: authenticate a message, wait for the rest of its prompt where it is streamed, hand it to the exchange,
make sure that it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from clawproxy.clocks import Deadlines
from clawproxy.errors import ClawError
from clawproxy.events import Outcome
from clawproxy.lifetime import KeptScope, Lifetime
from clawproxy.messages import ChatRequest, Credentials
from clawproxy.service import Call, Client, Service
from clawproxy.transport.websocket.revoking import turn_down

if TYPE_CHECKING:
    from clawproxy.steering import Steering
    from clawproxy.transport.websocket.prompts import StreamedPrompt
    from clawproxy.transport.websocket.session import Session

logger = logging.getLogger("clawproxy.websocket")


class Asker(Client, Protocol):
    """The way back of one request, as far as its connection has to know it. `client.ClawClient` tells what each is."""

    id: str
    request_id: str
    lifetime: Lifetime
    gate: trio.CancelScope | None

    @property
    def prompt(self) -> StreamedPrompt | None:
        """Where the rest of the prompt is still to come."""
        ...

    @property
    def steering(self) -> Steering | None:
        """Where more may be said while it is answered."""
        ...

    def cancel(self, cause: ClawError) -> None: ...
    async def turn(self) -> None: ...
    def end_with(self, error: ClawError) -> None: ...
    def settle(self, outcome: Outcome) -> None: ...


Decode = Callable[[int], ChatRequest]
"""Decodes a request, given how many messages it may have."""
Job = tuple[Asker, Decode, float | None, Credentials]
"""The way back; what decodes the request; the client's own `deadline`; whose it is."""


class Spare:
    """A connection's task that waits for its next request, one at most: waking it costs 5 us, a new task and its scope 10."""

    __slots__ = ("_closed", "_jobs", "_task")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._jobs: list[Job] = []
        """One for each task that was woken and has not run yet."""
        self._closed = False

    def give(self, job: Job) -> bool:
        """Let it serve `job`; false where none waits."""
        task = self._task
        if task is None:
            return False
        self._task = None
        self._jobs.append(job)
        trio.lowlevel.reschedule(task)
        return True

    async def wait(self) -> Job | None:
        """The next request; None where the caller is not needed any more."""
        if self._closed or self._task is not None:
            return None
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._left)
        return self._jobs.pop(0) if self._jobs else None

    def close(self) -> None:
        """No more requests come: the waiting task ends, and none waits again."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _left(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


async def serve(session: Session, spare: Spare, job: Job | None) -> None:
    """A task of the connection: one request after another. What a request leaves in context variables the next one finds, as on
    an HTTP connection that is kept alive."""
    with trio.CancelScope() as scope, KeptScope() as kept:
        while job is not None and not scope.cancel_called:
            await run(session, scope, kept, *job)
            job = None  # nothing of it is kept while nothing is asked
            job = await spare.wait()


async def run(
    session: Session,
    scope: trio.CancelScope,
    kept: KeptScope,
    client: Asker,
    decode: Decode,
    deadline: float | None,
    credentials: Credentials,
) -> None:
    """Serve one request. Raises nothing but Cancelled: a defect is the request's own `internal` error.

    Args:
        scope: this task's own; cancelled only where the request is given up before the exchange has it.
        kept: the scope of this task's exchanges.
    """
    service = session.service
    client.gate = scope
    try:
        await client.turn()
        principal = await service.authenticate(credentials)  # policy is applied to every message
        prompt = client.prompt
        if prompt is not None and client.lifetime.cause is None:
            await prompt.wait(prompt_clocks(service, prompt.model, deadline))
            principal = await service.authenticate(credentials)
        client.gate = None
        if client.lifetime.cause is not None:
            client.end_with(client.lifetime.cause)
            return
        call = Call(
            request_id=client.request_id,
            surface=credentials.surface,
            principal=principal,
            decode=partial(decode, service.config.limits.messages),
            lifetime=client.lifetime,
            peer=credentials.peer,
            client_request_id=client.id if client.id.isascii() and client.id != client.request_id else None,
            deadline=deadline,
            steering=client.steering,
            began=None if prompt is None else prompt.began,
        )
        if client.steering is not None:
            client.steering.authenticate = partial(_again, session, client, credentials)
        client.lifetime.keep(kept)
        client.settle(await service.handle(call, client))
    except ClawError as error:
        client.end_with(error)
        _mind(session, client, error)
    except trio.Cancelled:
        if scope.cancel_called:
            client.end_with(client.lifetime.cause or ClawError("client_gone"))
        raise
    except Exception:
        logger.exception("request %s failed", client.request_id)
        client.end_with(ClawError("internal"))
    finally:
        client.gate = None
        if client.steering is not None:
            client.steering.let_go()
        session.finished(client)


def prompt_clocks(service: Service, model: str, asked: float | None) -> Deadlines:
    """The clocks of a streamed prompt: `total` may be the model's own. `asked`: the client's `deadline_ms`, in seconds."""
    known = service.config.models.get(model)
    return service.deadlines.overridden({} if known is None else known.deadlines).shortened(asked)


async def _again(session: Session, client: Asker, credentials: Credentials) -> None:
    """Authenticate what was appended. Raises ClawError."""
    try:
        await session.service.authenticate(credentials)
    except ClawError as error:
        client.end_with(error)
        _mind(session, client, error)
        raise


def _mind(session: Session, client: Asker, error: ClawError) -> None:
    """A credential that is no good is the end of its connection."""
    if error.slug.startswith("auth."):
        turn_down(session, client, error)
