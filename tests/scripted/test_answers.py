"""What each step puts on the wire, over real sockets."""

from __future__ import annotations

import json
from typing import Any

import h11
import pytest
import trio

from clawproxy.scripted import (
    Burst,
    ErrorEvent,
    Pause,
    Raw,
    Say,
    Script,
    ScriptedProvider,
    Status,
    Tokens,
    ToolCall,
)
from tests.scripted.raw_client import Clients, request_bytes

USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}


async def test_a_stream_byte_for_byte(provider: ScriptedProvider, connect: Clients) -> None:
    provider.will("header x-request-id: fixed; say Hi you; usage 7 2 cached 3; end")
    client = await connect(provider)
    await client.send(**USAGE)
    raw = await client.read_until(b"0\r\n\r\n")
    created = raw.partition(b'"created":')[2].partition(b",")[0]
    head = (
        b'{"id":"chatcmpl-scripted1","object":"chat.completion.chunk","created":%b,"model":"test-model","system_fingerprint":"fp_scripted"'
        % created
    )
    delta = b'data: %b,"choices":[{"index":0,"delta":{%b},"logprobs":null,"finish_reason":%b}],"usage":null}\n\n'
    events = [
        delta % (head, b'"role":"assistant","content":"","refusal":null', b"null"),
        delta % (head, b'"content":"Hi"', b"null"),
        delta % (head, b'"content":" you"', b"null"),
        delta % (head, b"", b'"stop"'),
        b'data: %b,"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,'
        b'"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":0}}}\n\n' % head,
        b"data: [DONE]\n\n",
    ]
    expected = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
        b"x-request-id: fixed\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
        + b"0\r\n\r\n"
    )
    assert raw == expected
    await provider.log.wait_for(lambda log: log.last.state == "finished")
    assert provider.log.last.bytes_sent == len(raw)
    assert provider.log.last.events_sent == len(events)


async def test_without_include_usage_no_usage_is_streamed(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will("say a; usage 1 2", "say a; usage 1 2 always")
    assert b"usage" not in (await client.ask()).body
    assert (await client.ask()).events[-1]["usage"]["total_tokens"] == 3


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ("usage 5 6", [5, 6, 11]),
        ("usage -5 6", [-5, 6, 1]),
        ("usage 5 6 contradictory", [5, 6, 1011]),
        ("usage 5 6 negative", [-5, -6, -11]),
        ("usage absurd", [10**15, 10**18, 10**15 + 10**18]),
        ("usage missing", None),
        ("chunk 1", [2, 2, 4]),
    ],
)
async def test_usage_figures(provider: ScriptedProvider, connect: Clients, usage: str, expected: list[int] | None) -> None:
    client = await connect(provider)
    provider.will(f"{usage}; say one two", f"{usage}; say one two")
    last = (await client.ask(**USAGE)).events[-1]
    whole = (await client.ask(stream=False)).json
    for answer in (last, whole):
        figures = answer.get("usage")
        keys = ("prompt_tokens", "completion_tokens", "total_tokens")
        assert (figures and [figures[key] for key in keys]) == expected


async def test_when_usage_comes(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will("say a; usage 1 2 late", "say a; usage 1 2 now; say b")
    late = (await client.ask(**USAGE)).body
    assert late.index(b"[DONE]") < late.index(b'"prompt_tokens"')
    now = (await client.ask(**USAGE)).body
    assert now.index(b'"prompt_tokens"') < now.index(b'"content":"b"')


@pytest.mark.parametrize(
    ("script", "pieces"),
    [
        ("say Hello  big world", ["Hello", "  big", " world"]),
        ("say* Hello big world", ["Hello big world"]),
        ("chunk 2; say a b c", ["a b", " c"]),
        ("tokens 3", [" tok0", " tok1", " tok2"]),
        ("echo", ["hello", " there"]),
        (r"say \u2028\u20ac \x00", ["\u2028€", " \x00"]),
        (r"say* \ud83d; say* \ude00", ["\ud83d", "\ude00"]),
        ("end", []),
    ],
)
async def test_content_events(provider: ScriptedProvider, connect: Clients, script: str, pieces: list[str]) -> None:
    client = await connect(provider)
    provider.will(script, script)
    events = (await client.ask()).events
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert [delta["content"] for delta in deltas[1:-1]] == pieces
    whole = (await client.ask(stream=False)).json
    joined = "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16")  # JSON joins the halves of a pair
    assert whole["choices"][0]["message"]["content"] == joined
    assert whole["choices"][0]["finish_reason"] == "stop"


