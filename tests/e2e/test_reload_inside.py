"""Hot reload seen from inside the process: what generations share, what a replaced one leaves behind, what plugins may refuse."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
import trio.testing
import trustme

from clawproxy.config import PipelineConfig, ProviderConfig, ServerConfig, TLSConfig
from clawproxy.context import Registry
from clawproxy.errors import ConfigError
from clawproxy.hookspecs import hookimpl
from tests.e2e.harness import CALM, KEY, PROVIDER_KEY, Running, descriptors, gateway
from tests.e2e.http_client import Reply, chat
from tests.e2e.test_claw_socket import socket, text

OTHER_KEY = "sk-test-9876543210zyxwvutsrqponm"


@attrs.define
class World:
    running: Running
    file: Path

    def write(
        self, *, url: str | None = None, provider: str = "scripted", key: str = KEY, extra: str = "", pool: int = 512
    ) -> None:
        base = f'base_url = "{url or self.running.provider.base_url}"'
        self.file.write_text(f"""
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
state_dir = "{self.file.parent}/state"
[providers.{provider}]
{base}
api_key = "{PROVIDER_KEY}"
pool = {{ max = {pool} }}
[models.test-model]
routes = [{{ provider = "{provider}", model = "scripted-1", context_tokens = 100000 }}]
[keys.test]
secret = "{key}"
{extra}
""")

    async def reload(self) -> bool:
        with trio.fail_after(5):
            return await self.running.server.reloader.reload("test")

    async def ask(self, prompt: str = "script: say hello", key: str = KEY, **changes: Any) -> Reply:
        async with await self.running.connect() as stream:
            return await chat(stream, prompt, key=key, **changes)

    @property
    def problems(self) -> str:
        return "\n".join(self.running.server.gateway.reload_problems)


@asynccontextmanager
async def world(tmp_path: Path, **changes: Any) -> AsyncIterator[World]:
    file = tmp_path / "clawproxy.toml"
    async with gateway(tmp_path, path=file, **changes) as running:
        yield World(running, file)


async def test_a_running_stream_outlives_its_provider(tmp_path: Path) -> None:
    """R-05, R-06. Provider, pool and the model's route are gone from the file; the answer ends as if nothing had been."""
    async with world(tmp_path) as it, trio.open_nursery() as nursery:
        replies: list[Reply] = []

        async def ask() -> None:
            replies.append(await it.ask("script: say one; pause 300ms; say two", stream=True))

        nursery.start_soon(ask)
        with trio.fail_after(5):
            await it.running.provider.log.wait_for(lambda log: log.in_progress)
        it.write(provider="another", url="http://127.0.0.1:1/v1")
        assert await it.reload()
        reloader = it.running.server.reloader
        assert it.running.server.gateway.current.number == 2
        assert set(reloader.statistics()) == {"another"}
        assert (await it.ask()).status == 502, "new requests go where the new configuration says"
        with trio.fail_after(5):
            while not replies:
                await trio.sleep(0.01)
        assert replies[0].whole
        assert replies[0].text() == "onetwo"
        store = it.running.server.gateway.app.store
        await it.running.at_rest()
        await store.flush()
        assert {row.opened.generation for row in await store.rows()} == {1, 2}
        with trio.fail_after(5):
            await it.running.provider.log.wait_for(lambda log: log.open_connections == 0)  # its pool keeps nothing


async def test_an_unchanged_provider_keeps_its_connections_and_a_changed_one_does_not(tmp_path: Path) -> None:
    """R-04: what is derived from the configuration is made anew where its part changed, and only there."""
    async with world(tmp_path) as it:
        pools = it.running.server.reloader.statistics
        await it.ask()
        assert (pools()["scripted"].opened_total, pools()["scripted"].idle) == (1, 1)
        it.write()
        assert await it.reload()
        await it.ask()
        assert (pools()["scripted"].opened_total, pools()["scripted"].reused_total) == (1, 1)
        it.write(pool=7)
        assert await it.reload()
        assert pools()["scripted"].max == 7
        await it.ask()
        assert (pools()["scripted"].opened_total, pools()["scripted"].idle) == (1, 1)
        with trio.fail_after(5):
            await it.running.provider.log.wait_for(lambda log: log.open_connections == 1)


