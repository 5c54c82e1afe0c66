from __future__ import annotations

import json

import pytest

from clawproxy.config import Config, ServerConfig
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head
from clawproxy.ops.admin import AdminPages
from clawproxy.ops.metrics import Metrics


class View:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.refusal: ClawError | None = None

    def admit(self) -> ClawError | None:
        return self.refusal


async def test_alive() -> None:
    answer = await AdminPages(View(), Config()).handle("GET", "/healthz")
    assert (answer.status, answer.body) == (200, b"ok\n")


async def test_ready_means_a_request_would_be_admitted() -> None:
    view = View()
    pages = AdminPages(view, Config())
    answer = await pages.handle("GET", "/readyz")
    assert (answer.status, json.loads(answer.body)) == (200, {"ready": True, "reasons": []})
    for slug, reason in {"shutting_down": "draining", "overloaded": "overloaded", "store_unavailable": "store"}.items():
        view.refusal = ClawError(slug)
        answer = await pages.handle("GET", "/readyz")
        assert (answer.status, json.loads(answer.body)) == (503, {"ready": False, "reasons": [reason]})
    assert answer.content_type == "application/json"
    assert (await pages.handle("GET", "/healthz")).status == 200


async def test_metrics() -> None:
    view = View()
    view.metrics.count("clawproxy_tokens_total", 5, direction="input")
    answer = await AdminPages(view, Config()).handle("GET", "/metrics")
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b'clawproxy_tokens_total{direction="input"} 5.0\n' in answer.body


async def test_other_paths_and_methods() -> None:
    pages = AdminPages(View(), Config())
    for path in ("/", "/metrics/", "/v1/models"):
        with pytest.raises(ClawError, match="endpoint_not_found"):
            await pages.handle("GET", path)
    with pytest.raises(ClawError, match="method_not_allowed"):
        await pages.handle("POST", "/healthz")
    assert (await pages.handle("HEAD", "/readyz")).status == 200


async def test_routes_look_at_the_host() -> None:
    routes = AdminPages(View(), Config()).routes()
    assert set(routes) == {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics")}
    serve = routes["GET", "/metrics"]
    good = await serve(Head("GET", "/metrics", "/metrics", "", (("host", "127.0.0.1:8643"),)), b"", "127.0.0.1")
    assert b"clawproxy_process_open_fds " in good.body
    with pytest.raises(ClawError, match="misdirected"):
        await serve(Head("GET", "/metrics", "/metrics", "", (("host", "attacker.com"),)), b"", "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("localhost", True),
        ("LOCALHOST:8643", True),
        ("claw.localhost", True),
        ("127.0.0.1:8643", True),
        ("127.9.9.9", True),
        ("[::1]:8643", True),
        ("10.0.0.7:8643", True),
        ("claw.internal:8643", True),
        (None, True),
        ("attacker.com", False),
        ("attacker.com:8643", False),
        ("127.0.0.1.attacker.com", False),
        ("localhost.attacker.com", False),
        ("localhost:", False),
        ("localhost:80:80", False),
        ("[::1", False),
        ("[::1]x", False),
        ("127.0.0.1@attacker.com", False),
        ("", False),
    ],
)
def test_hosts(host: str | None, served: bool) -> None:
    pages = AdminPages(View(), Config(server=ServerConfig(hosts=("Claw.internal",))))
    assert pages.admits(host) is served
