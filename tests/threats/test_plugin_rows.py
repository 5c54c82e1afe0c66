"""PL-01 to PL-08 in a whole gateway: what a plugin does wrong is its own, is named, and ends neither others nor the process."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy import gateway as gateway_module
from clawproxy.config import PipelineConfig
from clawproxy.config.schema import Duration
from clawproxy.hookspecs import Observe, hookimpl
from tests.e2e.harness import Running, gateway
from tests.threats.kit import Raw, closed, document, post, say

ROOT = Path(__file__).parents[2]
Do = Callable[..., Any]


class Odd:
    """Does in one hook what it is told to, and nothing in the others."""

    def __init__(self) -> None:
        self.hook = ""
        self.do: Do = lambda *_: None

    def tell(self, hook: str, do: Do) -> None:
        self.hook, self.do = hook, do

    def _done(self, hook: str, *given: Any) -> Any:
        return self.do(*given) if hook == self.hook else None

    async def _awaited(self, hook: str, *given: Any) -> Any:
        await trio.lowlevel.checkpoint()
        done = self._done(hook, *given)
        return await done if hasattr(done, "__await__") else done

    @hookimpl
    async def authenticate(self, credentials: Any) -> Any:
        return await self._awaited("authenticate", credentials)

    @hookimpl
    async def prepare_request(self, exchange: Any, request: Any) -> Any:
        return await self._awaited("prepare_request", exchange, request)

    @hookimpl
    async def choose_route(self, exchange: Any, request: Any) -> Any:
        return await self._awaited("choose_route", exchange, request)

    @hookimpl
    def open_attempt(self, exchange: Any, request: Any, route: Any, attempt: Any) -> Any:
        return self._done("open_attempt", exchange, request)

    @hookimpl
    def tap_response(self, exchange: Any, route: Any, attempt: Any) -> Any:
        if self.hook in ("see", "end"):
            return Observe(lambda batch: self._done("see", batch), lambda: self._done("end"))
        return self._done("tap_response", exchange)

    @hookimpl
    def attempt_finished(self, exchange: Any, attempt: Any) -> None:
        self._done("attempt_finished", exchange)

    @hookimpl
    async def exchange_closed(self, exchange: Any, outcome: Any) -> None:
        await self._awaited("exchange_closed", exchange)


class Witness:
    """Comes after the odd one, going down and at the end: that it is still called, and with what outcome."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.finished = 0

    @hookimpl
    def attempt_finished(self, exchange: Any, attempt: Any) -> None:
        self.finished += 1

    @hookimpl
    async def exchange_closed(self, exchange: Any, outcome: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.outcomes.append(outcome.label)


@attrs.define
class World:
    running: Running
    odd: Odd
    witness: Witness

    async def ask(self, **changes: Any) -> Raw:
        """As somebody nobody has met: a good verdict is reused for 5 s, and then `authenticate` is not called."""
        self.running.server.gateway._verdicts.clear()
        self.running.forget_trouble()
        return await say(self.running.address, post(document(**changes)))


@asynccontextmanager
async def world(tmp_path: Path, budget: float = 1.0) -> AsyncIterator[World]:
    odd, witness = Odd(), Witness()
    order = ("odd", "audit", "auth", "router", "meter", "witness")
    pipeline = PipelineConfig(order=order, hook_budget=Duration(budget))
    async with gateway(tmp_path, plugins={"odd": odd, "witness": witness}, pipeline=pipeline) as running:
        yield World(running, odd, witness)


def events(capfd: pytest.CaptureFixture[str], name: str = "plugin.") -> list[dict[str, Any]]:
    records = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    return [record for record in records if record["event"].startswith(name)]


DECIDES = {"authenticate": 500, "prepare_request": 500, "open_attempt": 500, "tap_response": 500}
LOOKS = ("choose_route", "see", "end", "attempt_finished", "exchange_closed")


def fail(error: BaseException) -> Do:
    def do(*_: Any) -> None:
        raise error

    return do


@pytest.mark.parametrize("hook", [*DECIDES, *LOOKS])
async def test_pl01_a_plugin_that_raises(tmp_path: Path, capfd: pytest.CaptureFixture[str], hook: str) -> None:
    """What decides fails closed; what looks fails open; the others run all the same, and the log names it."""
    async with world(tmp_path) as it:
        for stream in (False, True):
            before = len(it.witness.outcomes), it.witness.finished
            it.odd.tell(hook, fail(ValueError("no")))
            answer = await it.ask(stream=stream)
            it.odd.tell("", fail(ValueError("no")))
            async with closed(it.running):
                pass
            assert answer.status == DECIDES.get(hook, 200), hook
            if hook in DECIDES:
                assert answer.code == "internal"
            elif hook != "choose_route":
                assert len(it.witness.outcomes) > before[0]
                assert it.witness.finished > before[1]
            if hook != "authenticate":  # before there is an exchange
                assert "internal" in it.witness.outcomes if hook in DECIDES else "internal" not in it.witness.outcomes
    named = events(capfd)
    assert named
    assert {record["plugin"] for record in named} == {"odd"}


class Evil(BaseException):
    """Neither Exception nor anything that Python knows."""


@pytest.mark.parametrize(
    "kind", [SystemExit, KeyboardInterrupt, StopIteration, StopAsyncIteration, GeneratorExit, Evil, BaseExceptionGroup]
)
async def test_pl02_whatever_it_raises_the_gateway_lives(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: type[BaseException]
) -> None:
    error = BaseExceptionGroup("two", [SystemExit(1), ValueError()]) if kind is BaseExceptionGroup else kind()
    async with world(tmp_path) as it:
        for hook in (*DECIDES, *LOOKS):
            it.odd.tell(hook, fail(error))
            answer = await it.ask(stream=hook in ("see", "end"))
            it.odd.tell("", fail(error))
            assert answer.status in (200, 500, 503), hook
            assert answer.status == DECIDES.get(hook, answer.status), hook
        async with closed(it.running):
            pass
    assert {record["plugin"] for record in events(capfd)} == {"odd"}


async def test_pl03_a_hook_that_blocks_the_loop_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Over 50 ms: in the log and counted; a tap that only looks is dropped after three, what decides never is."""

    def block(*_: Any) -> None:
        time.sleep(0.055)  # noqa: ASYNC251 (it is what the row is about)

    async with world(tmp_path) as it:
        it.odd.tell("prepare_request", block)
        assert (await it.ask()).status == 200
        seen: list[int] = []

        def slowly(batch: Any) -> None:
            seen.append(1)
            block()

        it.odd.tell("see", slowly)
        prompt = {
            "role": "user",
            "content": "script: say one; pause 1ms; say two; pause 1ms; say three; pause 1ms; say four; pause 1ms; say five",
        }
        assert (await it.ask(messages=[prompt], stream=True)).status == 200
    assert len(seen) == 3
    assert [record["event"] for record in events(capfd)] == [
        "plugin.hook_slow",
        "plugin.tap_slow",
        "plugin.tap_slow",
        "plugin.tap_dropped",
    ]


@pytest.mark.parametrize("hook", ["authenticate", "prepare_request", "choose_route", "open_attempt"])
async def test_pl04_a_hook_that_hangs_is_cut_by_its_budget(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    """`authenticate` has 5 s, since it may ask others; the other hooks have `hook_budget`, 1 s."""
    monkeypatch.setattr(gateway_module, "HOOK_BUDGET_AUTH", 0.05)

    @asynccontextmanager
    async def hanging(*_: Any) -> AsyncIterator[None]:
        await trio.sleep(1e9)
        yield

    async with world(tmp_path, budget=0.05) as it:
        it.odd.tell(hook, hanging if hook == "open_attempt" else lambda *_: trio.sleep_forever())  # noqa: ASYNC105
        with trio.fail_after(5):
            answer = await it.ask()
        assert answer.status in (500, 503, 504), hook
        it.odd.tell("", lambda *_: None)
        async with closed(it.running):
            pass
    assert "odd" in {record.get("plugin") for record in events(capfd, "")}


async def test_pl05_what_is_not_called_is_not_made(tmp_path: Path) -> None:
    """A sibling that raises leaves no coroutine behind that nobody awaits: warnings are errors in this suite."""
    async with world(tmp_path) as it:
        for hook in ("authenticate", "prepare_request", "choose_route", "exchange_closed"):
            it.odd.tell(hook, fail(ValueError()))
            await it.ask()
        it.odd.tell("tap_response", lambda *_: trio.sleep(0))  # noqa: ASYNC105, ASYNC115  # a coroutine where a tap belongs
        made = []

        def coroutine(*_: Any) -> Any:
            made.append(trio.sleep(0))  # noqa: ASYNC105, ASYNC115
            return made[-1]

        it.odd.tell("tap_response", coroutine)
        answer = await it.ask()
        for each in made:
            each.close()
        assert answer.status == 500
        gc.collect()


RETURNS: list[Any] = [b"x", "x", 5, {}, [], object(), {"model": "test-model"}]


async def test_pl06_values_of_the_wrong_kind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A request can't be changed in place; what comes back must be a request; of any size, it is an answer or an error."""
    async with world(tmp_path) as it:
        for value in RETURNS:
            it.odd.tell("prepare_request", lambda *_, value=value: value)
            answer = await it.ask()
            assert (answer.status, answer.code) == (500, "internal"), value

        def mutate(exchange: Any, request: Any) -> None:
            request.model = "other"

        it.odd.tell("prepare_request", mutate)
        assert (await it.ask()).status == 500

        cycle: dict[str, Any] = {}
        cycle["self"] = cycle
        it.odd.tell("prepare_request", lambda exchange, request: attrs.evolve(request, extra={"cycle": cycle}))
        assert (await it.ask()).status in (200, 400, 500)
        it.odd.tell(
            "prepare_request", lambda exchange, request: attrs.evolve(request, extra={"a": object(), "b": {1, 2}, "c": 1j})
        )
        assert (await it.ask()).status in (200, 400, 500)
        for value in (*RETURNS, Observe(None), Observe(5)):  # type: ignore[arg-type]
            it.odd.tell("tap_response", lambda *_, value=value: value)
            assert (await it.ask()).status in (200, 500)
            it.odd.tell("open_attempt", lambda *_, value=value: value)
            assert (await it.ask()).status == 500
            it.odd.tell("authenticate", lambda *_, value=value: value)
            assert (await it.ask()).status == 500
            it.odd.tell("choose_route", lambda *_, value=value: value)
            assert (await it.ask()).status in (500, 503), value
        it.odd.tell("", lambda *_: None)
        async with closed(it.running):
            pass
    crashed = events(capfd, "exchange.crashed")
    assert len(crashed) <= 2, "what no dialect can write down is noticed where it is written, far from its plugin"


async def test_pl06_a_hundred_megabytes_of_text(tmp_path: Path) -> None:
    async with world(tmp_path) as it:

        def grow(exchange: Any, request: Any) -> Any:
            return attrs.evolve(request, messages=[attrs.evolve(request.messages[-1], content="x" * 100_000_000)])

        it.odd.tell("prepare_request", grow)
        with trio.fail_after(20):
            answer = await it.ask()
        assert answer.status in (200, 400, 413, 500, 502)
        it.odd.tell("", grow)
        with trio.fail_after(10):
            while it.running.server.gateway.lag.seconds > 0.5:  # all in one loop here: meanwhile others would be shed
                await trio.sleep(0.02)
        it.running.provider.log.malformed.clear()  # it does not take so much either
        async with closed(it.running):
            pass


async def test_pl07_scopes_and_tasks_of_a_hook_end_with_it(tmp_path: Path) -> None:
    """A nursery of its own is fine, whatever its tasks do."""

    async def nursery(*_: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
            nursery.start_soon(trio.sleep_forever)
            nursery.cancel_scope.cancel()

    async def crash(*_: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ValueError

    async with world(tmp_path) as it, closed(it.running, calls=1):
        it.odd.tell("prepare_request", nursery)
        assert (await it.ask()).status == 200
        it.odd.tell("prepare_request", crash)
        assert (await it.ask()).status == 500
        it.odd.tell("", nursery)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_pl07_a_scope_left_open_ends_its_connection_only(tmp_path: Path) -> None:
    """Trio calls it corruption and unwinds the task as best it can; the process and the others' requests go on."""

    async def leave_open(*_: Any) -> None:
        trio.CancelScope().__enter__()
        await trio.lowlevel.checkpoint()

    async with world(tmp_path) as it:
        for _ in range(5):
            it.odd.tell("prepare_request", leave_open)
            answer = await it.ask()
            assert not answer.statuses or answer.status in (200, 500)
            it.odd.tell("", leave_open)
            assert (await it.ask()).status == 200
        gc.collect()


def test_pl08_plugins_are_trusted_code_and_the_docs_say_so() -> None:
    page = " ".join((ROOT / "docs" / "security.md").read_text().split())
    assert "trusted code" in page
    assert "no sandbox" in page
