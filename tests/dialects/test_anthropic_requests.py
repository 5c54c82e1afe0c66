"""Messages requests into the vocabulary, and from there to a provider of the same format."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.dialects.translate import ORDER
from clawproxy.errors import ClawError
from clawproxy.messages import (
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    ResponseFormat,
    TextPart,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)
from clawproxy.testing.factories import make_head, make_route

ASKED: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def decode(target: str = "/v1/messages", headers: dict[str, str] | None = None, **changes: Any) -> ChatRequest:
    body = {**ASKED, **changes}
    body = {name: value for name, value in body.items() if value is not ...}
    return CLIENT["anthropic"].decode_request(json.dumps(body).encode(), {}, make_head(target, **(headers or {})))


def content(*blocks: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": list(blocks)}]


def there_and_back(body: dict[str, Any], target: str = "/v1/messages") -> Any:
    request = CLIENT["anthropic"].decode_request(json.dumps(body).encode(), {}, make_head(target))
    return json.loads(PROVIDER["anthropic"].encode_request(request, make_route(model=body["model"])).body)


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """Texts as blocks, turns joined, tool results first: two requests that are the same to the API are equal."""
    made = dict(body)
    turns: list[dict[str, Any]] = []
    for message in body["messages"]:
        blocks = [_plain(block) for block in _blocks(message["content"])]
        if turns and turns[-1]["role"] == message["role"] != "system":
            turns[-1]["content"] += blocks
        else:
            turns.append({**message, "content": blocks})
    for turn in turns:  # the API wants results first
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    made["messages"] = turns
    if "system" in body:
        made["system"] = _blocks(body["system"])
    return made


def _blocks(value: Any) -> list[Any]:
    return [{"type": "text", "text": value}] if isinstance(value, str) else list(value)


def _plain(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] != "tool_result" or "content" not in block:
        return block
    made = {**block, "content": _blocks(block["content"])}
    return made if made["content"] else {name: value for name, value in made.items() if name != "content"}


# --- single things ---------------------------------------------------------------------------------------------------------


def test_the_plain_parameters() -> None:
    request = decode(
        system="Be brief.",
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        stop_sequences=["END"],
        stream=True,
        metadata={"user_id": "u1"},
        thinking={"type": "enabled", "budget_tokens": 2048},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        tools=[{"name": "f", "description": "d", "input_schema": {"type": "object"}, "strict": True}],
        tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    )
    assert request.messages == (Message("system", "Be brief."), Message("user", "hi"))
    assert (request.temperature, request.top_p, request.top_k, request.stop) == (0.5, 0.9, 5, ("END",))
    assert (request.stream, request.max_tokens, request.metadata) == (True, 9, {"user_id": "u1"})
    assert (request.reasoning_budget, request.reasoning_effort) == (2048, "high")
    assert request.response_format == ResponseFormat(
        "json_schema", {"name": "response", "schema": {"type": "object"}, "strict": True}
    )
    assert request.tools == (Tool("f", "d", {"type": "object"}, True),)
    assert (request.tool_choice, request.parallel_tool_calls) == (ToolChoice("tool", "f"), False)
    assert (request.operation, request.include_usage, request.extra) == ("chat", True, {})


def test_blocks_of_every_kind() -> None:
    request = decode(
        messages=[
            *content(
                {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}},
                {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
                {"type": "document", "title": "t", "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="}},
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}},
                {"type": "document", "source": {"type": "file", "file_id": "file_2"}, "citations": {"enabled": True}},
            ),
            *content(
                {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "eA=="},
                {"type": "text", "text": "b"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
                role="assistant",
            ),
            *content(
                {"type": "tool_result", "tool_use_id": "t1", "content": "ok"},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": [{"type": "text", "text": "no"}]},
                {"type": "text", "text": "go on"},
            ),
        ]
    )
    first, answer, *rest = request.messages
    assert first.content == (
        TextPart("a", {"cache_control": {"type": "ephemeral"}}),
        ImagePart(data="aGk=", media_type="image/png"),
        ImagePart(url="https://x.test/a.png"),
        ImagePart(extra={"source": {"type": "file", "file_id": "file_1"}}),
        FilePart(data="aGk=", media_type="application/pdf", filename="t"),
        FilePart(extra={"source": {"type": "text", "media_type": "text/plain", "data": "words"}}),
        FilePart(file_id="file_2", extra={"citations": {"enabled": True}}),
    )
    assert answer == Message(
        "assistant",
        "b",
        (ToolCall("t1", "f", '{"a":1}'),),
        thinking=(Thinking("hm", "c2ln", dialect="anthropic"), Thinking(data="eA==", dialect="anthropic")),
    )
    assert rest == [
        Message("tool", "ok", tool_call_id="t1"),
        Message("tool", "no", tool_call_id="t2", is_error=True),
        Message("user", "go on"),
    ]


def test_thinking_without_a_signature_is_plain_reasoning() -> None:
    [message] = decode(
        messages=content({"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "b"}, role="assistant")
    ).messages
    assert (message.reasoning, message.thinking, message.content) == ("hm", (), "b")


def test_what_the_vocabulary_has_no_word_for_keeps_its_place() -> None:
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    blocks = [{"type": "text", "text": "a"}, search, {"type": "text", "text": "b"}]
    [message] = decode(messages=content(*blocks, role="assistant")).messages
    assert message.content == (TextPart("a"), TextPart("b"))
    assert message.extra == {"content[1]": search, ORDER: [{"part": 0}, {"block": "content[1]"}, {"part": 1}]}


def test_versions_and_betas_go_on() -> None:
    request = decode(headers={"anthropic_version": "2026-10-21", "anthropic_beta": " a-1 , b-2,"})
    assert request.headers == (("anthropic-version", "2026-10-21"), ("anthropic-beta", "a-1,b-2"))
    outbound = PROVIDER["anthropic"].encode_request(request, make_route())
    assert dict(outbound.headers)["anthropic-version"] == "2026-10-21"
    assert dict(outbound.headers)["anthropic-beta"] == "a-1,b-2"
    assert decode().headers == ()


def test_counting() -> None:
    request = decode("/v1/messages/count_tokens", max_tokens=...)
    assert (request.operation, request.stream, request.max_tokens) == ("count_tokens", False, None)
    outbound = PROVIDER["anthropic"].encode_request(request, make_route(model="x"))
    assert outbound.path == "/messages/count_tokens"
    assert json.loads(outbound.body) == {"model": "x", "messages": [{"role": "user", "content": "hi"}]}


NEWER = {"anthropic_version": "2026-10-21"}
DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}


@pytest.mark.parametrize(
    ("changes", "headers", "param"),
    [
        ({"max_tokens": ...}, {}, "max_tokens"),
        ({"max_tokens": "9"}, {}, "max_tokens"),
        ({"messages": []}, {}, "messages"),
        ({"messages": content()}, {}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, {}, "messages[0].role"),
        ({"messages": content({"type": "text"})}, {}, "messages[0].content[0].text"),
        ({"messages": content({"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}})}, {},
         "messages[0].content[0].source.url"),
        ({"messages": content({"type": "tool_use", "id": "a", "name": "f", "input": "x"}, role="assistant")}, {},
         "messages[0].content[0].input"),
        ({"messages": content(DOCUMENT, role="assistant")}, NEWER, "messages[0].content[0].type"),
        ({"system": 5}, {}, "system"),
        ({"system": [{"type": "image"}]}, {}, "system[0].type"),
        ({"temperature": 1.5}, {}, "temperature"),
        ({"temperature": 0.5}, NEWER, "temperature"),
        ({"top_p": 0.5}, NEWER, "top_p"),
        ({"top_k": 5}, {"anthropic_version": "2027-01-01"}, "top_k"),
        ({}, {"anthropic_version": "latest"}, "anthropic-version"),
        ({}, {"anthropic_beta": "a b"}, "anthropic-beta"),
        ({}, {"anthropic_beta": ",".join(["a"] * 65)}, "anthropic-beta"),
        ({"tools": [{"name": "f"}]}, {}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any_of"}}, {}, "tool_choice.type"),
        ({"thinking": {"type": "enabled"}}, {}, "thinking.budget_tokens"),
        ({"thinking": {"type": "loud"}}, {}, "thinking.type"),
        ({"output_config": {"format": {"type": "xml"}}}, {}, "output_config.format.type"),
        ({"metadata": {"user_id": "a\nb"}}, {}, "metadata.user_id"),
        ({"api_base": "http://x"}, {}, "api_base"),
        ({"fallbacks": [{"model": "other"}]}, {}, "fallbacks"),
    ],
)  # fmt: skip
def test_what_is_refused(changes: dict[str, Any], headers: dict[str, str], param: str) -> None:
    with pytest.raises(ClawError) as caught:
        decode(headers=headers, **changes)
    assert (caught.value.status, caught.value.details.param) == (400, param)


# --- there and back --------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT, lambda inner: st.lists(inner, max_size=2), max_leaves=4
)
EXTRA: dict[str, Any] = {"cache_control": st.just({"type": "ephemeral"}), "brand_new": JSON}
IDS = st.sampled_from(["toolu_1", "a-b", "C_9"])
TEXT_BLOCK = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}, optional=EXTRA)
SOURCE = st.sampled_from(
    [
        {"type": "base64", "media_type": "image/png", "data": "aGk="},
        {"type": "url", "url": "https://x.test/y"},
        {"type": "file", "file_id": "file_1"},
    ]
)
IMAGE = st.fixed_dictionaries({"type": st.just("image"), "source": SOURCE}, optional=EXTRA)
DOCUMENT_BLOCK = st.fixed_dictionaries(
    {
        "type": st.just("document"),
        "source": SOURCE
        | st.just({"type": "text", "media_type": "text/plain", "data": "w"})
        | st.just({"type": "content", "content": [{"type": "text", "text": "x"}]}),
    },
    optional={"title": TEXT, "citations": st.just({"enabled": True}), **EXTRA},
)
RAW = st.fixed_dictionaries({"type": st.sampled_from(["search_result", "web_search_tool_result", "tool_reference"]), "x": JSON})
CALL = st.fixed_dictionaries(
    {"type": st.just("tool_use"), "id": IDS, "name": st.just("f"), "input": st.dictionaries(TEXT, JSON, max_size=2)},
    optional={"caller": st.just({"type": "direct"}), **EXTRA},
)
THOUGHT = st.fixed_dictionaries({"type": st.just("thinking"), "thinking": st.just("") | TEXT, "signature": TEXT}) | st.just(
    {"type": "redacted_thinking", "data": "eA=="}
)
PARTS = TEXT_BLOCK | IMAGE | DOCUMENT_BLOCK | RAW
RESULT = st.fixed_dictionaries(
    {"type": st.just("tool_result"), "tool_use_id": IDS},
    optional={"content": TEXT | st.lists(PARTS, max_size=3), "is_error": st.booleans(), **EXTRA},
)
USER = st.tuples(st.lists(RESULT, max_size=2), st.lists(PARTS, max_size=3)).map(lambda both: both[0] + both[1]).filter(bool)
ASSISTANT = st.lists(THOUGHT | TEXT_BLOCK | CALL | RAW, min_size=1, max_size=5)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": TEXT | USER})
    | st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXT | ASSISTANT}),
    max_size=4,
).map(lambda some: [{"role": "user", "content": "x"}, *some])
TOOL = st.fixed_dictionaries(
    {"name": st.just("f"), "input_schema": st.just({"type": "object"})},
    optional={"description": TEXT, "strict": st.booleans(), "input_examples": st.just([{}]), **EXTRA},
) | st.just({"type": "bash_20250124", "name": "bash", "cache_control": {"type": "ephemeral"}})
BODY = st.fixed_dictionaries(
    {"model": st.just("m"), "max_tokens": st.integers(0, 9), "messages": MESSAGES},
    optional={
        "system": TEXT | st.lists(TEXT_BLOCK, min_size=1, max_size=2),
        "stream": st.just(True),
        "temperature": st.sampled_from([0, 0.5, 1]),
        "stop_sequences": st.lists(TEXT, min_size=1, max_size=2),
        "tools": st.lists(TOOL, min_size=1, max_size=2),
        "tool_choice": st.sampled_from(
            [
                {"type": "none"},
                {"type": "any"},
                {"type": "auto", "disable_parallel_tool_use": False},
                {"type": "tool", "name": "f"},
            ]
        ),
        "thinking": st.sampled_from(
            [
                {"type": "adaptive", "display": "omitted"},
                {"type": "enabled", "budget_tokens": 5, "display": "summarized"},
                {"type": "disabled"},
                {"type": "between_tools"},
            ]
        ),
        "output_config": st.sampled_from(
            [{"effort": "max"}, {"format": {"type": "json_schema", "schema": {"type": "object"}, "new": 1}, "task_budget": {}}]
        ),
        "metadata": st.just({"user_id": "u"}),
        "mcp_servers": st.just([{"type": "url", "url": "https://x.test"}]),
        **EXTRA,
    },
)


@settings(max_examples=150, deadline=None)
@given(BODY)
def test_within_the_dialect_nothing_is_lost(body: dict[str, Any]) -> None:
    assert plain(there_and_back(body)) == plain(body)


def test_system_messages_stay_where_their_client_put_them() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "system", "content": [{"type": "text", "text": "now", "cache_control": {"type": "ephemeral"}}], "clear_at": 1},
        {"role": "user", "content": "b"},
    ]
    assert there_and_back({**ASKED, "system": "first", "messages": messages}) == {
        **ASKED,
        "system": "first",
        "messages": messages,
    }
