"""clawproxy_truncate's strategies: their laws, and what each leaves out."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import clawproxy_truncate
from clawproxy.config import Config, ModelConfig, RouteConfig
from clawproxy.context import App, Exchange
from clawproxy.errors import ClawError, ConfigError
from clawproxy.messages import ChatRequest, Message, Role, ToolCall
from clawproxy.stores.base import Store
from clawproxy.testing.factories import make_exchange, make_request, make_route
from clawproxy_truncate import TruncateModel, TruncateSettings
from clawproxy_truncate.estimate import message_tokens
from clawproxy_truncate.settings import Strategy
from clawproxy_truncate.strategies import Turns, chosen, chosen_in_steps, order
from clawproxy_truncate.summary import HEADER, budget
from clawproxy_truncate.turns import split_turns

PLAIN: list[Strategy] = ["drop_oldest", "keep_pinned", "middle_out"]
ALL: list[Strategy] = [*PLAIN, "summarize"]
SUMMARY = "They spoke of é and 😀. " * 30


def app_of(answer: str | ClawError = SUMMARY) -> App:
    async def ask(exchange: Exchange, request: ChatRequest) -> str:
        await trio.lowlevel.checkpoint()
        if isinstance(answer, ClawError):
            raise answer
        return answer

    return App(Config(), cast(Store, None), "test", None, ask=ask)


def settings(strategy: Strategy, **changes: Any) -> TruncateSettings:
    return TruncateSettings(http="truncate", strategy=strategy, summary_model="cheap", summary_tokens=64, **changes)


async def fit(
    messages: tuple[Message, ...], window: int, chosen: TruncateSettings, app: App | None = None
) -> tuple[tuple[Message, ...], Exchange]:
    exchange = make_exchange(candidates=[make_route(context_tokens=window)])
    request = make_request(messages=messages)
    state = clawproxy_truncate.configure(chosen, app or app_of())
    changed = await clawproxy_truncate.prepare_request(exchange, request, state)
    return (request if changed is None else changed).messages, exchange


def talk(text: str, **pinned: str) -> tuple[Message, ...]:
    """A turn for each letter: 14 tokens of the user, 14 of the assistant."""
    messages = [Message("system", "S" * 40)]
    for letter in text:
        messages += [Message("user", letter * 40, pinned=letter in pinned.get("pins", "")), Message("assistant", letter * 40)]
    return tuple(messages)


def told(messages: tuple[Message, ...]) -> str:
    return "".join(message.text()[0] for message in messages if message.role != "assistant")


@pytest.mark.parametrize(
    ("strategy", "turns", "expected"),
    [
        ("drop_oldest", 4, "Sfghi"),
        ("keep_pinned", 4, "Saghi"),
        ("middle_out", 4, "Sabhi"),
        ("middle_out", 8, "Sabcdfghi"),
        ("middle_out", 7, "Sabcfghi"),
        ("middle_out", 2, "Sai"),
        ("middle_out", 1, "Si"),
        ("keep_pinned", 2, "Sai"),
    ],
)
async def test_what_each_leaves_out(strategy: Strategy, turns: int, expected: str) -> None:
    messages, exchange = await fit(talk("abcdefghi"), 14 + 28 * turns, settings(strategy))
    assert told(messages) == expected
    [notice] = exchange.notices
    assert notice.code == "prompt_truncated"
    assert notice.details["strategy"] == strategy
    assert notice.details["dropped_turns"] == 9 - turns
    assert notice.details["kept_tokens"] == 14 + 28 * turns == sum(map(message_tokens, messages))
    assert not notice.details["summarized"]


@pytest.mark.parametrize("strategy", ALL)
async def test_what_is_pinned_stays(strategy: Strategy) -> None:
    app = app_of(ClawError("overloaded"))
    messages, _ = await fit(talk("abcdefghi", pins="be"), 14 + 28 * 5, settings(strategy, keep_last=2), app)
    assert told(messages) == ("Sbeghi" if strategy == "drop_oldest" else "Sabehi")


@pytest.mark.parametrize("strategy", PLAIN)
async def test_what_may_not_go_and_does_not_fit_is_refused(strategy: Strategy) -> None:
    with pytest.raises(ClawError) as caught:
        await fit(talk("abcdefghi", pins="bcd"), 14 + 28 * 4, settings(strategy, keep_last=2))
    assert caught.value.slug == "context_length_exceeded"


async def test_a_summary_stands_where_it_was_said() -> None:
    messages, exchange = await fit(talk("abcdefghijklmnopq"), 14 + 28 * 12, settings("summarize"))
    assert messages[0].role == "system"
    assert messages[1].text() == "a" * 40
    assert messages[3].role == "user"
    assert messages[3].text().startswith(HEADER + "They spoke of é")
    assert told(messages).endswith("lmnopq")
    [notice] = exchange.notices
    assert notice.details["summarized"]
    assert notice.details["kept_tokens"] == sum(map(message_tokens, messages)) <= 14 + 28 * 12
    assert "summary" in notice.message


async def test_the_next_turns_find_the_same_summary() -> None:
    """And so the same beginning, which the provider's cache has."""
    app, seen = app_of(), set()
    for turns in range(14, 18):
        messages, _ = await fit(talk("abcdefghijklmnopqrst"[:turns]), 14 + 28 * 12, settings("summarize"), app)
        seen.add("".join(message.text() for message in messages[:5]))
    assert len(seen) == 2
    assert len(app.shared["truncate"]) == 2


