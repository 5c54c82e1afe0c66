"""Keys over the admin listener, and how fast their end is noticed. Real sockets."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
import trio

from clawproxy import gateway as gateway_module
from clawproxy import recheck
from clawproxy.config import BudgetConfig, KeyConfig, ModelConfig, RoleConfig, RouteConfig, SecretRef, ServerConfig, Words
from clawproxy.ops import admin_keys

from .harness import KEY, Running, gateway
from .http_client import Reply, fetch
from .websocket_client import Frames, masked, open_raw

ADMIN = "operator-0123456789abcdef-0123456789"
MAKER = "sk-maker-0123456789abcdefghijklmnop"
ROLES = {
    "maker": RoleConfig(models=Words(("test-*",)), make_keys=True),
    "user": RoleConfig(models=Words(("*",))),
}
MODELS = {name: ModelConfig((RouteConfig("scripted", "scripted-1"),)) for name in ("test-model", "test-two", "secret-model")}


@asynccontextmanager
async def admin_gateway(tmp_path: Path, on_revoke: Literal["finish", "cut"] = "finish", **changes: Any) -> AsyncIterator[Running]:
    server = ServerConfig(
        listen=("127.0.0.1:0",),
        admin="127.0.0.1:0",
        state_dir=tmp_path / "state",
        admin_token=SecretRef("", ADMIN),
        on_revoke=on_revoke,
    )
    maker = KeyConfig(SecretRef("", MAKER), models=("test-*",), user="mia", team="red", roles=("maker",), tags=("x",))
    keys = {"test": KeyConfig(SecretRef("", KEY)), "mia": maker}
    changes = {"server": server, "keys": keys, "roles": ROLES, "models": MODELS, **changes}
    async with gateway(tmp_path, **changes) as running:
        yield running


async def at(url: str, method: str, path: str, token: str | None, said: Any = None, **headers: str) -> Reply:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    headers = {"host": f"127.0.0.1:{parts.port}", **headers}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    body = None
    if said is not None:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        headers.setdefault("content-type", "application/json")
    async with await trio.open_tcp_stream(parts.hostname, parts.port) as stream:
        with trio.fail_after(10):
            return await fetch(stream, method, path, headers=headers, body=body)


async def chat(running: Running, token: str, prompt: str = "hi", model: str = "test-model", **more: Any) -> Reply:
    said = {"model": model, "messages": [{"role": "user", "content": prompt}], **more}
    return await at(running.url, "POST", "/v1/chat/completions", token, said)


async def make(running: Running, token: str = ADMIN, **said: Any) -> str:
    reply = await at(running.admin, "POST", "/admin/keys", token, said)
    assert reply.status == 201, reply.body
    assert reply.headers["cache-control"] == "no-store"
    return str(reply.json()["key"])


async def test_a_key_from_birth_to_end(tmp_path: Path) -> None:
    async with admin_gateway(tmp_path) as running:
        key = await make(running, name="app", user="ann", models=["test-model"], expires="30d")
        assert (await chat(running, key)).status == 200
        assert (await chat(running, key, model="test-two")).status == 404
        listed = (await at(running.admin, "GET", "/admin/keys", ADMIN)).json()["keys"]
        assert [(each["name"], each["state"], each["user"], each["models"]) for each in listed] == [
            ("app", "good", "ann", ["test-model"])
        ]
        turned = await at(running.admin, "POST", "/admin/keys/app/rotate", ADMIN, {"overlap": "1h"})
        assert turned.status == 200
        fresh = turned.json()["key"]
        assert fresh != key
        assert (await chat(running, key)).status == 200
        assert (await chat(running, fresh)).status == 200
        shown = (await at(running.admin, "GET", "/admin/keys/app", ADMIN)).json()["keys"]
        old, new = sorted(shown, key=lambda each: str(each["expires"]))
        assert (old["state"], new["state"], old["expires"]) == ("good", "good", turned.json()["old_until"])
        assert new["begins"] == turned.json()["begins"] == fresh[5:11]
        again = await at(running.admin, "POST", "/admin/keys/app/rotate", ADMIN, {"overlap": "0s"})
        assert [(await chat(running, token)).status for token in (key, fresh, again.json()["key"])] == [401, 401, 200]
        assert (await at(running.admin, "DELETE", "/admin/keys/app", ADMIN)).json() == {"name": "app", "state": "revoked"}
        assert (await chat(running, again.json()["key"])).status == 401  # in this process at once
        assert (await at(running.admin, "POST", "/admin/keys/app/rotate", ADMIN)).status == 404
        text = json.dumps(listed) + json.dumps(shown)
        assert key not in text
        assert fresh not in text


async def test_a15_what_is_not_known_is_400_and_nothing_is_changed(tmp_path: Path) -> None:
    """A-15"""
    async with admin_gateway(tmp_path) as running:
        key = await make(running, name="app", roles=["user"])
        wrong: list[Any] = [
            {"name": "x", "role": "admin"},
            {"name": "x", "budget": 1e9},
            {"name": "x", "tenant_id": "other"},
            {"name": "x", "maker": "mia"},
            {"name": "x", "digest": "00"},
            {"name": "x", "id": "1", "revoked": None},
            {"name": "x", "models": "*"},
            {"name": "x", "models": []},
            {"name": "x", "models": ["a*b"]},
            {"name": "x", "roles": ["nobody"]},
            {"name": "x", "roles": [1]},
            {"name": "x", "user": "a\nb"},
            {"name": "x", "may_assert": 1},
            {"name": "x", "expires": "yesterday"},
            {"name": "x", "expires": "2001-01-01T00:00:00Z"},
            {"name": "../x"},
            {"name": ""},
            {},
            [],
            b"{",
            b'{"name": "x"',
        ]
        for said in wrong:
            for token in (ADMIN, MAKER):
                reply = await at(running.admin, "POST", "/admin/keys", token, said)
                assert reply.status in (400, 403 if token == MAKER else 400), (said, reply.body)
        for said in ({"overlap": "1h", "role": "admin"}, {"overlap": 5}, {"overlap": "91d"}, {"models": ["*"]}):
            assert (await at(running.admin, "POST", "/admin/keys/app/rotate", ADMIN, said)).status == 400
        for path in ("/admin/keys", "/admin/keys/app"):
            for method in ("PATCH", "PUT"):
                assert (await at(running.admin, method, path, ADMIN, {"role": "admin"})).status == 405
        assert (await at(running.admin, "POST", "/admin/keys", ADMIN, {"name": "x" * 70_000})).status == 413
        plain = {"content-type": "text/plain"}
        assert (await at(running.admin, "POST", "/admin/keys", ADMIN, {"name": "x"}, **plain)).status == 415
        taken = await at(running.admin, "POST", "/admin/keys", ADMIN, {"name": "app"})
        static = await at(running.admin, "POST", "/admin/keys", ADMIN, {"name": "mia"})
        assert (taken.status, static.status) == (409, 409)
        (record,) = (await at(running.admin, "GET", "/admin/keys", ADMIN)).json()["keys"]
        assert (record["name"], record["roles"], record["models"]) == ("app", ["user"], ["*"])
        assert (await chat(running, key)).status == 200


async def test_a16_a_key_makes_none_that_may_more(tmp_path: Path) -> None:
    """A-16"""
    async with admin_gateway(tmp_path) as running:
        beyond: tuple[dict[str, Any], ...] = (
            {"models": ["*"]},
            {"models": ["secret-model"]},
            {"models": ["test-model", "te*"]},
            {"roles": ["user"]},
            {"roles": ["maker", "user"]},
            {"roles": []},
            {"user": "bob"},
            {"team": "blue"},
            {"tags": []},
            {"tags": ["x", "region:us"]},
            {"may_assert": True},
        )
        for said in beyond:
            reply = await at(running.admin, "POST", "/admin/keys", MAKER, {"name": "child", **said})
            assert (reply.status, reply.json()["error"]["param"]) == (403, next(iter(said))), said
        child = await make(running, MAKER, name="child", models=["test-model"])
        assert (await chat(running, child)).status == 200
        assert (await chat(running, child, model="test-two")).status == 404
        assert (await chat(running, child, model="secret-model")).status == 404
        assert (await at(running.admin, "POST", "/admin/keys", child, {"name": "grandchild"})).status == 403
        assert (await at(running.admin, "POST", "/admin/keys", KEY, {"name": "x"})).status == 403
        await make(running, name="operators")
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
            assert (await at(running.admin, method, f"/admin/keys/operators{path}", MAKER)).status == 404
        seen = (await at(running.admin, "GET", "/admin/keys", MAKER)).json()["keys"]
        assert [(each["name"], each["made_by"], each["user"], each["team"]) for each in seen] == [("child", "mia", "mia", "red")]
        assert (await at(running.admin, "DELETE", "/admin/keys/child", MAKER)).status == 200
        assert (await at(running.admin, "POST", "/admin/keys", MAKER, {"name": "child"})).status == 409


async def test_a_made_key_lives_no_longer_than_its_maker(tmp_path: Path) -> None:
    async with admin_gateway(tmp_path) as running:
        maker = await make(running, name="boss", roles=["maker"], models=["test-*"], expires="1h")
        until = (await at(running.admin, "GET", "/admin/keys/boss", ADMIN)).json()["keys"][0]["expires"]
        longer = await at(running.admin, "POST", "/admin/keys", maker, {"name": "kid", "expires": "2h"})
        assert (longer.status, longer.json()["error"]["param"]) == (403, "expires")
        kid = await make(running, maker, name="kid")
        (record,) = (await at(running.admin, "GET", "/admin/keys/kid", ADMIN)).json()["keys"]
        assert (record["expires"], record["made_by"]) == (until, "boss")
        assert (await at(running.admin, "POST", "/admin/keys/kid/rotate", maker, {"expires": "2h"})).status == 403
        assert (await chat(running, kid)).status == 200
        assert (await at(running.admin, "DELETE", "/admin/keys/boss", ADMIN)).status == 200
        assert (await chat(running, kid)).status == 401  # what it made ends with it


async def test_who_makes_keys_can_not_fill_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with new names, ended ones included, nor with new secrets."""
    monkeypatch.setattr(admin_keys, "MOST_MADE", 4)
    async with admin_gateway(tmp_path) as running:
        for name in ("a", "b"):
            await make(running, MAKER, name=name)
        assert (await at(running.admin, "DELETE", "/admin/keys/a", MAKER)).status == 200
        turned = [(await at(running.admin, "POST", "/admin/keys/b/rotate", MAKER, {"overlap": "0s"})).status for _ in range(3)]
        assert turned == [200, 200, 403]
        assert (await at(running.admin, "POST", "/admin/keys", MAKER, {"name": "c"})).status == 403
        assert (await at(running.admin, "POST", "/admin/keys/b/rotate", ADMIN, {})).status == 200
        assert len(await running.server.gateway.app.store.keys()) == 5


