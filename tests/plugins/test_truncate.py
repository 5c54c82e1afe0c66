"""clawproxy_truncate: what is dropped, what is kept, who is told."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clawproxy_truncate
from clawproxy.config import Config
from clawproxy.context import App, Exchange, Registry
from clawproxy.errors import ClawError
from clawproxy.messages import ChatRequest, ImagePart, Message, Role, TextPart, Tool, ToolCall
from clawproxy.stores.base import Store
from clawproxy.testing.factories import make_exchange, make_request, make_route
from clawproxy_truncate import Truncate, TruncateSettings
from clawproxy_truncate.estimate import PER_MEDIA, message_tokens, text_tokens, tool_tokens
from clawproxy_truncate.turns import split_turns

TRUNCATE = TruncateSettings(http="truncate")


def windows(*tokens: int | None, **changes: Any) -> Exchange:
    return make_exchange(candidates=[make_route(context_tokens=each) for each in tokens], **changes)


def say(role: Role, text: str, **changes: Any) -> Message:
    return Message(role, text, **changes)


def state(settings: TruncateSettings) -> Truncate:
    app = App(config=Config(), store=cast(Store, None), instance="test", state_dir=None)
    return clawproxy_truncate.configure(settings, app)


async def fit(exchange: Exchange, request: ChatRequest, settings: TruncateSettings = TRUNCATE) -> ChatRequest:
    changed = await clawproxy_truncate.prepare_request(exchange, request, state(settings))
    return request if changed is None else changed


def texts(request: ChatRequest) -> list[str]:
    return list(request.texts())


def test_register_and_configure() -> None:
    registry = Registry()
    clawproxy_truncate.register(registry)
    assert registry.settings == {"truncate": TruncateSettings}
    assert state(TRUNCATE).settings is TRUNCATE
    with pytest.raises(ValueError):
        TruncateSettings(max_output_tokens=0)


@pytest.mark.parametrize("tokens", [(), (None,), (10, None)])
async def test_an_unknown_window_has_room_for_everything(tokens: tuple[int | None, ...]) -> None:
    request = make_request("x" * 100_000)
    assert await clawproxy_truncate.prepare_request(windows(*tokens), request, state(TruncateSettings())) is None


async def test_what_fits_is_not_touched() -> None:
    exchange = windows(14)
    assert await clawproxy_truncate.prepare_request(exchange, make_request("x" * 40), state(TRUNCATE)) is None
    assert exchange.notices == []


async def test_the_largest_candidate_counts() -> None:
    request = make_request("x" * 400)
    assert await clawproxy_truncate.prepare_request(windows(10, 104), request, state(TruncateSettings())) is None


@pytest.mark.parametrize("operation", ["embeddings", "count_tokens"])
async def test_what_is_no_conversation_stays_whole(operation: str) -> None:
    request = make_request(messages=(say("user", "a" * 400), say("user", "b" * 400)), operation=operation)
    settings = TruncateSettings(http="truncate", max_output_tokens=5)
    exchange = windows(50)
    assert await clawproxy_truncate.prepare_request(exchange, request, state(settings)) is None
    assert exchange.notices == []


CHAT = (
    say("system", "S" * 40),
    say("user", "1" * 40),
    say("assistant", "2" * 40),
    say("user", "3" * 40),
    say("developer", "D" * 40),
    say("assistant", "4" * 40),
    say("user", "5" * 40),
)
"""14 tokens each, 98 in all."""


@pytest.mark.parametrize(("window", "expected"), [(98, "S123D45"), (97, "S3D45"), (70, "S3D45"), (69, "SD5"), (42, "SD5")])
async def test_oldest_turns_go_first(window: int, expected: str) -> None:
    exchange = windows(window)
    result = await fit(exchange, make_request(messages=CHAT))
    assert "".join(text[0] for text in texts(result)) == expected
    if window < 98:
        (notice,) = exchange.notices
        assert notice.code == "prompt_truncated"
        assert notice.details["dropped_messages"] == 7 - len(expected)
        assert notice.details["estimated_tokens"] == 98
        assert notice.details["context_tokens"] == window


async def test_a_last_turn_that_does_not_fit_is_refused() -> None:
    exchange = windows(41)
    with pytest.raises(ClawError) as caught:
        await fit(exchange, make_request(messages=CHAT))
    assert caught.value.slug == "context_length_exceeded"
    assert caught.value.details.extra == {"context_tokens": 41, "estimated_tokens": 42}
    assert "estimate" in caught.value.message
    assert exchange.notices == []


@pytest.mark.parametrize(
    ("surface", "settings", "refused"),
    [
        ("claw", TruncateSettings(), False),
        ("openai_chat", TruncateSettings(), True),
        ("anthropic", TruncateSettings(), True),
        ("claw", TruncateSettings(websocket="refuse"), True),
        ("openai_chat", TruncateSettings(http="truncate"), False),
    ],
)
async def test_the_surface_decides(surface: str, settings: TruncateSettings, refused: bool) -> None:
    exchange = windows(70, surface=surface)
    if refused:
        with pytest.raises(ClawError) as caught:
            await fit(exchange, make_request(messages=CHAT), settings)
        assert caught.value.status == 400
    else:
        assert len((await fit(exchange, make_request(messages=CHAT), settings)).messages) == 5


async def test_room_is_left_for_the_answer() -> None:
    result = await fit(windows(98), make_request(messages=CHAT, max_tokens=28))
    assert len(result.messages) == 5


# --- turns -------------------------------------------------------------------------------------------------------------


def test_a_call_and_its_late_result_are_one_turn() -> None:
    messages = (
        say("user", "a"),
        say("assistant", "b", tool_calls=(ToolCall("c1", "f", "{}"),)),
        say("user", "c"),
        say("tool", "d", tool_call_id="c1"),
        say("user", "e"),
    )
    assert split_turns(messages) == [[0, 1, 2, 3], [4]]


def test_a_conversation_may_begin_with_the_assistant() -> None:
    assert split_turns((say("assistant", "a"), say("user", "b"))) == [[0], [1]]
    assert split_turns((say("system", "a"),)) == []


ROLES: list[Role] = ["system", "developer", "user", "assistant", "tool"]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    messages = []
    for role in draw(st.lists(st.sampled_from(ROLES), min_size=1, max_size=12)):
        calls = tuple(ToolCall(call, "f", "{}") for call in draw(st.lists(st.sampled_from("xyz"), max_size=2, unique=True)))
        messages.append(
            Message(
                role,
                draw(st.text("aé😀", max_size=30)),
                tool_calls=calls if role == "assistant" else (),
                tool_call_id=draw(st.sampled_from("xyz")) if role == "tool" else None,
            )
        )
    return tuple(messages)


@given(conversations(), st.integers(1, 120))
async def test_truncation_keeps_its_promises(messages: tuple[Message, ...], window: int) -> None:
    request = make_request(messages=messages)
    before = sum(map(message_tokens, messages))
    refused: str | None = None
    try:
        result = await fit(windows(window), request)
    except ClawError as error:
        refused = error.slug
    if refused:
        assert (refused, before > window) == ("context_length_exceeded", True)
        return
    kept = [place for place, message in enumerate(messages) if any(message is each for each in result.messages)]
    assert [messages[place] for place in kept] == list(result.messages)  # order, and nothing cut
    assert sum(map(message_tokens, result.messages)) <= window
    gone = set(range(len(messages))) - set(kept)
    assert all(messages[place].role not in ("system", "developer") for place in gone)
    users = [place for place, message in enumerate(messages) if message.role == "user"]
    assert not users or users[-1] not in gone
    calls: dict[str, int] = {}
    for place, message in enumerate(messages):
        if message.tool_call_id in calls:
            assert (calls[message.tool_call_id] in gone) == (place in gone)
        calls.update({call.id: place for call in message.tool_calls})
    if gone:
        rest = [place for place in kept if messages[place].role not in ("system", "developer")]
        assert max(gone) < min(rest)


# --- the answer's cap --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "cap", "routes", "result", "told"),
    [
        (None, None, [None], None, False),
        (500, None, [None], 500, False),
        (500, 100, [None], 100, True),
        (None, 100, [None], 100, False),
        (100, 100, [None], 100, False),
        (500, None, [200, 300], 300, True),
        (500, None, [200, None], 500, False),
        (None, None, [200], None, False),
        (500, 400, [200], 200, True),
    ],
)
async def test_max_tokens(asked: int | None, cap: int | None, routes: list[int | None], result: int | None, told: bool) -> None:
    exchange = make_exchange(candidates=[make_route(max_output_tokens=each) for each in routes])
    request = await fit(exchange, make_request(max_tokens=asked), TruncateSettings(max_output_tokens=cap))
    assert request.max_tokens == result
    assert [notice.code for notice in exchange.notices] == (["max_tokens_clamped"] if told else [])


# --- the estimate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("é" * 2, 1), ("😀", 1), ("\ud800", 1)],
)
def test_text_tokens(text: str, tokens: int) -> None:
    assert text_tokens(text) == tokens


def test_everything_a_model_reads_counts() -> None:
    plain = message_tokens(say("assistant", "x" * 8))
    assert plain == 4 + 2
    assert message_tokens(say("assistant", "x" * 8, reasoning="y" * 8)) == plain + 2
    assert message_tokens(say("assistant", "x" * 8, tool_calls=(ToolCall("1", "name", "y" * 8),))) == plain + 3
    assert message_tokens(Message("user", (TextPart("x" * 8), ImagePart(url="u")))) == plain + PER_MEDIA
    assert tool_tokens((Tool("name", "d" * 8, {"type": "object"}),)) > 4 + 1 + 2
