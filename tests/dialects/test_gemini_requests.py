"""Requests of Gemini clients: what they become, and that a provider of the same format gets back what they said."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.dialects import CLIENT, PROVIDER
from clawproxy.dialects.gemini.schemas import json_schema
from clawproxy.dialects.translate import leftovers
from clawproxy.errors import ClawError
from clawproxy.messages import (
    AudioPart,
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

PATH = "/v1beta/models/m:generateContent"
HELLO = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}


def decode(body: Any, target: str = PATH) -> ChatRequest:
    return CLIENT["gemini"].decode_request(json.dumps(body).encode(), {}, make_head(target))


def sent(body: Any, target: str = PATH) -> Any:
    """What a provider of this format is sent for it."""
    outbound = PROVIDER["gemini"].encode_request(decode(body, target), make_route(model="m"))
    assert not outbound.notices
    return json.loads(outbound.body)


def refusal(body: Any, target: str = PATH) -> ClawError:
    with pytest.raises(ClawError) as caught:
        decode(body, target)
    return caught.value


def test_the_path_says_model_and_method() -> None:
    assert decode(HELLO) == ChatRequest("m", (Message("user", "hello"),), dialect="gemini")
    streamed = decode(HELLO, "/v1/models/a%2Fb:c.d:streamGenerateContent?alt=sse")
    assert (streamed.model, streamed.stream, streamed.form, streamed.include_usage) == ("a/b:c.d", True, "sse", True)
    assert decode(HELLO, "/v1/models/x:streamGenerateContent").form == ""
    assert decode(HELLO, "/v1/models/%252e:generateContent").model == "%2e", "decoded once"
    assert refusal(HELLO, PATH + "?key=secret").details.param == "key"
    assert refusal(HELLO, PATH + "?alt=proto").details.param == "alt"
    assert refusal(HELLO, "/v1/models/%ff:generateContent").details.param == "model"
    assert refusal({**HELLO, "model": "models/other"}).details.param == "model"
    assert decode({**HELLO, "model": "models/m"}).model == "m"


def test_both_spellings_of_a_name() -> None:
    snake = {
        "contents": [{"parts": [{"inline_data": {"mime_type": "image/png", "data": "-_8"}}]}],
        "system_instruction": {"parts": {"text": "s"}},
        "generation_config": {"max_output_tokens": 5.0, "stop_sequences": ["x"], "thinking_config": {"thinking_budget": 7}},
        "tool_config": {"function_calling_config": {"mode": "any", "allowed_function_names": ["f"]}},
        "tools": [{"function_declarations": [{"name": "f", "parameters_json_schema": {"a_b": 1}}]}],
        "safety_settings": [{"category": "c"}],
    }
    request = decode(snake)
    assert request.messages == (
        Message("system", "s"),
        Message("user", (ImagePart(data="+/8=", media_type="image/png"),)),
    ), "base64 in the alphabet that all other formats know"
    assert (request.max_tokens, request.stop, request.reasoning_budget) == (5, ("x",), 7)
    assert request.tool_choice == ToolChoice("tool", "f")
    assert request.tools == (Tool("f", None, {"a_b": 1}),), "a client's own names are left alone"
    assert request.extra == {"safetySettings": [{"category": "c"}]}


def test_every_field_of_the_vocabulary() -> None:
    config = {
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 40,
        "maxOutputTokens": 9,
        "stopSequences": ["a", "b"],
        "seed": -4,
        "presencePenalty": 0.1,
        "frequencyPenalty": -0.2,
        "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object"},
        "thinkingConfig": {"thinkingLevel": "HIGH", "includeThoughts": True},
        "responseLogprobs": True,
        "candidateCount": 2,
    }
    body = {**HELLO, "generationConfig": config, "labels": {"a_b": "c"}, "tools": [{"googleSearch": {}}]}
    request = decode(body)
    assert (request.temperature, request.top_p, request.top_k, request.max_tokens) == (0.5, 0.9, 40, 9)
    assert (request.stop, request.seed, request.presence_penalty, request.frequency_penalty) == (("a", "b"), -4, 0.1, -0.2)
    assert request.response_format == ResponseFormat("json_schema", {"name": "response", "schema": {"type": "object"}})
    assert request.reasoning_effort == "high"
    assert request.extra["generationConfig.responseLogprobs"] is True
    assert sent(body) == body


@pytest.mark.parametrize(
    ("config", "made"),
    [
        ({"mode": "AUTO"}, ToolChoice("auto")),
        ({"mode": "NONE"}, ToolChoice("none")),
        ({"mode": "ANY"}, ToolChoice("required")),
        ({"mode": "ANY", "allowedFunctionNames": ["f"]}, ToolChoice("tool", "f")),
        ({"mode": "ANY", "allowedFunctionNames": ["f", "g"]}, ToolChoice("required")),
        ({"mode": "VALIDATED"}, ToolChoice("auto")),
        ({"mode": "VALIDATED", "allowedFunctionNames": ["f"]}, ToolChoice("auto")),
    ],
)
def test_tool_choices_come_back(config: dict[str, Any], made: ToolChoice) -> None:
    body = {**HELLO, "toolConfig": {"functionCallingConfig": config, "retrievalConfig": {"languageCode": "x"}}}
    assert decode(body).tool_choice == made
    assert sent(body) == body


CONVERSATION = [
    {"role": "user", "parts": [{"text": "x"}, {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}]},
    {
        "role": "model",
        "parts": [
            {"text": "first", "thought": True, "thoughtSignature": "c2ln"},
            {"text": "so", "thoughtSignature": "dGV4dA=="},
            {"functionCall": {"name": "f", "args": {"a": 1.0}}, "thoughtSignature": "Y2FsbA=="},
            {"functionCall": {"name": "f", "args": {}}},
            {"functionCall": {"name": "g", "args": {}, "id": "own"}},
        ],
    },
    {
        "role": "user",
        "parts": [
            {"functionResponse": {"name": "g", "id": "own", "response": {"error": "no"}}},
            {"functionResponse": {"name": "f", "response": {"output": "1"}, "willContinue": False}},
            {"functionResponse": {"name": "f", "response": {}}},
            {"text": "and?"},
        ],
    },
    {
        "role": "model",
        "parts": [
            {"executableCode": {"language": "PYTHON", "code": "1"}},
            {"codeExecutionResult": {"outcome": "OUTCOME_OK"}},
            {"functionCall": {"name": "h", "args": {}}},
            {"text": "late thought", "thought": True},
            {"text": "after the call"},
        ],
    },
    {
        "role": "user",
        "parts": [{"fileData": {"fileUri": "https://youtu.be/x", "mimeType": "video/mp4"}, "videoMetadata": {"fps": 1}}],
    },
]


def test_a_conversation_becomes_messages_and_comes_back() -> None:
    request = decode({"contents": CONVERSATION})
    user, model, failed, first, second, more, _, clip = request.messages
    assert user.content == (TextPart("x"), AudioPart("AAAA", "wav"))
    assert model.thinking == (Thinking("first", "c2ln", dialect="gemini"),)
    assert model.content == (TextPart("so", {"thoughtSignature": "dGV4dA=="}),)
    assert model.tool_calls == (
        ToolCall("gemini-call-0", "f", '{"a":1.0}', "Y2FsbA=="),
        ToolCall("gemini-call-1", "f", "{}"),
        ToolCall("own", "g", "{}"),
    )
    assert (failed.tool_call_id, failed.is_error, failed.content) == ("own", True, '{"error":"no"}')
    assert (first.tool_call_id, first.content, first.is_error) == ("gemini-call-0", '{"output":"1"}', None)
    assert (second.tool_call_id, second.content) == ("gemini-call-1", "{}")
    assert more == Message("user", "and?")
    assert isinstance(clip.content, tuple)
    assert clip.content[0] == FilePart(url="https://youtu.be/x", media_type="video/mp4", extra={"videoMetadata": {"fps": 1}})
    assert sent({"contents": CONVERSATION}) == {"contents": CONVERSATION}


def test_googles_own_schemas_go_back_as_they_came_unless_somebody_changed_them() -> None:
    own = {"type": "OBJECT", "properties": {"a_b": {"type": "STRING", "nullable": True}}, "property_ordering": ["a_b"]}
    plain = {"type": "object", "properties": {"a_b": {"type": ["string", "null"]}}}
    body = {
        **HELLO,
        "tools": [{"functionDeclarations": [{"name": "f", "parameters": own}]}],
        "generationConfig": {"responseMimeType": "application/json", "responseSchema": own},
    }
    request = decode(body)
    assert request.tools[0].parameters == plain
    assert request.response_format == ResponseFormat("json_schema", {"name": "response", "schema": plain})
    assert sent(body) == body
    assert not leftovers(request, "openai_chat", "x"), "nothing is lost to others"
    changed = attrs.evolve(
        request,
        tools=(attrs.evolve(request.tools[0], parameters={"type": "object"}),),
        response_format=ResponseFormat("json_schema", {"name": "response", "schema": {"type": "object"}}),
    )
    out = json.loads(PROVIDER["gemini"].encode_request(changed, make_route()).body)
    assert out["tools"][0]["functionDeclarations"] == [{"name": "f", "parametersJsonSchema": {"type": "object"}}]
    assert out["generationConfig"] == {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object"}}


def test_schemas() -> None:
    assert json_schema(
        {
            "type": "ARRAY",
            "items": {"anyOf": [{"type": "NUMBER"}, {"type": "TYPE_UNSPECIFIED"}], "nullable": True},
            "minItems": "3",
            "example": 1,
        }
    ) == {"type": "array", "items": {"anyOf": [{"type": "number"}, {}, {"type": "null"}]}, "minItems": 3}
    assert json_schema({"type": "STRING", "enum": ["a"], "nullable": True}) == {"type": ["string", "null"], "enum": ["a", None]}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"contents": []}, "contents"),
        ({"contents": [{"role": "assistant", "parts": []}]}, "contents[0].role"),
        ({"contents": [{"parts": [{}]}]}, "contents[0].parts[0]"),
        ({"contents": [{"parts": [{"functionCall": {"name": "f"}}]}]}, "contents[0].parts[0]"),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "file:///etc/passwd"}}]}]}, "contents[0].parts[0].fileData.fileUri"),
        ({"contents": [{"parts": [{"text": 5}]}]}, "contents[0].parts[0].text"),
        ({"contents": [{"role": "model", "parts": [{"functionCall": {"args": {}}}]}]}, "contents[0].parts[0].functionCall.name"),
        ({"generationConfig": {"temperature": 3}}, "generationConfig.temperature"),
        ({"generationConfig": {"topK": 1.5}}, "generationConfig.topK"),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": -2}}}, "generationConfig.thinkingConfig.thinkingBudget"),
        ({"toolConfig": {"functionCallingConfig": {"mode": "SOME"}}}, "toolConfig.functionCallingConfig.mode"),
        ({"tools": [{"functionDeclarations": [{"name": ""}]}]}, "tools[0].functionDeclarations[0].name"),
        ({"systemInstruction": {"parts": []}}, "systemInstruction.parts"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    error = refusal({**HELLO, **change})
    assert (error.slug, error.details.param) == ("invalid_request", param)
    assert param in error.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"cachedContent": "cachedContents/x"}, "cachedContent"),
        ({"tools": [{"googleSearch": {}}]}, "tools[0].googleSearch"),
        ({"generationConfig": {"candidateCount": 2}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"responseLogprobs": True}}, "generationConfig.responseLogprobs"),
        ({"contents": [{"role": "model", "parts": [{"executableCode": {}}]}]}, "messages[0].content[0].executableCode"),
    ],
)
def test_what_no_other_format_can_say_is_refused_there(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ClawError) as caught:
        leftovers(decode({**HELLO, **change}), "openai_chat", "has no counterpart")
    assert (caught.value.slug, caught.value.details.param) == ("unsupported_parameter", param)


def test_what_is_harmless_is_told() -> None:
    request = decode({**HELLO, "safetySettings": [], "contents": CONVERSATION[:2], "labels": {}})
    assert [notice.details["param"] for notice in leftovers(request, "openai_chat", "x")] == ["safetySettings", "labels"]


def test_the_other_operations() -> None:
    counted = decode({"generateContentRequest": {**HELLO, "model": "models/m"}}, "/v1/models/m:countTokens")
    assert (counted.operation, counted.messages) == ("count_tokens", (Message("user", "hello"),))
    body = {"requests": [{"model": "models/m", "content": {"parts": [{"text": "a"}]}, "taskType": "X"}]}
    batch = decode(body, "/v1/models/m:batchEmbedContents")
    assert (batch.operation, batch.form) == ("embeddings", "batchEmbedContents")
    assert batch.messages == (Message("user", "a", extra={"taskType": "X"}),)
    assert sent(body, "/v1/models/m:batchEmbedContents") == body
    assert decode({"content": {"parts": [{"text": "a"}]}}, "/v1/models/m:embedContent").form == "embedContent"
    assert refusal({"requests": []}, "/v1/models/m:batchEmbedContents").details.param == "requests"


NAMES = st.sampled_from(["f", "g"])
OBJECTS = st.dictionaries(st.sampled_from(["a", "b_c"]), st.integers(-5, 5) | st.text(max_size=3) | st.none(), max_size=2)
SIGNED = st.sampled_from([{}, {"thoughtSignature": "c2ln"}])
CALL = st.builds(lambda name, args, sign: {"functionCall": {"name": name, "args": args}, **sign}, NAMES, OBJECTS, SIGNED)
THOUGHT = st.builds(lambda text, sign: {"text": text, "thought": True, **sign}, st.text(max_size=3), SIGNED)
SAID = st.builds(lambda text, sign: {"text": text, **sign}, st.text(max_size=3), SIGNED) | st.just(
    {"toolCall": {"toolType": "x"}}
)
ANSWER = st.builds(lambda name, it: {"functionResponse": {"name": name, "response": it}}, NAMES, OBJECTS)
BLOB = st.just({"inlineData": {"mimeType": "image/png", "data": "AAAA"}})


@given(
    st.lists(
        st.tuples(
            st.lists(SAID | BLOB | ANSWER, min_size=1, max_size=4), st.lists(CALL | THOUGHT | SAID, min_size=1, max_size=5)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_conversation_comes_back_in_its_order(turns: list[tuple[list[Any], list[Any]]]) -> None:
    contents = [{"role": role, "parts": parts} for user, model in turns for role, parts in (("user", user), ("model", model))]
    assert sent({"contents": contents}) == {"contents": contents}


def test_an_answer_without_an_id_is_its_names_oldest_open_call() -> None:
    calls: list[Any] = [{"functionCall": {"name": name}} for name in ("f", "g", "f")]
    answers: list[Any] = [{"functionResponse": {"name": name, "response": {}}} for name in ("g", "f", "f", "h")]
    request = decode({"contents": [{"role": "model", "parts": calls}, {"parts": answers}]})
    found = [message.tool_call_id for message in request.messages if message.role == "tool"]
    assert found == ["gemini-call-1", "gemini-call-0", "gemini-call-2", "gemini-call-3"], "the last answers no call"