@pytest.mark.parametrize("answer", ["", "   ", ClawError("provider_error.server"), ClawError("model_not_found")])
async def test_without_a_summary_it_is_truncated(answer: str | ClawError) -> None:
    messages, exchange = await fit(talk("abcdefghi"), 14 + 28 * 4, settings("summarize"), app_of(answer))
    assert told(messages) == "Saghi"
    assert not exchange.notices[0].details["summarized"]


async def test_each_model_may_have_its_own() -> None:
    own = {"test-model": TruncateModel(strategy="middle_out", keep_last=2, http="truncate")}
    messages, _ = await fit(talk("abcdefghi"), 14 + 28 * 3, TruncateSettings(models=own))
    assert told(messages) == "Sahi"
    with pytest.raises(ClawError):
        await fit(talk("abcdefghi"), 14 + 28 * 3, TruncateSettings(models={"other": own["test-model"]}))


def test_what_is_wrong_is_said() -> None:
    models = {"m": ModelConfig((RouteConfig("p", "m"),))}
    app = App(Config(models=models), cast(Store, None), "test", None)
    wrong = TruncateSettings(
        strategy="summarize", models={"x": TruncateModel(), "m": TruncateModel(summary_model="y"), "n": TruncateModel()}
    )
    with pytest.raises(ConfigError) as caught:
        clawproxy_truncate.configure(wrong, app)
    said = str(caught.value)
    assert 'plugins.truncate.summary_model: is missing; strategy "summarize" needs a model' in said
    assert 'plugins.truncate.models."x": is not in [models]; name one of "m".' in said
    assert 'plugins.truncate.models."m".summary_model: "y" is not in [models]; name one of "m".' in said
    clawproxy_truncate.configure(TruncateSettings(strategy="summarize", summary_model="m"), app)


# --- laws --------------------------------------------------------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    roles: list[Role] = ["system", "developer", "user", "assistant", "tool"]
    messages = []
    for role in draw(st.lists(st.sampled_from(roles), min_size=1, max_size=16)):
        calls = tuple(ToolCall(call, "f", "{}") for call in draw(st.lists(st.sampled_from("xyz"), max_size=2, unique=True)))
        messages.append(
            Message(
                role,
                draw(st.text("aé😀", max_size=40)),
                tool_calls=calls if role == "assistant" else (),
                tool_call_id=draw(st.sampled_from("xyz")) if role == "tool" else None,
                pinned=draw(st.booleans()) and draw(st.booleans()),
            )
        )
    return tuple(messages)