async def test_a_key_has_no_name_that_others_are_booked_under(tmp_path: Path) -> None:
    introspection = {"url": "https://oauth.example/", "client_id": "gw", "client_secret": "x"}
    issuers = {"corp": {"issuer": "https://issuer.example", "audiences": ["gw"]}}
    sections = {"auth": {"introspection": introspection, "issuers": issuers}}
    async with admin_gateway(tmp_path, sections=sections) as running:
        for name in ("corp", "introspected"):
            assert (await at(running.admin, "POST", "/admin/keys", ADMIN, {"name": name})).status == 409


async def test_a_made_key_uses_its_makers_budget(tmp_path: Path) -> None:
    budgets = {"mia": BudgetConfig("key:mia", "2 requests", "day"), "each": BudgetConfig("key:*", "100 requests", "day")}
    async with admin_gateway(tmp_path, budgets=budgets) as running:
        child = await make(running, MAKER, name="child")
        assert [(await chat(running, token)).status for token in (MAKER, child, child, MAKER)] == [200, 200, 429, 429]


async def test_a17_who_administers_calls_no_models_and_the_data_port_has_no_admin(tmp_path: Path) -> None:
    """A-17"""
    async with admin_gateway(tmp_path) as running:
        assert (await chat(running, ADMIN)).status == 401
        assert (await at(running.url, "GET", "/v1/models", ADMIN)).status == 401
        for method in ("GET", "POST"):
            assert (await at(running.url, method, "/admin/keys", ADMIN, {} if method == "POST" else None)).status == 404
        assert (await at(running.admin, "GET", "/admin/keys", None)).status == 401
        assert (await at(running.admin, "GET", "/admin/keys", ADMIN + "x")).status == 401
        assert (await at(running.admin, "GET", "/admin/keys", ADMIN, origin="https://evil.example")).status == 403
        assert (await at(running.admin, "GET", "/admin/keys", ADMIN, host="attacker.com")).status == 421
        assert (await at(running.admin, "GET", f"/admin/keys?token={ADMIN}", None)).status == 401