async def test_nothing_piles_up(tmp_path: Path) -> None:
    async with world(tmp_path) as it:

        def held() -> tuple[int, int]:
            return trio.lowlevel.current_statistics().tasks_living, descriptors()

        async def rounds(count: int) -> None:
            for number in range(count):
                it.write(pool=100 + number)
                assert await it.reload()
                await it.ask()
                it.write(extra="[nonsense]")
                assert not await it.reload()
            await it.running.at_rest()
            await trio.testing.wait_all_tasks_blocked(0.01)

        await rounds(3)
        before = held()
        await rounds(20)
        assert held() == before
        it.running.server.reloader._let_go()
        assert it.running.server.reloader._retired == []


async def test_a_websocket_goes_on_until_its_key_is_revoked(tmp_path: Path) -> None:
    async with world(tmp_path) as it, socket(it.running) as ws:
        await ws.ask("script: say one; pause 100ms; say two")
        heard = await ws.hear("llm_token")
        it.write()
        assert await it.reload()
        heard += await ws.end()
        assert text(heard) == "onetwo"
        await ws.ask("script: say again", "b")
        assert text(await ws.end()) == "again"
        it.write(key=OTHER_KEY)
        assert await it.reload()
        await ws.ask("script: say again", "c")
        [*_, last] = await ws.end()
        assert (last["type"], last["code"]) == ("error", 401)
        assert (await it.ask()).status == 401
        assert (await it.ask(key=OTHER_KEY)).status == 200


async def test_providers_in_this_process_survive_and_go_when_nobody_wants_them(tmp_path: Path) -> None:
    providers = {"scripted": ProviderConfig("scripted", script="say inside")}
    async with world(tmp_path, providers=providers) as it:
        scripted = it.running.server.reloader._scripted

        def write(script: str) -> None:
            it.write()
            text = (
                it.file.read_text()
                .replace(f'api_key = "{PROVIDER_KEY}"\n', "")
                .replace(f'base_url = "{it.running.provider.base_url}"', f'script = "{script}"')
            )
            it.file.write_text(text.replace("[providers.scripted]", '[providers.scripted]\ndialect = "scripted"'))

        async def says() -> str:
            reply = await it.ask("hi")
            return str(reply.json()["choices"][0]["message"]["content"])

        assert await says() == "inside"
        [first] = scripted.values()
        write("say inside")
        assert await it.reload()
        assert await says() == "inside"
        assert list(scripted.values()) == [first]
        write("say elsewhere")
        assert await it.reload()
        assert await says() == "elsewhere"
        it.running.server.reloader._let_go()
        assert first.url not in {each.url for each in scripted.values()}
        assert first.scope.cancel_called


@attrs.frozen
class Mood:
    mood: str = "good"


class Moody:
    """A plugin that refuses one setting, fails over another, and counts what it was made of."""

    def __init__(self) -> None:
        self.configured: list[str] = []

    @hookimpl
    def register(self, registry: Registry) -> None:
        registry.add_settings("moody", Mood)

    @hookimpl
    def configure(self, config: Mood) -> Mood:
        self.configured.append(config.mood)
        if config.mood == "bad":
            raise ConfigError(["plugins.moody.mood: is bad; write a good one"])
        if config.mood == "broken":
            raise ZeroDivisionError
        return config


