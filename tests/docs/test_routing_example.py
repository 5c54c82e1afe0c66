"""examples/routing does what its README says, and `clawproxy policy explain` says why, in at most ten lines."""

from __future__ import annotations

import re
from pathlib import Path

import trio

from clawproxy.cli.auditrows import row_of
from clawproxy.cli.policyexplain import explained, lines
from clawproxy.config.load import load
from clawproxy.config.schema import PipelineConfig
from clawproxy.pipeline import Plugins
from tests.e2e.http_client import Reply, chat
from tests.e2e.process import served

EXAMPLE = Path(__file__).parents[2] / "examples" / "routing"
KEY = "sk-routing-example-0123456789"
SETTINGS = Plugins(PipelineConfig().order).registry.settings


def config(folder: Path) -> str:
    """The example's, on ports of its own."""
    text = (EXAMPLE / "clawproxy.toml").read_text()
    text = text.replace("127.0.0.1:8642", "127.0.0.1:0").replace("127.0.0.1:8643", "127.0.0.1:0")
    return text.replace('"routing-state"', f'"{folder / "state"}"')


async def test_the_example(tmp_path: Path) -> None:
    async with served(tmp_path, config(tmp_path), ROUTING_KEY=KEY) as gateway:

        async def ask(model: str, *, stream: bool = False) -> Reply:
            with trio.fail_after(10):
                async with await trio.open_tcp_stream(*gateway.address) as connection:
                    return await chat(connection, "hello", key=KEY, model=model, stream=stream)

        async def route(model: str) -> str:
            reply = await ask(model)
            assert reply.status == 200, model
            return reply.headers["x-claw-route"].partition(";")[0].strip()

        assert await route("first") == "steady/large"
        assert await route("cheap") == "steady/small"
        assert "steady/large" in {await route("fast") for _ in range(4)}
        assert (await route("shared")).startswith("steady/")
        over = [await ask("failing-over") for _ in range(6)]
        assert [reply.headers["x-claw-route"].partition(";")[0] for reply in over] == ["steady/large"] * 6
        assert ["fallback" in reply.headers.get("x-claw-notice", "") for reply in over] == [True] * 5 + [False]
        nobody = [await ask("nobody") for _ in range(6)]
        assert [reply.status for reply in nobody] == [502] * 5 + [503]
        assert int(nobody[-1].headers["retry-after"]) >= 1
        assert nobody[-1].json()["error"]["message"].startswith("The assistant is resting.")
        hedged = await ask("hedged")
        assert hedged.headers["x-claw-route"].startswith("steady/large")
        going_on = await ask("going-on", stream=True)
        assert going_on.text() == "Once uponSteady answers."
        await gateway.stop()

    said = {
        "failing-over": explain(tmp_path, over[0]),
        "resting": explain(tmp_path, over[5]),
        "nobody": explain(tmp_path, nobody[5]),
        "hedged": explain(tmp_path, hedged),
        "going-on": explain(tmp_path, going_on),
    }
    print("\n\n".join("\n".join(text) for text in said.values()))
    chosen = {name: next(line for line in text if line.startswith("chosen")).split(maxsplit=1)[1] for name, text in said.items()}
    first = "the first in order (priority)"
    assert chosen == {
        "failing-over": f"down/large: {first}; then steady/large instead, after provider_error.server",
        "resting": "steady/large: the first that does not rest",
        "nobody": "nothing: every route rests",
        "hedged": f"slow/large: {first}; then steady/large beside it, which said nothing in time (hedge)",
        "going-on": f"cuts/large: {first}; then steady/large to go on where it was cut, after provider_error.cut",
    }
    assert "not asked: down/large (resting: it failed too often)" in "\n".join(said["resting"])
    for text in said.values():
        assert len(text) <= 10
        assert all(len(line) < 250 for line in text)


def explain(folder: Path, reply: Reply) -> list[str]:
    row = row_of(folder / "state", reply.headers["x-request-id"])
    assert row is not None
    found = load(folder / "clawproxy.toml", settings=SETTINGS, environ={"ROUTING_KEY": KEY})
    return lines(explained(row, found.config))


def test_the_readme_names_every_model() -> None:
    readme, config = (EXAMPLE / "README.md").read_text(), (EXAMPLE / "clawproxy.toml").read_text()
    models = re.findall(r"^\[models\.([a-z-]+)\]", config, re.MULTILINE)
    assert len(models) == 8
    for model in models:
        assert f"\n| `{model}` |" in readme
