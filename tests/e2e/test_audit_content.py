"""What was said, kept in the audit log: only where it is asked for, only encrypted, before or after the policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

import clawproxy_audit as audit
from clawproxy.config import Config, SecretRef
from clawproxy.context import App
from clawproxy.errors import ConfigError
from clawproxy.events import Batch, Text, ToolCallDelta
from clawproxy.messages import ChatRequest, Message
from clawproxy.secrets import Secret
from clawproxy.stores.memory import MemoryStore
from clawproxy_audit.content import Box, Kept
from tests.e2e.harness import KEY, gateway
from tests.e2e.http_client import chat

CONTENT_KEY = "an audit key of more than sixteen characters"
SECRET = "AKIAIOSFODNN7EXAMPLQ"
PROMPT = f"my key is {SECRET}, say it"


async def rows_after(tmp_path: Path, level: str) -> list[dict[str, Any]]:
    sections = {"audit": {"content": level, "content_key": CONTENT_KEY}}
    async with gateway(tmp_path, sections=sections) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                reply = await chat(connection, PROMPT, key=KEY, stream=True)
        assert reply.status == 200
    [path] = (tmp_path / "state" / "audit").glob("*.jsonl")
    assert SECRET.encode() not in path.read_bytes()
    assert b"my key is" not in path.read_bytes()
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(("level", "has_secret"), [("redacted", False), ("full", True)])
async def test_it_is_kept_sealed(tmp_path: Path, level: str, has_secret: bool) -> None:
    [row] = await rows_after(tmp_path, level)
    content = Box(Secret(CONTENT_KEY)).open(row["request_id"], row["content"])
    [message] = content["prompt"]
    assert message["role"] == "user"
    assert message["content"].startswith("my key is ")
    assert (SECRET in message["content"]) == has_secret
    assert content["answer"]
    assert SECRET not in content["answer"], "the answer is kept as the client received it"
    with pytest.raises(ValueError, match="another key"):
        Box(Secret("quite another key than that one")).open(row["request_id"], row["content"])
    with pytest.raises(ValueError, match="belongs to another row"):
        Box(Secret(CONTENT_KEY)).open("another", row["content"])


async def test_it_is_not_kept_unless_asked_for(tmp_path: Path) -> None:
    [row] = await rows_after(tmp_path, "none")
    assert "content" not in row


def test_it_is_bounded() -> None:
    kept = Kept(limit=10)
    kept.asked(ChatRequest("m", (Message("user", "é" * 4), Message("user", "abcdef"))))
    kept.see(Batch([Text("more"), ToolCallDelta(0, "c", "f", "{}")]))
    assert kept.content() == {
        "prompt": [{"role": "user", "content": "éééé"}, {"role": "user", "content": "ab"}],
        "answer": "",
        "tool_calls": [""],
        "cut": True,
    }


def test_it_is_bounded_whatever_a_provider_sends() -> None:
    """Pieces without end, and calls without end, hold no memory once there is no room."""
    kept = Kept(limit=10)
    for number in range(5000):
        kept.see(Batch([Text("abc"), Text(""), ToolCallDelta(number, "", "", "")]))
    assert kept.cut
    assert len(kept.answer) <= 10
    assert len(kept.calls) <= 256


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (audit.AuditSettings(content="full"), "content_key: is required"),
        (audit.AuditSettings(content="full", content_key=SecretRef("", "short")), "is shorter than 16 characters"),
        (audit.AuditSettings(content="full", content_key=SecretRef("env", "NOT_THERE")), "content_key: "),
    ],
)
def test_without_a_key_nothing_is_kept(settings: audit.AuditSettings, sentence: str) -> None:
    def resolve(ref: SecretRef) -> Secret:
        if ref.scheme:
            raise LookupError("is not set")
        return Secret(ref.value)

    app = App(Config(), MemoryStore(), "gw", None, resolve_secret=resolve)
    with pytest.raises(ConfigError, match=sentence):
        audit.configure(settings, app)