async def test_a_plugin_may_refuse(tmp_path: Path) -> None:
    moody = Moody()
    order = ("audit", "auth", "router", "meter", "moody")
    async with world(tmp_path, plugins={"moody": moody}, pipeline=PipelineConfig(order=order)) as it:
        names = ", ".join(f'"{name}"' for name in order)
        before = it.running.server.gateway.current

        async def reload(mood: str) -> bool:
            it.write(extra=f'[pipeline]\norder = [{names}]\n[plugins.moody]\nmood = "{mood}"', pool=5)
            return await it.reload()

        assert not await reload("bad")
        assert it.problems == f"{it.file}:17: plugins.moody.mood: is bad; write a good one"
        assert not await reload("broken")
        assert "plugins.moody: ZeroDivisionError" in it.problems
        assert it.running.server.gateway.current is before
        assert it.running.server.reloader.statistics()["scripted"].max == 512
        assert (await it.ask()).status == 200
        assert await reload("fine")
        assert it.problems == ""
        assert moody.configured == ["good", "bad", "broken", "fine"]
        assert it.running.server.gateway.current.number == 2


async def test_limits_of_the_new_generation_hold_for_who_comes(tmp_path: Path) -> None:
    async with world(tmp_path, limits=CALM) as it, trio.open_nursery() as nursery:
        nursery.start_soon(it.ask, "script: stall")
        with trio.fail_after(5):
            await it.running.provider.log.wait_for(lambda log: log.in_progress)
        it.write(extra="[limits]\nin_flight_per_key = 1\nconnections = 3")
        assert await it.reload()
        assert it.running.server.limits.total == 3
        assert (await it.ask()).status == 200, "the one from before does not count"
        it.write(extra="[limits]\nin_flight = 1\n[deadlines]\nqueue = '50ms'")
        assert await it.reload()
        reply = await it.ask()
        assert (reply.status, reply.json()["error"]["code"]) == (503, "timeout.queue")
        it.write()
        assert await it.reload()
        assert (await it.ask()).status == 200
        nursery.cancel_scope.cancel()


async def test_a_draining_gateway_does_not_reload(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.write()
        it.running.server.gateway.draining = True
        assert not await it.reload()
        assert it.running.server.gateway.current.number == 1
        assert it.problems == ""


async def test_a_pepper_is_not_turned_on(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.write()
        it.file.write_text(it.file.read_text().replace("[server]", '[server]\npepper = "env:HOME"'))
        assert not await it.reload()
        assert "server.pepper: is changed, which needs a restart" in it.problems


def certify(tmp_path: Path, authority: trustme.CA) -> TLSConfig:
    issued = authority.issue_cert("localhost")
    tls = TLSConfig(tmp_path / "certificate.pem", tmp_path / "key.pem")
    issued.private_key_pem.write_to_path(tls.key)
    tls.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return tls


async def test_a_certificate_that_is_renewed(tmp_path: Path) -> None:
    """Whether there is TLS is fixed; a new certificate is used from the next connection on, a broken one is not."""
    old, new = trustme.CA(), trustme.CA()
    tls = certify(tmp_path, old)
    section = f'[server.tls]\ncertificate = "{tls.certificate}"\nkey = "{tls.key}"'
    server = ServerConfig(listen=("127.0.0.1:0",), admin="127.0.0.1:0", state_dir=tmp_path / "state", tls=tls)

    async def greets(it: World, authority: trustme.CA) -> bool:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        async with await it.running.connect() as tcp:
            stream = trio.SSLStream(tcp, context, server_hostname="localhost")
            try:
                await stream.do_handshake()
            except trio.BrokenResourceError:
                return False
            await trio.aclose_forcefully(stream)
            return True

    async with world(tmp_path, server=server) as it:
        assert await greets(it, old)
        it.write()
        assert not await it.reload()
        assert "server.tls: is changed, which needs a restart" in it.problems
        certify(tmp_path, new)
        it.write(extra=section)
        assert await it.reload()
        assert await greets(it, new)
        assert not await greets(it, old)
        tls.key.write_text("no key")
        assert not await it.reload()
        assert re.search(r"clawproxy.toml:\d+: server.tls", it.problems)
        assert await greets(it, new)
