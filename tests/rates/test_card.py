"""The shipped card: what the file must be, how models are found in it, and whose prices a provider's are."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from importlib import resources

import msgspec
import pytest

from clawproxy.config import Config, ModelConfig, Price, PriceConfig, ProviderConfig, RatesConfig, RouteConfig
from clawproxy.rates import may_price, price_of, prices_of, route_price, shipped
from clawproxy.rates.card import FILE, Card, CardFile, Classes, Dated, Model, Whole
from clawproxy.rates.hosts import HOSTS, VENDORS, vendor_of

TODAY = date(2026, 11, 22)
RAW = resources.files("clawproxy.rates").joinpath(FILE).read_bytes()
CARD = msgspec.json.decode(RAW, type=CardFile, strict=True)  # unknown fields are refused
CLASSES = Classes.__struct_fields__


def provider(base_url: str, profile: str | None = None) -> ProviderConfig:
    return ProviderConfig(base_url=base_url, profile=profile)


OPENAI = provider("https://api.openai.com/v1")
MINE = PriceConfig(Price(1), Price(2))


# --- the file ------------------------------------------------------------------------------------------------------------------


def test_it_says_what_it_is() -> None:
    assert CARD.version == CARD.date.isoformat()
    assert date(2025, 1, 1) < CARD.date
    assert CARD.source.startswith("genai-prices ")
    assert CARD.licence.startswith("MIT")
    assert set(CARD.providers) == VENDORS
    assert all(CARD.providers.values()), "a vendor without a model"
    assert len(RAW) < 400_000


@pytest.mark.parametrize("vendor", sorted(CARD.providers))
def test_every_model_has_prices_that_can_be(vendor: str) -> None:
    seen: set[str] = set()
    for model in CARD.providers[vendor]:
        for name in (model.id, *model.names):
            assert name.lower() not in seen, f"{name} is there twice"
            seen.add(name.lower())
        days = [dated.since for dated in model.prices]
        assert days[0] is None
        assert all(CARD.date < day for day in days[1:] if day is not None)
        assert days[1:] == sorted(day for day in days[1:] if day is not None)
        for dated in model.prices:
            for whole in (dated, *dated.service.values()):
                check_whole(model, whole)


def check_whole(model: Model, whole: Whole) -> None:
    assert whole.input is not None
    assert whole.output is not None
    assert whole.input or whole.output or model.id.endswith(":free"), f"{model.id} is free, it says"
    aboves = [tier.above for tier in whole.tiers]
    assert aboves == sorted(set(aboves))
    assert all(above > 0 for above in aboves)
    for classes in (whole, *whole.tiers):
        figures = [getattr(classes, name) for name in CLASSES]
        assert all(figure is None or 0 <= figure <= 1_000_000_000 for figure in figures), f"{model.id}: beyond $1,000 a million"


# --- finding -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vendor", "name", "found"),
    [
        ("openai", "gpt-5", "gpt-5"),
        ("openai", "GPT-5", "gpt-5"),
        ("openai", "gpt-5-2025-08-07", "gpt-5"),
        ("openai", "gpt-5-2031-01-09", "gpt-5"),  # a snapshot of tomorrow
        ("openai", "gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),  # priced apart
        ("anthropic", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("openai", "gpt-5-turbo-extra", None),
        ("openai", "gpt-5-2025", None),
        ("openai", "gpt-5-2025-08-07-2025-08-07", "gpt-5"),  # what ends in a date is looked for without it
        ("openai", "my-gpt-5", None),
        ("openai", "", None),
        ("groq", "gpt-5", None),
        ("nobody", "gpt-5", None),
        ("deepseek", "deepseek-chat", None),  # by the hour of the day
        ("openai", "gpt-4o-audio-preview", None),  # the source has no price of its sound
        ("openai", "gpt-4o-mini-search-preview", None),
    ],
)
def test_a_model_is_found_by_its_name_or_not_at_all(vendor: str, name: str, found: str | None) -> None:
    model = shipped().find(vendor, name)
    assert (model and model.id) == found


def test_a_price_changes_on_its_day() -> None:
    dated = [Dated(input=1, output=2), Dated(input=3, output=4, since=date(2027, 1, 1))]
    card = Card("v", TODAY, "s", {"v": {"m": Model(id="m", prices=dated)}})
    assert [card.price("v", "m", day).input for day in (TODAY, date(2026, 12, 31), date(2027, 1, 1))] == [1, 1, 3]  # type: ignore[union-attr]
    assert card.price("v", "m", TODAY) is card.price("v", "m", TODAY)


@pytest.mark.parametrize(
    ("settings", "vendor"),
    [
        (OPENAI, "openai"),
        (provider("https://API.OpenAI.com/v1"), "openai"),
        (provider("https://api.openai.com.evil.example/v1"), None),
        (provider("https://generativelanguage.googleapis.com/v1beta"), "google"),
        (provider("http://127.0.0.1:8000/v1"), None),  # a server of one's own
        (provider("http://10.0.0.1/v1", "openai"), "openai"),  # the operator says whose it is
        (provider("https://api.openai.com/v1", "vllm"), None),
        (provider("https://mine.openai.azure.com/openai"), None),
        (provider("http://["), None),
        (ProviderConfig(), None),
    ],
)
def test_whose_prices_a_providers_are(settings: ProviderConfig, vendor: str | None) -> None:
    assert vendor_of(settings) == vendor


def test_every_host_of_the_list_has_a_card() -> None:
    assert set(HOSTS.values()) <= set(CARD.providers)


# --- the one look-up -----------------------------------------------------------------------------------------------------------


def test_the_operators_word_goes_before_the_cards() -> None:
    config = Config(providers={"o": OPENAI}, rates=RatesConfig(prices={"o/gpt-5": MINE}))
    assert price_of(config, "o", "gpt-5") is MINE
    assert price_of(config, "o", "gpt-5-2025-08-07") is not MINE, "what is written is one name's price"
    found = price_of(config, "o", "o3")
    assert found is not None
    assert found.origin == f"{CARD.version} openai/o3"
    assert price_of(config, "nobody", "gpt-5") is None


def test_no_card_no_price() -> None:
    config = Config(providers={"o": OPENAI}, rates=RatesConfig("none", {"o/gpt-5": MINE}))
    assert price_of(config, "o", "gpt-5") is MINE
    assert price_of(config, "o", "o3") is None
    assert may_price(config)
    assert not may_price(Config(providers={"o": OPENAI}, rates=RatesConfig("none")))
    assert may_price(Config(providers={"o": OPENAI}))
    assert not may_price(Config(providers={"o": provider("http://127.0.0.1:1/v1")}))


def test_what_is_written_nearest_counts() -> None:
    route, model = PriceConfig(Price(3), Price(3)), PriceConfig(Price(4), Price(4))
    config = Config(
        providers={"o": OPENAI, "x": provider("http://127.0.0.1:1/v1")},
        models={
            "a": ModelConfig(
                (RouteConfig("o", "gpt-5", price=route), RouteConfig("o", "gpt-5"), RouteConfig("x", "m")), price=model
            ),
            "b": ModelConfig((RouteConfig("o", "gpt-5"), RouteConfig("x", "m"))),
            "c": ModelConfig((RouteConfig(None, "b"), RouteConfig("o", "o3", price=route)), price=MINE),
        },
        rates=RatesConfig(prices={"o/gpt-5": MINE}),
    )
    assert list(prices_of(config, "a")) == [route, model, model]
    assert list(prices_of(config, "b")) == [MINE, None]
    assert list(prices_of(config, "c")) == [MINE, MINE, route]
    assert route_price(config, config.models["b"], config.models["b"].routes[1]) is None


def test_who_needs_no_price_reads_no_card() -> None:
    code = (
        "import sys, clawproxy.gateway, clawproxy_meter, clawproxy_router\n"
        "assert 'clawproxy.rates.card' not in sys.modules\nassert 'bpe_openai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
