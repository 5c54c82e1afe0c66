"""From hooks to tuples of callables, once per configuration generation.

Rule 1: order is the operator's list. Down in that order, up in its reverse.
Rule 2: arguments are subset here, and each plugin's `state` bound, so that a call costs a call.
Rule 3: what a raising hook means is decided here, as the table in docs/plugins.md says: closed for what decides, open and loud
        for what observes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pluggy
import trio

from clawproxy.context import Alert, App, Attempt, Checked, Exchange
from clawproxy.done import DONE
from clawproxy.errors import ClawError, ConfigError
from clawproxy.events import Outcome
from clawproxy.hookspecs import AttemptContext, Observe, Plan, Transform
from clawproxy.messages import ChatRequest, Credentials, Principal
from clawproxy.pipeline.plugins import Plugins
from clawproxy.pipeline.relay import PLUGIN_ERRORS, SLOW, Misuse, Relay, Report, fault

CLOSING = 5.0
"""Seconds that closing hooks have, shielded."""

Named = tuple[str, Callable[..., Any]]
Running = Callable[[str], None]
"""Told the name of each plugin whose hook begins, so that a clock can name it."""


def _nobody(name: str) -> None: ...


class Pipeline:
    """The compiled chain of one generation."""

    def __init__(self, hooks: Mapping[str, Sequence[Named]], report: Report) -> None:
        self._authenticate = tuple(hooks["authenticate"])
        self._prepare = tuple(hooks["prepare_request"])
        self._choose = tuple(hooks["choose_route"])
        self._open = tuple(hooks["open_attempt"])
        self._tap = tuple(hooks["tap_response"])
        self._attempt_finished = tuple(hooks["attempt_finished"])
        self._closed = tuple(hooks["exchange_closed"])
        self._checked = tuple(hooks["provider_checked"])
        self._alert = tuple(hooks.get("alert", ()))
        self.report = report

    # --- going down ----------------------------------------------------------------------------------------------------

    async def authenticate(self, credentials: Credentials, running: Running = _nobody) -> Principal:
        """The first plugin that knows. Raises ClawError: `auth...`, or `internal` where a plugin failed. `running(name)` is
        called before each, so that one that hangs can be named."""
        for name, hook in self._authenticate:
            running(name)
            try:
                principal = await hook(credentials)
            except ClawError:
                raise
            except PLUGIN_ERRORS as error:
                raise self._failed(name, "authenticate", error) from error
            if principal is not None:
                if not isinstance(principal, Principal):
                    raise self._failed(name, "authenticate", Misuse("it must return a Principal or None"))
                return principal
        raise ClawError("auth.missing" if credentials.token is None else "auth.invalid")

    async def prepare(self, exchange: Exchange, request: ChatRequest, running: Running) -> ChatRequest:
        """Each plugin gets the previous one's result. `running(name)` is called before each, so that a clock can name it."""
        began = time.perf_counter()
        for name, hook in self._prepare:
            running(name)
            try:
                changed = await hook(exchange, request)
            except ClawError:
                raise
            except PLUGIN_ERRORS as error:
                raise self._failed(name, "prepare_request", error) from error
            if changed is not None:
                if type(changed) is not ChatRequest:
                    raise self._failed(name, "prepare_request", Misuse("it must return a ChatRequest or None"))
                request = changed
            ended = time.perf_counter()
            if ended - began > SLOW and not exchange.asked:
                self.report(name, "hook_slow", "prepare_request")
            began = ended
        return request

    async def choose_route(self, exchange: Exchange, request: ChatRequest, running: Running) -> Plan:
        """The first plan wins; a plugin that fails leaves it to the next, then 503. Nobody: 404."""
        failed: BaseException | None = None
        for name, hook in self._choose:
            running(name)
            try:
                plan: Plan | None = await hook(exchange, request)
            except ClawError:
                raise
            except PLUGIN_ERRORS as raised:
                error = plugin_error(raised, name, self.report)
                if isinstance(error, ClawError):
                    raise error from raised
                failed = error
                self.report(name, "hook_failed", f"choose_route: {fault(error)}")
                continue
            if plan is not None:
                if getattr(plan, "next", None) is None:
                    raise self._failed(name, "choose_route", Misuse("it must return a plan or None"))
                return plan
        if failed is not None:
            raise ClawError("no_route") from failed
        raise ClawError("model_not_found", param="model")

    # --- around one attempt -----------------------------------------------------------------------------------------------

    async def enter_attempt(
        self,
        exchange: Exchange,
        request: ChatRequest,
        attempt: Attempt,
        contexts: AttemptContexts,
        running: Running,
    ) -> None:
        """Enter the plugins' contexts, in order. Those entered are in `contexts`, whatever happens."""
        for name, hook in self._open:
            running(name)
            try:
                manager: AttemptContext | None = hook(exchange, request, attempt.route, attempt)
                if manager is not None:
                    entering = manager.__aenter__()
                    if entering is not DONE:
                        await entering
                    contexts.entered.append((name, manager))
            except ClawError:
                raise
            except PLUGIN_ERRORS as error:
                raise self._failed(name, "open_attempt", error) from error

    def relay(self, exchange: Exchange, attempt: Attempt) -> Relay:
        """Raises ClawError: then the taps that have begun have ended."""
        taps: list[tuple[str, Observe | Transform]] = []
        try:
            for name, hook in self._tap:
                try:
                    tap = hook(exchange, attempt.route, attempt)
                except ClawError:
                    raise
                except PLUGIN_ERRORS as error:
                    raise self._failed(name, "tap_response", error) from error
                if tap is None:
                    continue
                if not isinstance(tap, Transform):
                    if not isinstance(tap, Observe):
                        raise self._failed(name, "tap_response", Misuse("it must return Observe, Transform or None"))
                elif tap.streams == "reject" and exchange.stream:
                    words = f"Policy {name} takes no streams: send `stream: false`."
                    raise ClawError("unsupported_parameter", words, param="stream")
                taps.append((name, tap))
        except ClawError:
            Relay(taps, self.report).abandon()
            raise
        return Relay(taps, self.report)

    def attempt_finished(self, exchange: Exchange, attempt: Attempt) -> None:
        for name, hook in self._attempt_finished:
            try:
                hook(exchange, attempt)
            except PLUGIN_ERRORS as error:
                self.report(name, "hook_failed", f"attempt_finished: {fault(error)}")

    # --- beside all requests ----------------------------------------------------------------------------------------------

    def checked(self, check: Checked) -> None:
        for name, hook in self._checked:
            try:
                hook(check)
            except PLUGIN_ERRORS as error:
                self.report(name, "hook_failed", f"provider_checked: {type(error).__name__}")

    # --- at the end --------------------------------------------------------------------------------------------------------

    async def closed(self, exchange: Exchange, outcome: Outcome) -> None:
        """Every plugin, each on its own, shielded, at most 5 s each: one that hangs or raises does not stop the others."""
        for name, hook in self._closed:
            try:
                closing: Awaitable[None] | None = hook(exchange, outcome)
            except PLUGIN_ERRORS as raised:
                self.report(name, "hook_failed", f"exchange_closed: {fault(raised)}")
                continue
            if closing is not None and closing is not DONE:
                await _shielded(closing, name, "exchange_closed", self.report)

    def alert(self, event: Alert) -> None:
        for name, hook in self._alert:
            try:
                hook(event)
            except PLUGIN_ERRORS as error:
                self.report(name, "hook_failed", f"alert: {type(error).__name__}")

    def _failed(self, name: str, hook: str, raised: BaseException) -> ClawError:
        error = plugin_error(raised, name, self.report)
        if isinstance(error, ClawError):
            return error
        self.report(name, "hook_failed", f"{hook}: {fault(error)}")
        return ClawError("internal", policy=name)


