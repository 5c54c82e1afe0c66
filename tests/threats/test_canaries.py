"""The canary sweep (K-01 to K-08 in one run): a gateway is used, misused, broken, reloaded and killed with keys that are random,
and then everything it left and everything it said is searched for them, in any encoding and in any piece of 12 characters.

Exempt are what `keys create` prints, and the file of the first key.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from joserfc import jwk, jws

from clawproxy.scripted import ScriptedProvider
from tests.e2e.harness import KEY, PROVIDER_KEY
from tests.e2e.process import CLI, Served, served
from tests.e2e.test_reload import World
from tests.matrix import asking
from tests.matrix.asking import Ask
from tests.matrix.expected import PROVIDERS
from tests.threats.kit import document, get, leaks, post, say
from tests.threats.left import found_in
from tests.threats.surroundings import ONCE, ORDER, every_dialect, installed, over_websocket

PLUGIN = '''
import os
import logging
from clawproxy import hookimpl


class Clumsy:
    """Knows the key, as plugins may, and fails with it in its hands."""

    def hold(self, hook, request_text):
        if f"fail in {hook}" in request_text:
            held = os.environ["CANARY_PROVIDER"]
            try:
                raise KeyError(held)
            except KeyError:
                raise RuntimeError("could not use " + held)

    @hookimpl
    async def prepare_request(self, exchange, request):
        exchange.state["clumsy"] = repr(request.messages)
        self.hold("prepare", exchange.state["clumsy"])

    @hookimpl
    def open_attempt(self, exchange, request, route, attempt):
        self.hold("open", exchange.state["clumsy"])

    @hookimpl
    def tap_response(self, exchange, route, attempt):
        self.hold("tap", exchange.state["clumsy"])

    @hookimpl
    def exchange_closed(self, exchange, outcome):
        self.hold("closed", exchange.state.get("clumsy", ""))


plugin = Clumsy()
'''


def canaries() -> dict[str, str]:
    """Names of variables, and the secrets in them: 192 random bits each, without a word that might stand elsewhere."""
    names = ("PROVIDER", "CLIENT", "OTHER_CLIENT", "NEXT_CLIENT", "PEPPER", "CONTENT", "ADMIN", "HEADER")
    return {f"CANARY_{name}": secrets.token_urlsafe(24) for name in names}


def settings(folder: Path, url: str, closed_port: int, *, level: str = "debug") -> str:
    base = url.removesuffix("/v1")
    return f"""
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
state_dir = "{folder}/state"
admin_token = "env:CANARY_ADMIN"
pepper = "env:CANARY_PEPPER"
[log]
level = "{level}"
{ORDER}
[plugins.audit]
content = "full"
content_key = "env:CANARY_CONTENT"
[plugins.auth.issuers.corp]
issuer = "https://login.test"
audiences = ["gateway"]
jwks = "file:{folder}/keys.json"
{ONCE}
[deadlines]
first_token = "1s"
{every_dialect(url, "env:CANARY_PROVIDER")}
[providers.tls]
base_url = "{base.replace("http:", "https:")}/v1"
api_key = "env:CANARY_PROVIDER"
[models.via-tls]
routes = [{{ provider = "tls", model = "x" }}]
[providers.nobody]
base_url = "http://127.0.0.1:{closed_port}/v1"
api_key = "env:CANARY_PROVIDER"
[models.via-nobody]
routes = [{{ provider = "nobody", model = "x" }}]
[keys.bench]
secret = "env:CANARY_CLIENT"
[keys.other]
secret = "env:CANARY_OTHER_CLIENT"
"""


class Run:
    """What was said to clients and operators, by whom."""

    def __init__(self, it: Served, provider: ScriptedProvider, held: Mapping[str, str]) -> None:
        self.it, self.provider, self.held = it, provider, held
        self.said: list[bytes] = []

    def auth(self, name: str = "CANARY_CLIENT") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.held.get(name, name)}"}

    async def say(self, data: bytes) -> int:
        raw = await say(self.it.address, data, seconds=20)
        self.said.append(raw.data)
        return raw.statuses[0] if raw.statuses else 0

    async def page(self, path: str) -> bytes:
        host, _, port = self.it.ready["admin"].removeprefix("http://").rpartition(":")
        raw = await say((host, int(port)), f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        self.said.append(raw.data)
        return raw.data

    async def websocket(self, path: str, token: str, *frames: object) -> None:
        self.said.append(await over_websocket(self.it.address, path, token, *frames))


def token_of(folder: Path) -> str:
    key = jwk.ECKey.generate_key("P-256", {"kid": "a"})
    (folder / "keys.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    claims = {"iss": "https://login.test", "aud": "gateway", "sub": secrets.token_hex(8), "exp": time.time() + 600}
    return jws.serialize_compact({"alg": "ES256", "kid": "a"}, json.dumps(claims).encode(), key, ["ES256"])


def command(folder: Path, environ: Mapping[str, str], *words: str) -> bytes:
    """What a command prints, whichever way."""
    done = subprocess.run(
        [*CLI, *words, "--config", str(folder / "clawproxy.toml")],
        capture_output=True,
        env={**os.environ, **environ},
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


async def use(run: Run, jwt: str, created: str) -> None:
    """Every door, well and badly."""
    provider, canary = run.provider, run.held["CANARY_PROVIDER"]
    echo = [
        "reply",
        f'status 401 body {{"error":{{"message":"Incorrect API key provided: {canary}","code":"{canary}"}}}}',
        f"status 400 body {canary}",
        f"redirect http://127.0.0.1:1/?key={canary}",
        f"say one; error code {canary} {canary}",
        f"header x-request-id: {canary}; say one",
        f'raw "data: {canary}\\n\\n"',
        f'raw head "HTTP/1.1 200 {canary}\\r\\nx\\r\\n\\r\\n"',
        "status 429 retry-after 1",
        "say one; cut",
    ]
    for dialect in PROVIDERS:
        for script in echo:
            question = asking.HTTP[dialect](Ask("Go.", stream=len(run.said) % 2 == 0), f"via-{dialect}")
            provider.will(script)
            before = provider.log.requests
            await run.say(post(question.body, question.path, headers={**run.auth(), **question.headers}))
            assert provider.log.requests > before, "the provider was asked"
            provider.queue.clear()
    for credential in (jwt, created, jwt[:-2] + "AA", created[:-1], run.held["CANARY_CLIENT"][:-1], "x"):
        await run.say(post(document(model="via-openai_chat"), headers=run.auth(credential)))
    for hook in ("prepare", "open", "tap", "closed"):
        await run.say(
            post(document(model="via-openai_chat", messages=[{"role": "user", "content": f"fail in {hook}"}]), headers=run.auth())
        )
    for model in ("via-tls", "via-nobody", "none"):
        await run.say(post(document(model=model), headers=run.auth()))
    for name in ("x-api-key", "api-key", "x-goog-api-key"):
        await run.say(
            post(document(model="via-openai_chat"), headers={"Authorization": "", name: run.held["CANARY_OTHER_CLIENT"]})
        )
        await run.say(post(document(model="via-openai_chat"), headers={**run.auth(), name: run.held["CANARY_OTHER_CLIENT"]}))
    client = run.held["CANARY_CLIENT"]
    await run.say(get(f"/v1/models?key={client}"))
    await run.say(get(f"/websocket?token={client}", "Upgrade: websocket\r\nConnection: Upgrade\r\n"))
    await run.say(get(f"/{client}"))
    await run.say(post(b"{" + client.encode(), headers=run.auth()))
    await run.say(f"GET / HTTP/1.1\r\nHost: {client}\r\nAuthorization: Bearer {client}\n\r\n".encode())
    await run.say(f"{client} / HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    for path in ("/v1/models", "/v1/catalog", "/v1/me", "/v1/usage", "/v1/health", "/api/tags"):
        for credential in ("CANARY_CLIENT", jwt, created):
            await run.say(get(path, f"Authorization: {run.auth(credential)['Authorization']}\r\n"))
    asked = {"type": "llm_request", "id": "r", "model": "via-openai_chat", "prompt": f"script: error code a {canary}"}
    await run.websocket("/websocket", client, asked)
    await run.websocket("/websocket", jwt, {**asked, "prompt": "hi"})
    await run.websocket("/websocket", "x", {"type": "auth", "token": client + "x"})
    await run.websocket("/v1/responses", client, {"type": "response.create", "model": "via-openai_responses", "input": "hi"})
    for page in ("/metrics", "/readyz", "/healthz", "/", f"/admin/{run.held['CANARY_ADMIN']}"):
        await run.page(page)


BROKEN = [
    """[providers.a]
