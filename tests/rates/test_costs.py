"""What costs are: exact, rounded once, each token billed once, and nothing where something is not known."""

from __future__ import annotations

import random
import time
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.config import Factor, PerRequest, Price, PriceConfig, PriceTier, ServicePrice
from clawproxy.costs import STANDARD, cost_nano, items, most_nano
from clawproxy.messages import Usage

PLAIN = PriceConfig(Price(1_250_000), Price(10_000_000), cached_input=Price(125_000))
RICH = PriceConfig(
    Price(2_000_001),
    Price(8_000_003),
    cached_input=Price(500_007),
    cache_write=Price(2_500_009),
    cache_write_1h=Price(4_000_011),
    cached_audio=Price(600_013),
    reasoning=Price(9_000_017),
    audio_input=Price(32_000_019),
    audio_output=Price(64_000_021),
    image_input=Price(5_000_023),
    image_output=Price(40_000_027),
    request=PerRequest(12_000_000),
    tiers=(PriceTier(1000, input=Price(3_000_001), output=Price(12_000_001)), PriceTier(5000, input=Price(1))),
    service={"flex": ServicePrice(Factor(500_001)), "priority": ServicePrice(input=Price(7), output=Price(9))},
)
counts = st.none() | st.integers(0, 10_000)
usages = st.builds(
    Usage,
    input_tokens=st.integers(0, 10_000),
    output_tokens=st.integers(0, 10_000),
    cached_tokens=counts,
    cache_write_tokens=counts,
    reasoning_tokens=counts,
    cache_write_1h_tokens=counts,
    cached_audio_tokens=counts,
    audio_input_tokens=counts,
    audio_output_tokens=counts,
    image_input_tokens=counts,
    image_output_tokens=counts,
    service_tier=st.sampled_from([None, "default", "flex", "priority"]),
)
prices = st.sampled_from([PLAIN, RICH])


@given(usages, prices)
def test_each_token_is_billed_once_and_the_sum_is_rounded_once(usage: Usage, price: PriceConfig) -> None:
    found = items(usage, price)
    if found is None:
        assert usage.service_tier not in (None, *STANDARD, *price.service)
        return
    lines, factor = found
    assert all(line.count > 0 for line in lines)
    assert sum(line.count for line in lines if line.name != "request") == usage.total_tokens
    exact = sum(Decimal(line.count) * line.price for line in lines) * factor / Decimal(10**9)
    assert cost_nano(usage, price) == int(exact.to_integral_value(ROUND_HALF_UP))


@given(usages, prices)
def test_nothing_costs_more_than_the_most(usage: Usage, price: PriceConfig) -> None:
    cost = cost_nano(usage, price)
    most = most_nano(price, usage.input_tokens or 0, usage.output_tokens or 0, usage.service_tier)
    assert (cost is None) == (most is None)
    if cost is not None and most is not None:
        assert cost <= most
        more = most_nano(price, (usage.input_tokens or 0) + 777, (usage.output_tokens or 0) + 7, usage.service_tier)
        assert more is not None
        assert more >= most, "who reserves more is never told less"


@pytest.mark.parametrize(
    ("given_", "nano"),
    [
        (1000, 1000 * 1_000),
        (1001, 1001 * 2_000),  # for all tokens, not only for those above
        (5000, 5000 * 2_000),
        (5001, 5001 * 3_000),
        (0, 0),
    ],
)
def test_tiers_at_their_edges(given_: int, nano: int) -> None:
    tiers = (PriceTier(1000, input=Price(2_000_000)), PriceTier(5000, input=Price(3_000_000), output=Price(5_000_000)))
    price = PriceConfig(Price(1_000_000), Price(4_000_000), tiers=tiers)
    assert cost_nano(Usage(given_, 0), price) == nano
    out = 5_000 if given_ > 5000 else 4_000
    assert cost_nano(Usage(given_, 3), price) == nano + 3 * out, "what a tier does not say stays"


def test_the_tier_goes_by_the_whole_prompt_cached_tokens_included() -> None:
    price = PriceConfig(
        Price(1_000_000), Price(0), cached_input=Price(100_000), tiers=(PriceTier(1000, cached_input=Price(200_000)),)
    )
    assert cost_nano(Usage(1001, 0, cached_tokens=1001), price) == 1001 * 200


def test_a_service_tier_nobody_priced() -> None:
    """The card, and an operator who priced some of them, did not mean it; one price alone is for all of them."""
    odd = Usage(1000, 0, service_tier="scale")
    assert cost_nano(odd, PLAIN) == 1_250_000
    assert cost_nano(odd, RICH) is None
    assert cost_nano(odd, PriceConfig(Price(1_250_000), Price(0), origin="2026-11-22 openai/gpt-5")) is None
    assert most_nano(RICH, 1, 1, "scale") is None
    for name in STANDARD:
        assert cost_nano(Usage(1000, 0, service_tier=name), PLAIN) == 1_250_000


def test_a_missing_figure_is_not_zero() -> None:
    for price in (PLAIN, RICH):
        assert cost_nano(Usage(None, 1), price) is None
        assert cost_nano(Usage(1, None), price) is None


def test_half_a_nano_dollar_rounds_up_with_and_without_a_factor() -> None:
    assert cost_nano(Usage(1, 0), PriceConfig(Price(500), Price(0))) == 1
    assert cost_nano(Usage(1, 0), PriceConfig(Price(499), Price(0))) == 0
    half = PriceConfig(Price(1000), Price(0), service={"flex": ServicePrice(Factor(500_000))})
    assert cost_nano(Usage(1, 0, service_tier="flex"), half) == 1
    less = PriceConfig(Price(1000), Price(0), service={"flex": ServicePrice(Factor(499_999))})
    assert cost_nano(Usage(1, 0, service_tier="flex"), less) == 0


def _sum_is_exact(how_many: int) -> None:
    """In dollars, ledgers of floats drift; integers do not."""
    chance = random.Random(26).randrange
    total, exact = 0, 0
    for _ in range(how_many):
        given_, cached, taken = chance(200_000), chance(200_000), chance(20_000)
        cached = min(cached, given_)
        total += cost_nano(Usage(given_, taken, cached), PLAIN) or 0
        exact += (given_ - cached) * 1_250_000 + cached * 125_000 + taken * 10_000_000
    assert total * 1000 == exact, "these prices are whole nano-dollars for a token, so not one is lost"


def test_ten_thousand_random_costs_sum_exactly() -> None:
    _sum_is_exact(10_000)


@pytest.mark.slow
def test_a_million_random_costs_sum_exactly() -> None:
    """B-12."""
    began = time.process_time()
    _sum_is_exact(1_000_000)
    assert time.process_time() - began < 60
