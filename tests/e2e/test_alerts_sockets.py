"""Alerts over real sockets (A32): the webhook and its signature, the file, the hook; no request waits for any of them."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import h11
import pytest
import trio

from clawproxy.config import AlertsConfig, BudgetConfig, Duration, ModelConfig, RouteConfig, SecretRef
from clawproxy.context import Alert
from clawproxy.hookspecs import hookimpl
from clawproxy.ops import alerts as module
from tests.e2e.harness import KEY, Running, gateway
from tests.e2e.http_client import Reply, chat

SECRET = "whsec-0123456789abcdef"
ORDER = ("audit", "auth", "sanitize", "truncate", "router", "meter")


@attrs.define
class Hook:
    """A webhook's receiver."""

    url: str
    posts: list[tuple[dict[str, str], bytes]] = attrs.field(factory=list)
    statuses: list[int] = attrs.field(factory=list)
    """What it answers next; 200 after that, and 0 hangs."""

    def events(self) -> list[str]:
        return [json.loads(body)["event"] for _, body in self.posts]

    async def serve(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER)
        headers: dict[str, str] = {}
        body = b""
        async with stream:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Request):
                    assert event.method == b"POST"
                    headers = {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            self.posts.append((headers, body))
            status = self.statuses.pop(0) if self.statuses else 200
            if status == 0:
                await trio.sleep_forever()
            answer = h11.Response(status_code=status, headers=[("content-length", "0"), ("connection", "close")])
            await stream.send_all((connection.send(answer) or b"") + (connection.send(h11.EndOfMessage()) or b""))


@asynccontextmanager
async def hooked(tmp_path: Path, *statuses: int, **changes: Any) -> AsyncIterator[tuple[Running, Hook]]:
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        hook = Hook(f"http://127.0.0.1:{listener.socket.getsockname()[1]}/hooks/T0P-S3CRET", statuses=list(statuses))
        nursery.start_soon(trio.serve_listeners, hook.serve, [listener])
        alerts = attrs.evolve(changes.pop("alerts", AlertsConfig()), url=SecretRef("", hook.url), secret=SecretRef("", SECRET))
        async with gateway(tmp_path, alerts=alerts, **changes) as running:
            yield running, hook
        nursery.cancel_scope.cancel()


async def ask(running: Running, prompt: str = "hello") -> Reply:
    with trio.fail_after(5):
        async with await running.connect() as connection:
            return await chat(connection, prompt, key=KEY, model="test-model")


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


def budget(**changes: Any) -> dict[str, BudgetConfig]:
    return {"few": BudgetConfig("key:test", "2 requests", "day", **changes)}


async def test_a_budget_that_is_used_up_is_posted_signed_and_once(tmp_path: Path) -> None:
    async with hooked(tmp_path, budgets=budget(soft="50%")) as (running, hook):
        assert [(await ask(running)).status for _ in range(5)] == [200, 200, 429, 429, 429]
        await until(lambda: len(hook.posts) == 2)
        await trio.sleep(0.02)
        assert hook.events() == ["budget.soft", "budget.exhausted"], "each once, however often"
        headers, body = hook.posts[1]
        said = json.loads(body)
        assert said["details"] == {"budget": "few", "scope": "key:test", "unit": "requests", "used": 2, "limit": 2}
        assert said["message"] == "Budget few is used up for key:test."
        assert headers["x-claw-event"] == "budget.exhausted"
        assert headers["x-claw-alert-id"] == said["id"]
        stamp, signature = (part.partition("=")[2] for part in headers["x-claw-signature"].split(","))
        assert abs(int(stamp) - time.time()) < 10
        assert signature == hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, "sha256").hexdigest()
        assert running.server.gateway.metrics.value("clawproxy_alerts_total", event="budget.exhausted") == 1
    [first, second] = (tmp_path / "state" / "events" / "alerts.jsonl").read_text().splitlines()
    assert json.loads(second) == said
    assert json.loads(first)["event"] == "budget.soft"
    assert (tmp_path / "state" / "events" / "alerts.jsonl").stat().st_mode & 0o777 == 0o600


async def test_a_webhook_that_fails_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01, 0.01))
    async with hooked(tmp_path, 500, 429, 200, budgets=budget()) as (running, hook):
        for _ in range(3):
            await ask(running)
        metrics = running.server.gateway.metrics
        await until(lambda: metrics.value("clawproxy_alert_posts_total", result="ok") == 1)
        assert len({json.loads(body)["id"] for _, body in hook.posts}) == 1
        assert len(hook.posts) == 3


