"""Chunks read by what they have in common, held to the same chunks read in full."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawproxy.dialects import PROVIDER
from clawproxy.dialects.openai_chat.provider_answer import StreamDecoder
from clawproxy.events import Batch, Text
from clawproxy.testing.factories import make_request


def chunk(delta: Any, escaped: bool = True, **more: Any) -> bytes:
    fields = {"id": "c1", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}], **more}
    return b"data: " + json.dumps(fields, ensure_ascii=escaped, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n\n"


WORDS = st.sampled_from(
    [
        "a",
        " token",
        "",
        '"',
        "\\",
        'x"},"finish_reason":null}]}',
        '"content":"a"',
        "\n",
        "\0",
        "\x7f",
        "é",
        "\U0001f600",
        "\ud800",
    ]
)
CONTENTS = st.builds(lambda word, escaped: chunk({"content": word}, escaped), WORDS, st.booleans())
OTHERS = st.one_of(
    st.builds(lambda word: chunk({"content": word}, id="content"), WORDS),
    st.builds(lambda word: chunk({"content": word}, note={"content": word}), WORDS),
    st.builds(lambda word: chunk({"content": "a", "reasoning": word}), WORDS),
    st.builds(lambda word: chunk({"audio": {"transcript": "t", "content": word}}), WORDS),
    st.builds(lambda word: chunk({"content": [{"text": word, "content": word}]}), WORDS),
    st.builds(lambda word: chunk({"content": word}, usage={"prompt_tokens": 1}), WORDS),
    st.builds(lambda word: chunk({"content": word}, error=word), WORDS),
    st.sampled_from(
        [
            chunk({"role": "assistant", "content": ""}),
            chunk({"reasoning_content": "r"}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
            chunk({}, choices=[{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]),
            chunk({}, choices=[{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]),
            chunk({}, choices=[]),
            chunk({"content": "a"})[:-2] + b"\r\n\r\n",
            chunk({"content": "a"}).replace(b"data: ", b"data:"),
            chunk({"content": "a"}).replace(b"data: ", b"id: 7\ndata: "),
            chunk({"content": "a"}).replace(b"data: ", b"event: error\ndata: "),
            chunk({"content": "a"}).replace(b'"a"', b'"a","content":"b"'),
            chunk({"content": "a"}).replace(b'"a"', b'"\xff"'),
            chunk({"content": "a"}).replace(b'"a"', b'"a\tb"'),
            chunk({"content": "a"}).replace(b'"a"', b'"a\n\nb"'),
            chunk({"content": "a"}).replace(b'"a"', b'"a" '),
            chunk({"content": "a"}).replace(b'"c1"', b'"\xff"'),
            b": a comment\n\n",
            b"data: {}\n\n",
            b"data: [DONE]\n\n",
            b"\n\n",
            b"data: x\n\n",
        ]
    ),
)
STREAMS = st.lists(CONTENTS | CONTENTS | OTHERS, max_size=12).map(lambda pieces: chunk({"role": "assistant"}) + b"".join(pieces))


def shown(batch: Batch | None) -> object:
    return None if batch is None else (repr(batch.events), batch.raw)


@settings(max_examples=1500)
@given(STREAMS, st.lists(st.integers(0, 2000), max_size=6), st.booleans())
@example(b"".join([chunk({"role": "assistant"}), *[chunk({"content": "a"})] * 3, b"data: [DONE]\n\n"]), [], True)
def test_the_short_way_reads_the_same(stream: bytes, cuts: list[int], include_usage: bool) -> None:
    request = make_request(stream=True, include_usage=include_usage)
    short, full = StreamDecoder(request), StreamDecoder(request)
    full._alike.tries = 0
    places = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(places):
        assert shown(short.feed(stream[start:end])) == shown(full.feed(stream[start:end]))
    assert shown(short.close()) == shown(full.close())
    assert short.done == full.done


def test_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = PROVIDER["openai_chat"].decoder(make_request(stream=True))
    decoder.feed(chunk({"role": "assistant", "content": ""}))
    decoder.feed(chunk({"content": "a"}))
    monkeypatch.setattr(StreamDecoder, "_block", None)
    for word in ("b", 'say "c"\n', "é\U0001f600"):
        batch = decoder.feed(chunk({"content": word}))
        assert batch is not None
        assert batch.events == [Text(word)]
        assert batch.raw == chunk({"content": word})
    both = chunk({"content": "d"}) + chunk({"content": "e"}, escaped=False)
    batch = decoder.feed(both)
    assert batch is not None
    assert (batch.events, batch.raw) == ([Text("d"), Text("e")], both)


def test_a_field_that_changes_with_each_chunk_is_studied_a_few_times_only() -> None:
    decoder = StreamDecoder(make_request(stream=True))
    decoder.feed(chunk({"role": "assistant", "content": ""}))
    for number in range(10):
        batch = decoder.feed(chunk({"content": "a"}, obfuscation=str(number)))
        assert batch is not None
        assert batch.events == [Text("a")]
    assert decoder._alike.tries == 0
