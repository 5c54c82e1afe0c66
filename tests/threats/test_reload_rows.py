"""R-01 to R-06: a bad file changes nothing, a good one changes everything at once, and nobody's request notices either."""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator, Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from clawproxy.cli import clawproxy, explain
from clawproxy.scripted import ScriptedProvider
from tests.e2e.process import served, settings
from tests.e2e.test_reload import SECRETS, World
from tests.e2e.test_reload_inside import world as inside


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with ScriptedProvider.running() as provider:
        text = settings(tmp_path, provider.base_url)
        async with served(tmp_path, text, **SECRETS) as running:
            yield World(running, provider, tmp_path / "clawproxy.toml", text)


def broken(world: World) -> dict[str, tuple[Callable[[], object], str]]:
    """What may happen to the file, and what is told of it."""
    text, file = world.text, world.file

    def link(target: Path) -> None:
        draft = file.with_suffix(".link")
        draft.symlink_to(target)
        draft.rename(file)

    def large() -> None:
        with file.with_suffix(".draft").open("wb") as out:
            out.truncate(100 * 1024 * 1024)
        file.with_suffix(".draft").rename(file)

    def folder() -> None:
        file.unlink()
        file.mkdir()

    cycle = '\n[models.a]\nroutes = [{ model = "b" }]\n[models.b]\nroutes = [{ model = "a" }]\n'
    return {
        "truncated": (lambda: world.write(text[: len(text) // 2]), r"clawproxy.toml:\d+"),
        "a key twice": (lambda: world.write(text + '\n[server]\nlisten = "127.0.0.1:0"\n'), r"clawproxy.toml:\d+"),
        "an unknown key": (lambda: world.write(text + "\n[limits]\nbodies = 5\n"), r"clawproxy.toml:\d+: limits.bodies"),
        "a negative limit": (lambda: world.write(text + "\n[limits]\nmessages = -1\n"), r"clawproxy.toml:\d+: limits.messages"),
        "a secret that is not there": (
            lambda: world.write(text.replace("env:TEST_PROVIDER_KEY", "env:TEST_NOT_SET")),
            r"clawproxy.toml:\d+: providers.openai.api_key",
        ),
        "routes in a circle": (lambda: world.write(text + cycle), r"clawproxy.toml:\d+: models"),
        "a hundred megabytes": (large, r"clawproxy.toml"),
        "no file but a folder": (folder, r"clawproxy.toml: can not be read"),
        "deleted": (lambda: file.rmdir() if file.is_dir() else file.unlink(), r"clawproxy.toml: can not be read"),
        "a link to nothing": (lambda: link(file.with_name("nowhere")), r"clawproxy.toml: can not be read"),
        "a link to something else": (lambda: link(Path("/etc/passwd")), r"clawproxy.toml:\d+"),
    }


async def test_r01_a_bad_file_changes_nothing(world: World) -> None:
    """Eleven ways, under load: each is counted, named with its file and line, and refused by `check` too; no request fails."""
    statuses: list[int] = []
    stop = False

    async def client() -> None:
        while not stop:
            statuses.append((await world.ask()).status)
            await trio.sleep(0.01)

    def check() -> tuple[int, str]:
        """Exit code and words, as `cli.main` has them; in this process, for it is done eleven times."""
        ended = CliRunner().invoke(clawproxy, ["check", "--config", str(world.file)], env=SECRETS, standalone_mode=False)
        assert ended.exception is not None, ended.output
        with redirect_stderr(io.StringIO()) as stderr:
            code = explain(ended.exception)
        return code, ended.output + stderr.getvalue()

    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(client)
            for name, (harm, told) in broken(world).items():
                failed = await world.reloads("failed")
                harm()
                world.hang_up()
                await world.until("failed", failed + 1)
                problems: list[str] = []
                with trio.move_on_after(5):
                    while not any(re.search(told, problem) for problem in problems):
                        problems = (await world.admin("/readyz")).json()["reload_failed"]
                assert any(re.search(told, problem) for problem in problems), (name, problems)
                code, said = await trio.to_thread.run_sync(check)
                assert code == 2, (name, said)
                assert re.search(f"{told}|there is no such file", said), (name, said)
                assert not [secret for secret in SECRETS.values() if secret[4:16] in said], name
            stop = True
    assert set(statuses) == {200}
    assert len(statuses) > 20
    figures = await world.figures()
    assert figures["clawproxy_config_generation"] == 1
    assert figures["clawproxy_config_reload_failed"] == 1
    assert not [line for line in world.served.log() if line["event"] == "exchange.crashed"]
    text = world.served.stderr.read_text()
    assert not [secret for secret in SECRETS.values() if secret[4:16] in text]
    assert "root:" not in text


PRICED = '[models.test-model.price]\ninput = "1.00"\noutput = "2.00"\n'


async def test_r03_a_price_that_goes_is_unknown_and_not_free(tmp_path: Path) -> None:
    """With it the cost is known; without it, it is null; and where dollars are counted, a file without it is refused."""
    async with inside(tmp_path) as it:
        store = it.running.server.gateway.app.store

        async def costs() -> list[Any]:
            await it.ask()
            with trio.fail_after(5):
                await it.running.at_rest()
            await store.flush()
            rows = sorted(await store.rows(), key=lambda row: row.opened.opened)
            return [row.closed.cost_nano if row.closed else None for row in rows]

        it.write(extra=PRICED + '[budgets.b]\nscope = "key:test"\nwindow = "day"\nlimit = "$5.00"\n')
        assert await it.reload(), it.problems
        [known] = await costs()
        assert known > 0
        it.write(extra='[budgets.b]\nscope = "key:test"\nwindow = "day"\nlimit = "$5.00"\n')
        assert not await it.reload()
        assert "price" in it.problems
        it.write(extra='[rates]\ncard = "none"\n')
        assert await it.reload(), it.problems
        assert await costs() == [known, None]
