"""The real pipeline, exchange and books around a scripted upstream, in one process, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import trio
from attrs import define, field

from clawproxy.config import Config, ModelConfig, ProviderConfig, RouteConfig
from clawproxy.config.sections import settings_of
from clawproxy.context import App, Exchange, new_id
from clawproxy.errors import ClawError
from clawproxy.events import Batch, Event, Notice, Outcome, Reasoning, Text
from clawproxy.gateway import Gateway, Generation
from clawproxy.lifetime import Lifetime
from clawproxy.messages import ChatRequest, Principal, Usage
from clawproxy.ops.metrics import Metrics
from clawproxy.pipeline import Plugins
from clawproxy.pipeline.compile import lifespans
from clawproxy.service import Call
from clawproxy.stores.memory import MemoryStore
from clawproxy.testing.factories import make_principal, make_request
from clawproxy.testing.upstream import ScriptedUpstream

BUILT_IN = ("audit", "sanitize", "truncate", "router", "meter")


@define
class Answer:
    """What a client got."""

    events: list[Event] = field(factory=list)
    outcome: Outcome | None = None
    usage: Usage | None = None
    error: ClawError | None = None
    exchange: Exchange | None = None

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Text))

    @property
    def reasoning(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Reasoning))

    @property
    def notices(self) -> Sequence[Notice]:
        return self.exchange.notices if self.exchange else ()


class RecordingClient:
    """A `service.Client` that keeps what it is sent. `reads_for` seconds pass per batch, for a slow reader."""

    def __init__(self, reads_for: float = 0.0) -> None:
        self.answer = Answer()
        self.reads_for = reads_for

    def attach(self, exchange: Exchange, request: ChatRequest) -> None:
        self.answer.exchange = exchange

    async def send(self, batch: Batch) -> None:
        if self.reads_for:
            await trio.sleep(self.reads_for)
        else:
            await trio.lowlevel.checkpoint()
        self.answer.events += batch.events

    async def finish(self, outcome: Outcome, usage: Usage | None) -> None:
        await trio.lowlevel.checkpoint()
        self.answer.usage = usage

    async def fail(self, error: ClawError) -> None:
        await trio.lowlevel.checkpoint()
        self.answer.error = error


class Claw:
    """A gateway in a test. Made by `claw()`."""

    def __init__(self, gateway: Gateway, upstream: ScriptedUpstream, store: MemoryStore) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.store = store

    async def ask(
        self,
        prompt: str | ChatRequest = "Say hello.",
        *,
        principal: Principal | None = None,
        lifetime: Lifetime | None = None,
        reads_for: float = 0.0,
        **changes: Any,
    ) -> Answer:
        """Send one request through everything and wait for its end. Never raises: errors are in the answer."""
        request = make_request(prompt, **{"stream": True, **changes}) if isinstance(prompt, str) else prompt
        client = RecordingClient(reads_for)
        call = Call(
            request_id=new_id(),
            surface=request.dialect,
            principal=principal or make_principal(),
            decode=lambda: request,
            lifetime=lifetime or Lifetime(),
        )
        client.answer.outcome = await self.gateway.handle(call, client)
        return client.answer

    def at_rest(self) -> bool:
        """Nothing is held: no stream, no place, no exchange."""
        return (self.upstream.open_streams, self.gateway.admission.active, self.gateway.in_flight) == (0, 0, 0)


@asynccontextmanager
async def claw(
    plugins: Mapping[str, object] | None = None,
    *,
    order: Sequence[str] | None = None,
    config: Config | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    routes: Sequence[str] = ("scripted",),
) -> AsyncIterator[Claw]:
    """A gateway with these plugins before the built-in ones.

    Args:
        plugins: plugin modules or objects, by name.
        order: the operator's list; yours first, then the built-in ones, where None.
        config: the whole configuration, where the default (one model, `test-model`) does not do.
        settings: `[plugins.NAME]` sections.
        routes: provider names for `test-model`, best first.
    """
    names = list(order or [*(plugins or {}), *BUILT_IN])
    config = config or Config(
        providers={name: ProviderConfig(dialect="scripted") for name in routes},
        models={"test-model": ModelConfig(tuple(RouteConfig(name, "test-model") for name in routes))},
        plugins=settings or {},
    )

    config = attrs.evolve(config, pipeline=attrs.evolve(config.pipeline, order=tuple(names)))
    store = MemoryStore()
    app = App(config, store, "test", None)
    gateway = Gateway(app, Metrics())
    loaded = Plugins(names, plugins)
    upstream = ScriptedUpstream()
    generation = Generation(1, config, gateway, loaded, settings_of(config, loaded.registry.settings), upstream)
    gateway.install(generation)
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        app.nursery = nursery
        nursery.start_soon(gateway.alarms.run)
        for _, manager in lifespans(loaded, names, app):
            await stack.enter_async_context(manager)
        yield Claw(gateway, upstream, store)
        nursery.cancel_scope.cancel()