async def test_reasoning_refusal_and_finish(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    script = "reasoning think hard; refusal I won't; finish content_filter"
    provider.will(script, script)
    deltas = [event["choices"][0] for event in (await client.ask()).events]
    assert "".join(choice["delta"].get("reasoning_content", "") for choice in deltas) == "think hard"
    assert "".join(choice["delta"].get("refusal") or "" for choice in deltas) == "I won't"
    assert [choice["finish_reason"] for choice in deltas if choice["finish_reason"]] == ["content_filter"]
    message = (await client.ask(stream=False)).json["choices"][0]["message"]
    assert message["reasoning_content"] == "think hard"
    assert message["refusal"] == "I won't"
    assert message["content"] is None


async def test_tool_calls_are_streamed_in_pieces(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    arguments = '{"city": "Zürich; CH"}'
    provider.will_say(ToolCall("weather", arguments), ToolCall("time", '{"broken'))
    events = (await client.ask()).events
    calls = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])]
    assert [call["function"]["name"] for call in calls if "id" in call] == ["weather", "time"]
    for index, expected in enumerate((arguments, '{"broken')):
        pieces = [call["function"]["arguments"] for call in calls if call["index"] == index]
        assert "".join(pieces) == expected
        assert len(pieces) >= 2
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("script", "body"),
    [
        (r"raw data: \xff\xfe\n\n: odd\n; end bare", b"data: \xff\xfe\n\n: odd\n"),
        ("comment OPENROUTER PROCESSING; end bare", b": OPENROUTER PROCESSING\n\n"),
        (r"comment two\nlines; end bare", b": two\n: lines\n\n"),
        (
            "unknown event; end bare",
            b'event: scripted.unknown\ndata: {"object":"scripted.unknown","note":"nobody knows this event"}\n\n',
        ),
        (
            "error type insufficient_quota code spent No more money",
            b'data: {"error":{"message":"No more money","type":"insufficient_quota","param":null,"code":"spent"}}\n\n',
        ),
    ],
)
async def test_odd_events(provider: ScriptedProvider, connect: Clients, script: str, body: bytes) -> None:
    provider.will(script)
    assert (await (await connect(provider)).ask()).body == body


async def test_bad_json_stops_in_the_middle_and_the_stream_goes_on(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will("say a; bad json; say b", "say a; bad json")
    lines = [line for line in (await client.ask()).body.split(b"\n\n") if line]
    assert lines[2].endswith(b'"content":"brok')
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[2][6:])
    assert lines[-1] == b"data: [DONE]"
    whole = await client.ask(stream=False)
    assert whole.headers["content-length"] == str(len(whole.body))
    with pytest.raises(json.JSONDecodeError):
        json.loads(whole.body)