@given(conversations(), st.integers(1, 400), st.sampled_from(ALL), st.integers(1, 3))
async def test_every_strategy_keeps_its_promises(
    messages: tuple[Message, ...], window: int, strategy: Strategy, keep_last: int
) -> None:
    rules = settings(strategy, keep_last=keep_last)
    refused = ""
    try:
        result, exchange = await fit(messages, window, rules)
    except ClawError as error:
        refused = error.slug
    if refused:
        assert (refused, sum(map(message_tokens, messages)) > window) == ("context_length_exceeded", True)
        return
    assert sum(map(message_tokens, result)) <= window
    mine = [message for message in result if any(message is each for each in messages)]
    kept = [place for place, message in enumerate(messages) if any(message is each for each in result)]
    assert [messages[place] for place in kept] == mine  # order, and nothing cut
    others = [message for message in result if not any(message is each for each in messages)]
    assert len(others) == (1 if exchange.notices and exchange.notices[0].details["summarized"] else 0)
    assert all(message.text().startswith(HEADER) and "\ufffd" not in message.text() for message in others)
    gone = set(range(len(messages))) - set(kept)
    assert all(messages[place].role not in ("system", "developer") and not messages[place].pinned for place in gone)
    turns = split_turns(messages)
    assert not gone & {place for turn in turns[-keep_last:] for place in turn}
    if strategy in ("keep_pinned", "summarize") and turns:
        assert not gone & set(turns[0])
    calls: dict[str, int] = {}
    for place, message in enumerate(messages):
        if message.tool_call_id in calls:
            assert (calls[message.tool_call_id] in gone) == (place in gone)
        calls.update({call.id: place for call in message.tool_calls})
    again, second = await fit(result, window, rules)
    assert again == result  # idempotent
    assert not second.notices


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.sets(st.integers(0, 11)), st.integers(1, 4), st.integers(1, 400))
def test_no_more_goes_than_has_to(costs: list[int], pinned: set[int], keep_last: int, excess: int) -> None:
    turns = Turns(costs, frozenset(pinned), keep_last)
    for strategy in ALL:
        going = order(strategy, turns)
        gone = chosen(going, costs, excess)
        if gone is None:
            assert sum(costs[turn] for turn in going) < excess
            assert chosen_in_steps(going, costs, excess, 100) is None
            continue
        assert sum(costs[turn] for turn in gone) >= excess > sum(costs[turn] for turn in gone[:-1])
        stepped = chosen_in_steps(going, costs, excess, 100)
        assert stepped is not None
        assert gone == stepped[: len(gone)]


@given(st.lists(st.tuples(st.sampled_from("uat"), st.sampled_from("wxyz")), max_size=30))
def test_turns_are_the_finest_that_part_no_pair(said: list[tuple[str, str]]) -> None:
    messages = []
    for role, call in said:
        if role == "a":
            messages.append(Message("assistant", "", tool_calls=(ToolCall(call, "f", "{}"),)))
        else:
            messages.append(Message("user", "") if role == "u" else Message("tool", "", tool_call_id=call))
    turns = split_turns(messages)
    assert [place for turn in turns for place in turn] == list(range(len(messages)))
    called: dict[str, int] = {}
    spans = []
    for place, message in enumerate(messages):
        if message.tool_call_id in called:
            spans.append((called[message.tool_call_id], place))
        called.update({call.id: place for call in message.tool_calls})
    starts = {turn[0] for turn in turns}
    for place, message in enumerate(messages):
        parts = any(first < place <= last for first, last in spans)
        assert (place in starts) == (place == 0 or (message.role == "user" and not parts))


@pytest.mark.parametrize("strategy", ALL)
async def test_200_000_tokens_take_less_than_50_milliseconds(strategy: Strategy) -> None:
    words = ("A line of prose, much like any other. " * 12, "Größe und Übermaß, 日本語 " * 10)
    messages = [Message("system", "S" * 400)]
    for turn in range(800):
        messages.append(Message("user", f"{turn} {words[turn % 2]}"))
        messages.append(Message("assistant", words[0], tool_calls=(ToolCall(f"c{turn}", "f", "{}"),)))
        messages.append(Message("tool", words[1], tool_call_id=f"c{turn}"))
    assert sum(map(message_tokens, messages)) > 200_000
    took = []
    for number in range(3):
        app = app_of(f"{number} {SUMMARY}")
        began = time.process_time()
        result, _ = await fit(tuple(messages), 120_000, settings(strategy), app)
        took.append(time.process_time() - began)
        assert len(result) < len(messages)
    assert min(took) < 0.05


async def test_many_calls_take_linear_time() -> None:
    messages = [Message("user", "begin")]
    for number in range(20_000):
        messages.append(Message("assistant", "", tool_calls=(ToolCall(f"c{number}", "f", "{}"),)))
        messages.append(Message("user", "and"))
        if number % 2:
            messages.append(Message("tool", "", tool_call_id=f"c{number}"))
    began = time.process_time()
    turns = split_turns(messages)
    assert time.process_time() - began < 1.0
    assert len(turns) == 10_001


def test_a_summary_fits_its_budget() -> None:
    for text in ("x" * 1000, "é" * 1000, "😀" * 1000, "\ud800" * 400, ""):
        assert message_tokens(clawproxy_truncate.summary.as_message(text, 64)) <= budget(64)
