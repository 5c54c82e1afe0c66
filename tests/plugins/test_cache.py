"""clawproxy_cache: keys, wishes, what is kept and how much of it. What clients see of it is in tests/e2e/test_cache.py."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import clawproxy_cache
from clawproxy.config import Config, ModelConfig, PipelineConfig, ProviderConfig, RouteConfig
from clawproxy.config.units import render_duration, render_size
from clawproxy.context import App
from clawproxy.errors import ConfigError
from clawproxy.events import Batch, Begin, Embedding, End, Event, Finish, KeepAlive, Opaque, Text, ToolCallDelta
from clawproxy.hookspecs import Plan, Transform, hookimpl
from clawproxy.lifetime import Lifetime
from clawproxy.messages import ChatRequest, Grant, ImagePart, Message, Principal, Route, TextPart, Thinking, Tool, ToolCall
from clawproxy.stores.base import Store
from clawproxy.testing import Claw, claw, make_exchange, make_request, sweep
from clawproxy_cache import CacheSettings
from clawproxy_cache.answers import PIECE, Answer, Answers, Recorder
from clawproxy_cache.asked import Asked, asked_of, cache_control

ORDER = ("audit", "sanitize", "truncate", "cache", "router", "meter")
SCOPE = ("key", "k")
PRINT = b"f" * 32
FORM = ("openai_chat", True, False, "")


def asked(request: ChatRequest, scope: tuple[str, ...] = SCOPE, fingerprint: bytes = PRINT, control: str | None = None) -> Asked:
    found = asked_of(request, scope, fingerprint, control)
    assert found is not None
    return found


def key(request: ChatRequest) -> bytes:
    return asked(request).key


# --- keys --------------------------------------------------------------------------------------------------------------------

REQUEST = make_request(
    messages=(Message("system", "Be brief."), Message("user", (TextPart("Hi"), ImagePart(url="http://x/y.png")))),
    tools=(Tool("f", "does", {"type": "object", "properties": {"a": {}, "b": {}}}),),
)
text = st.text(max_size=8)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "model": text,
    "messages": st.lists(st.builds(Message, st.sampled_from(["user", "assistant"]), text), max_size=3).map(tuple),
    "max_tokens": st.none() | st.integers(1, 99),
    "temperature": st.none() | st.floats(0, 2),
    "top_p": st.none() | st.floats(0, 1),
    "stop": st.lists(text, max_size=2).map(tuple),
    "seed": st.none() | st.integers(0, 99),
    "tools": st.lists(st.builds(Tool, text), max_size=2).map(tuple),
    "parallel_tool_calls": st.none() | st.booleans(),
    "reasoning_effort": st.none() | st.sampled_from(["low", "high"]),
    "reasoning_budget": st.none() | st.integers(0, 9),
    "top_k": st.none() | st.integers(0, 9),
    "frequency_penalty": st.none() | st.floats(-2, 2),
    "presence_penalty": st.none() | st.floats(-2, 2),
    "operation": st.sampled_from(["chat", "embeddings"]),
    "headers": st.lists(st.tuples(text, text), max_size=2).map(tuple),
    "extra": st.dictionaries(st.sampled_from(["logprobs", "n", "verbosity", "x"]), st.integers(1, 3), max_size=2),
}
changes = st.fixed_dictionaries({}, optional=CHANGES).map(dict)


def shown(request: ChatRequest) -> str:
    """Tells apart what `==` does not: 1, 1.0 and True are not the same to a provider."""
    return repr(attrs.evolve(request, extra=dict(request.extra)))


@given(changes, changes)
def test_two_requests_have_one_key_exactly_where_they_are_the_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    first, second = attrs.evolve(REQUEST, **one), attrs.evolve(REQUEST, **two)
    assert (key(first) == key(second)) == (shown(first) == shown(second))


def test_every_field_of_a_request_is_thought_of() -> None:
    """A field that is added must be looked at: does it change an answer? Everything is in the key unless it is named here."""
    left_out = {"stream", "include_usage", "form", "user", "metadata"}
    looked_at = {"dialect", "tool_choice", "response_format"}
    assert {field.name for field in attrs.fields(ChatRequest)} == set(CHANGES) | left_out | looked_at


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": True},
        {"include_usage": True},
        {"user": "ada"},
        {"metadata": {"a": "b"}},
        {"dialect": "claw"},
        {"extra": {"stream_options": {}, "prompt_cache_key": "k", "safety_identifier": "s", "max_completion_tokens": 5}},
        {"tools": (Tool("f", "does", {"properties": {"b": {}, "a": {}}, "type": "object"}),)},
        {"tools": (Tool("f", "does", MappingProxyType({"type": "object", "properties": {"a": {}, "b": {}}})),)},
    ],
)
def test_what_makes_no_difference(changes: dict[str, Any]) -> None:
    assert key(attrs.evolve(REQUEST, **changes)) == key(REQUEST)


def test_scope_and_configuration_are_part_of_the_key() -> None:
    others = [asked(REQUEST, ("key", "l")), asked(REQUEST, ("team", "k")), asked(REQUEST, fingerprint=b"g" * 32)]
    assert len({key(REQUEST), *(other.key for other in others)}) == 4


@pytest.mark.parametrize("scope", ["key", "team", "global"])
def test_who_is_kept_from_a_provider_is_kept_from_its_answers(scope: Any) -> None:
    """The tokens of one issuer share a key, and neither users nor roles."""
    cache = clawproxy_cache.Cache(CacheSettings(scope=scope), cast(App, None), PRINT)
    one = Principal("corp", "ann", "team", grants=(Grant("eu"),))

    def of(principal: Principal) -> tuple[str, ...]:
        return cache.scope(make_exchange(principal=principal))

    assert of(one) != of(attrs.evolve(one, grants=(Grant("us"),)))
    assert of(one) == of(attrs.evolve(one, expires=1.0))
    assert (of(one) != of(attrs.evolve(one, user="bob"))) == (scope == "key")


@pytest.mark.parametrize(
    "request_",
    [
        make_request(extra={"x": 1}),
        make_request(headers=(("anthropic-beta", "b"),)),
        make_request(messages=(Message("user", "x", extra={"cache_control": {}}),)),
        make_request(messages=(Message("user", (TextPart("x", {"cache_control": {}}),)),)),
        make_request(messages=(Message("assistant", "x", thinking=(Thinking("t", "s", dialect="anthropic"),)),)),
        make_request(messages=(Message("assistant", tool_calls=(ToolCall("1", "f", "{}", "signed"),)),)),
        make_request(tools=(Tool("f", extra={"type": "custom"}),)),
    ],
)
def test_what_one_dialect_understands_is_not_shared_with_another(request_: ChatRequest) -> None:
    assert key(request_) != key(attrs.evolve(request_, dialect="anthropic"))


@pytest.mark.parametrize(
    "request_",
    [
        make_request(operation="count_tokens"),
        make_request(extra={"previous_response_id": "r"}),
        make_request(extra={"conversation": "c"}),
        make_request(extra={"background": True}),
        make_request(extra={"store": True}),
        make_request(dialect="openai_responses"),
        make_request("a lone surrogate: \ud800"),
        make_request(extra={"odd": object()}),
    ],
)
def test_what_is_not_cached(request_: ChatRequest) -> None:
    assert asked_of(request_, SCOPE, PRINT, None) is None


@pytest.mark.parametrize("dialect", ["openai_responses", "openai_chat"])
def test_what_is_explicitly_not_kept_at_the_provider_is(dialect: str) -> None:
    assert asked_of(make_request(dialect=dialect, extra={"store": False}), SCOPE, PRINT, None) is not None


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        (None, (False, False, None)),
        ("", (False, False, None)),
        ("no-cache", (True, False, None)),
        ("No-Store , max-age=5", (False, True, 5.0)),
        ("max-age=7, max-age=3", (False, False, 3.0)),
        ('max-age="9"', (False, False, 9.0)),
        ("max-age", (False, False, 0.0)),
        ("max-age=-1", (False, False, 0.0)),
        ("max-age=1e9", (False, False, 0.0)),
        ("max-age=" + "9" * 50, (False, False, 0.0)),
        ("private, only-if-cached, x-no-cache", (False, False, None)),
    ],
)
def test_a_clients_wishes(said: str | None, meaning: tuple[bool, bool, float | None]) -> None:
    assert cache_control(said) == meaning


# --- what is kept --------------------------------------------------------------------------------------------------------------


def recorded(*batches: Batch, most: int = 1 << 20, plain: bool = True) -> Answer | None:
    recorder = Recorder(most)
    for batch in batches:
        recorder.see(batch)
    return recorder.answer(FORM, plain, 0.0)


def said(*events: Event, raw: bytes | None = None) -> Batch:
    return Batch([*events, Finish("stop"), End()], raw=raw, dialect="openai_chat")


def test_events_and_bytes_come_back_in_order_and_in_pieces() -> None:
    batches = [Batch([Text(f"{n} ")], raw=b"%06d" % n * 100, dialect="openai_chat") for n in range(200)]
    answer = recorded(Batch([Begin("m")], raw=b"", dialect="openai_chat"), *batches, said(raw=b"end"))
    assert answer is not None
    texts = [event.text for batch in answer.batches for event in batch.events if isinstance(event, Text)]
    assert texts == [f"{n} " for n in range(200)]
    assert b"".join(batch.raw or b"" for batch in answer.batches) == b"".join(batch.raw or b"" for batch in batches) + b"end"
    assert 1 < len(answer.batches) < 20
    assert all(len(batch.raw or b"") <= 2 * PIECE for batch in answer.batches)


def test_bytes_that_do_not_stand_for_all_of_it_are_dropped() -> None:
    answer = recorded(Batch([Text("a")], raw=b"a", dialect="openai_chat"), said(Text("b")))
    assert answer is not None
    assert [batch.raw for batch in answer.batches] == [None]


@pytest.mark.parametrize("reason", ["length", "content_filter", "error", "budget", "cancelled", "other"])
def test_an_answer_that_ended_for_anothers_reason_is_not_kept(reason: Any) -> None:
    assert recorded(Batch([Text("x"), Finish(reason), End()])) is None


def test_what_says_nothing_is_not_kept() -> None:
    assert recorded(said(Begin("m"), KeepAlive())) is None


def test_vectors_are_kept() -> None:
    answer = recorded(Batch([Embedding(0, (0.5,) * 1000), End()]))
    assert answer is not None
    assert answer.size > 8000


def test_content_without_a_word_is_played_in_its_own_form_only() -> None:
    answer = recorded(said(Text("see"), Opaque("citation"), raw=b"see [1]"))
    assert answer is not None
    assert answer.played(FORM, True) is answer.batches
    assert answer.played(("claw", True, True, ""), True) is None
    plain = recorded(said(Text("see"), raw=b"see"))
    assert plain is not None
    assert [batch.raw for batch in plain.played(("claw", True, True, ""), True) or ()] == [None]
    assert plain.played(("claw", True, True, ""), False) is None


@given(st.lists(st.text(max_size=50), min_size=1, max_size=30))
def test_an_answer_counts_with_all_it_holds(texts: list[str]) -> None:
    batches = [Batch([Text(text), ToolCallDelta(0, "c", "f", text)], raw=text.encode() * 2) for text in texts]
    answer = recorded(*batches, said())
    assert answer is not None
    assert answer.size >= sum(4 * len(text) for text in texts)
    assert recorded(*batches, said(), most=answer.size - 1) is None, "larger than one may be"
    assert recorded(*batches, said(), most=answer.size) is not None


def made(size: int, stored: float = 0.0) -> Answer:
    return Answer((), size, FORM, True, stored)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60), st.booleans()), max_size=60))
def test_the_bound_holds_and_the_one_used_longest_ago_goes_first(steps: list[tuple[int, int, bool]]) -> None:
    answers, model = Answers(), dict[bytes, int]()
    for number, size, look in steps:
        name = bytes([number])
        if look:
            found = answers.get(name, 0.0, 1.0)
            assert (found.size if found else None) == model.get(name)
            if name in model:
                model[name] = model.pop(name)
        else:
            answers.put(name, made(size), 100)
            model.pop(name, None)
            model[name] = size
            while sum(model.values()) > 100:
                del model[next(iter(model))]
        assert (answers.size, len(answers)) == (sum(model.values()), len(model))


def test_an_answer_that_is_too_old_for_one_is_there_for_another() -> None:
    answers = Answers()
    answers.put(b"k", made(1, stored=10.0), 100)
    assert answers.get(b"k", 20.0, 9.0) is None
    assert answers.get(b"k", 20.0, 10.0) is not None


# --- the plugin ----------------------------------------------------------------------------------------------------------------


def app_with(order: tuple[str, ...]) -> App:
    return App(Config(pipeline=PipelineConfig(order=order)), cast(Store, None), "test", None)


def test_it_stands_before_the_router() -> None:
    clawproxy_cache.configure(CacheSettings(), app_with(ORDER))
    with pytest.raises(ConfigError, match="put it before"):
        clawproxy_cache.configure(CacheSettings(), app_with(("auth", "router", "cache")))


def test_another_configuration_finds_none_of_the_old_answers() -> None:
    def fingerprint(model: str) -> bytes:
        models = {"m": ModelConfig((RouteConfig("p", model),))}
        config = Config(providers={"p": ProviderConfig()}, models=models, pipeline=PipelineConfig(order=ORDER))
        return clawproxy_cache.configure(CacheSettings(), App(config, cast(Store, None), "test", None)).fingerprint

    assert fingerprint("one") == fingerprint("one") != fingerprint("two")


def test_the_docs_have_every_setting_with_its_default() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "cache.md").read_text()
    for field in attrs.fields(CacheSettings):
        default: Any = field.default
        if "Duration" in str(field.type):
            default = render_duration(default)
        elif "Size" in str(field.type):
            default = render_size(default)
        assert f"| `{field.name}` | `{json.dumps(default)}` |" in page


async def test_a_transform_sees_what_is_played() -> None:
    class Shouts:
        @hookimpl
        def tap_response(self) -> Transform:
            return Transform(lambda events: [Text(e.text.upper()) if isinstance(e, Text) else e for e in events])

    async with claw({"shouts": Shouts(), "cache": clawproxy_cache}, order=("shouts", *ORDER)) as gateway:
        gateway.upstream.will_say("once")
        answers = [await gateway.ask("hello") for _ in range(2)]
        assert [answer.text for answer in answers] == ["ONCE", "ONCE"]
        assert len(gateway.upstream.requests) == 1
        assert answers[1].exchange is not None
        route = answers[1].exchange.route
        assert route is not None
        assert (route.provider, route.model, route.reason) == ("cache", "test-model", "hit")


async def test_cancelled_anywhere_a_hit_leaves_nothing_behind() -> None:
    async with claw({"cache": clawproxy_cache}, order=ORDER) as gateway:
        await gateway.ask("hello")
        seen: set[str] = set()

        async def scenario(scope: trio.CancelScope) -> None:
            lifetime = Lifetime()
            hooked.append(lifetime)
            answer = await gateway.ask("hello", lifetime=lifetime)
            assert answer.outcome is not None
            seen.add(answer.outcome.label)

        hooked: list[Lifetime] = []

        async def check(point: int) -> None:
            assert gateway.at_rest(), point
            assert all(row.closed is not None for row in await gateway.store.rows())

        await sweep(scenario, check, act=lambda scope: hooked[-1].hang_up())
        assert seen == {"client_gone", "complete"}
        assert len(gateway.upstream.requests) == 1


# --- answers that routes bring -------------------------------------------------------------------------------------------------


class Canned:
    """A plugin that answers by itself: no cache is needed for that."""

    candidates = (Route("policy", "canned", "canned", recorded=(said(Text("Not today.")),)),)

    def next(self, history: Any) -> Route | None:
        return None if history else self.candidates[0]

    @hookimpl
    async def choose_route(self) -> Plan:
        return self


async def test_any_plugin_may_answer_by_itself() -> None:
    async with claw({"canned": Canned()}) as gateway:
        answer = await gateway.ask("hello")
        assert (answer.text, answer.outcome and answer.outcome.label) == ("Not today.", "complete")
        assert not gateway.upstream.requests
        [row] = await gateway.store.rows()
        assert row.closed is not None
        assert (row.opened.provider, row.closed.sent, row.closed.cost_nano, row.closed.source) == ("policy", False, 0, "cache")
        await assert_rest(gateway)


async def assert_rest(gateway: Claw) -> None:
    await trio.lowlevel.checkpoint()
    assert gateway.at_rest()