class AttemptContexts:
    """The contexts that `enter_attempt` has entered; left in reverse, shielded and bounded, each on its own."""

    __slots__ = ("entered", "report")

    def __init__(self, report: Report) -> None:
        self.entered: list[tuple[str, AttemptContext]] = []
        self.report = report

    async def leave(self) -> None:
        while self.entered:
            name, manager = self.entered.pop()
            try:
                leaving = manager.__aexit__(None, None, None)
            except PLUGIN_ERRORS as raised:
                self.report(name, "hook_failed", f"open_attempt exit: {fault(raised)}")
                continue
            if leaving is not DONE:
                await _shielded(leaving, name, "open_attempt exit", self.report)


async def _shielded(waiting: Awaitable[object], name: str, hook: str, report: Report) -> None:
    """Let a plugin finish: whatever was cancelled meanwhile, and for at most 5 s."""
    with trio.move_on_after(CLOSING, shield=True) as scope:
        try:
            await waiting
        except PLUGIN_ERRORS as raised:
            error = plugin_error(raised, name, report)
            report(name, "hook_failed", f"{hook}: {fault(error)}")
    if scope.cancelled_caught:
        report(name, "hook_slow", hook)


def plugin_error(raised: BaseException, name: str, report: Report) -> BaseException:
    """What a hook's error comes to. A cancellation is raised on.

    Where the plugin uses a nursery of its own, that wraps what its tasks raise in a group. A cancellation in the group is raised
    on, alone (it is not the plugin's to swallow, and what came beside it is reported); a
    group of one is that one, so that a refusal stays a refusal.
    """
    if isinstance(raised, trio.Cancelled):
        raise raised
    if not isinstance(raised, BaseExceptionGroup):
        return raised
    cancelled, rest = raised.split(trio.Cancelled)
    if cancelled is not None:
        if rest is not None:
            report(name, "hook_failed", f"while cancelled: {type(rest.exceptions[0]).__name__}")
        raise cancelled
    error: BaseException = raised
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


