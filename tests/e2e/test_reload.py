"""Hot reload as operators meet it: `clawproxy serve` in a process, its file changed under it, SIGHUP, requests all the while."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy.scripted import ScriptedProvider
from tests.e2e.http_client import chat, fetch
from tests.e2e.process import CLI, Served, served, settings

KEY = "sk-client-canary-0918273645abcdef"
OTHER_KEY = "sk-client-canary-5647382910fedcba"
SECRETS = {"TEST_CLIENT_KEY": KEY, "TEST_PROVIDER_KEY": "sk-provider-canary-5a6b7c8d9e0f1122"}
MODEL = "gpt-4-turbo"


@attrs.define
class World:
    served: Served
    provider: ScriptedProvider
    file: Path
    text: str

    def write(self, text: str) -> None:
        """As careful people do it: whole, by rename."""
        draft = self.file.with_suffix(".draft")
        draft.write_text(text)
        draft.rename(self.file)

    def hang_up(self) -> None:
        self.served.process.send_signal(signal.SIGHUP)

    async def admin(self, path: str) -> Any:
        host, _, port = self.served.ready["admin"].removeprefix("http://").rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            return await fetch(stream, "GET", path, headers={"host": "localhost"})

    async def figures(self) -> dict[str, float]:
        text = (await self.admin("/metrics")).body.decode()
        return {name: float(value) for name, value in re.findall(r"^(clawproxy_[^ ]+) (\S+)$", text, re.MULTILINE)}

    async def reloads(self, result: str) -> float:
        return (await self.figures()).get(f'clawproxy_reloads_total{{result="{result}"}}', 0.0)

    async def until(self, result: str, count: float) -> None:
        with trio.fail_after(10):
            while await self.reloads(result) < count:
                await trio.sleep(0.005)

    async def ask(self, prompt: str = "script: say hello", key: str = KEY, **changes: Any) -> Any:
        async with await trio.open_tcp_stream(*self.served.address) as stream:
            return await chat(stream, prompt, key=key, **{"model": MODEL, **changes})

    def failures(self) -> list[list[str]]:
        return [line["problems"] for line in self.served.log() if line["event"] == "config.reload_failed"]

    def resident(self) -> int:
        pages = Path(f"/proc/{self.served.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.served.process.pid}/fd"))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with ScriptedProvider.running() as provider:
        text = settings(tmp_path, provider.base_url)
        async with served(tmp_path, text, **SECRETS) as running:
            yield World(running, provider, tmp_path / "clawproxy.toml", text)


async def test_two_hundred_reloads_under_load(world: World) -> None:
    """R-02. A hundred good ones, of which half change the provider and so its pool, and a hundred broken in five ways."""
    broken = [
        world.text + "\n[server\n",
        world.text + '\n[limits]\nbody = "huge"\n',
        world.text.replace("env:TEST_CLIENT_KEY", "env:TEST_NOT_SET"),
        world.text.replace('provider = "openai"', 'provider = "nobody"'),
        world.text.replace('listen = "127.0.0.1:0"', 'listen = "127.0.0.1:1"'),
    ]
    answered: list[int] = []
    stop = False

    async def client(number: int) -> None:
        async with await trio.open_tcp_stream(*world.served.address) as stream:
            while not stop:
                for streamed in (True, False):
                    reply = await chat(stream, "script: say all is well", key=KEY, model=MODEL, stream=streamed)
                    assert reply.whole
                    assert (reply.text() if streamed else reply.json()["choices"][0]["message"]["content"]) == "all is well"
                    answered.append(reply.status)
                    await trio.sleep(0.04)

    async def reload(number: int, good: bool) -> None:
        if good:
            pool = f"\n[providers.openai.pool]\nmax = {200 + number // 2}\n[limits]\nmessages = {1000 + number}\n"
            world.write(world.text + pool)
        else:
            world.write(broken[number % len(broken)])
        world.hang_up()

    good = failed = 0.0
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(client, number)
            before: tuple[int, int] | None = None
            for number in range(100):
                await reload(number, good=True)
                good += 1
                await world.until("ok", good)
                await reload(number, good=False)
                failed += 1
                await world.until("failed", failed)
                if number == 30:  # warm by then
                    before = world.resident(), world.descriptors()
            stop = True
    after = world.resident(), world.descriptors()
    assert before is not None
    assert set(answered) == {200}
    assert len(answered) > 300
    figures = await world.figures()
    assert figures["clawproxy_config_generation"] == 101
    assert figures["clawproxy_config_reload_failed"] == 1
    assert figures['clawproxy_reloads_total{result="ok"}'] == figures['clawproxy_reloads_total{result="failed"}'] == 100
    assert after[1] <= before[1] + 4, "the admin connection of the moment, and the pool's"
    assert after[0] - before[0] < 6 * 1024 * 1024, f"{(after[0] - before[0]) // 1024} KiB more after seventy of each"
    assert await world.served.stop() == 0
    lines = [line for line in world.served.log() if line["event"] == "exchange.closed"]
    assert {line["outcome"] for line in lines} == {"complete"}
    generations = [line["generation"] for line in lines]
    assert max(generations) == 101
    assert len(set(generations)) > 40  # how many saw a request depends on how fast the machine is


async def test_a_changed_file_is_enough(world: World) -> None:
    assert (await world.ask(model="fresh")).status == 404
    world.write(world.text.replace(MODEL, "fresh"))
    await world.until("ok", 1)
    assert (await world.ask(model="fresh")).status == 200
    assert (await world.ask()).status == 404


async def test_what_happens_to_files(world: World) -> None:
    """Truncated, emptied, replaced by a folder, deleted, no text: each leaves what there was, says where, and heals."""
    half = world.text[: world.text.index("[models")] + "[models.\n"
    breakings: list[tuple[Any, str]] = [
        (lambda: world.file.write_text(half), r"toml:\d+:\d+: is not valid TOML"),
        (lambda: world.file.write_text(""), r"toml:1: holds no setting"),
        (lambda: world.file.write_bytes(b'[server]\nlisten = "\xff"\n'), r"toml:2:11: byte 0xff is not UTF-8"),
        (world.file.unlink, r"toml: can not be read \(No such file"),
        (world.file.mkdir, r"toml: can not be read \(Is a directory"),
    ]
    for number, (breaking, told) in enumerate(breakings, start=1):
        breaking()
        await world.until("failed", number)
        assert (await world.ask()).status == 200, told
        ready = await world.admin("/readyz")
        assert ready.status == 200
        assert ready.json()["ready"]
        assert re.search(told, ready.json()["reload_failed"][0])
        assert (await world.figures())["clawproxy_config_reload_failed"] == 1
    world.file.rmdir()
    world.write(world.text)
    await world.until("ok", 1)
    figures = await world.figures()
    assert figures["clawproxy_config_reload_failed"] == 0
    assert figures["clawproxy_config_generation"] == 2
    assert (await world.admin("/readyz")).json() == {"ready": True, "reasons": []}
    for (_, told), problems in zip(breakings, world.failures(), strict=True):
        assert re.search(told, problems[0])


async def test_what_needs_a_restart_is_named_and_nothing_of_it_is_taken_over(tmp_path: Path) -> None:
    async with ScriptedProvider.running() as provider:
        text = settings(tmp_path, provider.base_url) + '[pipeline]\norder = ["audit", "auth", "router", "meter"]\n'
        async with served(tmp_path, text, **SECRETS) as running:
            await _ask_for_a_restart(World(running, provider, tmp_path / "clawproxy.toml", text), tmp_path)


async def _ask_for_a_restart(world: World, tmp_path: Path) -> None:
    text = world.text.replace('listen = "127.0.0.1:0"', 'listen = "127.0.0.1:1"\nworkers = 1').replace("/state", "/elsewhere")
    world.write(text.replace(MODEL, "fresh").replace('"router"', '"sanitize", "router"'))
    world.hang_up()
    await world.until("failed", 1)
    [problems] = world.failures()
    keys = [re.sub(r"^.*toml:\d+: ([a-z_.]+): .*needs a restart.*", r"\1", problem) for problem in problems]
    assert keys == ["server.listen", "server.state_dir", "pipeline.order"]
    assert (await world.ask()).status == 200
    assert (await world.ask(model="fresh")).status == 404
    assert not (tmp_path / "elsewhere").exists()
    world.write(world.text.replace('"audit", ', "") + "\n[plugins.sanitize]\n")
    world.hang_up()
    await world.until("failed", 2)
    assert re.search(r"toml:\d+: plugins.sanitize: was not loaded at start", world.failures()[1][0])
    world.write(world.text.replace('"audit", ', ""))  # one less is no trouble
    world.hang_up()
    await world.until("ok", 1)
    assert (await world.ask()).status == 200


async def test_hanging_up_twice(world: World) -> None:
    world.write(world.text + "\n[limits]\nmessages = 7\n")
    world.hang_up()
    world.hang_up()
    await world.until("ok", 1)
    world.write(world.text.replace(MODEL, "fresh"))
    for _ in range(5):
        world.hang_up()
    with trio.fail_after(5):
        while (await world.ask(model="fresh")).status != 200:
            await trio.sleep(0.01)
    await trio.sleep(0.05)
    assert await world.reloads("failed") == 0
    assert (await world.figures())["clawproxy_config_generation"] == 1 + await world.reloads("ok")
    assert world.served.process.returncode is None


async def test_a_secret_that_is_replaced_in_its_file(tmp_path: Path) -> None:
    secret, plugins = tmp_path / "secret", tmp_path / "plugins"
    secret.write_text(KEY + "\n")
    plugins.write_text("a content key of a plugin's section")
    async with ScriptedProvider.running() as provider:
        text = settings(tmp_path, provider.base_url).replace("env:TEST_CLIENT_KEY", f"file:{secret}")
        text += '\n[plugins.audit]\ncontent = "full"\ncontent_key = "file:plugins"\n'
        async with served(tmp_path, text, **SECRETS) as running:
            world = World(running, provider, tmp_path / "clawproxy.toml", text)
            assert (await world.ask()).status == 200
            assert (await world.ask(key=OTHER_KEY)).status == 401
            secret.with_suffix(".new").write_text(OTHER_KEY)
            secret.with_suffix(".new").rename(secret)
            await world.until("ok", 1)
            assert (await world.ask()).status == 401, "no verdict of before is kept"
            assert (await world.ask(key=OTHER_KEY)).status == 200
            plugins.write_text("another content key of a plugin's section")
            await world.until("ok", 2)
            secret.unlink()
            await world.until("failed", 1)
            assert (await world.ask(key=OTHER_KEY)).status == 200
            text = running.stderr.read_text()
            assert not [key for key in (KEY, OTHER_KEY) if key[4:] in text]


async def test_the_log_level_changes(world: World) -> None:
    await world.ask()
    world.write(world.text + '\n[log]\nlevel = "error"\n')
    world.hang_up()
    await world.until("ok", 1)
    for _ in itertools.repeat(None, 3):
        await world.ask()
    assert await world.served.stop() == 0
    assert [line["event"] for line in world.served.log()].count("exchange.closed") == 1


def test_a_broken_file_still_stops_a_start(tmp_path: Path) -> None:
    file = tmp_path / "clawproxy.toml"
    file.write_text("[server]\nlisten = 7\n")
    done = subprocess.run([*CLI, "serve", "--config", str(file)], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "clawproxy.toml:2: server.listen" in done.stderr
