"""Bills of real model cards, worked out by hand: a dollar for a million tokens is a thousand nano-dollars for one.

The prices are the shipped card's of today; where the card has them from it says itself (`source`). Whoever makes a new card and
finds one of these changed works the bill out again.
"""

from __future__ import annotations

from datetime import date

import pytest

from clawproxy.costs import cost_nano, items
from clawproxy.messages import Usage
from clawproxy.rates import shipped

BILLS = [
    # $1.25, cached $0.125, out $10; reasoning is part of the output
    (
        "openai/gpt-5",
        Usage(12_345, 2_007, cached_tokens=10_240, reasoning_tokens=1_536, service_tier="default"),
        2_105 * 1_250 + 10_240 * 125 + 2_007 * 10_000,
        23_981_250,
    ),
    # flex: half of it
    (
        "openai/gpt-5-2025-08-07",
        Usage(12_345, 2_007, cached_tokens=10_240, service_tier="flex"),
        2_105 * 625 + 640_000 + 2_007 * 5_000,
        11_990_625,
    ),
    # one token that was cached, at $0.0625: 62.5 nano-dollars, half up
    ("openai/gpt-5", Usage(1, 0, cached_tokens=1, service_tier="flex"), 63, 63),
    # $2, out $8
    ("openai/o3", Usage(801, 1_903, reasoning_tokens=1_600), 801 * 2_000 + 1_903 * 8_000, 16_826_000),
    # priority: $3.50, cached $0.875, out $14
    (
        "openai/gpt-4.1",
        Usage(1_000, 77, cached_tokens=333, service_tier="priority"),
        667 * 3_500 + 333 * 875 + 77 * 14_000,
        3_703_875,
    ),
    # $0.15, cached $0.075, out $0.60
    ("openai/gpt-4o-mini", Usage(17, 3, cached_tokens=1), 16 * 150 + 75 + 3 * 600, 4_275),
    # $3, read $0.30, written $3.75 and for an hour $6, out $15
    (
        "anthropic/claude-sonnet-4-5-20250929",
        Usage(12_510, 1_033, cached_tokens=10_007, cache_write_tokens=2_500, cache_write_1h_tokens=500, service_tier="standard"),
        3 * 3_000 + 10_007 * 300 + 2_000 * 3_750 + 500 * 6_000 + 1_033 * 15_000,
        29_006_100,
    ),
    # above 200,000 tokens: $6, read $0.60, out $22.50, for all of them
    (
        "anthropic/claude-sonnet-4-5",
        Usage(200_001, 10, cached_tokens=200_000),
        1 * 6_000 + 200_000 * 600 + 10 * 22_500,
        120_231_000,
    ),
    # $5, out $25; a batch is half of it
    ("anthropic/claude-opus-4-5", Usage(5_000, 250), 5_000 * 5_000 + 250 * 25_000, 31_250_000),
    ("anthropic/claude-opus-4-5", Usage(5_000, 250, service_tier="batch"), 5_000 * 2_500 + 250 * 12_500, 15_625_000),
    # $1.25, cached $0.125, out $10, and above 200,000 tokens $2.50, $0.25, $15
    (
        "google/gemini-2.5-pro",
        Usage(200_000, 1_800, cached_tokens=150_000, reasoning_tokens=1_200),
        50_000 * 1_250 + 150_000 * 125 + 1_800 * 10_000,
        99_250_000,
    ),
    (
        "google/gemini-2.5-pro",
        Usage(200_001, 1_800, cached_tokens=150_000, reasoning_tokens=1_200),
        50_001 * 2_500 + 150_000 * 250 + 1_800 * 15_000,
        189_502_500,
    ),
    # $0.30, cached $0.03, sound $1, cached sound $0.10, out $2.50: 1,600 of 1,920 tokens of sound were new, 680 cached were text
    (
        "google/gemini-2.5-flash",
        Usage(4_000, 401, cached_tokens=1_000, audio_input_tokens=1_920, cached_audio_tokens=320, reasoning_tokens=128),
        1_400 * 300 + 680 * 30 + 320 * 100 + 1_600 * 1_000 + 401 * 2_500,
        3_074_900,
    ),
    # $3, cached $0.75, out $15
    ("x-ai/grok-4", Usage(999, 64, cached_tokens=512, reasoning_tokens=50), 487 * 3_000 + 512 * 750 + 64 * 15_000, 2_805_000),
    # $0.59, out $0.79
    ("groq/llama-3.3-70b-versatile", Usage(37, 11), 37 * 590 + 11 * 790, 30_520),
    # $2, out $6; nothing is said of a cache, so what was cached costs what the input does
    ("mistral/mistral-large-2411", Usage(1_234, 56, cached_tokens=1_000), 1_234 * 2_000 + 56 * 6_000, 2_804_000),
]


@pytest.mark.parametrize(("model", "usage", "worked_out", "nano"), BILLS)
def test_the_bill(model: str, usage: Usage, worked_out: int, nano: int) -> None:
    vendor, _, name = model.partition("/")
    price = shipped().price(vendor, name, date(2026, 11, 22))
    assert price is not None
    assert worked_out == nano
    assert cost_nano(usage, price) == nano
    found = items(usage, price)
    assert found is not None
    lines, factor = found
    assert (sum(line.count * line.price for line in lines) * factor + 500_000_000) // 1_000_000_000 == nano
    assert sum(line.count for line in lines if line.name != "request") == usage.total_tokens, "each token once"


def test_these_are_ten_cards() -> None:
    assert len({model.removesuffix("-2025-08-07").removesuffix("-20250929") for model, *_ in BILLS}) >= 10
    usages = [usage for _, usage, *_ in BILLS]
    assert any(usage.cached_tokens for usage in usages)
    assert any(usage.cache_write_tokens for usage in usages)
    assert any(usage.cache_write_1h_tokens for usage in usages)
    assert any(usage.reasoning_tokens for usage in usages)
    assert any((usage.input_tokens or 0) > 200_000 for usage in usages), "none of a long context"
    assert "https://" in shipped().source, "no word of where the prices are from"