@pytest.mark.parametrize(("statuses", "tries"), [((404,), 1), ((500, 500, 500, 500), 4), ((302,), 1)])
async def test_a_webhook_that_says_no_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], statuses: tuple[int, ...], tries: int
) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01, 0.01))
    async with hooked(tmp_path, *statuses, budgets=budget()) as (running, hook):
        for _ in range(3):
            await ask(running)
        metrics = running.server.gateway.metrics
        await until(lambda: metrics.value("clawproxy_alert_posts_total", result="failed") == 1)
        assert len(hook.posts) == tries
    assert "T0P-S3CRET" not in capfd.readouterr().err, "the address is a secret"


async def test_no_request_waits_for_a_webhook_that_hangs(tmp_path: Path) -> None:
    async with hooked(tmp_path, 0, 0, 0, budgets=budget()) as (running, hook):
        began = time.monotonic()
        assert [(await ask(running)).status for _ in range(4)] == [200, 200, 429, 429]
        await until(lambda: len(hook.posts) == 1)
        assert time.monotonic() - began < 3
        await until(lambda: (tmp_path / "state" / "events" / "alerts.jsonl").exists())


async def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    async with hooked(tmp_path, 0) as (running, _):
        alerts = running.server.gateway.alerts
        for number in range(2 * module.MOST_WAITING):
            alerts.tell("latency", str(number), "late")
        dropped = running.server.gateway.metrics.value("clawproxy_alerts_dropped_total", queue="webhook")
        assert module.MOST_WAITING - 2 <= dropped <= module.MOST_WAITING


@pytest.mark.parametrize(
    ("status", "code", "event"), [(401, "x", "provider.auth"), (429, "insufficient_quota", "provider.quota")]
)
async def test_credentials(tmp_path: Path, status: int, code: str, event: str) -> None:
    async with hooked(tmp_path) as (running, hook):
        running.provider.will_fail(status, body=json.dumps({"error": {"code": code, "message": "No."}}))
        assert (await ask(running)).status in (502, 503)
        await until(lambda: bool(hook.posts))
        assert hook.events() == [event]
        details = json.loads(hook.posts[0][1])["details"]
        assert (details["provider"], details["credential"]) == ("scripted", 0)
        assert "sk-canary" not in hook.posts[0][1].decode()


async def test_a_breaker_that_opens(tmp_path: Path) -> None:
    async with hooked(tmp_path) as (running, hook):
        for _ in range(12):
            await ask(running, "script: status 500")
        await until(lambda: "breaker.open" in hook.events())
        details = json.loads(hook.posts[hook.events().index("breaker.open")][1])["details"]
        assert (details["provider"], details["provider_model"]) == ("scripted", "scripted-1")


async def test_the_share_of_errors(tmp_path: Path) -> None:
    alerts = AlertsConfig(events=("error_rate",), error_rate="50%", window=Duration(1.0), least=4, repeat=Duration(0))
    async with hooked(tmp_path, alerts=alerts) as (running, hook):
        for prompt in ("hello", "script: status 500", "script: status 500", "script: status 500"):
            await ask(running, prompt)
        await until(lambda: len(hook.posts) == 2)
        said = [json.loads(body)["details"] for _, body in hook.posts]
        assert {each.get("provider") for each in said} == {None, "scripted"}
        assert (said[0]["requests"], said[0]["failed"], said[0]["share"]) == (4, 3, 0.75)


async def test_events_that_were_not_asked_for_are_not_told(tmp_path: Path) -> None:
    async with hooked(tmp_path, alerts=AlertsConfig(events=("breaker.open",)), budgets=budget(soft="50%")) as (running, hook):
        for _ in range(3):
            await ask(running)
        await running.at_rest()
        assert not hook.posts
    assert not (tmp_path / "state" / "events").exists()


async def test_plugins_are_told_without_any_setting(tmp_path: Path) -> None:
    seen: list[Alert] = []

    class Pager:
        @hookimpl
        def alert(self, event: Alert) -> None:
            seen.append(event)

    class Broken:
        @hookimpl
        def alert(self, event: Alert) -> None:
            raise ZeroDivisionError

    plugins: dict[str, object] = {"broken": Broken(), "pager": Pager()}
    from clawproxy.config import PipelineConfig

    order = PipelineConfig((*ORDER, "broken", "pager"))
    async with gateway(tmp_path, plugins=plugins, pipeline=order, budgets=budget()) as running:
        assert [(await ask(running)).status for _ in range(3)] == [200, 200, 429]
        assert [each.event for each in seen] == ["budget.exhausted"]
        assert seen[0].details["budget"] == "few"
        assert running.server.gateway.metrics.value("clawproxy_plugin_faults_total", plugin="broken", what="hook_failed") == 1


async def test_nothing_is_watched_where_no_threshold_is_set(tmp_path: Path) -> None:
    models = {"test-model": ModelConfig((RouteConfig("scripted", "scripted-1"),))}
    async with gateway(tmp_path, models=models) as running:
        assert running.server.gateway.alerts.watching is None
