"""What models cost, as attrs classes: a model's or a route's `price`, and `[rates]`.

Rule: tokens of a kind without a price of its own cost what input, or output, does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NewType

from attrs import field, frozen

Price = NewType("Price", int)
"""Micro-dollars per million tokens; in the file, dollars per million tokens: `"0.15"`."""
PerRequest = NewType("PerRequest", int)
"""Nano-dollars; in the file, dollars: `"0.005"`."""
Factor = NewType("Factor", int)
"""Millionths; in the file a decimal: `"0.5"`."""


@frozen(kw_only=True)
class Kinds:
    """Tokens that may have a price of their own, wherever input and output have one."""

    cached_input: Price | None = None
    cache_write: Price | None = None
    cache_write_1h: Price | None = None
    """For what the provider keeps for an hour; else it costs what `cache_write` does."""
    cached_audio: Price | None = None
    """Else what `cached_input` does."""
    reasoning: Price | None = None
    audio_input: Price | None = None
    audio_output: Price | None = None
    image_input: Price | None = None
    image_output: Price | None = None


@frozen
class PriceTier(Kinds):
    """What costs something else where the prompt is longer than `above` tokens: then for all tokens, not only those above."""

    above: int
    input: Price | None = None
    output: Price | None = None


@frozen
class ServicePrice(Kinds):
    """What a model costs in another service tier: all of its price times `factor`, or prices of its own (and nothing of the
    model's then)."""

    factor: Factor | None = None
    input: Price | None = None
    output: Price | None = None
    request: PerRequest | None = None
    tiers: tuple[PriceTier, ...] = ()


@frozen
class PriceConfig(Kinds):
    """What a model costs, or one of its routes."""

    input: Price
    output: Price
    request: PerRequest | None = None
    """For each attempt that is billed at all."""
    tiers: tuple[PriceTier, ...] = ()
    """By the length of the prompt, in rising order."""
    service: Mapping[str, ServicePrice] = field(factory=dict)
    """By the provider's name for a service tier: `flex`, `priority`, `batch`."""
    origin: str = field(default="config", metadata={"internal": True})
    """Where it is from: `config`, or the shipped card's version and entry. Not a key of the file."""


@frozen
class RatesConfig:
    card: Literal["shipped", "none"] = "shipped"
    prices: Mapping[str, PriceConfig] = field(factory=dict, metadata={"internal": True})
    """By `PROVIDER/MODEL`: a name of `[providers]`, and the model's name there. In the file they stand beside `card`."""