async def test_a18_the_admin_token_can_not_be_guessed_at_leisure(tmp_path: Path) -> None:
    """A-18: the same counters, loopback included; the right one is never refused by them."""
    async with admin_gateway(tmp_path) as running:
        statuses = [(await at(running.admin, "GET", "/admin/keys", f"guess-{number:020}")).status for number in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        assert (await at(running.admin, "GET", "/admin/keys", ADMIN)).status == 200


# --- the end of a key ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "CREDENTIAL_CACHE", 0.15)
    monkeypatch.setattr(recheck, "EVERY", 0.05)


def test_a12_what_is_promised() -> None:
    """A-12: verdicts live for the one, rounds come every other; a second is left for the round itself. `tests/threats` has it in
    real time, over processes."""
    assert gateway_module.CREDENTIAL_CACHE + recheck.EVERY <= 4.0


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("on_revoke", ["finish", "cut"])
async def test_w33_what_runs_when_a_key_is_revoked(tmp_path: Path, on_revoke: Literal["finish", "cut"]) -> None:
    """W-33: on a WebSocket, on one that is idle, and over HTTP."""
    prompt = "script: say first; pause 1200ms; say last"
    async with admin_gateway(tmp_path, on_revoke) as running:
        key = await make(running, name="app")
        async with await running.connect() as busy, await running.connect() as idle, trio.open_nursery() as nursery:
            frames, quiet = Frames(busy, await open_raw(busy, key)), Frames(idle, await open_raw(idle, key))
            for each in (frames, quiet):
                assert (await each.next())["type"] == "auth_ok"
            await busy.send_all(
                masked(json.dumps({"type": "llm_request", "id": "a", "model": "test-model", "prompt": prompt}).encode())
            )
            replies: list[Reply] = []

            async def over_http() -> None:
                replies.append(await chat(running, key, prompt, stream=True))

            nursery.start_soon(over_http)
            while (await frames.next())["type"] != "llm_token":
                pass
            with trio.fail_after(5):
                while len(running.server.gateway.calls) < 2:
                    await trio.sleep(0.005)
            await running.server.gateway.app.store.revoke_key("app", time.time())
            with trio.fail_after(1):
                assert (await quiet.next())["error"] == "auth.expired"
            heard: list[dict[str, Any]] = []
            with trio.fail_after(5):
                while not heard or heard[-1].get("error") != "auth.expired" or "id" in heard[-1]:
                    heard.append(await frames.next())
            kinds = [each["type"] for each in heard]
        assert heard[-1]["error"] == "auth.expired"
        assert ("llm_response_end" in kinds) == (on_revoke == "finish")
        assert ("last" in replies[0].text()) == (on_revoke == "finish")
        assert (b"auth.expired" in replies[0].body or b"has expired or was revoked" in replies[0].body) == (on_revoke == "cut")


@pytest.mark.usefixtures("soon")
async def test_w33_a_rotated_secret_ends_its_connections_at_the_end_of_its_overlap(tmp_path: Path) -> None:
    async with admin_gateway(tmp_path) as running:
        key = await make(running, name="app")
        async with await running.connect() as old, await running.connect() as new:
            frames = Frames(old, await open_raw(old, key))
            assert (await frames.next())["type"] == "auth_ok"
            turned = await at(running.admin, "POST", "/admin/keys/app/rotate", ADMIN, {"overlap": "500ms"})
            fresh = Frames(new, await open_raw(new, turned.json()["key"]))
            assert (await fresh.next())["type"] == "auth_ok"
            with trio.fail_after(3):
                assert (await frames.next())["error"] == "auth.expired"
            with trio.move_on_after(0.3) as still_open:
                await fresh.next()
            assert still_open.cancelled_caught


@pytest.mark.usefixtures("soon")
async def test_w33_a_store_that_can_not_be_asked_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clawproxy.errors import ClawError

    async with admin_gateway(tmp_path) as running:
        key = await make(running, name="app")
        async with await running.connect() as stream:
            frames = Frames(stream, await open_raw(stream, key))
            assert (await frames.next())["type"] == "auth_ok"

            async def failing(digest: bytes) -> None:
                await trio.lowlevel.checkpoint()
                raise ClawError("store_unavailable")

            monkeypatch.setattr(running.server.gateway.app.store, "find_key", failing)
            with trio.move_on_after(0.5) as still_open:
                await frames.next()
            assert still_open.cancelled_caught
