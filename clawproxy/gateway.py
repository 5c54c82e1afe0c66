"""The gateway: the service that transports are given, and the immutable generation behind it.

Rule 1: everything a request needs hangs off one `Generation`, built whole before it is used; a request keeps the one it began
        with. Replacing it is one assignment.
Rule 2: what lives longer than a generation (store, admission, credential cache, metrics) is the `Gateway`'s.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import trio
from attrs import evolve

from clawproxy.admission import Admission
from clawproxy.alarms import Alarms
from clawproxy.asking import ask
from clawproxy.clocks import CLOCK_SLUGS, Deadlines
from clawproxy.config import Config, Residences, action_of, authorized
from clawproxy.context import Alert, App, Checked, Exchange
from clawproxy.errors import KINDS, ClawError
from clawproxy.events import Outcome
from clawproxy.exchange import run_exchange
from clawproxy.messages import ChatRequest, Credentials, Principal, Route
from clawproxy.ops.alerts import Alerts
from clawproxy.ops.books import book, declare
from clawproxy.ops.checks import Checks
from clawproxy.ops.lag import LoopLag
from clawproxy.ops.logs import log_event, log_exception
from clawproxy.ops.metrics import Metrics
from clawproxy.ops.standings import BudgetStanding, own_budget
from clawproxy.pipeline import Pipeline, Plugins, compile_pipeline
from clawproxy.reach import candidates_for, reached, shown
from clawproxy.service import Call, Client
from clawproxy.stores.base import ALL, UsageRow, Where
from clawproxy.upstream.base import Upstream

CREDENTIAL_CACHE = 3.0
"""Seconds a verdict on a credential may be reused; with `recheck.EVERY`, within 5 s of its end no credential works anywhere."""
CACHED_CREDENTIALS = 10_000
HOOK_BUDGET_AUTH = 5.0


class Generation:
    """One configuration, compiled: pipeline, providers, deadlines. Immutable once built."""

    def __init__(
        self,
        number: int,
        config: Config,
        gateway: Gateway,
        plugins: Plugins,
        settings: Mapping[str, Any],
        upstream: Upstream,
    ) -> None:
        """Raises ConfigError, with every problem, and changes nothing."""
        self.number = number
        self.in_flight = 0
        self.config = config
        self.gateway = gateway
        self.app = evolve(gateway.app, config=config, ask=partial(ask, self))
        self.admission = gateway.admission
        self.alarms = gateway.alarms
        self.pipeline: Pipeline = compile_pipeline(plugins, config.pipeline.order, settings, self.app, gateway.report_plugin)
        self.upstream = upstream
        self._deadlines: dict[tuple[str, str], Deadlines] = {}
        for provider, own in config.providers.items():
            clocks = config.deadlines.overridden(own.deadlines, f"providers.{provider}.deadlines")
            self._deadlines["", provider] = clocks
            for name, model in config.models.items():
                self._deadlines[name, provider] = clocks.overridden(model.deadlines, f"models.{name}.deadlines")
        self._candidates = {model: candidates_for(config, model) for model in config.models}
        self._residences = Residences(config) if config.residency else None
        self._model_deadlines = {
            name: config.deadlines.overridden(model.deadlines, f"models.{name}.deadlines")
            for name, model in config.models.items()
            if model.deadlines
        }

    # --- what run_exchange asks ---------------------------------------------------------------------------------------------

    def begin(self, call: Call) -> Exchange:
        """An exchange begins: from here on `closed` will be called once."""
        self.gateway.in_flight += 1
        self.in_flight += 1
        principal = call.principal
        exchange = Exchange(  # by place as far as that goes: names take time
            call.request_id,
            call.surface,
            principal,
            self.config.deadlines.shortened(call.deadline),
            self.app.instance,
            self.number,
            call.peer,
            call.client_request_id,
            call.session_id,
            self.alarms.now(),
            user=principal.user,
            app=principal.app,
            attribution=call.attribution,
            cache_control=call.cache_control,
            wanted=call.wanted,
            parent=call.parent,
            residency=call.residency,
        )
        if call.began is not None:  # its prompt was streamed
            exchange.timing.prompt = exchange.started - call.began
            exchange.started = call.began
        return exchange

    def describe(self, exchange: Exchange, request: ChatRequest, asked: float | None) -> None:
        """The request is decoded: note what it asks for. `asked`: the client's own, shorter `total`."""
        exchange.requested_model = request.model
        exchange.stream = request.stream
        if request.operation != "chat":
            exchange.operation = request.operation
        own = self._model_deadlines.get(request.model)
        if own is not None:
            exchange.deadlines = own.shortened(asked)
        exchange.candidates = self._candidates.get(request.model, ())
        if exchange.principal.may_assert:
            said = request.user or request.metadata.get("user_id")
            exchange.user = said if isinstance(said, str) else exchange.user
            app = request.metadata.get("app")
            exchange.app = app if isinstance(app, str) else exchange.app
        if self._residences is not None:
            exchange.residency = self._residences.of(exchange.principal, exchange.user, exchange.app, exchange.residency)
            exchange.candidates = [route for route in exchange.candidates if exchange.may_go(route)]
        if exchange.principal.grants is not None:
            self._authorize(exchange, request)

    def _authorize(self, exchange: Exchange, request: ChatRequest) -> None:
        """Raises ClawError: `model_not_found` for what its roles do not show, `forbidden` for an action they do not allow."""
        principal, action = exchange.principal, action_of(exchange.surface, request.operation)
        if not principal.may_use(request.model):
            raise ClawError("model_not_found", param="model")
        if not principal.may_use(request.model, action):
            raise ClawError("forbidden", f"None of this credential's roles allows {action} with this model.")
        grants = principal.granting(request.model, action)
        places = reached(self.config, request.model, grants)
        exchange.candidates = [route for route in exchange.candidates if (route.provider, route.model) in places]

    def models(self, principal: Principal) -> Sequence[tuple[str, str]]:
        where = None if self._residences is None else self._residences.of(principal, principal.user, principal.app, None)
        return shown(self.config, principal, where)

    def deadlines_for(self, route: Route, exchange: Exchange) -> Deadlines:
        known = self._deadlines.get((exchange.requested_model, route.provider))
        return known if known is not None else self._deadlines.get(("", route.provider), exchange.deadlines)

    def crashed(self, exchange: Exchange, error: BaseException) -> None:
        log_exception("exchange.crashed", error, request_id=exchange.request_id)

    async def closed(self, exchange: Exchange, outcome: Outcome) -> None:
        """The closing hooks, the log line and the figures: once for each exchange that began."""
        self.gateway.in_flight -= 1
        self.in_flight -= 1
        try:
            await self.pipeline.closed(exchange, outcome)
        finally:
            book(exchange, outcome, self.gateway.metrics)
            watching = self.gateway.alerts.watching
            if watching is not None:
                watching.seen(exchange, outcome, self.alarms.now())


