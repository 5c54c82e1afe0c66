"""Budgets in a configuration: every mistake is named, where it stands and with what would be right."""
# ruff: noqa: E501 -- the sentences stand whole

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.config.budgets import MOST, NANO, Limit, parse_limit, parse_scope, parse_soft
from clawproxy.config.load import load
from clawproxy.errors import ConfigError

PLUGINS = ("audit", "auth", "sanitize", "truncate", "router", "meter")
MODELS = """[providers.a]
base_url = "http://127.0.0.1:9/v1"
[models.dear]
routes = [{ provider = "a", model = "x", price = { input = "1", output = "2" } }]
[models.free]
routes = [{ provider = "a", model = "y" }]
[models.both]
routes = [{ model = "dear" }, { model = "free" }]
[keys.rich]
secret = "env:A"
models = ["de*"]
"""


def problems(folder: Path, text: str) -> Sequence[str]:
    file = folder / "claw.toml"
    file.write_text(text)
    try:
        load(file, settings={}, known_plugins=PLUGINS, environ={})
    except ConfigError as error:
        return [problem.split(": ", 1)[1] for problem in error.problems]
    return []


def budget(folder: Path, lines: str, before: str = MODELS) -> Sequence[str]:
    return problems(folder, f"{before}[budgets.b]\n{lines}")


DAY = 'window = "day"\n'
WRONG = {
    'scope = "global:x"\nlimit = "1 requests"': 'budgets.b.scope: "global:x" is no scope; write "global"',
    'scope = "user"\nlimit = "1 requests"': 'budgets.b.scope: "user" is no scope; write "user:NAME", or "user:*" for one for each',
    'scope = "user:a*"\nlimit = "1 requests"': 'budgets.b.scope: "user:a*" names nobody; write "user:NAME", or "user:*" for one for each',
    'scope = "model:deer"\nlimit = "1 requests"': 'budgets.b.scope: "deer" is not in [models]; did you mean `dear`?',
    'scope = "provider:b"\nlimit = "1 requests"': 'budgets.b.scope: "b" is not in [providers]; known are `a`',
    'scope = "global"\nlimit = "ten"': 'budgets.b.limit: "ten" is no limit; write a number and a unit, like "10 requests", or "$5.00"',
    'scope = "global"\nlimit = "1 request"\nmode = "tight"': (
        "budgets.b.mode: has no meaning for requests, which are counted exactly; remove it"
    ),
    'scope = "global"\nlimit = "1 requests"\nsoft = "101%"': (
        'budgets.b.soft: "101%" is no share of the limit; write it like "80%"'
    ),
    'scope = "global"\nlimit = "1 requests"\naction = "fallback"': (
        'budgets.b.action: "fallback" is no action; write one of block, throttle, fallback:MODEL, notify'
    ),
    'scope = "global"\nlimit = "1 requests"\naction = "fallback:fre"': (
        'budgets.b.action: "fre" is not in [models]; did you mean `free`?'
    ),
    'scope = "model:free"\nlimit = "1 requests"\naction = "fallback:free"': (
        'budgets.b.action: "free" is the model this budget is for; name another one'
    ),
    'scope = "global"\nlimit = "$5"': (
        'budgets.b.limit: counts dollars, but `both`, `free` have no price; write price = { input = "...", output = "..." } there'
    ),
    'scope = "model:both"\nlimit = "$5"': (
        'budgets.b.limit: counts dollars, but `both` has no price; write price = { input = "...", output = "..." } there'
    ),
}  # fmt: skip


@pytest.mark.parametrize("lines", WRONG)
def test_a_mistake(lines: str, tmp_path: Path) -> None:
    assert budget(tmp_path, DAY + lines) == [WRONG[lines]]


def test_windows(tmp_path: Path) -> None:
    assert budget(tmp_path, 'scope = "global"\nlimit = "2 concurrent"') == []
    assert budget(tmp_path, f'{DAY}scope = "global"\nlimit = "2 concurrent"') == [
        "budgets.b.window: has no meaning for what is counted at once; remove it"
    ]
    assert budget(tmp_path, 'scope = "global"\nlimit = "2 tokens"') == [
        'budgets.b.window: is missing; add window = "minute", "hour", "day", "month" or "total"'
    ]
    assert budget(tmp_path, 'scope = "global"\nlimit = "2 tokens"\nwindow = "total"\nsliding = true') == [
        "budgets.b.sliding: has no meaning for a total, which never begins anew; remove it"
    ]


def test_dollars_where_all_that_is_covered_has_a_price(tmp_path: Path) -> None:
    """B-10: else it is refused."""
    for scope in ("model:dear", "key:rich"):
        assert budget(tmp_path, f'{DAY}scope = "{scope}"\nlimit = "$5"') == []
    assert budget(tmp_path, f'{DAY}scope = "global"\nlimit = "$5"', '[providers.a]\nbase_url = "http://127.0.0.1:9/v1"\n') == [
        "budgets.b.limit: counts dollars, but there are no [models] to say what anything costs; write them, each with its price"
    ]


def test_the_shipped_card_is_a_price(tmp_path: Path) -> None:
    card = '[providers.openai]\nbase_url = "https://api.openai.com/v1"\n[models.m]\nroutes = [{ provider = "openai", model = "gpt-4o-mini" }]\n'
    assert budget(tmp_path, f'{DAY}scope = "global"\nlimit = "$5"', card) == []
    assert len(budget(tmp_path, f'{DAY}scope = "global"\nlimit = "$5"', f'{card}[rates]\ncard = "none"\n')) == 1


def test_routes_that_lead_nowhere_are_said_once(tmp_path: Path) -> None:
    for routes in ('[{ model = "c" }]', '[{ model = "none" }]'):
        models = f"[models.c]\nroutes = {routes}\n"
        [problem] = budget(tmp_path, f'{DAY}scope = "global"\nlimit = "$5"', models)
        assert problem.startswith("models.c.routes")


def test_two_that_count_the_same(tmp_path: Path) -> None:
    one = f'{DAY}scope = "global"\nlimit = "5 requests"\n'
    assert budget(tmp_path, f"{one}[budgets.c]\n{one}") == [
        "budgets.c: counts what `b` counts; make them one, with `soft` for the lower limit"
    ]


def test_without_the_meter(tmp_path: Path) -> None:
    order = '[pipeline]\norder = ["auth", "router"]\n'
    assert budget(tmp_path, f'{DAY}scope = "global"\nlimit = "5 requests"', MODELS + order) == [
        "budgets.b: is kept by the plugin `meter`, which is not in pipeline.order; add it there"
    ]


@given(st.integers(0, 9_000_000), st.integers(0, NANO - 1))
def test_money_is_exact(dollars: int, nano: int) -> None:
    assert parse_limit(f"${dollars}.{nano:09}") == Limit("nano", dollars * NANO + nano)


def test_limits() -> None:
    assert parse_limit("1_000 tokens") == Limit("tokens", 1000)
    assert parse_limit("1 request") == Limit("requests", 1)
    assert parse_limit("$5") == Limit("nano", 5 * NANO)
    assert parse_limit(f"{MOST} tokens").amount == MOST
    with pytest.raises(ValueError, match="more than the books can hold"):
        parse_limit(f"{MOST + 1} tokens")
    assert parse_soft("12.5%") == 0.125
    assert parse_scope("user:a:b") == ("user", "a:b")
