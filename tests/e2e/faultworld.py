"""A provider that misbehaves, one that does not, and a gateway between them and a client: what `test_fault_*` stand on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import attrs
import trio

from clawproxy.clocks import Deadlines
from clawproxy.config import Duration, ModelConfig, ProviderConfig, RouteConfig, SecretRef
from clawproxy.errors import KINDS
from clawproxy.scripted import ScriptedProvider
from clawproxy.scripted.log import Entry
from clawproxy.stores.base import LedgerRow
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway
from tests.e2e.http_client import Reply, chat
from tests.e2e.test_cache import claw

Door = Literal["http", "websocket"]
DOORS: tuple[Door, ...] = ("http", "websocket")
LIMIT = 0.2
"""Seconds of each clock of the provider that misbehaves."""
OWN: Mapping[str, Duration] = {clock: Duration(LIMIT) for clock in ("connect", "first_token", "stall")}
QUICK: Mapping[str, Any] = {"first": "1ms", "longest": "1s"}


@attrs.frozen
class Seen:
    """What a client got, in the same words from each door."""

    status: int
    """Of the answer, or of the error in its middle."""
    slug: str
    """Empty where it was good."""
    text: str
    route: str
    """The provider that answered, as the answer's beginning says; empty where there was no answer."""
    message: str
    retry_after: float | None
    clock: str | None = None
    limit_ms: int | None = None
    setting: str | None = None
    notices: tuple[str, ...] = ()


@attrs.define
class World:
    running: Running
    bad: ScriptedProvider
    good: ScriptedProvider

    async def ask(self, door: Door, model: str = "alone", prompt: str = "hello", *, stream: bool = True) -> Seen:
        """Models: `alone` (the bad one only), `both` (the bad one, then the good one)."""
        with trio.fail_after(10):
            if door == "websocket":
                return _of_frames(await claw(self.running, prompt, model=model, parameters={"stream": stream}))
            async with await self.running.connect() as connection:
                return of_reply(await chat(connection, prompt, key=KEY, model=model, stream=stream))

    async def rows(self) -> list[LedgerRow]:
        """The ledger's, in the order they were opened; every one is closed."""
        with trio.fail_after(3):
            await self.running.at_rest()
        store = self.running.server.gateway.app.store
        await store.flush()
        rows = sorted(await store.rows(), key=lambda row: (row.opened.opened, row.opened.id))
        assert all(row.closed is not None for row in rows)
        return rows

    async def entries(self) -> Sequence[Entry]:
        """What reached the bad provider, once each is over."""
        with trio.fail_after(3):
            await self.bad.log.wait_for(lambda log: not log.in_progress)
        return [entry for entry in self.bad.log.entries if entry.method == "POST"]

    @property
    def health(self) -> Any:
        return self.running.server.gateway.app.shared.get("router.health")

    def fails_in_a_row(self) -> int:
        breaker = self.health.breakers.get(("bad", "m")) if self.health is not None else None
        return 0 if breaker is None else int(breaker.in_a_row)

    def credential(self) -> str:
        """`cooling`, `spent`, `disabled`, `refused 1`; empty where it is well."""
        record = self.health.credentials.get(("bad", 0)) if self.health is not None else None
        if record is None:
            return ""
        return str(record.why) or f"refused {record.refusals}"


@asynccontextmanager
async def world(
    tmp_path: Path, *, url: str | None = None, short: bool = False, router: Mapping[str, Any] | None = None, **changes: Any
) -> AsyncIterator[World]:
    """`url`: where the bad provider is, instead. `short`: its clocks are."""
    async with AsyncExitStack() as stack:
        bad, good = [await stack.enter_async_context(ScriptedProvider.running()) for _ in range(2)]
        good.always("from the good one")
        key = SecretRef("", PROVIDER_KEY)
        providers = {
            "bad": ProviderConfig(base_url=url or bad.base_url, api_key=key, deadlines=OWN if short else {}),
            "good": ProviderConfig(base_url=good.base_url, api_key=key),
        }
        models = {
            "alone": ModelConfig((RouteConfig("bad", "m"),)),
            "both": ModelConfig((RouteConfig("bad", "m"), RouteConfig("good", "m"))),
        }
        sections = {"router": {"retries": QUICK, **(router or {})}}
        settings: dict[str, Any] = {"providers": providers, "models": models, "sections": sections, "deadlines": Deadlines()}
        yield World(await stack.enter_async_context(gateway(tmp_path, **{**settings, **changes})), bad, good)


def of_reply(reply: Reply) -> Seen:
    assert reply.headers["x-request-id"]
    route = reply.headers.get("x-claw-route", "").partition("/")[0]
    notices = tuple(filter(None, reply.headers.get("x-claw-notice", "").split(", ")))
    asked = reply.headers.get("retry-after")
    if reply.status >= 400:
        error = reply.json()["error"]
        return Seen(reply.status, _slug(error), "", "", error["message"], None if asked is None else float(asked))
    assert reply.whole, "the body ends as its framing says, whatever the provider did"
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return Seen(200, "", reply.json()["choices"][0]["message"]["content"], route, "", None, notices=notices)
    *_, last = events = list(reply.events())
    if last == "[DONE]":
        return Seen(200, "", reply.text(), route, "", None, notices=notices)
    error = json.loads(last)["error"]
    assert "[DONE]" not in events, "an answer that failed has no [DONE]"
    return Seen(200, _slug(error), reply.text(), route, error["message"], None, notices=notices)


def _slug(error: Mapping[str, Any]) -> str:
    """Our own, by the code that this dialect has for it."""
    code = error["code"]
    return "provider_error.rate_limited" if code == KINDS["provider_error.rate_limited"].openai_code else str(code)


def _of_frames(frames: Sequence[Mapping[str, Any]]) -> Seen:
    start = next((frame for frame in frames if frame["type"] == "llm_response_start"), {})
    text = "".join(frame["content"] for frame in frames if frame["type"] == "llm_token")
    notices = tuple(frame["code"] for frame in frames if frame["type"] == "llm_notice")
    end = frames[-1]
    if end["type"] == "llm_response_end":
        return Seen(200, "", text, start["provider"], "", None, notices=notices)
    asked = end.get("retry_after_ms")
    known = (end.get("clock"), end.get("limit_ms"), end.get("setting"))
    status = 200 if start else end["code"]
    seconds = None if asked is None else asked / 1000
    return Seen(status, end["error"], text, start.get("provider", ""), end["message"], seconds, *known, notices=notices)


def error_of(reply: Reply) -> dict[str, Any]:
    """The error document, or the error event at the end of a stream."""
    if reply.status >= 400:
        return dict(reply.json()["error"])
    events = list(reply.events())
    assert "[DONE]" not in events, "an answer that failed has no [DONE]"
    assert reply.whole, "the body ends cleanly after the error event"
    return dict(json.loads(events[-1])["error"])


async def over_websocket(running: Running, prompt: str, **parameters: Any) -> list[dict[str, Any]]:
    return await claw(running, prompt, parameters=parameters)
