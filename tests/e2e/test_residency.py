"""Residency over real sockets: what a rule binds goes nowhere else, whichever way a request is led."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import trio
from attrs import evolve, field, frozen

from clawproxy.cli.policyexplain import explained, lines
from clawproxy.config import (
    KeyConfig,
    ModelConfig,
    PipelineConfig,
    PolicyConfig,
    ProviderConfig,
    ResidencyConfig,
    RouteConfig,
    SecretRef,
    WhenConfig,
    Words,
)
from clawproxy.context import App, Attempt, Exchange
from clawproxy.errors import ClawError
from clawproxy.events import Batch, End, Finish, Text
from clawproxy.hookspecs import hookimpl
from clawproxy.messages import ChatRequest, Message, Route
from clawproxy.scripted import ScriptedProvider
from clawproxy_router import PriorityPlan
from tests.matrix.expected import BASE

from .harness import Running, gateway
from .http_client import fetch
from .test_admin_keys import chat

US = RouteConfig("openai_chat", "m-us", region="us")
EU = RouteConfig("anthropic", "m-eu", region="eu")
NOWHERE = RouteConfig("openai_chat", "m-nowhere")
MODELS = {
    "both": ModelConfig((US, EU, NOWHERE)),
    "drawn": ModelConfig((US, EU), strategy="weighted"),
    "us-only": ModelConfig((US, NOWHERE)),
    "group": ModelConfig((RouteConfig(None, "us-only"), EU)),
}
RULES = {
    "clinics": ResidencyConfig(Words(("team:clinic*",)), region=Words(("eu",))),
    "ann": ResidencyConfig(Words(("user:ann",)), provider=Words(("openai_*",))),
}
FREE, BOUND, ASSERTS, STRICT = [f"sk-{name}-0123456789abcdef" for name in ("free", "bound", "asserts", "strict")]
KEYS = {
    "free": KeyConfig(SecretRef("", FREE), team="sales"),
    "bound": KeyConfig(SecretRef("", BOUND), team="clinic-7"),
    "asserts": KeyConfig(SecretRef("", ASSERTS), user="ben", may_assert=True),
    "strict": KeyConfig(SecretRef("", STRICT), team="clinic", user="ann"),
}
ORDER = ("audit", "auth", "sanitize", "truncate", "router", "meter")


@asynccontextmanager
async def bound(tmp_path: Path, *, first: object | None = None, **changes: Any) -> AsyncIterator[Running]:
    """`first`: a plugin that stands before the router."""
    plugins = {} if first is None else {"first": first}
    order = ORDER if first is None else ("audit", "auth", "first", "router", "meter")
    changes = {"keys": KEYS, "residency": RULES, "models": MODELS, "pipeline": PipelineConfig(order), **changes}
    async with gateway(
        tmp_path, plugins=plugins, dialects={name: BASE[name] for name in ("openai_chat", "anthropic")}, **changes
    ) as running:
        yield running


_told: WeakKeyDictionary[ScriptedProvider, int] = WeakKeyDictionary()


def asked(running: Running) -> list[str]:
    """The models that providers were asked for since the last time. By their numbers: a request that was asked about may still be
    open at the provider."""
    last = _told.get(running.provider, 0)
    found = [each for each in running.provider.log.entries if each.serial > last]
    _told[running.provider] = max([last, *(each.serial for each in found)])
    return [dict(each.body)["model"] for each in found]


async def audited(tmp_path: Path, count: int) -> list[dict[str, Any]]:
    [path] = (tmp_path / "state" / "audit").glob("*.jsonl")
    with trio.fail_after(5):
        while len(rows := path.read_bytes().splitlines()) < count:
            await trio.sleep(0.02)
    return [json.loads(row) for row in rows]


async def test_only_routes_in_the_region_are_taken_and_the_audit_tells_it(tmp_path: Path) -> None:
    async with bound(tmp_path) as running:
        assert (await chat(running, FREE, model="both")).status == 200
        assert asked(running) == ["m-us"]
        for model in ("both", "group", *["drawn"] * 6):
            assert (await chat(running, BOUND, model=model)).status == 200
        assert set(asked(running)) == {"m-eu"}
        refused = await chat(running, BOUND, model="us-only")
        assert (refused.status, refused.json()["error"]["code"]) == (403, "refused.residency")
        failed = await chat(running, BOUND, "script: status 500", "both")
        assert failed.status >= 500
        assert asked(running) == ["m-eu"], "what fails there is tried nowhere else"
        assert (await chat(running, FREE, "script: status 500", "both")).status >= 500
        assert asked(running) == ["m-us", "m-eu", "m-nowhere"]
        rows = await audited(tmp_path, 11)
    assert "residency" not in rows[0]
    assert "region" not in rows[0]["attempts"][0]
    assert (rows[1]["residency"], rows[1]["attempts"][0]["region"]) == (["clinics"], "eu")
    weighed = [(each["model"], each["why"]) for each in rows[1]["considered"]]
    assert weighed[1:] == [("m-us", "residency"), ("m-nowhere", "residency")]
    none = next(row for row in rows if row["model"] == "us-only")
    assert (none["outcome"], none["attempts"]) == ("refused.residency", [])
    told = lines(explained(none, running.config))
    assert "residency  clinics" in told
    assert any("no route is where its data may go" in line for line in told)
    told = lines(explained(rows[1], running.config))
    assert "residency  clinics; it went to eu" in told
    assert any("m-us (the data may not go there)" in line for line in told)


async def test_every_rule_that_is_somebodys_holds(tmp_path: Path) -> None:
    async with bound(tmp_path) as running:
        assert (await chat(running, STRICT, model="both")).status == 403, "in the region, but at another provider"
        assert (await chat(running, ASSERTS, model="both")).status == 200
        assert (await chat(running, ASSERTS, model="both", user="ann")).status == 200
        assert asked(running) == ["m-us", "m-us"]
        running.provider.will("status 500", "status 500")
        assert (await chat(running, ASSERTS, model="both", user="ann")).status >= 500
        assert asked(running) == ["m-us", "m-nowhere"]
        assert (await chat(running, FREE, model="both", user="ann")).status == 200, "who may not assert is who the key says"
    unlimited = {**RULES, "ben": ResidencyConfig(Words(("user:ben",)), region=Words(("eu",)))}
    async with bound(tmp_path / "2", residency=unlimited) as running:  # what a client asserts takes nothing away
        assert (await chat(running, ASSERTS, model="both", user="carl")).status == 200
        assert asked(running) == ["m-eu"]


async def names(running: Running, token: str, path: str = "/v1/models") -> set[str]:
    async with await running.connect() as connection:
        reply = await fetch(connection, "GET", path, headers={"authorization": f"Bearer {token}"})
    document = reply.json()
    if "providers" in document:
        return {f"{provider['id']} {model['id']}" for provider in document["providers"] for model in provider["models"]}
    return {each.get("id") or each["name"] for each in document.get("data", document.get("models"))}


async def test_lists_name_what_it_may_ask_for(tmp_path: Path) -> None:
    async with bound(tmp_path) as running:
        for token in (FREE, BOUND, ASSERTS, STRICT):
            may = {model for model in MODELS if (await chat(running, token, model=model)).status == 200}
            assert await names(running, token) == may
        assert may == set(), "nothing of it fits both rules"
        may = {"both", "drawn", "group"}
        assert await names(running, BOUND) == await names(running, BOUND, "/api/tags") == may
        assert await names(running, BOUND, "/v1/catalog") == {f"anthropic {model}" for model in may}
        async with await running.connect() as connection:
            reply = await fetch(connection, "GET", "/v1/models/us-only", headers={"authorization": f"Bearer {BOUND}"})
        assert reply.status == 404
        assert await names(running, FREE, "/v1/catalog") == {f"openai_chat {model}" for model in MODELS}


@pytest.mark.parametrize(
    ("policy", "there"),
    [
        (PolicyConfig(WhenConfig(model=Words(("us-*",))), model="both"), True),
        (PolicyConfig(choose="both"), True),
        (PolicyConfig(WhenConfig(model=Words(("drawn",))), model="both"), False),
        (PolicyConfig(model="both", shadow=True), False),
        (PolicyConfig(cap=5), False),
    ],
)
async def test_a_model_that_a_policy_leads_elsewhere_is_named(tmp_path: Path, policy: PolicyConfig, there: bool) -> None:
    async with bound(tmp_path, policies={"elsewhere": policy}) as running:
        assert ("us-only" in await names(running, BOUND)) == there
        assert (await chat(running, BOUND, model="us-only")).status == (200 if there else 403)


@frozen
class Astray:
    """A plan of a router that minds nothing."""

    candidates: Sequence[Route]
    hedge: bool = False

    def next(self, history: Sequence[Attempt]) -> Route | None:
        if len(history) >= len(self.candidates):
            return None
        route = self.candidates[len(history)]
        return evolve(route, reason="hedge") if self.hedge and history else route


@frozen
class Foreign:
    """Such a router."""

    plan: Any

    @hookimpl
    async def choose_route(self, exchange: Exchange) -> Any:
        await trio.lowlevel.checkpoint()
        return self.plan


R_US, R_EU = Route("openai_chat", "m-us"), Route("anthropic", "m-eu")


async def test_no_router_leads_it_astray(tmp_path: Path) -> None:
    async with bound(tmp_path / "1", first=Foreign(PriorityPlan([R_US, R_EU], 3))) as running:
        refused = await chat(running, BOUND, model="both")
        assert (refused.status, refused.json()["error"]["code"]) == (403, "refused.residency")
        assert asked(running) == []
        assert (await chat(running, FREE, model="both")).status == 200
    async with bound(tmp_path / "2", first=Foreign(Astray([R_EU, R_US]))) as running:  # failover
        failed = await chat(running, BOUND, "script: status 500", "both")
        assert (failed.status, failed.json()["error"]["code"]) == (502, "provider_error.server")
        assert asked(running) == ["m-eu"]


@pytest.mark.parametrize(("token", "models"), [(BOUND, ["m-eu"]), (FREE, ["m-eu", "m-us"])])
async def test_no_hedge_does(tmp_path: Path, token: str, models: list[str]) -> None:
    plan = Astray([evolve(R_EU, hedge_after=0.02), R_US], hedge=True)
    async with bound(tmp_path, first=Foreign(plan)) as running:
        assert (await chat(running, token, "script: pause 300ms; say x", "both")).status == 200
        assert asked(running) == models


@frozen
class GoingOn:
    """Goes on elsewhere where an answer was cut."""

    candidates: Sequence[Route] = (R_EU, R_US)

    def next(self, history: Sequence[Attempt]) -> Route | None:
        return None if len(history) > 1 else (evolve(R_US, reason="continue") if history else evolve(R_EU, goes_on=True))


async def test_an_answer_that_is_cut_goes_on_nowhere_else(tmp_path: Path) -> None:
    async with bound(tmp_path, first=Foreign(GoingOn())) as running:
        await chat(running, FREE, "script: say one two three; cut", "both", stream=True)
        assert asked(running) == ["m-eu", "m-us"]
        await chat(running, BOUND, "script: say one two three; cut", "both", stream=True)
        assert asked(running) == ["m-eu"]


@frozen
class Asker:
    """Has another model read the prompt first."""

    errors: list[str] = field(factory=list)

    @hookimpl
    def configure(self, app: App) -> App:
        return app

    @hookimpl
    async def prepare_request(self, exchange: Exchange, request: ChatRequest, state: App) -> None:
        if exchange.parent is None:
            try:
                question = evolve(request, model="us-only", messages=(Message("user", "Sum this up."),), stream=False)
                await state.ask(exchange, question)
            except ClawError as error:
                self.errors.append(error.slug)


async def test_no_question_of_a_plugins_own_does(tmp_path: Path) -> None:
    """Also where only what its client asserted binds it."""
    rules = {"ben": ResidencyConfig(Words(("user:ben",)), region=Words(("eu",)))}
    asker = Asker()
    async with bound(tmp_path, first=asker, residency=rules) as running:
        assert (await chat(running, ASSERTS, model="both", user="carl")).status == 200
        assert asker.errors == ["refused.residency"]
        assert asked(running) == ["m-eu"]
        assert (await chat(running, FREE, model="both")).status == 200
        assert asked(running) == ["m-us", "m-us"]


async def test_answers_are_not_shared_across_residencies(tmp_path: Path) -> None:
    """Kept answers are sent to nobody, but what came from elsewhere is no answer for who is bound."""
    order = PipelineConfig(("audit", "auth", "cache", "router", "meter"))
    sections = {"cache": {"scope": "global"}}
    async with bound(tmp_path, pipeline=order, sections=sections) as running:
        for token in (FREE, FREE, BOUND, BOUND):
            assert (await chat(running, token, model="both", temperature=0)).status == 200
        assert asked(running) == ["m-us", "m-eu"]


@frozen
class LastResort:
    """A foreign cache: an older answer, and a route that may not be taken."""

    @hookimpl
    async def choose_route(self, exchange: Exchange) -> Any:
        await trio.lowlevel.checkpoint()
        exchange.last_resort = Route("cache", "both", "degraded", recorded=[Batch([Text("old"), Finish("stop"), End()])])
        return Astray([R_EU, R_US])


async def test_the_last_resort_is_sent_to_nobody(tmp_path: Path) -> None:
    async with bound(tmp_path, first=LastResort()) as running:
        reply = await chat(running, BOUND, "script: status 500", "both")
        assert (reply.status, b"old" in reply.body) == (200, True), reply.body
        assert asked(running) == ["m-eu"]


@frozen
class Careless:
    """Sets a route aside that may not be taken: the last look before anything is sent is the core's."""

    @hookimpl
    async def choose_route(self, exchange: Exchange) -> Any:
        await trio.lowlevel.checkpoint()
        exchange.last_resort = R_US
        return Astray([R_EU])


async def test_the_last_look_is_before_anything_is_sent(tmp_path: Path) -> None:
    async with bound(tmp_path, first=Careless()) as running:
        assert (await chat(running, BOUND, "script: status 500", "both")).status == 403
        assert asked(running) == ["m-eu"]
        assert (await chat(running, FREE, "script: status 500", "both")).status >= 500
        assert asked(running) == ["m-eu", "m-us"]


async def test_without_models_it_is_the_providers_own_region(tmp_path: Path) -> None:
    """No route could say one there."""
    rules = {"clinics": ResidencyConfig(Words(("global",)), region=Words(("eu",)))}
    for region, status in (("eu", 200), ("us", 403), (None, 403)):
        provider = ProviderConfig("scripted", script="say fine", region=region)
        folder = tmp_path / str(region)
        async with gateway(folder, keys=KEYS, residency=rules, models={}, providers={"own": provider}) as running:
            assert (await chat(running, FREE, model="own/any")).status == status, region