async def test_ways_to_end(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will("say a; no done", "say a; end bare", "say a; error Broken", "say a; finish length; say b")
    no_done, bare, failed, twice = [await client.ask() for _ in range(4)]
    assert no_done.events[-1]["choices"][0]["finish_reason"] == "stop"
    assert b"[DONE]" not in no_done.body
    assert bare.text == "a"
    assert all(event["choices"][0]["finish_reason"] is None for event in bare.events)
    assert failed.events[-1]["error"]["message"] == "Broken"
    assert b"[DONE]" not in failed.body
    assert twice.text == "ab"
    assert [event["choices"][0]["finish_reason"] for event in twice.events].count("length") == 1


async def test_a_whole_answer_of_an_error_or_of_raw_bytes(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will_say(ErrorEvent("Broken", code="c"))
    provider.will_say(Say("lost"), Raw(b"<html>"))
    failed, raw = await client.ask(stream=False), await client.ask(stream=False)
    assert (failed.status, failed.json["error"]["code"]) == (200, "c")
    assert raw.body == b"<html>"


@pytest.mark.parametrize("stream", [True, False])
async def test_statuses(provider: ScriptedProvider, connect: Clients, stream: bool) -> None:
    client = await connect(provider)
    provider.will_fail(503, retry_after="7")
    provider.will('status 429 retry-after "Wed, 21 Oct 2026 07:28:00 GMT" header x-a: 1 header x-a: 2 body slow down')
    provider.will_say(Status(400, '{"error":{"code":"spent"}}'))
    provider.will("redirect https://elsewhere.example/v1", "status 204", "status 599 size 0", "framing chunked; status 500")
    overloaded, limited, spent, moved, nothing, odd, chunked = [await client.ask(stream=stream) for _ in range(7)]
    assert (overloaded.status, overloaded.headers["retry-after"]) == (503, "7")
    assert set(overloaded.json["error"]) == {"message", "type", "param", "code"}
    assert limited.headers["retry-after"] == "Wed, 21 Oct 2026 07:28:00 GMT"
    assert limited.raw.count(b"x-a: ") == 2
    assert (limited.body, limited.headers["content-type"]) == (b"slow down", "text/plain; charset=utf-8")
    assert spent.json == {"error": {"code": "spent"}}
    assert (moved.status, moved.headers["location"]) == (307, "https://elsewhere.example/v1")
    assert (nothing.status, nothing.body) == (204, b"")
    assert (odd.status, odd.body) == (599, b"")
    assert chunked.status == 500
    await provider.log.wait_for(lambda log: log.counts["finished"] == 7)
    assert [entry.status for entry in provider.log.entries] == [503, 429, 400, 307, 204, 599, 500]


@pytest.mark.parametrize("size", [0, 5, 23, 24, 25, 200_000])
async def test_an_error_body_of_any_size(provider: ScriptedProvider, connect: Clients, size: int) -> None:
    provider.will_say(Status(400, size=size))
    reply = await (await connect(provider)).ask()
    assert len(reply.body) == size
    if size > 24:
        assert reply.json["error"]["message"].strip("x") == ""


async def test_the_default_answer_names_words_of_the_prompt_and_counts_them(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    stream = await client.ask("one two three", **USAGE)
    whole = (await client.ask("one two three", stream=False)).json
    assert '"one two three"' in stream.text
    assert whole["choices"][0]["message"]["content"] == stream.text
    assert whole["usage"] == stream.events[-1]["usage"]
    assert whole["usage"]["prompt_tokens"] == 3
    assert whole["usage"]["completion_tokens"] == len(stream.text.split())


async def test_a_prompt_drives_its_own_answer(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will("say queued")
    assert (await client.ask("Do this.\nscript: say mine")).text == "mine"
    assert (await client.ask("```script\nsay fenced\n```")).text == "fenced"
    parts = [{"type": "text", "text": "script: say parts"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert (await client.ask(messages=[{"role": "user", "content": parts}])).text == "parts"
    assert (await client.ask()).text == "queued"
    wrong = await client.ask("script: say a; wrong")
    assert (wrong.status, wrong.json["error"]["code"]) == (400, "bad_script")
    assert "step 2: `wrong` is not a step" in wrong.json["error"]["message"]


async def test_which_script_applies(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.always("default")
    provider.by_model["special"] = Script.of("special")
    provider.will_say("first")
    said = [(await client.ask(model=model)).text for model in ("special", "special", "other")]
    assert said == ["first", "special", "default"]
    provider.reset()
    assert "scripted provider" in (await client.ask(model="special")).text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"[" * 100_000, None),
        ({"messages": [{"role": "user"}]}, "model"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": [{"content": "x"}]}, "messages[0]"),
    ],
)
async def test_bad_requests_get_an_openai_error(provider: ScriptedProvider, connect: Clients, body: object, param: str) -> None:
    client = await connect(provider)
    await client.stream.send_all(request_bytes(body))
    reply = await client.reply()
    assert (reply.status, reply.json["error"]["param"]) == (400, param)


async def test_models_and_unknown_paths(provider: ScriptedProvider, connect: Clients) -> None:
    provider.models = ("a", "b")
    client = await connect(provider)
    for target, status in ((b"GET /v1/models", 200), (b"GET /v1/nothing", 404), (b"GET /v1/chat/completions", 405)):
        await client.stream.send_all(target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        reply = await client.reply()
        assert reply.status == status
        assert [row["id"] for row in reply.json.get("data", [])] == (["a", "b"] if status == 200 else [])
    assert [entry.status for entry in provider.log.entries] == [200, 404, 405]


async def test_two_hundred_tokens_in_a_burst_take_few_reads(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will_say(Burst(), Tokens(200))
    await client.send()
    with trio.fail_after(5):
        first = await client.stream.receive_some(1_000_000)
    assert first.count(b"data: ") == 203  # role, tokens, finish, [DONE]: all in the first write
    assert first.endswith(b"0\r\n\r\n")


async def test_pauses_hold_a_whole_answer_back(provider: ScriptedProvider, connect: Clients) -> None:
    client = await connect(provider)
    provider.will_say("a", Pause(0.06), "b")
    started = trio.current_time()
    reply = await client.ask(stream=False)
    assert trio.current_time() - started >= 0.06
    assert reply.json["choices"][0]["message"]["content"] == "ab"


async def test_a_truncated_stream_is_an_error_to_a_strict_client(provider: ScriptedProvider, connect: Clients) -> None:
    provider.will("say a; cut")
    with pytest.raises(h11.RemoteProtocolError):
        await (await connect(provider)).ask()
