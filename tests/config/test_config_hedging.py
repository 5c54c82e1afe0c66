"""`hedge`, `continuation` and `prefill` in a file: what they may say, and what is said of anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawproxy.config import Duration, Hedge
from tests.config.test_config_load import GOOD_PROVIDER, loaded, problems

TWO = GOOD_PROVIDER + '[providers.b]\nbase_url = "http://127.0.0.1:1/v1"\nprefill = true\n[models.m]\n'
ROUTES = 'routes = [{ provider = "a", model = "m" }, { provider = "b", model = "m" }]\n'


def models_of(tmp_path: Path, said: str) -> tuple[Hedge | None, bool, bool | None]:
    config = loaded(tmp_path, TWO + said + ROUTES).config
    return config.models["m"].hedge, config.models["m"].continuation, config.providers["b"].prefill


def test_what_they_may_say(tmp_path: Path) -> None:
    assert models_of(tmp_path, "") == (None, False, True)
    assert models_of(tmp_path, 'hedge = "p95"\ncontinuation = true\n') == (Hedge(quantile=0.95), True, True)
    assert models_of(tmp_path, 'hedge = "p50"\n')[0] == Hedge(quantile=0.5)
    assert models_of(tmp_path, 'hedge = "800ms"\n')[0] == Hedge(Duration(0.8))


NO_MOMENT = 'says no moment to hedge at; write "p95" (p50 to p99), or a duration like "800ms"'


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ('"p100"', f'"p100" {NO_MOMENT}'),
        ('"p9"', f'"p9" {NO_MOMENT}'),
        ('"soon"', f'"soon" {NO_MOMENT}'),
        ("800", f"an integer {NO_MOMENT}"),
        ("true", f"a boolean {NO_MOMENT}"),
        ('"0s"', '"0s" is no time to wait before a hedge; write one like "800ms", or leave the key out'),
        ('"off"', '"off" is no time to wait before a hedge; write one like "800ms", or leave the key out'),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, said: str, sentence: str) -> None:
    line = (TWO + "hedge = ").count("\n") + 1
    assert problems(tmp_path, TWO + f"hedge = {said}\n" + ROUTES) == [f"claw.toml:{line}: models.m.hedge: {sentence}"]


def test_a_hedge_needs_a_second_provider(tmp_path: Path) -> None:
    text = TWO + 'hedge = "p95"\nroutes = [{ provider = "a", model = "m" }, { provider = "a", model = "n" }]\n'
    line = text[: text.index("hedge")].count("\n") + 1
    assert problems(tmp_path, text) == [
        f"claw.toml:{line}: models.m.hedge: has no second provider among the routes to go to; add a route, or leave the key out"
    ]
