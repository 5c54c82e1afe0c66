"""What every provider format's figures come to in the ledger: hand-computed bills, figures that can not be, answers cut off; and
what of its errors a client reads."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from clawproxy.scripted.script import parse
from clawproxy.stores.base import LedgerRow
from tests.e2e.harness import PROVIDER_KEY, Running, gateway
from tests.matrix import asking
from tests.matrix.asking import Ask
from tests.matrix.expected import BASE, PROVIDERS
from tests.policy.prompts import REQUESTS
from tests.policy.samples import CANARY, STREAMS, WHOLE, written
from tests.policy.test_answers_canary import MODELS, asked
from tests.policy.test_prompts_canary import post

BILLS: dict[str, tuple[dict[str, Any], tuple[int | None, ...]]] = {
    "openai_chat": (
        {
            "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200,
            "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100},
            "completion_tokens_details": {"reasoning_tokens": 50},
        },
        (1000, 200, 600, 50),
    ),
    "openai_responses": (
        {
            "input_tokens": 1000, "output_tokens": 200, "total_tokens": 1200,
            "input_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100},
            "output_tokens_details": {"reasoning_tokens": 50},
        },
        (1000, 200, 600, 50),
    ),
    "anthropic": (
        {
            "input_tokens": 300, "cache_read_input_tokens": 600, "cache_creation_input_tokens": 100, "output_tokens": 200,
            "output_tokens_details": {"thinking_tokens": 50},
        },
        (1000, 200, 600, 50),
    ),
    "gemini": (
        {
            "promptTokenCount": 900, "toolUsePromptTokenCount": 100, "cachedContentTokenCount": 600, "candidatesTokenCount": 150,
            "thoughtsTokenCount": 50, "totalTokenCount": 1200,
        },
        (1000, 200, 600, 50),
    ),
    "ollama": ({"prompt_eval_count": 1000, "eval_count": 200}, (1000, 200, None, None)),
    "cohere": (
        {
            "billed_units": {"input_tokens": 1000.0, "output_tokens": 200.0},
            "tokens": {"input_tokens": 1300.0, "output_tokens": 210.0}, "cached_tokens": 600.0,
        },
        (1000, 200, 600, None),
    ),
}  # fmt: skip
"""Format -> its usage, and `(input, output, cached, reasoning)` of the ledger's row (WIRE 1.1 to 1.7)."""
HOSTILE: list[Any] = [-1, 10**30, 1.5, "7", None, True, [], {"a": 1}, [[[1]]], 2**31, -(2**70), "x" * 10_000]


def with_usage(dialect: str, usage: Any) -> dict[str, Any]:
    document = copy.deepcopy(WHOLE[dialect])
    if dialect == "ollama":
        return {**document, **usage} if isinstance(usage, dict) else {**document, "prompt_eval_count": usage, "eval_count": usage}
    return {**document, "usageMetadata" if dialect == "gemini" else "usage": usage}


async def last_row(running: Running) -> LedgerRow:
    store = running.server.gateway.app.store
    await running.at_rest()
    await store.flush()
    return max(await store.rows(), key=lambda row: row.opened.id)


@pytest.mark.parametrize("dialect", PROVIDERS)
async def test_a_bill_by_hand(tmp_path: Path, dialect: str) -> None:
    usage, expected = BILLS[dialect]
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        reply = await asked(running, dialect, dialect, json.dumps(with_usage(dialect, usage)), stream=False)
        assert reply.status == 200
        row = await last_row(running)
        assert row.closed is not None
        closed = row.closed
        assert (closed.input_tokens, closed.output_tokens, closed.cached_tokens, closed.reasoning_tokens) == expected
        assert closed.source == "measured"


@pytest.mark.parametrize("dialect", PROVIDERS)
async def test_figures_that_can_not_be_break_nothing_and_are_never_free(tmp_path: Path, dialect: str) -> None:
    usage, _ = BILLS[dialect]
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        for value in HOSTILE:
            spoilt = [{**usage, name: value} for name in usage] + [dict.fromkeys(usage, value)]
            for said in [*spoilt, value]:
                reply = await asked(running, "openai_chat", dialect, json.dumps(with_usage(dialect, said)), stream=False)
                assert reply.status == 200, (said, reply.body)
                row = await last_row(running)
                assert row.closed is not None
                for figure in (row.closed.input_tokens, row.closed.output_tokens):
                    assert figure is not None, said
                    assert 0 < figure < 2**31, (said, row.closed)


@pytest.mark.parametrize("dialect", PROVIDERS)
async def test_an_answer_cut_off_is_estimated_and_never_free(tmp_path: Path, dialect: str) -> None:
    whole = written(dialect, STREAMS[dialect])
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        for share in (0.2, 0.4, 0.6, 0.8, 0.95):
            running.provider.will(parse(f"raw {json.dumps(whole[: int(len(whole) * share)])}; cut"))
            path, body = REQUESTS[dialect]
            path = path.replace(":generateContent", ":streamGenerateContent?alt=sse")
            await post(running, path, {**body, "stream": True} if dialect != "gemini" else body, f"via-{dialect}")
            row = await last_row(running)
            assert row.closed is not None
            assert (row.closed.source, row.closed.outcome) == ("estimated", "provider_error.cut"), share
            assert row.closed.input_tokens
            assert row.closed.output_tokens is not None


@pytest.mark.parametrize("dialect", PROVIDERS)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 529])
async def test_no_error_tells_a_secret(tmp_path: Path, dialect: str, status: int) -> None:
    words = f"Key {PROVIDER_KEY} and {CANARY} of org-internal at https://internal.corp/x?key={PROVIDER_KEY} PRIVATEWORD"
    bodies = [
        {"error": {"message": words, "type": words, "code": words, "param": words, "status": words, "details": [{"x": words}]}},
        {"error": words},
        {"message": words, "type": "error", "id": words},
        words,
    ]
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        for document in bodies:
            for client in dict.fromkeys((dialect, "openai_chat", "gemini")):
                running.provider.will(parse(f"status {status} body {json.dumps(json.dumps(document))}"))
                question = asking.HTTP[client](Ask("Go."), f"via-{dialect}")
                reply = await post(running, question.path, json.loads(question.body), f"via-{dialect}")
                assert reply.status >= 400
                assert PROVIDER_KEY.encode() not in reply.body
                assert CANARY.encode() not in reply.body, reply.body
                if status != 400:
                    assert b"PRIVATEWORD" not in reply.body, reply.body