GIVEN: dict[str, tuple[str, ...]] = {
    "authenticate": ("credentials",),
    "prepare_request": ("exchange", "request"),
    "choose_route": ("exchange", "request"),
    "open_attempt": ("exchange", "request", "route", "attempt"),
    "tap_response": ("exchange", "route", "attempt"),
    "attempt_finished": ("exchange", "attempt"),
    "exchange_closed": ("exchange", "outcome"),
    "provider_checked": ("check",),
    "alert": ("event",),
}


def compile_pipeline(plugins: Plugins, order: Sequence[str], settings: Mapping[str, Any], app: App, report: Report) -> Pipeline:
    """Configure each plugin for a new generation and compile its hooks.

    Args:
        settings: each plugin's checked settings, by name.

    Raises:
        ConfigError: a plugin's `configure` raised; nothing has changed.
    """
    states = _configure(plugins, order, settings, app)
    hooks: dict[str, list[Named]] = {}
    for hook, given in GIVEN.items():
        hooks[hook] = [
            (impl.plugin_name, bind(impl, given, {"state": states.get(impl.plugin_name), "app": app}))
            for impl in plugins.implementations(hook, order)
            if hook not in getattr(states.get(impl.plugin_name), "unused_hooks", ())
        ]
    return Pipeline(hooks, report)


def lifespans(plugins: Plugins, order: Sequence[str], app: App) -> list[tuple[str, AbstractAsyncContextManager[None]]]:
    """The plugins' lifespans, in order, not yet entered."""
    managers: list[tuple[str, Any]] = [(i.plugin_name, i.function(app)) for i in plugins.implementations("lifespan", order)]
    return managers


def _configure(plugins: Plugins, order: Sequence[str], settings: Mapping[str, Any], app: App) -> dict[str, Any]:
    states: dict[str, Any] = {}
    problems: list[str] = []
    for impl in plugins.implementations("configure", order):
        name = impl.plugin_name
        values = {"config": settings.get(name), "app": app}
        try:
            states[name] = impl.function(*(values[argument] for argument in impl.argnames))
        except ConfigError as error:
            problems += error.problems
        except Exception as error:
            problems.append(f"plugins.{name}: {fault(error)}")
    if problems:
        raise ConfigError(problems)
    return states


def bind(impl: pluggy.HookImpl, given: Sequence[str], bound: Mapping[str, Any]) -> Callable[..., Any]:
    """A callable that takes `given` positionally and passes on what the implementation asked for, `bound` values included. It is
    compiled from one line, as a partial with keywords takes twice as long to call."""
    wanted = tuple(impl.argnames)
    if wanted == tuple(given):
        return impl.function
    line = f"lambda {', '.join(given)}: function({', '.join(wanted)})"
    made: Callable[..., Any] = eval(line, {**bound, "function": impl.function})
    return made
