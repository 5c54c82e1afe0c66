"""Routes, strategies and groups: what is wrong with them is said with its place; what they come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawproxy.config import Config, ModelConfig, RouteConfig
from clawproxy.config.findings import Findings
from clawproxy.config.groups import MOST_DEEP, MOST_ROUTES, check_groups, flat_routes
from tests.config.test_config_load import GOOD_PROVIDER, loaded, problems

BROKEN: dict[str, tuple[str, list[str]]] = {
    "routes by strategy": (
        GOOD_PROVIDER + '[models.x]\nstrategy = "cost"\nroutes = [\n  { provider = "a", model = "m" },\n  '
        '{ model = "w", region = "eu", weight = -1 },\n]\n'
        '[models.w]\nstrategy = "weighted"\nquality = 2\nroutes = [\n'
        '  { provider = "a", model = "m", weight = 0, quality = 1, capabilities = ["Tools"], region = "" },\n]\n'
        '[models.r]\nstrategy = "region"\nroutes = [{ provider = "a", model = "m", price = { input = "1" } }]\n',
        [
            'claw.toml:6: models.x.routes[0]: has no price, by which "cost" chooses; add price = { ... } here, or to models.x',
            'claw.toml:7: models.x.routes[1]: has no price, by which "cost" chooses; add price = { ... } here, or to models.x',
            "claw.toml:7: models.x.routes[1].region: has no meaning on a route to a model; write it on that model's own routes",
            "claw.toml:7: models.x.routes[1].weight: -1 is no weight; write 0 to 1000000",
            "claw.toml:11: models.w.quality: 2 is above every route's (1); no request could be served",
            "claw.toml:12: models.w.routes: have no weight among them; write a weight above 0 for one of them",
            'claw.toml:13: models.w.routes[0].capabilities[0]: "Tools" is no capability; write small letters, digits, `.`, '
            '`_`, `-`, like "tools"',
            'claw.toml:13: models.w.routes[0].region: "" is no region; write small letters, digits, `.`, `_`, `-`, like "eu"',
            "claw.toml:17: models.r.routes[0].price.output: is missing; add `output = ...` here",
        ],
    ),
    "affinity": (
        GOOD_PROVIDER + '[models.x]\naffinity = "prefix"\nroutes = [{ provider = "a", model = "m" }]\n'
        '[models.y]\nstrategy = "load"\naffinity = "prefixes"\nroutes = [{ provider = "a", model = "m" }]\n',
        [
            'claw.toml:4: models.x.affinity: has no meaning with strategy "priority", which takes the routes as they are '
            'written; use "load", "weighted", "cost" or "latency"',
            'claw.toml:8: models.y.affinity: "prefixes" is no affinity; did you mean `prefix`?',
        ],
    ),
    "models of models": (
        GOOD_PROVIDER + '[models.a]\nroutes = [{ model = "b" }]\n[models.b]\nroutes = [\n  { provider = "a", model = "m" },\n  '
        '{ model = "a" },\n  { model = "c" },\n  { model = "b" },\n]\n',
        [
            "claw.toml:8: models.b.routes[1].model: comes back to itself (a -> b -> a); name another model",
            'claw.toml:9: models.b.routes[2].model: "c" is not in [models]; known are `a`, `b`, or add a provider',
            "claw.toml:10: models.b.routes[3].model: comes back to itself (b -> b); name another model",
        ],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str, tmp_path: Path) -> None:
    text, expected = BROKEN[name]
    assert problems(tmp_path, text) == expected


def to(*names: str) -> ModelConfig:
    return ModelConfig(tuple(RouteConfig(model=name) if len(name) > 1 else RouteConfig(name, "m") for name in names))


def test_groups_come_to_their_routes_in_the_order_they_are_written() -> None:
    models = {"one": to("a", "two", "b"), "two": to("c", "three"), "three": to("a")}
    assert "".join(str(route.provider) for route in flat_routes(models, "one")) == "acab"
    assert flat_routes(models, "two")[0] == RouteConfig("c", "m")
    assert flat_routes(models, "none") == ()
    assert flat_routes(Config().models, "one") == ()
    assert check_groups(models, Findings())


def test_groups_are_bounded_without_being_walked() -> None:
    """Two routes each, fifty deep, would be 2**50; a thousand in a row would be too deep for the stack."""
    for count, each in ((50, 2), (1000, 1)):
        for names in (range(count), range(count)[::-1]):
            models = {f"m{at}": to(*[f"m{at + 1}"] * each) if at < count - 1 else to("a") for at in names}
            found = Findings()
            assert not check_groups(models, found)
            assert any(f"more than {MOST_DEEP} models deep" in sentence for _, sentence in found.problems)
    found = Findings()
    assert not check_groups({"wide": to(*["inner"] * 9), "inner": to(*"a" * 30)}, found)
    assert found.problems == [(("models", "wide", "routes"), f"come to 270 routes in all; {MOST_ROUTES} are the most")]


@pytest.mark.parametrize(
    ("health", "said"),
    [
        ('every = "10s"', ""),
        ('every = "1s"\npath = "/ping?x=1"\ntimeout = "1s"\nfailures = 1', ""),
        ('path = "/models"', "health.every: is missing"),
        ('every = "100ms"', "health.every: "),
        ('every = "10s"\npath = "models"', "health.path: "),
        ('every = "10s"\npath = "/a/../b"', "health.path: "),
        ('every = "10s"\ntimeout = "2m"', "health.timeout: "),
        ('every = "10s"\nfailures = 0', "health.failures: "),
        ('every = "10s"\nafter = 1', "health.after: "),
    ],
)
def test_health(tmp_path: Path, health: str, said: str) -> None:
    text = f"{GOOD_PROVIDER}[providers.a.health]\n{health}\n"
    if said:
        [problem] = problems(tmp_path, text)
        assert said in problem
    else:
        found = loaded(tmp_path, text).config.providers["a"].health
        assert found is not None
        assert found.every in (1.0, 10.0)
