"""`[rates]` and prices in full: what is read, and what is wrong with them is said with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawproxy.config import Config, Factor, PerRequest, PipelineConfig, Price, PriceConfig, PriceTier, RatesConfig, ServicePrice
from clawproxy.config.load import load
from clawproxy.config.units import parse_dollars, parse_factor
from clawproxy.errors import ConfigError
from tests.config.test_config_load import GOOD_PROVIDER

FULL = """
[rates]
card = "none"
[rates."a/m"]
input = "1.25"
output = "10"
cached_input = "0.125"
cache_write = "1.5625"
cache_write_1h = "2.50"
cached_audio = "0.2"
reasoning = "12"
audio_input = "32"
audio_output = "64"
image_input = "5"
image_output = "40"
request = "0.012"
tiers = [{ above = 200000, input = "2.50", output = "15" }]
service = { flex = { factor = "0.5" }, priority = { input = "2.50", output = "20", request = "0.02" } }
"""


def read(tmp_path: Path, text: str) -> Config:
    (tmp_path / "claw.toml").write_text(text)
    return load(tmp_path / "claw.toml", settings={}, known_plugins=PipelineConfig().order, environ={}).config


def wrongs(tmp_path: Path, text: str) -> list[str]:
    try:
        read(tmp_path, text)
    except ConfigError as error:
        return [line.replace(f"{tmp_path}/", "") for line in error.problems]
    return []


def test_a_price_in_full(tmp_path: Path) -> None:
    price = PriceConfig(
        Price(1_250_000), Price(10_000_000), PerRequest(12_000_000),
        (PriceTier(200_000, Price(2_500_000), Price(15_000_000)),),
        {
            "flex": ServicePrice(Factor(500_000)),
            "priority": ServicePrice(input=Price(2_500_000), output=Price(20_000_000), request=PerRequest(20_000_000)),
        },
        cached_input=Price(125_000), cache_write=Price(1_562_500), cache_write_1h=Price(2_500_000), cached_audio=Price(200_000),
        reasoning=Price(12_000_000), audio_input=Price(32_000_000), audio_output=Price(64_000_000),
        image_input=Price(5_000_000), image_output=Price(40_000_000),
    )  # fmt: skip
    config = read(tmp_path, GOOD_PROVIDER + FULL)
    assert config.rates == RatesConfig("none", {"a/m": price})
    assert price.origin == "config"


def test_the_card_counts_unless_it_is_said(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD_PROVIDER).rates == RatesConfig("shipped", {})


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('[rates]\ncard = "mine"\n', ['4: rates.card: "mine" is not known; known are `shipped`, `none`']),
        (
            '[rates]\ncrad = "none"\n',
            ['4: rates.crad: is not a key here; did you mean `card`?, or write a table of prices for "PROVIDER/MODEL"'],
        ),
        (
            '[rates."b/m"]\ninput = "1"\noutput = "2"\n',
            ['3: rates."b/m": "b" is not in [providers]; known are `a`'],
        ),
        ('[rates."a/m"]\ninput = "1"\n', ['3: rates."a/m".output: is missing; add `output = ...` here']),
        (
            '[rates."a/m"]\ninput = 1\noutput = "2"\norigin = "me"\nouput = "3"\n',
            [
                '4: rates."a/m".input: an integer is no price; write dollars per million tokens as a string, like "0.15"',
                '6: rates."a/m".origin: is not a key here; known are `input`, `output`, `request`, `tiers`, `service`, '
                "`cached_input`, `cache_write`, `cache_write_1h`, `cached_audio`, `reasoning`, `audio_input`, `audio_output`, "
                "`image_input`, `image_output`",
                '7: rates."a/m".ouput: is not a key here; did you mean `output`?',
            ],
        ),
        (
            '[rates."a/m"]\ninput = "1"\noutput = "2"\nrequest = "0.0000000001"\n',
            ['6: rates."a/m".request: "0.0000000001" is no price of a request; write dollars, like "0.005", to '
             "nine decimals at most"],
        ),
        (
            '[rates."a/m"]\ninput = "1"\noutput = "2"\ntiers = [{ above = 9, input = "1" }, { above = 9 }, { above = 0 }]\n',
            [
                '6: rates."a/m".tiers[1].above: 9 is not above 9; write the tiers in rising order',
                '6: rates."a/m".tiers[2].above: 0 is no length of a prompt; write 1 token or more',
            ],
        ),
        (
            '[models.x]\nprice = { input = "1", output = "2", service = { flex = {}, b = { factor = "2", input = "1", '
            'output = "1" }, '
            'c = { factor = "0.5", request = "1" }, d = { input = "1" } } }\nroutes = [{ provider = "a", model = "m" }]\n',
            [
                '4: models.x.price.service.b: is no price; write { factor = "0.5" }, or prices of its own: { input = "...", '
                'output = "..." }',
                "4: models.x.price.service.c: has a factor and prices; write one or the other",
                '4: models.x.price.service.d: is no price; write { factor = "0.5" }, or prices of its own: { input = "...", '
                'output = "..." }',
                '4: models.x.price.service.flex: is no price; write { factor = "0.5" }, or prices of its own: { input = "...", '
                'output = "..." }',
            ],
        ),
        ('[rates."a/"]\ninput = "1"\noutput = "2"\n', ['3: rates."a/": names no model; write "PROVIDER/MODEL"']),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, wrong: list[str]) -> None:
    assert wrongs(tmp_path, GOOD_PROVIDER + text) == [f"claw.toml:{line}" for line in wrong]


def test_a_cost_strategy_is_content_with_the_rates(tmp_path: Path) -> None:
    routes = '[models.x]\nstrategy = "cost"\nroutes = [{ provider = "a", model = "m" }]\n'
    assert wrongs(tmp_path, GOOD_PROVIDER + routes) != []
    assert wrongs(tmp_path, GOOD_PROVIDER + routes + '[rates."a/m"]\ninput = "1"\noutput = "2"\n') == []
    known = '[providers.o]\nbase_url = "https://api.openai.com/v1"\n' + routes.replace('"a"', '"o"').replace('"m"', '"gpt-5"')
    assert wrongs(tmp_path, known) == []
    assert wrongs(tmp_path, known + '[rates]\ncard = "none"\n') != []


def test_decimals() -> None:
    assert [parse_dollars("0.005"), parse_dollars("12"), parse_dollars("0.000000001")] == [5_000_000, 12_000_000_000, 1]
    assert [parse_factor("0.5"), parse_factor("2"), parse_factor("1.1")] == [500_000, 2_000_000, 1_100_000]
    for bad in ("", "-1", ".5", "1e3", 1, None):
        with pytest.raises(ValueError, match="no price of a request"):
            parse_dollars(bad)
        with pytest.raises(ValueError, match="no factor"):
            parse_factor(bad)
