"""Hooks become callables in the operator's order, with the colours, threading and failures that docs/plugins.md states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy import hookspecs
from clawproxy.config import Config
from clawproxy.context import Alert, App, Checked, Exchange
from clawproxy.errors import ClawError, ConfigError
from clawproxy.events import Outcome
from clawproxy.hookspecs import Observe, Transform, hookimpl
from clawproxy.messages import ChatRequest, Credentials, Principal, Route
from clawproxy.pipeline import Pipeline, Plugins, compile_pipeline
from clawproxy.pipeline.compile import AttemptContexts
from clawproxy.stores.memory import MemoryStore
from clawproxy.testing.factories import make_attempt, make_credentials, make_exchange, make_principal, make_request, make_route


class Reports(list[tuple[str, str, str]]):
    def __call__(self, plugin: str, what: str, detail: str) -> None:
        self.append((plugin, what, detail))


def build(
    plugins: dict[str, object], order: list[str] | None = None, settings: dict[str, Any] | None = None
) -> tuple[Pipeline, Reports]:
    reports = Reports()
    app = App(Config(), MemoryStore(), "test", None)
    loaded = Plugins(list(plugins), plugins)
    return compile_pipeline(loaded, order or list(plugins), settings or {}, app, reports), reports


class Adds:
    def __init__(self, word: str) -> None:
        self.word = word

    @hookimpl
    async def prepare_request(self, request: ChatRequest) -> ChatRequest:
        return attrs.evolve(request, model=request.model + self.word)


def nothing(_: str) -> None: ...


async def test_hook_prepare_request_runs_in_the_operators_order_and_threads_results() -> None:
    plugins: dict[str, object] = {"a": Adds("a"), "b": Adds("b"), "c": Adds("c")}
    pipeline, _ = build(plugins, ["c", "a", "b"])
    request = await pipeline.prepare(make_exchange(), make_request(model=""), nothing)
    assert request.model == "cab"


async def test_a_plugin_left_out_of_the_order_does_not_run() -> None:
    pipeline, _ = build({"a": Adds("a"), "b": Adds("b")}, ["b"])
    assert (await pipeline.prepare(make_exchange(), make_request(model=""), nothing)).model == "b"


class Knows:
    def __init__(self, token: str, calls: list[str]) -> None:
        self.token = token
        self.calls = calls

    @hookimpl
    async def authenticate(self, credentials: Credentials) -> Principal | None:
        self.calls.append(self.token)
        if credentials.token == "bad":
            raise ClawError("auth.invalid")
        return make_principal(key=self.token) if credentials.token == self.token else None


async def test_hook_authenticate_first_answer_wins_and_the_rest_are_not_called() -> None:
    calls: list[str] = []
    pipeline, _ = build({"one": Knows("1", calls), "two": Knows("2", calls), "three": Knows("3", calls)})
    assert (await pipeline.authenticate(make_credentials("2"))).key == "2"
    assert calls == ["1", "2"]
    with pytest.raises(ClawError, match=r"auth\.invalid"):
        await pipeline.authenticate(make_credentials("bad"))
    assert calls == ["1", "2", "1"]
    with pytest.raises(ClawError, match=r"auth\.invalid"):
        await pipeline.authenticate(make_credentials("9"))
    with pytest.raises(ClawError, match=r"auth\.missing"):
        await pipeline.authenticate(make_credentials(None))


async def test_an_authenticate_that_breaks_is_closed() -> None:
    class Broken:
        @hookimpl
        async def authenticate(self) -> None:
            raise RuntimeError("secret detail")

    pipeline, reports = build({"broken": Broken(), "fine": Knows("1", [])})
    with pytest.raises(ClawError) as caught:
        await pipeline.authenticate(make_credentials("1"))
    assert caught.value.slug == "internal"
    assert "secret detail" not in caught.value.message
    assert reports[0][:2] == ("broken", "hook_failed")


class Plan:
    candidates = (make_route(),)

    def next(self, history: object) -> Route | None:
        return self.candidates[0]


async def test_hook_choose_route_a_failure_leaves_it_to_the_next() -> None:
    class Broken:
        @hookimpl
        async def choose_route(self) -> None:
            raise RuntimeError

    class Chooses:
        @hookimpl
        async def choose_route(self) -> Plan:
            return Plan()

    pipeline, reports = build({"broken": Broken(), "chooses": Chooses()})
    assert isinstance(await pipeline.choose_route(make_exchange(), make_request(), nothing), Plan)
    assert reports
    pipeline, _ = build({"broken": Broken()})
    with pytest.raises(ClawError, match="no_route"):
        await pipeline.choose_route(make_exchange(), make_request(), nothing)
    pipeline, _ = build({"adds": Adds("x")})
    with pytest.raises(ClawError, match="model_not_found"):
        await pipeline.choose_route(make_exchange(), make_request(), nothing)


@pytest.mark.parametrize("mistake", [SystemExit, KeyboardInterrupt, RuntimeError])
async def test_whatever_a_plugin_raises_is_an_internal_error_that_names_it(mistake: type[BaseException]) -> None:
    class Broken:
        @hookimpl
        async def prepare_request(self) -> None:
            raise mistake

    pipeline, reports = build({"broken": Broken()})
    with pytest.raises(ClawError) as caught:
        await pipeline.prepare(make_exchange(), make_request(), nothing)
    assert caught.value.slug == "internal"
    assert caught.value.details.policy == "broken"
    assert reports[0][0] == "broken"


async def test_a_hook_that_returns_the_wrong_thing_is_named() -> None:
    class Wrong:
        @hookimpl
        async def prepare_request(self) -> str:
            return "a string"

    pipeline, reports = build({"wrong": Wrong()})
    with pytest.raises(ClawError, match="internal"):
        await pipeline.prepare(make_exchange(), make_request(), nothing)
    assert "ChatRequest" in reports[0][2]


class Context:
    def __init__(self, name: str, story: list[str], *, hangs: bool = False) -> None:
        self.name = name
        self.story = story
        self.hangs = hangs

    async def __aenter__(self) -> None:
        self.story.append(f"+{self.name}")

    async def __aexit__(self, *_: object) -> None:
        if self.hangs:
            await trio.sleep_forever()
        self.story.append(f"-{self.name}")


class Opens:
    def __init__(self, name: str, story: list[str], *, hangs: bool = False) -> None:
        self.context = Context(name, story, hangs=hangs)

    @hookimpl
    def open_attempt(self, attempt: object) -> Context:
        return self.context


async def test_hook_open_attempt_is_left_in_reverse_even_when_cancelled_and_when_one_hangs(autojump_clock: object) -> None:
    story: list[str] = []
    pipeline, reports = build({"a": Opens("a", story), "b": Opens("b", story, hangs=True), "c": Opens("c", story)})
    contexts = AttemptContexts(reports)
    await pipeline.enter_attempt(make_exchange(), make_request(), make_attempt(), contexts, nothing)
    with trio.CancelScope() as scope:
        scope.cancel()
        await contexts.leave()
    assert story == ["+a", "+b", "+c", "-c", "-a"]
    assert ("b", "hook_slow", "open_attempt exit") in reports


async def test_hook_exchange_closed_runs_for_everyone_whatever_the_others_do(autojump_clock: object) -> None:
    closed: list[str] = []

    class Closes:
        def __init__(self, name: str) -> None:
            self.name = name

        @hookimpl
        async def exchange_closed(self, outcome: Outcome) -> None:
            closed.append(self.name)
            if self.name == "raises":
                raise RuntimeError
            if self.name == "hangs":
                await trio.sleep_forever()

    names = ["first", "raises", "hangs", "last"]
    pipeline, reports = build({name: Closes(name) for name in names})
    with trio.CancelScope() as scope:
        scope.cancel()
        await pipeline.closed(make_exchange(), Outcome("complete"))
    assert closed == names
    assert {report[0] for report in reports} == {"raises", "hangs"}


def test_hook_tap_response_is_called_once_and_reject_refuses_streams() -> None:
    class Rejects:
        @hookimpl
        def tap_response(self, exchange: Exchange) -> Transform:
            return Transform(change=lambda events: events, streams="reject")

    pipeline, _ = build({"rejects": Rejects()})
    assert pipeline.relay(make_exchange(stream=False), make_attempt()) is not None
    with pytest.raises(ClawError, match="unsupported_parameter"):
        pipeline.relay(make_exchange(stream=True), make_attempt())


def test_hook_alert_failures_are_logged_and_the_others_told() -> None:
    seen: list[str] = []

    class Broken:
        @hookimpl
        def alert(self) -> None:
            raise ValueError

    class Pager:
        @hookimpl
        def alert(self, event: Alert) -> None:
            seen.append(event.event)

    pipeline, reports = build({"broken": Broken(), "pager": Pager()})
    pipeline.alert(Alert("1", "latency", 0.0, "late"))
    assert seen == ["latency"]
    assert [report[:2] for report in reports] == [("broken", "hook_failed")]


def test_hook_attempt_finished_failures_are_logged() -> None:
    class Fails:
        @hookimpl
        def attempt_finished(self) -> None:
            raise RuntimeError

    pipeline, reports = build({"fails": Fails()})
    pipeline.attempt_finished(make_exchange(), make_attempt())
    assert reports[0][0] == "fails"


def test_hook_provider_checked_is_told_to_all_and_failures_are_logged() -> None:
    told: list[Checked] = []

    class Fails:
        @hookimpl
        def provider_checked(self) -> None:
            raise RuntimeError

    class Listens:
        @hookimpl
        def provider_checked(self, check: Checked) -> None:
            told.append(check)

    pipeline, reports = build({"fails": Fails(), "listens": Listens()})
    pipeline.checked(Checked("a", "ok", down=False, lasts=1.0))
    assert [check.provider for check in told] == ["a"]
    assert reports[0][0] == "fails"


def test_hook_configure_gives_each_generation_its_state() -> None:
    class Configured:
        @hookimpl
        def configure(self, config: dict[str, int]) -> int:
            return config["n"] + 1

        @hookimpl
        def tap_response(self, state: int) -> Observe | None:
            seen.append(state)
            return None

    seen: list[int] = []
    pipeline, _ = build({"configured": Configured()}, settings={"configured": {"n": 1}})
    pipeline.relay(make_exchange(), make_attempt())
    assert seen == [2]


def test_hook_configure_that_raises_refuses_the_configuration() -> None:
    class Fails:
        @hookimpl
        def configure(self) -> None:
            raise ValueError("no good")

    with pytest.raises(ConfigError, match=r"plugins\.fails: ValueError at test_compile.py:\d+$"):
        build({"fails": Fails()})


def test_hook_register_and_lifespan_are_found() -> None:
    class Registers:
        @hookimpl
        def register(self, registry: Any) -> None:
            registry.add_settings("registers", dict)

        @hookimpl
        def lifespan(self, app: App) -> Context:
            return Context("x", [])

    from clawproxy.pipeline.compile import lifespans

    plugins = Plugins(["registers"], {"registers": Registers()})
    assert plugins.registry.settings == {"registers": dict}
    assert [name for name, _ in lifespans(plugins, ["registers"], App(Config(), MemoryStore(), "test", None))] == ["registers"]


def test_mistakes_in_hooks_are_refused_with_words() -> None:
    class Mistaken:
        @hookimpl(tryfirst=True)
        def prepare_request(self) -> None: ...

        @hookimpl
        async def tap_response(self) -> None: ...

    with pytest.raises(ConfigError) as caught:
        Plugins(["mistaken"], {"mistaken": Mistaken()})
    text = str(caught.value)
    assert "[pipeline] order" in text
    assert "prepare_request must be `async def`" in text
    assert "tap_response must be a plain `def`" in text


def test_an_unknown_argument_is_refused() -> None:
    class Mistaken:
        @hookimpl
        async def prepare_request(self, requst: object) -> None: ...

    with pytest.raises(ConfigError, match="requst"):
        Plugins(["mistaken"], {"mistaken": Mistaken()})


def test_an_unknown_plugin_is_named_with_a_hint() -> None:
    with pytest.raises(ConfigError, match=r"'sanitise' is not installed; did you mean 'sanitize'"):
        Plugins(["sanitise"])


def test_every_hook_has_a_test_here() -> None:
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "clawproxy_spec")]
    source = Path(__file__).read_text()
    assert len(hooks) == 12
    assert not [hook for hook in hooks if f"test_hook_{hook}" not in source and f"test_hook_register_and_{hook}" not in source]
