"""What providers report of tokens that are billed apart: each class where it belongs, and what is not said is None, not zero."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clawproxy.dialects.anthropic.words import read_usage as anthropic
from clawproxy.dialects.gemini.provider_answer import read_usage as gemini
from clawproxy.dialects.openai_chat.provider_answer import StreamDecoder, WholeDecoder
from clawproxy.dialects.openai_chat.provider_answer import read_usage as chat
from clawproxy.dialects.openai_responses.provider_answer import read_usage as responses
from clawproxy.events import UsageReport
from clawproxy.messages import Usage
from clawproxy.testing import make_request

APART = (
    "cache_write_1h_tokens",
    "cached_audio_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "image_output_tokens",
    "service_tier",
)


def apart(usage: Usage | None) -> dict[str, Any]:
    assert usage is not None
    return {name: value for name in APART if (value := getattr(usage, name)) is not None}


def test_openai_chat() -> None:
    said = {
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 40, "image_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 900},
    }
    told = {"audio_input_tokens": 40, "image_input_tokens": 7, "audio_output_tokens": 50, "service_tier": "flex"}
    assert apart(chat(said, "flex")) == told, "a part is never more than its whole"
    assert apart(chat({"prompt_tokens": 1, "completion_tokens": 1})) == {}
    for odd in (7, "", "x" * 33, "a\nb", ["flex"]):
        assert apart(chat({"prompt_tokens": 1}, odd)) == {}


def test_the_service_tier_stands_beside_the_usage() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    choice = {"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}
    chunk = {"id": "c", "model": "m", "service_tier": "priority", "choices": [choice], "usage": None}
    last = {**chunk, "choices": [], "usage": usage}
    decoder = StreamDecoder(make_request(stream=True))
    batch = decoder.feed(b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in (chunk, last)))
    assert batch is not None
    [report] = [event for event in batch.events if isinstance(event, UsageReport)]
    assert report.usage.service_tier == "priority"
    whole = WholeDecoder(make_request())
    document = {"id": "c", "choices": [{"message": {"content": "hi"}}], "service_tier": "flex", "usage": usage}
    whole.feed(json.dumps(document).encode())
    batch = whole.close()
    assert batch is not None
    [report] = [event for event in batch.events if isinstance(event, UsageReport)]
    assert report.usage.service_tier == "flex"


@pytest.mark.parametrize(
    ("total", "taken"),
    [
        (100 + 50 + 30, 80),  # reasoning is counted beside the answer, and the total says so
        (100 + 50, 50),  # it is part of the answer
        (None, 50),
        (7, 50),
    ],
)
def test_reasoning_beside_the_answer_is_output_too(total: int | None, taken: int) -> None:
    said = {"prompt_tokens": 100, "completion_tokens": 50, "completion_tokens_details": {"reasoning_tokens": 30}}
    usage = chat(said if total is None else {**said, "total_tokens": total})
    assert usage is not None
    assert (usage.output_tokens, usage.reasoning_tokens) == (taken, 30)


def test_openai_responses() -> None:
    said = {"input_tokens": 100, "output_tokens": 50, "input_tokens_details": {"cached_tokens": 10, "image_tokens": 60}}
    assert apart(responses(said, "default")) == {"image_input_tokens": 60, "service_tier": "default"}
    assert apart(responses({"input_tokens": 1})) == {}


def test_anthropic() -> None:
    said = {
        "input_tokens": 3,
        "cache_creation_input_tokens": 2_500,
        "cache_read_input_tokens": 10_007,
        "cache_creation": {"ephemeral_5m_input_tokens": 2_000, "ephemeral_1h_input_tokens": 500},
        "output_tokens": 1_033,
        "service_tier": "standard",
    }
    usage = anthropic(said)
    assert apart(usage) == {"cache_write_1h_tokens": 500, "service_tier": "standard"}
    assert usage is not None
    assert (usage.input_tokens, usage.cached_tokens, usage.cache_write_tokens) == (12_510, 10_007, 2_500)
    assert apart(anthropic({**said, "speed": "fast"}))["service_tier"] == "fast"
    assert apart(anthropic({"input_tokens": 3, "cache_creation": {"ephemeral_1h_input_tokens": -1}})) == {}


def test_gemini() -> None:
    said = {
        "promptTokenCount": 4_000,
        "candidatesTokenCount": 273,
        "thoughtsTokenCount": 128,
        "cachedContentTokenCount": 1_000,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 2_080}, {"modality": "AUDIO", "tokenCount": 1_920}],
        "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 320}, {"modality": "TEXT", "tokenCount": 680}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 200}],
        "serviceTier": "SERVICE_TIER_FLEX",
    }
    assert apart(gemini(said)) == {
        "cached_audio_tokens": 320,
        "audio_input_tokens": 1_920,
        "image_output_tokens": 200,
        "service_tier": "flex",
    }
    assert apart(gemini({"promptTokenCount": 4})) == {}


@pytest.mark.parametrize("odd", [None, 7, "x", {}, [None, 7, {"modality": "AUDIO"}, {"modality": "AUDIO", "tokenCount": "9"}]])
def test_geminis_details_can_be_anything(odd: object) -> None:
    names = ("promptTokensDetails", "cacheTokensDetails", "candidatesTokensDetails")
    said = {"promptTokenCount": 4, "candidatesTokenCount": 1, "serviceTier": odd, **dict.fromkeys(names, odd)}
    assert apart(gemini(said)).keys() <= {"service_tier"}
