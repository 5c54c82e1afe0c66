from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest

from clawproxy.ops.admin import AdminPages
from clawproxy.ops.metrics import Metrics


class View:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.reasons: list[str] = []
        self.reload_problems: list[str] = []

    def not_ready(self) -> Sequence[str]:
        return self.reasons

    def provider_states(self) -> Mapping[str, Mapping[str, object]]:
        return {}


async def test_alive() -> None:
    answer = await AdminPages(View()).handle("GET", "/healthz")
    assert (answer.status, answer.body) == (200, b"ok\n")


async def test_ready_means_a_request_would_be_admitted() -> None:
    view = View()
    pages = AdminPages(view)
    answer = await pages.handle("GET", "/readyz")
    assert (answer.status, json.loads(answer.body)) == (200, {"ready": True, "reasons": []})
    view.reload_problems = ["claw.toml:3: server.listen: is changed"]
    answer = await pages.handle("GET", "/readyz")
    said = {"ready": True, "reasons": [], "reload_failed": ["claw.toml:3: server.listen: is changed"]}
    assert (answer.status, json.loads(answer.body)) == (200, said)
    view.reload_problems = []
    view.reasons = ["draining", "store"]
    answer = await pages.handle("GET", "/readyz")
    assert (answer.status, json.loads(answer.body)) == (503, {"ready": False, "reasons": ["draining", "store"]})
    assert answer.content_type == "application/json"
    assert (await pages.handle("GET", "/healthz")).status == 200


async def test_metrics() -> None:
    view = View()
    view.metrics.count("clawproxy_tokens_total", 5, direction="input")
    answer = await AdminPages(view).handle("GET", "/metrics")
    assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b'clawproxy_tokens_total{direction="input"} 5.0\n' in answer.body


async def test_other_paths_and_methods() -> None:
    pages = AdminPages(View())
    assert (await pages.handle("GET", "/")).status == 404
    assert (await pages.handle("GET", "/metrics/")).status == 404
    answer = await pages.handle("POST", "/healthz")
    assert (answer.status, answer.headers) == (405, {"allow": "GET, HEAD"})
    assert (await pages.handle("HEAD", "/readyz")).status == 200


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
    pages = AdminPages(View(), ["Claw.internal"])
    assert pages.admits(host) is served
    assert pages.misdirected().status == 421