class Gateway:
    """The service behind every listener (`service.Service`)."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self.app = app
        app.gauge, app.count = metrics.gauge, metrics.count
        self.metrics = metrics
        declare(metrics)
        limits = app.config.limits
        self.admission = Admission(limits.in_flight, limits.in_flight_per_key)
        self.in_flight = 0
        self.draining = False
        self.lag = LoopLag()
        self.alarms = Alarms()
        """The clocks of all exchanges; its `run` is a task of the service nursery."""
        self.calls: set[Call] = set()
        self.reload_problems: Sequence[str] = ()
        """Why the last reload was refused; empty where it was taken over."""
        self.checks = Checks()
        self._cut: ClawError | None = None
        self._changed = trio.Event()
        self.current: Generation
        """The generation new requests get; there is none until the first `install`."""
        self._verdicts: OrderedDict[bytes, tuple[Principal, float]] = OrderedDict()
        self.alerts = Alerts(app, self._alert)
        app.log = self.alerts.log

    # --- generations --------------------------------------------------------------------------------------------------------

    def install(self, generation: Generation) -> Generation | None:
        """Make it the current one, with its limits; returns the one before, to be drained."""
        before, self.current = getattr(self, "current", None), generation
        limits = generation.config.limits
        self.admission.configure(limits.in_flight, limits.in_flight_per_key)
        self.app.config = generation.config
        self.metrics.allow("provider", generation.config.providers)
        self.metrics.allow("policy", generation.config.policies)
        self._verdicts.clear()
        checked = {name for name, provider in generation.config.providers.items() if provider.health is not None}
        self.checks.keep(checked)
        self.alerts.configure(generation.config.alerts)
        return before

    def _alert(self, alert: Alert) -> None:
        self.current.pipeline.alert(alert)

    # --- what transports ask -------------------------------------------------------------------------------------------------

    @property
    def config(self) -> Config:
        return self.current.config

    @property
    def deadlines(self) -> Deadlines:
        return self.current.config.deadlines

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Who is it? A good verdict is reused for at most 3 s, keyed by a digest of all that was shown."""
        now, digest = time.monotonic(), credentials.digest
        known = self._verdicts.get(digest)
        if known is not None and now < known[1] and not _expired(known[0]):
            return known[0]
        generation = self.current
        asked: list[str] = []
        try:
            with trio.fail_after(HOOK_BUDGET_AUTH):
                who = await generation.pipeline.authenticate(credentials, asked.append)
                principal = authorized(who, generation.config.roles)
        except trio.TooSlowError:
            self.report_plugin(asked[-1] if asked else "", "hook_slow", "authenticate: its time budget ran out")
            raise ClawError("internal") from None
        except ClawError as error:
            self._refused_auth(error, credentials)
            raise
        if _expired(principal):
            expired = ClawError("auth.expired", key=principal.key)
            self._refused_auth(expired, credentials)
            raise expired
        if digest and generation is self.current:  # a verdict of the old configuration is not kept for the new one
            self._verdicts[digest] = (principal, now + CREDENTIAL_CACHE)
            if len(self._verdicts) > CACHED_CREDENTIALS:
                self._verdicts.popitem(last=False)
        return principal

    def _refused_auth(self, error: ClawError, credentials: Credentials) -> None:
        self.metrics.count("clawproxy_auth_failures_total", slug=error.slug)
        log_event(
            "auth.refused",
            error=error.slug,
            outcome=error.kind.outcome,
            fault=error.fault,
            key=error.details.key,
            surface=credentials.surface,
            peer=credentials.peer,
        )

    def admit(self) -> ClawError | None:
        if self.draining:
            return ClawError("shutting_down", retry_after_ms=1000)
        if self.lag.seconds > self.current.config.limits.shed_lag:
            return self._shed()
        return None

    def _shed(self) -> ClawError:
        refused = ClawError("overloaded", retry_after_ms=1000)
        log_event(
            "request.refused",
            error=refused.slug,
            outcome=refused.kind.outcome,
            fault=refused.fault,
            lag_ms=round(self.lag.seconds * 1000, 1),
            limit_ms=round(self.current.config.limits.shed_lag * 1000),
            setting="limits.shed_lag",
        )
        return refused

    def not_ready(self) -> Sequence[str]:
        """Why a new request would be refused now, in the words of `/readyz`."""
        if not hasattr(self, "current"):
            return ["starting"]
        if self.draining:
            return ["draining"]
        return ["overloaded"] if self.lag.seconds > self.current.config.limits.shed_lag else []

    async def handle(self, call: Call, client: Client) -> Outcome:
        self.calls.add(call)
        if self._cut is not None:
            call.lifetime.cancel(self._cut)
        try:
            return await run_exchange(self.current, call, client)
        finally:
            self.calls.discard(call)
            if not self.calls:
                self.wake()

    def cut_off(self, cause: ClawError) -> None:
        """End every request at work, and from now on every one that was let in before and begins only now."""
        self._cut = cause
        for call in tuple(self.calls):
            call.lifetime.cancel(cause)

    async def wait_idle(self, *, or_when: Callable[[], bool] = lambda: False) -> None:
        """Wait until no request is at work, or `or_when` says so after a `wake`."""
        while self.calls and not or_when():
            await self._changed.wait()

    def wake(self) -> None:
        """Let whoever waits for idleness look again."""
        self._changed.set()
        self._changed = trio.Event()

    def models(self, principal: Principal) -> Sequence[tuple[str, str]]:
        return self.current.models(principal)

    def forget_credentials(self) -> None:
        """Whoever comes next is looked up anew: a key was made or revoked."""
        self._verdicts.clear()

    async def usage(self, principal: Principal, since: float) -> UsageRow:
        """What this principal's key has used since a Unix time: an issuer's tokens share one, and each user is told of the own
        part alone. Raises ClawError("store_unavailable")."""
        own: Where = ALL if principal.user is None or principal.may_assert else {"user": principal.user}
        try:
            [row] = await self.app.store.usage(since=since, key=principal.key, where=own)
        except ClawError:
            raise
        except Exception as error:
            log_exception("usage.failed", error, key=principal.key)
            raise ClawError("store_unavailable") from error
        return row

    def checked(self, check: Checked) -> None:
        """A provider was checked: it is noted, and told to the plugins."""
        self.checks.note(check, self.metrics)
        self.current.pipeline.checked(check)

    def provider_states(self) -> Mapping[str, Mapping[str, object]]:
        """Of the providers that are checked, for `/readyz`."""
        return self.checks.states()

    async def budget(self, principal: Principal) -> BudgetStanding | None:
        """How the dollar budget stands that this principal's key, or else its user, comes under. Raises
        ClawError("store_unavailable")."""
        config = self.current.config
        if not config.budgets:
            return None
        return await own_budget(self.app.store, config, principal.key, principal.user, time.time())

    def count(self, name: str, **labels: str) -> None:
        self.metrics.count(name, **labels)

    def cut(self, clock: str, limit: float, *, surface: str, peer: str) -> None:
        slug = CLOCK_SLUGS.get(clock)
        kind = KINDS[slug] if slug is not None else None
        fault = kind.fault if kind is not None else "client"
        self.metrics.count("clawproxy_timeouts_total", clock=clock, fault=fault)
        if slug is not None:
            self.metrics.count("clawproxy_errors_total", slug=slug, fault=fault)
        log_event(
            "connection.cut",
            "debug" if clock == "idle" else "info",  # a connection that nobody needs any more is no news
            error=slug,
            outcome=kind.outcome if kind is not None else "client_gone",
            fault=fault,
            clock=clock,
            limit_ms=round(limit * 1000),
            setting=getattr(limit, "setting", f"deadlines.{clock}"),
            surface=surface,
            peer=peer,
        )

    # --- books ------------------------------------------------------------------------------------------------------------------

    def report_plugin(self, plugin: str, what: str, detail: str) -> None:
        log_event(f"plugin.{what}", "warning" if what.endswith("slow") else "error", plugin=plugin, detail=detail)
        self.metrics.count("clawproxy_plugin_faults_total", plugin=plugin, what=what)


def _expired(principal: Principal) -> bool:
    return principal.expires is not None and principal.expires <= time.time()
