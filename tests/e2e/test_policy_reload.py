"""Policies changed while requests run: each request keeps those it began with, and none is dropped."""

from __future__ import annotations

from pathlib import Path

import trio

from clawproxy.scripted import ScriptedProvider
from tests.e2e.http_client import chat
from tests.e2e.process import served, settings
from tests.e2e.test_reload import KEY, MODEL, SECRETS, World

POLICY = '\n[policies.switch]\nwhen = {{ content = "switch" }}\nrefuse = "Number {}."\n'


async def test_policies_are_swapped_under_load(tmp_path: Path) -> None:
    async with ScriptedProvider.running() as provider:
        text = settings(tmp_path, provider.base_url)
        async with served(tmp_path, text + POLICY.format(0), **SECRETS) as running:
            world = World(running, provider, tmp_path / "clawproxy.toml", text)
            answered: list[str] = []
            stop = False

            async def client() -> None:
                async with await trio.open_tcp_stream(*running.address) as stream:
                    while not stop:
                        good = await chat(stream, "script: say fine", key=KEY, model=MODEL)
                        assert (good.status, good.whole) == (200, True)
                        refused = await chat(stream, "script: say switch", key=KEY, model=MODEL)
                        assert refused.status == 403
                        answered.append(refused.json()["error"]["message"])
                        await trio.sleep(0.002)

            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(client)
                    for number in range(1, 6):
                        world.write(text + POLICY.format(number))
                        world.hang_up()
                        await world.until("ok", number)
                        seen = len(answered)
                        while f"Number {number}." not in answered[seen:]:
                            await trio.sleep(0.002)
                    world.write(text + POLICY.format(9).replace('"switch"', '"(?=x)"'))
                    world.hang_up()
                    await world.until("failed", 1)
                    seen = len(answered)
                    while len(answered) < seen + 4:
                        await trio.sleep(0.002)
                    assert set(answered[seen:]) == {"Number 5."}
                    stop = True
            assert "refused by RE2" in world.failures()[0][0]
            world.write(text)
            world.hang_up()
            with trio.fail_after(10):
                await world.until("ok", 6)
            assert (await world.ask("script: say switch")).status == 200
