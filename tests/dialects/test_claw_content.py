"""The Claw format: files, tools and their results, reasoning that goes back to its provider, prompts in pieces."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.dialects import claw
from clawproxy.dialects.claw_parts import content
from clawproxy.dialects.claw_pieces import PIECE, Pieces, size_of
from clawproxy.errors import ClawError
from clawproxy.messages import FilePart, ImagePart, Message, Part, TextPart, Thinking, ToolCall


def messages(*items: dict[str, Any]) -> tuple[Message, ...]:
    decoded: tuple[Message, ...] = claw.decode_request({"model": "m", "messages": list(items)}).messages
    return decoded


def refused(*items: dict[str, Any]) -> str | None:
    with pytest.raises(ClawError) as caught:
        messages(*items)
    assert caught.value.slug == "invalid_request"
    return caught.value.details.param


# --- files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"data": "aGk=", "media_type": "application/pdf"}, FilePart(data="aGk=", media_type="application/pdf")),
        ({"file_id": "file-1", "filename": "a.pdf"}, FilePart(file_id="file-1", filename="a.pdf")),
        ({"url": "https://a.test/b.pdf"}, FilePart(url="https://a.test/b.pdf")),
        ({"url": "data:text/plain;base64,aGk="}, FilePart(data="aGk=", media_type="text/plain")),
        ({"file": {"file_data": "data:text/csv;base64,aGk=", "filename": "t"}}, FilePart("aGk=", None, None, "t", "text/csv")),
        ({"file": {"file_id": "f"}}, FilePart(file_id="f")),
    ],
)
def test_a_file(part: dict[str, Any], expected: FilePart) -> None:
    assert messages({"role": "user", "content": [{"type": "file", **part}]})[0].content == (expected,)
    prompt = claw.decode_request({"model": "m", "prompt": [{"type": "file", **part}]}).messages[0]
    assert prompt.content == (expected,)


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"data": "aGk="},  # of what kind?
        {"data": "aGk=", "media_type": "pdf"},
        {"data": "a b", "media_type": "text/plain"},
        {"data": "aGk=", "media_type": "text/plain", "file_id": "f"},
        {"url": "file:///etc/passwd"},  # SS-02
        {"url": "https://a.test/\r\nx"},
        {"file_id": ""},
        {"file_id": 7},
        {"file_id": "f", "filename": "a\nb"},
        {"file": {}},
        {"file": "x"},
    ],
)
def test_what_is_no_file(part: dict[str, Any]) -> None:
    assert (refused({"role": "user", "content": [{"type": "file", **part}]}) or "").startswith("messages[0].content[0]")


# --- tools ---------------------------------------------------------------------------------------------------------------


def test_calls_come_back_as_openai_has_them_or_as_they_were_sent() -> None:
    openai = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    sent = {"index": 0, "call_id": "c", "name": "f", "arguments": '{"a":1}', "signature": "s"}
    whole = {"id": "c", "name": "f", "arguments": {"a": 1}}
    for shape, signature in ((openai, None), (sent, "s"), (whole, None), (openai | {"signature": "t"}, "t")):
        [message] = messages({"role": "assistant", "tool_calls": [shape]})
        assert message.tool_calls == (ToolCall("c", "f", '{"a":1}', signature),)
    for wrong, where in (({"name": "f"}, "id"), ({"call_id": "c"}, "name"), ({"call_id": 7, "name": "f"}, "call_id")):
        assert refused({"role": "assistant", "tool_calls": [wrong]}) == f"messages[0].tool_calls[0].{where}"
    assert refused({"role": "assistant", "tool_calls": [{"id": "c", "function": None}]}) == "messages[0].tool_calls[0].function"


def test_a_tool_may_have_failed() -> None:
    result = {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "no such city"}]}
    assert messages(result)[0].is_error is None
    assert messages(result | {"is_error": True})[0].is_error is True
    assert messages(result | {"is_error": False})[0].is_error is False
    assert refused(result | {"is_error": "yes"}) == "messages[0].is_error"
    assert refused({"role": "user", "content": "x", "is_error": True}) == "messages[0].is_error"


# --- reasoning -----------------------------------------------------------------------------------------------------------


def test_reasoning_comes_back_as_it_was_sent() -> None:
    """The pieces as they came, or joined: the same blocks, each up to what is signed."""
    signed = {"type": "llm_reasoning", "seq": 3, "content": "c", "signature": "s1", "dialect": "anthropic"}
    hidden = {"content": "", "data": "opaque", "reasoning_id": "rs_1", "dialect": "openai_responses"}
    expected = (Thinking("abc", "s1", None, None, "anthropic"), Thinking("", None, "opaque", "rs_1", "openai_responses"))
    for pieces in (
        [{"content": "a"}, {"content": "b"}, signed, hidden],
        [{"content": "ab"}, signed, hidden],
        [signed | {"content": "abc"}, hidden],
    ):
        [message] = messages({"role": "assistant", "content": "so", "thinking": pieces})
        assert message.thinking == expected
        assert message.reasoning is None


def test_reasoning_without_a_signature_is_text() -> None:
    [message] = messages({"role": "assistant", "reasoning": "x", "thinking": [{"content": "a"}, {"content": "b"}]})
    assert (message.reasoning, message.thinking, message.content) == ("xab", (), None)
    assert messages({"role": "assistant", "reasoning": "x", "content": "y"})[0].reasoning == "x"


@pytest.mark.parametrize(
    ("item", "where"),
    [
        ({"role": "user", "content": "x", "thinking": []}, "thinking"),
        ({"role": "user", "content": "x", "reasoning": "r"}, "reasoning"),
        ({"role": "assistant", "thinking": "x"}, "thinking"),
        ({"role": "assistant", "thinking": ["x"]}, "thinking[0]"),
        ({"role": "assistant", "thinking": [{"content": 1}]}, "thinking[0].content"),
        ({"role": "assistant", "thinking": [{"content": "x", "signature": "s"}]}, "thinking[0].dialect"),
        ({"role": "assistant", "thinking": []}, "content"),
    ],
)
def test_reasoning_that_is_none(item: dict[str, Any], where: str) -> None:
    assert refused(item) == f"messages[0].{where}"


# --- what is appended, and prompts in pieces ---------------------------------------------------------------------------------


def test_what_is_appended() -> None:
    assert claw.decode_append({"content": "in French"}) == Message("user", "in French")
    part = {"type": "image", "data": "aGk=", "media_type": "image/png"}
    assert claw.decode_append({"content": [part]}) == Message("user", (ImagePart(data="aGk=", media_type="image/png"),))
    wrong: list[Any] = [None, "", [], 7, {}, [{"type": "video"}]]
    for bad in wrong:
        with pytest.raises(ClawError) as caught:
            claw.decode_append({"content": bad})
        assert (caught.value.details.param or "").startswith("content")


def test_a_streamed_prompt_goes_behind_the_messages() -> None:
    frame = {"model": "m", "prompt_stream": True, "prompt": "first", "messages": [{"role": "assistant", "content": "hi"}]}
    request = claw.decode_request(frame | {"system": "be kind"}, streamed="first and last")
    assert request.messages == (Message("system", "be kind"), Message("assistant", "hi"), Message("user", "first and last"))
    assert claw.decode_request({"model": "m", "prompt_stream": True}, streamed="x").messages == (Message("user", "x"),)
    with pytest.raises(ClawError, match="Invalid prompt format"):
        claw.decode_request({"model": "m", "prompt_stream": True}, streamed="")


IMAGE = ImagePart(data="aGk=", media_type="image/png")
CONTENT = st.text(max_size=5) | st.lists(st.text(max_size=5).map(TextPart) | st.just(IMAGE), max_size=3).map(tuple)


@given(st.lists(CONTENT, max_size=8))
def test_pieces_are_put_together_in_order(given: list[str | tuple[Part, ...]]) -> None:
    pieces = Pieces(10_000)
    for piece in given:
        pieces.add(piece)
    flat: list[object] = []
    for piece in given:
        flat += [piece] if isinstance(piece, str) else [part.text if isinstance(part, TextPart) else part for part in piece]
    whole = pieces.content()
    again: list[object] = [whole] if isinstance(whole, str) else [p.text if isinstance(p, TextPart) else p for p in whole]
    assert _joined(again) == _joined(flat)
    assert isinstance(whole, str) == (IMAGE not in flat)
    assert pieces.size == sum(map(size_of, given))


def _joined(items: list[object]) -> list[object]:
    """Neighbouring texts as one."""
    out: list[object] = []
    for item in items:
        if isinstance(item, str) and out and isinstance(out[-1], str):
            out[-1] += item
        elif item != "":
            out.append(item)
    return out


def test_pieces_are_bounded_in_what_they_hold_and_in_number() -> None:
    many = Pieces(100 * PIECE)
    for _ in range(100):
        many.add("")
    with pytest.raises(ClawError) as caught:
        many.add("")
    assert (caught.value.slug, caught.value.details.setting) == ("frame_too_large", "limits.frame")
    assert many.content() == ""
    assert size_of("\u00e9") == PIECE + 2
    assert size_of((IMAGE, FilePart(url="https://a.test"))) == 3 * PIECE + 4 + 14
    long = Pieces(10**9)
    for index in range(2000):
        long.add(f"{index},")
    assert long.content() == "".join(f"{index}," for index in range(2000))


def test_parts_in_a_piece_say_where_they_are_wrong() -> None:
    with pytest.raises(ClawError) as caught:
        content([{"type": "file"}], "content")
    assert caught.value.details.param == "content[0]"
