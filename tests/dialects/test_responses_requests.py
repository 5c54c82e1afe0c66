"""Responses requests: from JSON to the vocabulary, and out again to each kind of provider."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.dialects.translate import leftovers
from clawproxy.errors import ClawError
from clawproxy.messages import AudioPart, ChatRequest, FilePart, ImagePart, Message, TextPart, ToolCall
from clawproxy.testing.factories import make_head, make_request, make_route

WORDS = "has no counterpart there"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}


def read(**fields: Any) -> ChatRequest:
    body = json.dumps({"model": "m", **fields}).encode()
    return CLIENT["openai_responses"].decode_request(body, {}, make_head("/v1/responses"))


def sent(request: ChatRequest, dialect: str = "openai_responses") -> dict[str, Any]:
    document = json.loads(PROVIDER[dialect].encode_request(request, make_route(model="theirs")).body)
    assert isinstance(document, dict)
    return document


def again(**fields: Any) -> dict[str, Any]:
    """A request on its way through, to a provider of the same format."""
    return sent(read(**fields))


CODEX: dict[str, Any] = {
    "instructions": "You are a coding agent.",
    "input": [
        {"type": "message", "id": "msg_1", "role": "developer", "content": [{"type": "input_text", "text": "skills"}]},
        {"type": "message", "id": "msg_2", "role": "user", "content": [{"type": "input_text", "text": "fix it"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "think"}], "encrypted_content": "gAAA"},
        {"type": "message", "role": "assistant", "phase": "commentary", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "name": "exec_command", "arguments": '{"cmd":"ls"}', "call_id": "call_1"},
        {"type": "custom_tool_call", "status": "completed", "call_id": "call_2", "name": "apply_patch", "input": "*** Begin"},
        {"type": "function_call", "namespace": "agents", "name": "spawn", "arguments": "{}", "call_id": "call_3"},
        {"type": "function_call_output", "call_id": "call_1", "output": "a.py"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"},
        {"type": "function_call_output", "call_id": "call_3", "output": [{"type": "input_text", "text": "ok"}]},
    ],
    "tools": [
        {"type": "function", "name": "exec_command", "strict": False, "parameters": {"type": "object", "properties": {}}},
        {"type": "namespace", "name": "agents", "description": "Agents.", "tools": [
            {"type": "function", "name": "spawn", "strict": False, "parameters": {"type": "object"}},
            {"type": "function", "name": "close", "strict": False, "parameters": {"type": "object"}},
        ]},
        {"type": "web_search", "external_web_access": False},
        {"type": "custom", "name": "apply_patch", "description": "Patch.",
         "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin"}},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "high", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "01a2",
    "text": {"verbosity": "low"},
    "client_metadata": {"session_id": "1"},
}  # fmt: skip
"""What Codex 0.169 sends, cut short."""


def test_what_codex_sends_goes_to_its_own_kind_of_provider_unchanged() -> None:
    assert again(**CODEX) == {**CODEX, "model": "theirs"}


def test_what_codex_sends_goes_to_a_chat_provider() -> None:
    request = read(**CODEX)
    body = sent(request, "openai_chat")
    assert body["messages"] == [
        {"role": "system", "content": "You are a coding agent."},
        {"role": "developer", "content": [{"type": "text", "text": "skills"}]},
        {"role": "user", "content": [{"type": "text", "text": "fix it"}]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "I look."}],
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "exec_command", "arguments": '{"cmd":"ls"}'}},
                {"id": "call_2", "type": "function", "function": {"name": "apply_patch", "arguments": '{"input":"*** Begin"}'}},
                {"id": "call_3", "type": "function", "function": {"name": "agents__spawn", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "content": "a.py", "tool_call_id": "call_1"},
        {"role": "tool", "content": "done", "tool_call_id": "call_2"},
        {"role": "tool", "content": [{"type": "text", "text": "ok"}], "tool_call_id": "call_3"},
    ]
    assert [tool["function"]["name"] for tool in body["tools"]] == [
        "exec_command", "agents__spawn", "agents__close", "apply_patch"
    ]  # fmt: skip
    patch = body["tools"][-1]["function"]
    assert patch["parameters"]["required"] == ["input"]
    assert "start: begin" in patch["parameters"]["properties"]["input"]["description"]
    assert body["reasoning_effort"] == "high"
    dropped = [notice.details["param"] for notice in leftovers(request, "openai_chat", WORDS)]
    assert sorted(dropped) == [
        "client_metadata", "format", "include", "prompt_cache_key", "reasoning.summary", "store", "text.verbosity", "web_search"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [FUNCTION, {"type": "web_search"}]}, "tools[1]"),
        ({"tools": [{"type": "mcp", "server_label": "x", "server_url": "https://x"}]}, "tools[0]"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}]}, "tools[0]"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]}, "include[1]"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "messages[0].item_reference"),
        ({"input": [{"type": "web_search_call", "id": "ws_1", "status": "completed"}]}, "messages[0].web_search_call"),
        ({"input": [{"type": "message", "role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}]},
         "messages[0].content[0].file_id"),
        ({"never_heard_of": 1}, "never_heard_of"),
    ],
)  # fmt: skip
def test_what_only_this_format_can_say_passes_there_and_is_refused_by_name_elsewhere(fields: dict[str, Any], param: str) -> None:
    said = {"input": "hi", **fields}
    request = read(**said)
    body = sent(request)
    assert {name: body[name] for name in fields} == fields
    with pytest.raises(ClawError) as caught:
        leftovers(request, "openai_chat", WORDS)
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_video"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
         "input[0].content[0].image_url"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "summary": [{"type": "summary_text"}]}]}, "input[0].summary[0].text"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "x", "tools": [FUNCTION, FUNCTION]}, "tools"),
        ({"input": "x", "tool_choice": "sometimes"}, "tool_choice"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "stream": "yes"}, "stream"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "temperature": 3}, "temperature"),
        ({"input": "x", "store": 1}, "store"),
        ({"input": "x", "reasoning": {"effort": 7}}, "reasoning_effort"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "x", "instructions": ["a"]}, "instructions"),
        ({"input": "x", "metadata": {"a": 1}}, "metadata.a"),
        ({"input": "x", "api_base": "http://evil"}, "api_base"),
        ({"input": "x", "include": "all"}, "include"),
    ],
)  # fmt: skip
def test_every_mistake_names_its_parameter(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ClawError) as caught:
        read(**fields)
    assert caught.value.details.param == param
    assert caught.value.status == 400


def test_content_in_parts() -> None:
    content = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
        {"type": "input_image", "image_url": "https://x/y.png", "detail": "auto"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB"},
        {"type": "input_file", "file_url": "https://x/a.pdf"},
        {"type": "input_audio", "input_audio": {"data": "CCCC", "format": "wav"}},
    ]
    request = read(input=[{"type": "message", "role": "user", "content": content}])
    assert request.messages[0].content == (
        TextPart("look"),
        ImagePart(data="AAAA", media_type="image/png", detail="low"),
        ImagePart(url="https://x/y.png", detail="auto"),
        FilePart("BBBB", filename="a.pdf", media_type="application/pdf"),
        FilePart(url="https://x/a.pdf"),
        AudioPart("CCCC", "wav"),
    )
    assert sent(request)["input"][0]["content"] == content


def test_policies_see_and_change_the_texts_of_items_without_a_word() -> None:
    call = {"type": "local_shell_call_output", "id": "lsh_1", "status": "completed", "output": "my secret"}
    request = read(input=[call])
    assert request.messages[0].text() == "my secret"
    changed = attrs.evolve(request, messages=(attrs.evolve(request.messages[0], content=(TextPart("***"),)),))
    assert sent(changed)["input"] == [{**call, "output": "***"}]


def test_a_reasoning_item_of_the_gateways_own_goes_to_no_provider() -> None:
    own = {"type": "reasoning", "id": "rs_claw0", "summary": [{"type": "summary_text", "text": "because"}]}
    assert again(input=[own, {"role": "user", "content": "x"}])["input"] == [{"type": "message", "role": "user", "content": "x"}]
    encrypted = {**own, "encrypted_content": "gAAA"}
    [kept, _] = again(input=[encrypted, {"role": "user", "content": "x"}])["input"]
    assert kept == {name: value for name, value in encrypted.items() if name != "id"}
    # A provider that wants its reasoning back as text gets it.
    [message] = read(input=[own, {"role": "assistant", "content": "y"}]).messages
    assert message.reasoning == "because"


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
ids = st.text("abc123_", min_size=1, max_size=8)
items = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("message"), "role": st.sampled_from(["user", "developer", "system"]), "content": texts}
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("message"),
            "role": st.just("assistant"),
            "content": texts.map(lambda t: [{"type": "output_text", "text": t}]),
        },
        optional={"id": ids, "status": st.just("completed"), "phase": st.sampled_from(["commentary", "final_answer"])},
    ),
    st.fixed_dictionaries(
        {"type": st.just("reasoning"), "summary": texts.map(lambda t: [{"type": "summary_text", "text": t}])},
        optional={"id": ids, "encrypted_content": texts},
    ),
    st.fixed_dictionaries(
        {"type": st.just("function_call"), "call_id": ids, "name": ids, "arguments": texts},
        optional={"id": ids, "status": st.just("completed"), "namespace": ids},
    ),
    st.fixed_dictionaries(
        {"type": st.just("custom_tool_call"), "call_id": ids, "name": ids, "input": texts}, optional={"id": ids}
    ),
    st.fixed_dictionaries({"type": st.just("function_call_output"), "call_id": ids, "output": texts}, optional={"id": ids}),
    st.fixed_dictionaries({"type": st.just("custom_tool_call_output"), "call_id": ids, "output": texts}),
    st.fixed_dictionaries({"type": st.just("shell_call_output"), "call_id": ids, "output": st.lists(texts, max_size=2)}),
)


@given(st.lists(items, min_size=1, max_size=8, unique_by=lambda item: item.get("call_id", id(item))))
def test_items_come_out_as_they_went_in(input_: list[dict[str, Any]]) -> None:
    assert again(input=input_)["input"] == input_


def test_a_chat_request_for_a_responses_provider() -> None:
    request = make_request(
        messages=(
            Message("system", "be good"),
            Message("user", (TextPart("look"), ImagePart(url="https://x/y.png"))),
            Message("assistant", "I call", (ToolCall("c1", "f", "{}"),)),
            Message("tool", "result", tool_call_id="c1"),
        ),
        tools=read(input="x", tools=[FUNCTION]).tools,
        max_tokens=7,
        extra={"verbosity": "low", "service_tier": "flex", "stream_options": {}},
        seed=5,
    )
    outbound = PROVIDER["openai_responses"].encode_request(request, make_route(model="theirs"))
    assert json.loads(outbound.body) == {
        "model": "theirs",
        "store": False,
        "service_tier": "flex",
        "text": {"verbosity": "low"},
        "max_output_tokens": 7,
        "tools": [FUNCTION],
        "input": [
            {"type": "message", "role": "system", "content": "be good"},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": "https://x/y.png", "detail": "auto"}]},
            {"type": "message", "role": "assistant", "content": "I call"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "result"},
        ],
    }  # fmt: skip
    assert [notice.details["param"] for notice in outbound.notices] == ["stream_options", "seed"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"stop": ("x",)}, "stop"),
        ({"top_k": 4}, "top_k"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"extra": {"n": 2}}, "n"),
        ({"operation": "embeddings"}, "model"),
        ({"messages": (Message("assistant", (ImagePart(url="https://x"),)),)}, "messages[0].content[0]"),
    ],
)
def test_what_a_responses_provider_can_not_be_asked(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(ClawError) as caught:
        sent(make_request(**changes))
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", param)


def test_structured_output_and_effort_cross_over() -> None:
    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    request = read(input="x", text={"format": {"type": "json_schema", **schema}}, reasoning={"effort": "low"})
    body = sent(request, "openai_chat")
    assert body["response_format"] == {"type": "json_schema", "json_schema": schema}
    assert body["reasoning_effort"] == "low"
    back = sent(make_request(response_format=request.response_format, reasoning_effort="low"))
    assert back["text"] == {"format": {"type": "json_schema", **schema}}
    assert back["reasoning"] == {"effort": "low"}
