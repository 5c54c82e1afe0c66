"""B-05 and B-08: clients that leave at random bytes. Each attempt has a row that is charged, `estimated`, and as near to what the
provider said by then as docs/budgets.md states: within a third, and what was on its way.

The truth is counted by the vocabulary of the provider's model, of the words that it says it sent. `CLAW_DISCONNECTS=1000`
is the long form.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest
import trio

from clawproxy.config import BudgetConfig, ModelConfig, Price, PriceConfig, RouteConfig
from clawproxy.counting import counter_for
from clawproxy.scripted import Entry, parse
from clawproxy.stores.base import LedgerClose
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import chat_body
from tests.e2e.test_claw_socket import Socket
from tests.e2e.websocket_client import open_raw

COUNT = int(os.environ.get("CLAW_DISCONNECTS", "50"))
AT_ONCE = 50
TEXT = " ".join(
    [
        "A gateway stands between the people who ask and the models that answer. It counts what is said on both sides, because",
        "somebody has to pay for it in the end, and because nobody likes a bill that was only guessed. When a reader closes the",
        "window in the middle of a sentence, the machine at the other end has already worked for every word that it sent, and",
        "perhaps for a few more. What is written down then is an estimate, it says so, and it is never nothing at all.",
    ]
    * 4
)
ON_ITS_WAY = 12
"""Tokens that the provider has sent, and nobody read: the client was gone."""
MODELS = {
    "test-model": ModelConfig(
        (RouteConfig("scripted", "gpt-4o-mini"),), price=PriceConfig(Price(1_000_000), Price(2_000_000))
    )
}  # fmt: skip


async def leave_http(running: Running, prompt: str, after: int) -> None:
    body = chat_body(prompt, stream=True, max_tokens=4000)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\n"
    async with await running.connect() as stream:
        await stream.send_all(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        with trio.fail_after(30):
            while after > 0 and (data := await stream.receive_some(min(after, 512))):
                after -= len(data)


async def leave_websocket(running: Running, prompt: str, after: int) -> None:
    async with await running.connect() as stream:
        ws = Socket(stream, await open_raw(stream, KEY))
        await ws.hear("auth_ok")
        await ws.ask(prompt, parameters={"max_tokens": 4000})
        with trio.fail_after(30):
            while after > 0 and (data := await stream.receive_some(min(after, 512))):
                after -= len(data)


def is_near(closed: LedgerClose, entry: Entry, words: list[str]) -> bool:
    """Whether the estimate is as near to the truth as the docs say. `events_sent`: the role, then each word with its blank."""
    count = counter_for("gpt-4o-mini")
    assert count is not None
    truth = count(" ".join(words[: max(0, entry.events_sent - 1)]))
    charged = closed.output_tokens or 0
    return abs(charged - truth) <= truth / 3 + ON_ITS_WAY


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:open_binary is deprecated")
async def test_b_05_clients_that_leave_at_random_bytes(tmp_path: Path) -> None:
    pytest.importorskip("bpe_openai", reason="the `tokenizers` extra")
    chance = random.Random(5)
    words = TEXT.split(" ")
    budgets = {"day": BudgetConfig("global", "1_000_000_000 tokens", "day"), "money": BudgetConfig("key:*", "$1000", "day")}
    seen: Counter[str] = Counter()
    async with gateway(tmp_path, budgets=budgets, models=MODELS) as running:
        running.provider.log.max_entries = 10**6
        running.provider.default = parse(f"pace 1ms; say {TEXT}; end")
        prompt = "Tell me what a gateway is for, in plain words and at some length, as you would to a friend."
        for _ in range(-(-COUNT // AT_ONCE)):
            async with trio.open_nursery() as nursery:
                for _ in range(min(AT_ONCE, COUNT)):
                    leave = leave_websocket if chance.random() < 0.3 else leave_http
                    nursery.start_soon(leave, running, prompt, chance.randrange(0, 40_000))
            with trio.fail_after(10):
                await running.at_rest()
                await running.provider.log.wait_for(lambda log: not log.in_progress)
        store = running.server.gateway.app.store
        rows = {row.opened.id: row.closed for row in await store.rows()}
        given = 0
        charged = {"tokens": 0, "nano": 0}
        for entry in running.provider.log.entries:
            closed = rows[entry.header("x-request-id") or ""]
            assert closed is not None
            seen[f"{closed.outcome} {closed.source}"] += 1
            given = closed.input_tokens or 0
            assert given > 0
            assert closed.cost_nano == given * 1000 + (closed.output_tokens or 0) * 2000
            charged["tokens"] += given + (closed.output_tokens or 0)
            charged["nano"] += closed.cost_nano
            if entry.state != "finished":
                assert closed.source == "estimated"
                assert is_near(closed, entry, words), f"{closed} {entry.state} {entry.events_sent}"
        assert await store.holding() == 0
        assert len(rows) >= len(running.provider.log.entries) >= 0.9 * COUNT
        for total in await store.totals():
            assert (total.used, total.overrun) == (charged[total.account.unit], 0)
    print(dict(seen))
    assert seen["client_gone estimated"] > COUNT / 3
