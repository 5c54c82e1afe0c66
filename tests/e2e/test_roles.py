"""Roles over real sockets: what may be used is what is shown, and nothing else is reached."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from clawproxy.config import (
    KeyConfig,
    ModelConfig,
    PipelineConfig,
    PolicyConfig,
    RoleConfig,
    RouteConfig,
    SecretRef,
    WhenConfig,
    Words,
)
from clawproxy.context import Exchange
from clawproxy.events import Outcome
from clawproxy.hookspecs import hookimpl
from clawproxy.messages import Grant, Principal, Route
from clawproxy_router import PriorityPlan
from tests.matrix.expected import BASE

from .harness import Running, gateway
from .test_admin_keys import at, chat


def words(*each: str) -> Words:
    return Words(each)


EAST = RouteConfig("openai_chat", "m-east", region="us")
WEST = RouteConfig("anthropic", "m-west", region="eu")
LOST = RouteConfig("openai_chat", "m-lost")
MODELS = {
    "both": ModelConfig((EAST, WEST, LOST)),
    "cheap": ModelConfig((EAST, WEST), strategy="weighted"),
    "east-only": ModelConfig((EAST,)),
    "group": ModelConfig((RouteConfig(None, "east-only"), WEST)),
}
ROLES = {
    "eu": RoleConfig(words("*"), regions=words("eu")),
    "east": RoleConfig(words("both"), providers=words("open*")),
    "short": RoleConfig(words("both"), max_output=5),
    "longer": RoleConfig(words("bo*"), max_output=7),
    "counting": RoleConfig(words("both"), actions=words("embeddings", "count_tokens")),
    "talk": RoleConfig(words("both"), actions=words("chat")),
    "nothing": RoleConfig(),
}
TOKEN = "sk-role-{}-0123456789abcdefghijklmnop"


class Witness:
    """Keeps exchanges."""

    def __init__(self) -> None:
        self.seen: list[Exchange] = []

    @hookimpl
    def exchange_closed(self, exchange: Exchange, outcome: Outcome) -> None:
        self.seen.append(exchange)


@asynccontextmanager
async def roled(tmp_path: Path, *, plugins: dict[str, object] | None = None, **changes: Any) -> AsyncIterator[Running]:
    keys = {name: KeyConfig(SecretRef("", TOKEN.format(name)), roles=(name,)) for name in ROLES}
    keys["none"] = KeyConfig(SecretRef("", TOKEN.format("none")), models=("both",))
    keys["two"] = KeyConfig(SecretRef("", TOKEN.format("two")), roles=("short", "longer", "east"))
    keys["narrow"] = KeyConfig(SecretRef("", TOKEN.format("narrow")), roles=("eu",), models=("cheap",))
    changes = {"keys": keys, "roles": ROLES, "models": MODELS, **changes}
    async with gateway(
        tmp_path, plugins=plugins, dialects={name: BASE[name] for name in ("openai_chat", "anthropic")}, **changes
    ) as running:
        yield running


def asked(running: Running) -> list[str]:
    """The models that providers were asked for."""
    return [dict(each.body)["model"] for each in running.provider.log.entries]


async def listed(running: Running, role: str) -> list[str]:
    reply = await at(running.url, "GET", "/v1/models", TOKEN.format(role))
    assert reply.status == 200
    return [each["id"] for each in reply.json()["data"]]


async def test_what_is_shown_is_what_may_be_used(tmp_path: Path) -> None:
    async with roled(tmp_path) as running:
        for role, models in {
            "eu": ["both", "cheap", "group"],
            "east": ["both"],
            "narrow": ["cheap"],
            "none": ["both"],
            "nothing": [],
            "counting": ["both"],
        }.items():
            assert await listed(running, role) == models, role
            for model in MODELS:
                status = (await chat(running, TOKEN.format(role), model=model)).status
                assert status == (404 if model not in models else 403 if role == "counting" else 200), (role, model)
        catalog = (await at(running.url, "GET", "/v1/catalog", TOKEN.format("eu"))).json()["providers"]
        assert [(each["id"], [model["id"] for model in each["models"]]) for each in catalog] == [
            ("anthropic", ["both", "cheap", "group"])
        ]
        one = await at(running.url, "GET", "/v1/models/east-only", TOKEN.format("eu"))
        assert one.status == 404


async def test_no_request_goes_where_no_role_reaches_and_it_is_told_why(tmp_path: Path) -> None:
    witness = Witness()
    order = ("audit", "auth", "sanitize", "truncate", "router", "meter", "witness")
    async with roled(tmp_path, plugins={"witness": witness}, pipeline=PipelineConfig(order)) as running:
        for model in ("both", "group"):
            assert (await chat(running, TOKEN.format("eu"), model=model)).status == 200
        for _ in range(8):
            assert (await chat(running, TOKEN.format("eu"), model="cheap")).status == 200
        assert set(asked(running)) == {"m-west"}
        told = [[(each.model, each.why) for each in exchange.considered] for exchange in witness.seen[:3]]
        assert told == [
            [("m-west", "priority"), ("m-east", "role"), ("m-lost", "role")],
            [("m-west", "priority"), ("m-east", "role")],
            [("m-west", "weighted"), ("m-east", "role")],
        ]
        assert [route.model for route in witness.seen[0].candidates] == ["m-west"]
        await running.provider.log.wait_for(lambda log: not log.in_progress)
        running.provider.log.clear()
        # a provider that fails is followed by none that is out of reach
        assert (await chat(running, TOKEN.format("eu"), "script: status 500", "both")).status >= 500
        assert (await chat(running, TOKEN.format("east"), "script: status 500", "both")).status >= 500
        assert asked(running) == ["m-west", "m-east", "m-lost"]


async def test_a_policy_moves_nothing_out_of_reach(tmp_path: Path) -> None:
    policies = {"big": PolicyConfig(WhenConfig(key=words("eu", "east")), model="east-only", final=True)}
    async with roled(tmp_path, policies=policies) as running:
        assert (await chat(running, TOKEN.format("eu"), model="both")).status == 404
        assert (await chat(running, TOKEN.format("east"), model="both")).status == 200  # it may not name it, and need not
        assert asked(running) == ["m-east"]


async def test_the_most_generous_role_says_how_long_an_answer_may_be(tmp_path: Path) -> None:
    async with roled(tmp_path) as running:
        for role, most in (("short", [5, 5, 3]), ("two", [None, 100, 3]), ("none", [None, 100, 3])):
            for wanted, given in zip((None, 100, 3), most, strict=True):
                more: dict[str, Any] = {} if wanted is None else {"max_tokens": wanted}
                reply = await chat(running, TOKEN.format(role), model="both", **more)
                assert reply.status == 200
                body = dict(running.provider.log.entries[-1].body)
                assert (body.get("max_tokens") or body.get("max_completion_tokens")) == given, (role, wanted)


async def test_actions(tmp_path: Path) -> None:
    """`responses` is an action of its own, and a role that allows `chat` alone does not have it."""
    said = {"model": "both", "input": "hi"}
    async with roled(tmp_path) as running:
        for role, status in (("talk", 403), ("short", 200), ("none", 200), ("nothing", 404)):
            reply = await at(running.url, "POST", "/v1/responses", TOKEN.format(role), said)
            assert reply.status == status, (role, reply.body)
        refused = await chat(running, TOKEN.format("counting"), model="both")
        assert (refused.status, refused.json()["error"]["code"]) == (403, "forbidden")
        assert "chat" in refused.json()["error"]["message"]


class Elsewhere:
    """A router that minds no roles."""

    @hookimpl
    async def choose_route(self, exchange: Exchange) -> PriorityPlan:
        await trio.lowlevel.checkpoint()
        return PriorityPlan([Route("anthropic", "m-west"), Route("openai_chat", "m-east")], 3)


async def test_a_router_that_minds_no_roles_leads_nobody_astray(tmp_path: Path) -> None:
    order = ("audit", "auth", "elsewhere", "router", "meter")
    async with roled(tmp_path, plugins={"elsewhere": Elsewhere()}, pipeline=PipelineConfig(order)) as running:
        assert (await chat(running, TOKEN.format("east"), model="both")).status == 403
        assert (await chat(running, TOKEN.format("short"), model="both")).status == 200
        assert asked(running) == ["m-west"]


def test_a_request_is_allowed_by_one_role_as_a_whole() -> None:
    one = Grant("one", ("a",), ("chat",), ("x",), ("*",), 10)
    two = Grant("two", ("b",), ("embeddings",), ("*",), ("eu",))
    both = Principal("k", grants=(one, two))
    assert [(both.may_use(model, action)) for model, action in (("a", "chat"), ("b", "chat"), ("a", "embeddings"))] == [
        True, False, False
    ]  # fmt: skip
    assert both.granting("a", "chat") == (one,)
    assert both.granting("elsewhere", "chat") == (one,)  # a policy chose the model
    assert [two.reaches("x", region) for region in ("eu", "us", None)] == [True, False, False]
    assert one.reaches("x", None)
    assert not Principal("k", grants=()).may_use("a")
    assert not Principal("k", models=("b",), grants=(one,)).may_use("a")
