"""No text of a request passes by the policies: a key in any place of any format's request never reaches a provider."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, fetch
from tests.matrix.expected import BASE, PROVIDERS
from tests.policy.prompts import EMBEDDINGS, REQUESTS
from tests.policy.samples import CANARY, places, planted
from tests.policy.test_answers_canary import MODELS

pytestmark = pytest.mark.slow

PLAIN = ("server_url", "mimeType", "media_type", "input_type", "embedding_types", "image_url", "detail", "responseMimeType")
"""Fields with words of their format's own, or addresses."""


async def post(running: Running, path: str, body: dict[str, Any], model: str, key: str = KEY) -> Reply:
    text = json.dumps(body if "{model}" in path else {"model": model, **body}).replace("{model}", model).encode()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    async with await running.connect() as connection:
        with trio.fail_after(10):
            return await fetch(connection, "POST", path.replace("{model}", model), headers=headers, body=text)


def hidden(body: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """The body with the key in one place after the other, and the place."""
    for path in places(body):
        if not set(path) & set(PLAIN) and "images" not in path:
            if path[-1] == "file_data":
                made = planted(body, path)
                at: Any = made
                for step in path[:-1]:
                    at = at[step]
                at["file_data"] = "data:text/plain;base64," + base64.b64encode(f"my {CANARY} .".encode()).decode()
                yield path, made
            else:
                yield path, planted(body, path)
    for path in objects(body):
        made = json.loads(json.dumps(body))
        inside: Any = made
        for step in path:
            inside = inside[step]
        inside[f"my {CANARY}"] = 1
        yield (*path, "KEY"), made


def objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        yield path
        for key, item in value.items():
            yield from objects(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from objects(item, (*path, number))


def seen_by(running: Running) -> str:
    return str([(entry.target, entry.headers, entry.body_bytes) for entry in running.provider.log.entries])


@pytest.mark.parametrize("provider", ["", "openai_chat", "anthropic"])
@pytest.mark.parametrize("client", REQUESTS)
async def test_no_place_of_a_request_passes_a_key(tmp_path: Path, client: str, provider: str) -> None:
    path, body = REQUESTS[client]
    provider = provider or client
    leaked: list[Any] = []
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        reply = await post(running, path, body, f"via-{provider}")
        assert reply.status == (200 if provider == client else reply.status), reply.body
        for place, made in hidden(body):
            running.provider.log.clear()
            reply = await post(running, path, made, f"via-{provider}")
            said = seen_by(running)
            coded = base64.b64encode(f"my {CANARY} .".encode()).decode()
            if CANARY in said or coded in said or reply.status >= 500:
                leaked.append((place, reply.status))
    assert not leaked, "\n".join(map(str, leaked))


@pytest.mark.parametrize("client", EMBEDDINGS)
async def test_no_place_of_what_is_embedded_passes_a_key(tmp_path: Path, client: str) -> None:
    path, body = EMBEDDINGS[client]
    leaked: list[Any] = []
    async with gateway(tmp_path, models=MODELS, dialects=BASE) as running:
        for provider in PROVIDERS:
            for place, made in hidden(body):
                running.provider.log.clear()
                reply = await post(running, path, made, f"via-{provider}")
                if CANARY in seen_by(running) or reply.status >= 500:
                    leaked.append((provider, place, reply.status, reply.body[:200]))
    assert not leaked, "\n".join(map(str, leaked))