base_url = "http://a.test"
api_key = {{ value = "{0}" }}
[providers.b]
base_url = "http://a.test"
api_key = ["{0}"]
[providers.c]
base_url = "https://user:{0}@a.test/v1"
[providers.d]
base_url = "https://a.test/v1?key={0}"
[providers.e]
base_url = "http://a.test"
headers = {{ x-key = "{0}\\n" }}
[providers.f]
base_url = "http://a.test"
headers = {{ x-key = ["{0}"] }}
[providers.g]
base_url = "http://a.test"
api_keys = "{0}"
[providers.h]
base_url = "http://a.test"
proxy = "http://u:{0}@p:x"
[keys.a]
secret = ["{0}"]
[keys.b]
secrets = "{0}"
""",
    "[providers.a]\nx = {0}\n",
    "[providers.a]\napi_key = '{0}\n",
    "[providers.a]\nbase_url = 'ftp://a.test/?{0}'\n",
    "[keys.a]\nsecret = '{0}'\nmodels = 5\n",
]
"""What an operator may get wrong about a secret that stands in the file itself: the sentence about it must not quote it."""


async def reload(run: Run, world: World, folder: Path) -> None:
    """Bad files, one after the other; then a good one."""
    for number, text in enumerate(BROKEN):
        before = await world.reloads("failed")
        world.write(world.text + text.format(run.held["CANARY_HEADER"]))
        world.hang_up()
        await world.until("failed", before + 1)
        await run.page("/readyz")
        if number < 2:
            run.said.append(await trio.to_thread.run_sync(command, folder, run.held, "check"))
    changed = world.text.replace('level = "debug"', 'level = "info"').replace("CANARY_OTHER_CLIENT", "CANARY_NEXT_CLIENT")
    for text in (changed, world.text):
        before = await world.reloads("ok")
        world.write(text)
        world.hang_up()
        await world.until("ok", before + 1)


@asynccontextmanager
async def the_world(tmp_path: Path, held: Mapping[str, str]) -> AsyncIterator[tuple[Run, World]]:
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        site = installed(tmp_path, PLUGIN)
        async with ScriptedProvider.running() as provider:
            text = settings(tmp_path, provider.url, unused.getsockname()[1])
            environ = {**held, "PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}"}
            async with served(tmp_path, text, **environ) as it:
                yield Run(it, provider, environ), World(it, provider, tmp_path / "clawproxy.toml", text)


@pytest.mark.slow
async def test_k07_no_key_is_found_after_all_of_it(tmp_path: Path) -> None:
    """K-07 among the others: the level goes to debug and back while it runs. At the end, kill -9 and a start on what it left."""
    held = canaries()
    jwt = token_of(tmp_path)
    with trio.fail_after(180):
        async with the_world(tmp_path, held) as (run, world):
            made = await trio.to_thread.run_sync(command, tmp_path, run.held, "keys", "create", "made")
            created = next(word for word in made.decode().split() if word.startswith("claw") and len(word) > 30)
            await use(run, jwt, created)
            await reload(run, world, tmp_path)
            run.said.append(Path(f"/proc/{run.it.process.pid}/cmdline").read_bytes())
            for words in (["keys", "list", "--json"], ["audit", "verify"], ["audit", "export"], ["check", "--edge"]):
                run.said.append(await trio.to_thread.run_sync(command, tmp_path, run.held, *words))
            await run.say(post(document(model="via-openai_chat"), headers=run.auth()))
            log = run.it.stderr.read_bytes()
            await run.it.stop(signal.SIGKILL)
            async with served(tmp_path, world.text, **run.held) as again:
                run.it = again
                await run.say(post(document(model="via-openai_chat"), headers=run.auth()))
                await again.stop()
                log += again.stderr.read_bytes() + again.stdout.read_bytes()
    wanted = {**held, "the created key": created, "the JWT": jwt}
    found = leaks(log, wanted) + leaks(b"\n".join(run.said), wanted)
    for path in sorted((tmp_path / "state").rglob("*")):
        if path.is_file() and path.name != "first-key":
            found += [f"{path.name}: {each}" for each in leaks(path.read_bytes(), wanted)]
    assert not found, "\n".join(found)
    events = {json.loads(line)["event"] for line in log.splitlines() if line.startswith(b"{")}
    assert {"exchange.closed", "plugin.hook_failed", "config.reload_failed", "auth.refused"} <= events, "it was used"
    assert sum(b"HTTP/1.1 200" in said for said in run.said) > 20
    assert len([path for path in (tmp_path / "state").rglob("*") if path.is_file()]) > 3


def test_the_sweep_finds_what_it_looks_for() -> None:
    secret = secrets.token_urlsafe(24)
    raw = secret.encode()
    for shift in range(3):
        beside = b"xyz"[:shift] + raw + b"tail"
        assert leaks(base64.b64encode(beside), {"a": secret})
        assert leaks(base64.urlsafe_b64encode(beside), {"a": secret})
    for written in (
        raw, raw[5:17], raw.hex().encode(), raw.hex().upper().encode(), "".join(f"%{byte:02x}" for byte in raw).encode(),
        urllib.parse.quote(secret).encode(), "".join(f"\\u{byte:04x}" for byte in raw).encode(), json.dumps([secret]).encode(),
    ):  # fmt: skip
        assert leaks(b"before " + written + b" after", {"a": secret})
    assert not leaks(raw[:11] + b" " + raw[11:22], {"a": secret})


def test_what_the_suite_leaves_is_swept(tmp_path: Path) -> None:
    """The sweep after the session (`tests/conftest.py`) sees a piece of a key in a store, and not the one in a configuration."""
    (tmp_path / "state" / "events").mkdir(parents=True)
    (tmp_path / "clawproxy.toml").write_text(KEY)
    (tmp_path / "state" / "events" / "a.jsonl").write_text("nothing")
    assert found_in(tmp_path) == []
    (tmp_path / "state" / "events" / "b.jsonl").write_bytes(b"\0" + KEY[7:19].encode() + b"\0")
    (tmp_path / "stderr").write_text(PROVIDER_KEY)
    assert len(found_in(tmp_path)) == 2
    shutil.rmtree(tmp_path)  # the sweep after the session is not to find it
