"""`[residency]`: what is refused at load, with its line, and what regions mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawproxy.config import Residences
from clawproxy.config.load import Loaded
from clawproxy.messages import Principal
from tests.config import files
from tests.config.files import problems

BASE = """\
[providers.a]
base_url = "https://a.example"
region = "eu"
[providers.b]
base_url = "https://b.example"
[models.m]
routes = [{ provider = "a", model = "m" }, { provider = "b", model = "m", region = "us" }, { provider = "b", model = "n" }]
"""


def loaded(folder: Path, text: str) -> Loaded:
    return files.loaded(folder, BASE + text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[residency.r]\nregion = "eu"', "8: residency.r.scope: is missing: whose data is it?"),
        ('[residency.r]\nscope = "team:x"', "8: residency.r: restricts nothing"),
        ('[residency.r]\nscope = "clinic"\nregion = "eu"', '9: residency.r.scope: "clinic" is nobody'),
        ('[residency.r]\nscope = "group:x"\nregion = "eu"', '9: residency.r.scope: "group:x" is nobody'),
        ('[residency.r]\nscope = "team:"\nregion = "eu"', '9: residency.r.scope: "team:" is nobody'),
        ('[residency.r]\nscope = "team:a*b"\nregion = "eu"', '9: residency.r.scope: "team:a*b" is nobody'),
        ('[residency.r]\nscope = "team:x"\nregion = "ue"', '10: residency.r.region: "ue" is not the region of any route'),
        ('[residency.r]\nscope = "team:x"\nprovider = ["c"]', '10: residency.r.provider: "c" is not a provider'),
        ('[residency.r]\nscope = "team:x"\nprovider = ["a*b"]', '10: residency.r.provider: "a*b" is no pattern'),
        ('[residency.r]\nscope = "team:x"\nregion = "eu"\nwhere = ["a"]', "11: residency.r.where: is not a key"),
        ('[residency."a b"]\nscope = "team:x"\nregion = "eu"', '8: residency."a b": is no name'),
        ('[providers.c]\nbase_url = "https://c.example"\nregion = "E U"', '10: providers.c.region: "E U" is no region'),
        (
            '[models.o]\nroutes = [{ provider = "a", model = "m", region = "us" }]\n[residency.r]\nscope="global"\nregion = "us"',
            "6: models: a/m is said to be in several regions (`eu`, `us`)",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    [said] = problems(tmp_path, BASE + text)
    assert said.startswith(f"claw.toml:{problem}"), said


def test_a_route_is_where_it_says_else_where_its_provider_is(tmp_path: Path) -> None:
    config = loaded(tmp_path, "").config
    assert [route.region for route in config.models["m"].routes] == ["eu", "us", None]


def test_any_region_at_all_is_a_warning(tmp_path: Path) -> None:
    assert len(loaded(tmp_path, '[residency.r]\nscope = "global"\nregion = "*"').warnings) == 1
    assert loaded(tmp_path, '[residency.r]\nscope = "global"\nregion = "e*"').warnings == []


def test_whose_a_rule_is(tmp_path: Path) -> None:
    rules = "".join(
        f'[residency.{name}]\nscope = ["{scope}"]\nregion = "eu"\n'
        for name, scope in {
            "k": "key:app*", "u": "user:ann", "t": "team:red", "p": "app:mail", "r": "role:doctor", "g": "tag:pii"
        }.items()
    )  # fmt: skip
    residences = Residences(loaded(tmp_path, rules).config)

    def of(principal: Principal, user: str | None = None, app: str | None = None) -> tuple[str, ...]:
        found = residences.of(principal, user, app, None)
        return () if found is None else found.rules

    assert of(Principal("x")) == ()
    assert of(Principal("app-1")) == ("k",)
    assert of(Principal("x", maker="app-1")) == ("k",), "a key that another made is that one's, too"
    assert of(Principal("x", user="ben"), "ann") == of(Principal("x", user="ann"), "ben") == ("u",)
    assert of(Principal("x", app="mail"), None, "web") == of(Principal("x"), None, "mail") == ("p",)
    assert of(Principal("x", team="red", roles=("doctor",), tags=("pii",))) == ("t", "r", "g")
    first = residences.of(Principal("app"), None, None, None)
    assert first is residences.of(Principal("app-2"), None, None, None), "one object for the same rules"
    assert first is not None
    assert residences.of(Principal("x"), None, None, first) is first, "what bound it already binds it on"
