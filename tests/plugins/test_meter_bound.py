"""At most how many tokens a prompt can be: in every place of a request, for every kind of content."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from clawproxy import counting
from clawproxy.counting import prompt_bound
from clawproxy.messages import (
    AudioPart,
    FilePart,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
)
from clawproxy.testing.factories import make_request, make_route
from clawproxy_meter import figures


def test_the_bound_counts_what_a_model_reads() -> None:
    plain = prompt_bound(make_request("x" * 100))
    assert plain == 108
    call = Message("assistant", None, tool_calls=(ToolCall("1", "f", "{}"),), reasoning="hm")
    image = Message("user", (TextPart("é"), ImagePart(url="https://x/y.png")))
    tool = Tool("f", "does", {"type": "object"})
    request = make_request(messages=(call, image), tools=(tool,), extra={"functions": [1]})
    assert (
        prompt_bound(request) == (8 + 2 + 12) + (8 + 2 + counting.IMAGE_TOKENS) + (1 + 4 + 17 + 8 + counting.TOOLS_OVERHEAD) + 17
    )


def test_the_bound_reaches_every_place_a_text_can_stand() -> None:
    """A text in it raises the bound by all its bytes, wherever it stands."""
    long, beside = "x" * 5000, {"text": "x" * 5000}
    calls = (ToolCall("1", "f", "{}"),)
    places: list[dict[str, Any]] = [
        {"messages": (Message("user", (TextPart("a", beside),)),)},
        {"messages": (Message("user", (ImagePart(url="https://x/y.png", extra=beside),)),)},
        {"messages": (Message("user", (FilePart(filename="a", extra={"source": beside}),)),)},
        {"messages": (Message("user", (FilePart(file_id="a", filename=long),)),)},
        {"messages": (Message("user", (FilePart(data=long, media_type="text/plain"),)),)},
        {"messages": (Message("user", (AudioPart(long, "wav"),)),)},
        {"messages": (Message("user", "a", name=long),)},
        {"messages": (Message("tool", "a", tool_call_id=long),)},
        {"messages": (Message("assistant", "a", extra=beside),)},
        {"messages": (Message("assistant", "a", reasoning=long),)},
        {"messages": (Message("assistant", "a", thinking=(Thinking("", extra=beside),)),)},
        {"messages": (Message("assistant", "a", thinking=(Thinking(long),)),)},
        {"messages": (Message("assistant", "a", thinking=(Thinking("", data=long),)),)},
        {"messages": (Message("assistant", "a", calls),), "tools": (Tool("f", extra=beside),)},
        {"messages": (Message("assistant", "a", (ToolCall("1", "f", "{}", long),)),)},
        {"messages": (Message("user", "a"),), "tools": (Tool("f", long),)},
        {"messages": (Message("user", "a"),), "tools": (Tool("f", None, {long: 1}),)},
        {"messages": (Message("user", "a"),), "response_format": ResponseFormat("json_schema", beside)},
        {"messages": (Message("user", "a"),), "extra": beside},
    ]
    for changes in places:
        assert prompt_bound(make_request(**changes)) > 5000, changes


def test_what_a_provider_keeps_is_in_the_bound() -> None:
    for name in ("previous_response_id", "conversation", "prompt", "cachedContent"):
        request = make_request("a", extra={name: "kept"})
        assert prompt_bound(request) > counting.KEPT_TOKENS
        assert 200_000 < prompt_bound(request, 200_000) < 201_000
    small_pdf = make_request(messages=(Message("user", (FilePart(data="JVBERi0=", media_type="application/pdf"),)),))
    assert prompt_bound(small_pdf) >= counting.FILE_TOKENS


@given(st.lists(st.text(), min_size=1))
def test_the_bound_is_above_any_byte_level_count(texts: list[str]) -> None:
    request = make_request(messages=tuple(Message("user", text) for text in texts))
    assert prompt_bound(request) >= sum(len(text.encode()) for text in texts) + 8 * len(texts)


def test_each_of_several_answers_may_be_as_long() -> None:
    for name in ("n", "generationConfig.candidateCount"):
        assert figures.output_bound(make_request(max_tokens=100, extra={name: 8}), make_route()) == 800
    assert figures.output_bound(make_request(max_tokens=100, extra={"n": "8"}), make_route()) == 100
    assert figures.output_bound(make_request(extra={"n": 8}), make_route()) is None
