"""Nothing of an answer passes by the policies: a key in any place of any format's answer never reaches a client."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio

from clawproxy.config import ModelConfig, RouteConfig
from clawproxy.scripted.script import parse
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, fetch
from tests.matrix import asking
from tests.matrix.asking import Ask
from tests.matrix.expected import BASE, PROVIDERS
from tests.policy.samples import ANTHROPIC_STREAM, CANARY, STREAMS, WHOLE, places, planted, written

MODELS = {f"via-{name}": ModelConfig((RouteConfig(name, "scripted-1"),)) for name in PROVIDERS}


async def asked(running: Running, client: str, provider: str, said: str, *, stream: bool) -> Reply:
    running.provider.will(parse(f"raw {json.dumps(said)}; end bare"))
    question = asking.HTTP[client](Ask("Go.", stream=stream), f"via-{provider}")
    async with await running.connect() as connection:
        headers = {"authorization": f"Bearer {KEY}", **question.headers}
        with trio.fail_after(10):
            return await fetch(connection, "POST", question.path, headers=headers, body=question.body)


@pytest.mark.parametrize("dialect", PROVIDERS)
async def test_no_place_of_a_stream_passes_a_key(tmp_path: Path, dialect: str) -> None:
    events, leaked = STREAMS[dialect], []
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        reply = await asked(running, dialect, dialect, written(dialect, events), stream=True)
        assert reply.status == 200
        assert b"anything" in reply.body or dialect == "openai_chat", "unknown fields pass, as ever"
        for path in places(events):
            for client in (dialect, "openai_chat"):
                reply = await asked(running, client, dialect, written(dialect, planted(events, path)), stream=True)
                if CANARY.encode() in reply.body or reply.status >= 500 or not reply.whole:
                    leaked.append((client, path, reply.status))
    assert not leaked, "\n".join(map(str, leaked))


@pytest.mark.parametrize("dialect", PROVIDERS)
async def test_no_place_of_a_whole_answer_passes_a_key(tmp_path: Path, dialect: str) -> None:
    document, leaked = WHOLE[dialect], []
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        reply = await asked(running, dialect, dialect, json.dumps(document), stream=False)
        assert reply.status == 200
        assert reply.json() == document
        for path in places(document):
            for client in (dialect, "openai_chat"):
                reply = await asked(running, client, dialect, json.dumps(planted(document, path)), stream=False)
                if CANARY.encode() in reply.body or reply.status != 200:
                    leaked.append((client, path, reply.status))
    assert not leaked, "\n".join(map(str, leaked))


@pytest.mark.parametrize("piece", [1, 4, 11])
async def test_a_key_in_pieces_of_what_has_no_word_does_not_pass_whole(tmp_path: Path, piece: int) -> None:
    """The input of a server's tool comes in pieces, and its events are the provider's own: no text of the vocabulary."""
    secret = "sk-proj-" + "Ab3" * 20
    text = json.dumps({"query": f"my {secret} ."})
    pieces = [text[at : at + piece] for at in range(0, len(text), piece)]
    place = next(number for number, event in enumerate(ANTHROPIC_STREAM) if "partial_json" in str(event))
    before, after = ANTHROPIC_STREAM[:place], ANTHROPIC_STREAM[place + 1 :]
    deltas = [{**ANTHROPIC_STREAM[place], "delta": {"type": "input_json_delta", "partial_json": each}} for each in pieces]
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        reply = await asked(running, "anthropic", "anthropic", written("anthropic", [*before, *deltas, *after]), stream=True)
    events = [json.loads(line[6:]) for line in reply.body.decode().splitlines() if line.startswith("data: ")]
    said = "".join(event["delta"].get("partial_json", "") for event in events if event["type"] == "content_block_delta")
    shown = [
        size for size in range(len(secret) + 1) if any(secret[at : at + size] in said for at in range(len(secret) - size + 1))
    ]
    assert "redacted" in said
    assert max(shown) < 24, said
    assert events[-1]["type"] == "message_stop"


async def test_escapes_hide_nothing_in_the_bytes_of_a_provider(tmp_path: Path) -> None:
    event = json.dumps({**ANTHROPIC_STREAM[-3], "words": "my CANARY ."}).replace("CANARY", "\\u0073" + CANARY[1:])
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        said = written("anthropic", ANTHROPIC_STREAM[:-2]) + f"event: not_yet_known_event\ndata: {event}\n\n"
        said += written("anthropic", ANTHROPIC_STREAM[-2:])
        reply = await asked(running, "anthropic", "anthropic", said, stream=True)
    assert reply.status == 200
    assert CANARY[1:].encode() not in reply.body
