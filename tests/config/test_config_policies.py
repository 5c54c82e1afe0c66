"""`[policies]`: each mistake is said with its place, and what is right is read as it was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.config import Config, parse_budget, parse_comparison, parse_hours
from clawproxy.config.checks_policies import MOST_CONTENT, NEEDS, SURFACES
from clawproxy.config.load import load
from clawproxy.config.policies import ACTIONS, fits
from clawproxy.ops.metrics import CLOSED
from clawproxy_router.needs import INFERRED
from tests.config.test_config_load import problems

MODELS = '[providers.a]\ndialect = "scripted"\n[models.m]\nroutes = [{ provider = "a", model = "x", region = "eu" }]\n'
GOOD = 'when = { user = "u" }\ncap = 5\n'

BROKEN: dict[str, tuple[str, list[str]]] = {
    "actions": (
        '[policies.a]\n[policies.b]\nrefuse = "No."\ncap = 0\nfinal = true\nwhen = { user = "u" }\n'
        '[policies.c]\nfinal = true\nshadow = true\n[policies.d]\nmodel = "m"\nchoose = "m"\n'
        '[policies.e]\nmodel = "a/x"\n[policies.f]\nchoose = "a/y"\n[policies.g]\nrefuse = ""\nunless = { user = "u" }\n'
        '[policies."h i"]\ncap = "5"\n',
        [
            "claw.toml:5: policies.a: does nothing; add refuse, model, choose, restrict or cap "
            "(or final, to let what fits pass the rest)",
            "claw.toml:7: policies.b.refuse: can not stand beside cap; a refused request goes nowhere",
            "claw.toml:8: policies.b.cap: 0 leaves no answer; write 1 or more",
            "claw.toml:9: policies.b.final: has no meaning beside refuse, which ends it all; remove it",
            "claw.toml:12: policies.c.final: has no meaning in a shadow; remove it, or the whole policy",
            "claw.toml:16: policies.d.choose: can not stand beside model: one changes the name, the other keeps it; remove one",
            'claw.toml:18: policies.e.model: "a/x" is not in [models]; known are `m`',
            'claw.toml:20: policies.f.choose: "a/y" is not in [models] or their routes; did you mean `a/x`?',
            "claw.toml:22: policies.g.refuse: must be a sentence for the client, of 1 to 500 printable characters, like "
            '"Not outside office hours."',
            'claw.toml:25: policies."h i".cap: is a string; write a whole number without quotes, like 2',
        ],
    ),
    "conditions": (
        '[policies.a]\ncap = 5\nwhen = {}\n[policies.a.unless]\nusr = "x"\nuser = []\nteam = ["", 1]\n'
        'metadata = { user_id = "x", y = 1 }\n',
        [
            "claw.toml:7: policies.a.when: is empty; leave it out, or write a condition",
            "claw.toml:9: policies.a.unless.usr: is not a key here; did you mean `user`?",
            "claw.toml:10: policies.a.unless.user: is empty; write a string, or leave the key out",
            "claw.toml:11: policies.a.unless.team[1]: is an integer; write a string in quotes",
            "claw.toml:12: policies.a.unless.metadata.user_id: counts only where a key may_assert it; write it as `user = ...`",
            "claw.toml:12: policies.a.unless.metadata.y: is an integer; write a string, or an array of them",
        ],
    ),
    "values": (
        '[policies.a]\ncap = 5\n[policies.a.when]\nteam = ["x", ""]\n'
        'surface = "http"\noperation = "talk"\nneeds = "tool"\ncontent = ["a(?=b)", "x*"]\nbudget = ["day > 80%", "day"]\n'
        '[policies.a.when.size]\nbytes = "5"\ninput_tokens = "> 1KiB"\n'
        '[policies.a.when.time]\ndays = "monday"\nhours = ["9-17", "10:00-10:00"]\nzone = "Mars/Base"\n'
        "after = 2026-01-02T00:00:00Z\nbefore = 2026-01-01T00:00:00Z\n",
        [
            'claw.toml:8: policies.a.when.team: has an empty word; write a value, "prefix*", or "*" for any',
            'claw.toml:9: policies.a.when.surface: "http" is not a surface; known are `anthropic`, `claw`, `cohere`, '
            "`gemini`, `ollama`, `openai_chat`, `openai_embeddings`, `openai_responses`",
            'claw.toml:10: policies.a.when.operation: "talk" is not an operation; known are `chat`, `count_tokens`, `embeddings`',
            'claw.toml:11: policies.a.when.needs: "tool" is not anything that is read off a request; did you mean `tools`?',
            'claw.toml:12: policies.a.when.content: "a(?=b)" is refused by RE2: invalid perl operator: (?=; write it without '
            "look-around and back-references",
            'claw.toml:12: policies.a.when.content: "x*" fits the empty text, so it would always hold; ask for something',
            'claw.toml:13: policies.a.when.budget: "day" is not in [budgets]; none is configured; remove this condition',
            'claw.toml:13: policies.a.when.budget: "day" is no state of a budget; write it like "team-day >= 80%"',
            'claw.toml:15: policies.a.when.size.bytes: "5" is no comparison; write it like "> 4000" or ">= 10, < 20"',
            'claw.toml:16: policies.a.when.size.input_tokens: "1KiB" is no whole number; write it like "> 4000"',
            'claw.toml:18: policies.a.when.time.days: "monday" is not a day; did you mean `mon`?',
            'claw.toml:19: policies.a.when.time.hours: "9-17" are no hours; write them like "09:00-17:30" or "22:00-06:00"',
            'claw.toml:19: policies.a.when.time.hours: "10:00-10:00" is no time at all; leave `hours` out where the '
            "whole day is meant",
            'claw.toml:20: policies.a.when.time.zone: "Mars/Base" is no time zone this machine knows; '
            'write one like "Europe/Vienna"',
            "claw.toml:22: policies.a.when.time.before: is not after `after`, so it would never hold; exchange the two",
        ],
    ),
    "places and reach": (
        '[policies.a]\nrestrict = {}\n[policies.b]\nrestrict = { provider = "b", region = "us", route = "a/y" }\n'
        '[policies.c]\nfinal = true\n[policies.d]\ncap = 1\n[pipeline]\norder = ["auth"]\n',
        [
            "claw.toml:5: policies: are evaluated by the plugin `router`, which is not in pipeline.order; add it there",
            "claw.toml:6: policies.a.restrict: is empty; name a provider, a region or a route",
            'claw.toml:8: policies.b.restrict.provider: "b" is not a provider; known are `a`',
            'claw.toml:8: policies.b.restrict.region: "us" is not the region of any route; known are `eu`',
            'claw.toml:8: policies.b.restrict.route: "a/y" is not any route; did you mean `a/x`?',
            "claw.toml:11: policies.d: is never reached: policies.c ends the list for every request; put this one before it",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_mistakes(name: str, tmp_path: Path) -> None:
    text, expected = BROKEN[name]
    assert problems(tmp_path, MODELS + text) == expected


def test_too_many_looks_at_content(tmp_path: Path) -> None:
    text = "".join(f'[policies.p{n}]\nwhen = {{ content = "c{n}" }}\ncap = 1\n' for n in range(MOST_CONTENT + 1))
    [problem] = problems(tmp_path, MODELS + text)
    assert "policies.p64.when.content: is one too many: 64" in problem


def read(tmp_path: Path, text: str) -> tuple[Config, list[str]]:
    (tmp_path / "claw.toml").write_text(MODELS + text)
    loaded = load(tmp_path / "claw.toml", settings={}, known_plugins=("auth", "audit", "sanitize", "truncate", "router", "meter"))
    return loaded.config, loaded.warnings


def test_the_order_is_that_of_the_file(tmp_path: Path) -> None:
    names = ["z", "a", "m-1", "B"]
    config, warnings = read(tmp_path, "".join(f"[policies.{name}]\n{GOOD}" for name in names))
    assert list(config.policies) == names
    assert warnings == []


def test_a_prompt_that_is_fitted_too_early_is_warned_of(tmp_path: Path) -> None:
    text = '[models.s]\nroutes = [{ provider = "a", model = "y", context_tokens = 100 }]\n[policies.a]\nmodel = "s"\n'
    _, warnings = read(tmp_path, text)
    assert len(warnings) == 1
    assert "policies.a.model: leads to routes with a context window" in warnings[0]
    order = '[pipeline]\norder = ["audit", "auth", "sanitize", "router", "truncate", "meter"]\n'
    assert read(tmp_path, text + order)[1] == []


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_comparisons(bound: int, figure: int) -> None:
    assert parse_comparison(f"> {bound}").holds(figure) is (figure > bound)
    assert parse_comparison(f">={bound}").holds(figure) is not parse_comparison(f"<{bound}").holds(figure)
    assert parse_comparison(f">= {bound}, <= {bound}").holds(figure) is (figure == bound)
    assert parse_comparison(f"< {bound}KiB", sizes=True).holds(figure) is (figure < bound * 1024)


@given(st.text(max_size=12))
def test_small_languages_refuse_with_a_sentence(text: str) -> None:
    for parse in (parse_comparison, parse_hours, parse_budget):
        said = ""
        try:
            parse(text)
        except ValueError as error:
            said = str(error)
        assert not said or "; write" in said or "; leave" in said


def test_words_are_those_of_the_code() -> None:
    assert parse_hours("22:00-24:00") == (1320, 1440)
    assert parse_budget("team-day >= 80.5%")[1].holds(0.805)
    assert fits("abc", ("x", "ab*"))
    assert not fits("abc", ("ab", "abcd*"))
    assert set(NEEDS) == INFERRED
    assert set(SURFACES) == CLOSED["surface"] - {"models", "none"}
    assert set(ACTIONS) == CLOSED["action"]
