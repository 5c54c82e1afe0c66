"""The doors of a running gateway: TLS, Unix sockets, the admin listener, stored keys, models, draining, bad credentials."""

from __future__ import annotations

import json
import ssl
import time
from pathlib import Path

import attrs
import pytest
import trio
import trustme
from trio_websocket import ConnectionClosed, connect_websocket_url, open_websocket_url

from clawproxy.config import KeyConfig, SecretRef, ServerConfig, TLSConfig
from clawproxy.context import new_id
from clawproxy.keys import digest, generate
from clawproxy.stores.base import KeyRecord
from tests.e2e.harness import KEY, PROVIDER_KEY, Running, gateway, make_config
from tests.e2e.http_client import Reply, chat, chat_body, fetch


async def ask(running: Running, prompt: str, key: str = KEY) -> Reply:
    """One question on a connection of its own: a refusal may close it."""
    async with await running.connect() as connection:
        return await chat(connection, prompt, key=key)


async def test_one_port_for_http_and_websocket(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        with trio.fail_after(5):
            async with await running.connect() as connection:
                for path in ("/v1/chat/completions", "/openai/v1/chat/completions"):
                    fields = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
                    reply = await fetch(connection, "POST", path, headers=fields, body=chat_body("hello"))
                    assert reply.status == 200
                    assert reply.json()["choices"][0]["message"]["content"]
                    assert reply.headers["x-claw-route"]
                    assert "total" in reply.headers["server-timing"] or "policy" in reply.headers["server-timing"]
                for path in ("/v1/models", "/openai/v1/models"):
                    reply = await fetch(connection, "GET", path, headers={"authorization": f"Bearer {KEY}"})
                    assert [model["id"] for model in reply.json()["data"]] == ["test-model"]
            async with open_websocket_url(running.websocket) as ws:
                await ws.send_message(json.dumps({"type": "auth", "token": KEY}))
                assert json.loads(await ws.get_message())["type"] == "auth_ok"
                for number in range(3):
                    await ws.send_message(
                        json.dumps({"type": "llm_request", "id": f"r{number}", "model": "test-model", "prompt": "hello"})
                    )
                open_ids = {"r0", "r1", "r2"}
                while open_ids:
                    frame = json.loads(await ws.get_message())
                    if frame["type"] == "llm_response_end":
                        assert frame["outcome"] == "complete"
                        assert frame["usage"]["source"] == "measured"
                        open_ids.discard(frame["id"])


async def test_the_provider_sees_its_own_key_and_none_of_the_clients_headers(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        async with await running.connect() as connection:
            await chat(
                connection,
                "hello",
                key=KEY,
                headers={"x-claw-tenant": "other", "openai-organization": "evil", "cookie": "a=b", "x-forwarded-for": "1.2.3.4"},
            )
        [entry] = running.provider.log.entries
        names = {name.lower() for name, _ in entry.headers}
        assert names <= {
            "host",
            "authorization",
            "content-type",
            "content-length",
            "accept",
            "user-agent",
            "x-request-id",
            "accept-encoding",
        }
        from clawproxy.scripted import fingerprint

        assert entry.credential == fingerprint(f"Bearer {PROVIDER_KEY}")


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "invalid_api_key"),
        ({"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ({"authorization": "Bearer ' OR '1'='1"}, 401, "invalid_api_key"),
        ({"authorization": f"Bearer {KEY}", "x-api-key": "other"}, 400, "auth.ambiguous"),
    ],
)
async def test_who_may_not_come_in(tmp_path: Path, headers: dict[str, str], status: int, code: str) -> None:
    async with gateway(tmp_path) as running, await running.connect() as connection:
        with trio.fail_after(3):
            reply = await fetch(
                connection,
                "POST",
                "/v1/chat/completions",
                headers={"content-type": "application/json", **headers},
                body=chat_body("hello"),
            )
        assert (reply.status, reply.json()["error"]["code"]) == (status, code)
        assert not running.provider.log.requests


async def test_stored_keys_work_expire_and_are_revoked_within_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clawproxy.gateway.CREDENTIAL_CACHE", 0.2)
    async with gateway(tmp_path) as running:
        app = running.server.gateway.app
        token = generate().reveal()
        record = KeyRecord(new_id(), "stored", digest(app.pepper, token), token[:6], time.time(), models=("test-*",))
        await app.store.add_key(record)
        assert (await ask(running, "hello", key=token)).status == 200
        assert (await ask(running, "hello", key=record.digest.hex())).status == 401, "the stored hash is no credential"
        await app.store.revoke_key("stored", time.time())
        await trio.sleep(0.25)
        assert (await ask(running, "hello", key=token)).status == 401


async def test_a_key_with_no_right_to_a_model_does_not_learn_that_it_exists(tmp_path: Path) -> None:
    keys = {"narrow": KeyConfig(SecretRef("", KEY), models=("other-*",))}
    async with gateway(tmp_path, keys=keys) as running, await running.connect() as connection:
        reply = await chat(connection, "hello", key=KEY)
        assert (reply.status, reply.json()["error"]["code"]) == (404, "model_not_found")
        reply = await fetch(connection, "GET", "/v1/models", headers={"authorization": f"Bearer {KEY}"})
        assert reply.json()["data"] == []


async def test_admin_listener(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        host, port = running.admin.removeprefix("http://").split(":")
        async with await running.connect() as connection:
            await chat(connection, "hello", key=KEY)
            for path in ("/healthz", "/readyz", "/metrics"):
                assert (await fetch(connection, "GET", path)).status == 404, "never on the public listener"
        async with await trio.open_tcp_stream(host, int(port)) as admin:
            here = {"host": "localhost"}
            assert (await fetch(admin, "GET", "/healthz", headers=here)).body == b"ok\n"
            assert (await fetch(admin, "GET", "/readyz", headers=here)).json() == {"ready": True, "reasons": []}
            metrics = (await fetch(admin, "GET", "/metrics", headers=here)).body.decode()
            assert 'clawproxy_requests_total{outcome="complete",surface="openai_chat"} 1.0' in metrics
            assert 'clawproxy_provider_connections{provider="scripted",state="idle"} 1.0' in metrics
            assert all(line.startswith(("#", "clawproxy_")) for line in metrics.splitlines())
            assert (await fetch(admin, "GET", "/readyz", headers={"host": "attacker.example"})).status == 421
        async with await trio.open_tcp_stream(host, int(port)) as admin:
            running.server.gateway.draining = True
            reply = await fetch(admin, "GET", "/readyz", headers=here)
            assert (reply.status, reply.json()["reasons"]) == (503, ["draining"])


async def test_tls_from_client_to_gateway(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    certificate.private_key_pem.write_to_path(key)
    server = ServerConfig(listen=("127.0.0.1:0",), admin="127.0.0.1:0", state_dir=tmp_path / "state", tls=TLSConfig(chain, key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with gateway(tmp_path, server=server) as running:
        assert running.url.startswith("https://")
        with trio.fail_after(5):
            stream = await trio.open_ssl_over_tcp_stream(*running.address, ssl_context=context)
            reply = await chat(stream, "script: tokens 20 every 1ms", key=KEY, stream=True)
            assert reply.text().split()[-1] == "tok19"
            await trio.aclose_forcefully(stream)
            headers = [(b"authorization", f"Bearer {KEY}".encode())]
            async with open_websocket_url(running.websocket, ssl_context=context, extra_headers=headers) as ws:
                assert json.loads(await ws.get_message())["type"] == "auth_ok"
            # and a client that leaves is noticed behind TLS
            stream = await trio.open_ssl_over_tcp_stream(*running.address, ssl_context=context)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(chat_ignoring_the_end, stream)
                await running.provider.log.wait_for(lambda log: log.counts["in_progress"] == 1)
                nursery.cancel_scope.cancel()
            stream.transport_stream.socket.close()
            await running.provider.log.wait_for(lambda log: log.counts["closed_by_peer"] == 1)


async def chat_ignoring_the_end(stream: trio.abc.Stream) -> None:
    await chat(stream, "script: say one; stall", key=KEY, stream=True)


async def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "claw.sock"
    server = ServerConfig(listen=("127.0.0.1:0", f"unix:{path}"), admin="127.0.0.1:0", state_dir=tmp_path / "state")
    async with gateway(tmp_path, server=server):
        assert path.stat().st_mode & 0o777 == 0o600
        async with await trio.open_unix_socket(str(path)) as stream:
            assert (await chat(stream, "hello", key=KEY)).status == 200
    assert not path.exists()


async def test_draining_lets_streams_finish_and_ends_the_rest(tmp_path: Path) -> None:
    deadlines = attrs.evolve(make_config(tmp_path, "http://x").deadlines, drain=0.5)
    async with gateway(tmp_path, deadlines=deadlines) as running, trio.open_nursery() as nursery:
        replies = {}

        async def ask(name: str, script: str) -> None:
            async with await running.connect() as connection:
                replies[name] = await chat(connection, f"script: {script}", key=KEY, stream=True)

        nursery.start_soon(ask, "finishes", "say one; pause 200ms; say two words")
        nursery.start_soon(ask, "stalls", "say one; stall")
        ws = await connect_websocket_url(nursery, running.websocket, extra_headers=[(b"authorization", f"Bearer {KEY}".encode())])
        await ws.get_message()
        await ws.send_message(json.dumps({"type": "llm_request", "model": "test-model", "prompt": "script: say one; stall"}))
        await running.provider.log.wait_for(lambda log: log.counts["in_progress"] == 3)
        running.server.drain()
        frames = []

        async def read_to_the_end() -> None:
            while True:
                frames.append(json.loads(await ws.get_message()))

        with trio.fail_after(5):
            with pytest.raises(ConnectionClosed) as closed:
                await read_to_the_end()
            assert closed.value.reason is not None
            assert closed.value.reason.code in {1001, 1012}
            while len(replies) < 2:
                await trio.sleep(0.01)
        assert replies["finishes"].text().endswith("two words")
        assert json.loads(list(replies["stalls"].events())[-1])["error"]["code"] == "shutting_down"
        assert [f["error"] for f in frames if f["type"] == "error" and "id" in f] == ["shutting_down"]
        assert "going_away" in {f["type"] for f in frames}
        await trio.aclose_forcefully(ws._stream)
        nursery.cancel_scope.cancel()


async def test_no_secret_is_in_anything_that_was_kept(tmp_path: Path) -> None:
    async with gateway(tmp_path) as running:
        for prompt in (
            "hello",
            "script: status 401 body no",
            f"script: status 400 body Incorrect key {PROVIDER_KEY}",
            "script: cut",
        ):
            reply = await ask(running, prompt)
            assert PROVIDER_KEY[10:22] not in reply.body.decode()
    for path in (tmp_path / "state").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for secret in (KEY, PROVIDER_KEY):
                assert secret.encode() not in data, path
