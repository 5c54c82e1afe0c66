"""What tokens cost: integers only, nano-dollars out.

Rule 1: a price is micro-dollars per million tokens, which is pico-dollars per token: an attempt's cost is a whole number of
        pico-dollars (of millionths of them where a service tier has a factor), summed exactly and rounded once, half up.
Rule 2: each token is billed once. What is priced apart is taken out of its whole; what is not costs what the whole does.
Rule 3: what can not be priced is None, and never 0: a figure that is missing, a service tier the price does not know.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from clawproxy.config.prices import PriceConfig, PriceTier, ServicePrice
from clawproxy.messages import Usage

STANDARD = frozenset({"default", "standard", "auto", "on_demand", "performance"})
"""Names that providers have for the service tier a price means where it names none."""
_MILLION = 1_000_000
_PLAIN = PriceTier(above=0)


@frozen(slots=True)
class Item:
    """One line of a bill."""

    name: str
    """`input`, `cached_input`, `cache_write`, `cache_write_1h`, `cached_audio`, `audio_input`, `image_input`, `output`,
    `reasoning`, `audio_output`, `image_output`, `request`."""
    count: int
    price: int
    """Pico-dollars for one, before a service tier's factor."""


def cost_nano(usage: Usage, price: PriceConfig) -> int | None:
    """Nano-dollars, rounded once, half up; None where it can not be known."""
    given, taken = usage.input_tokens, usage.output_tokens
    if given is None or taken is None:
        return None
    if not _is_plain(usage, price, given):
        found = items(usage, price)
        if found is None:
            return None
        lines, factor = found
        return _rounded(sum(line.count * line.price for line in lines), factor)
    if not usage.cached_tokens and not usage.cache_write_tokens:
        return (given * price.input + taken * price.output + 500) // 1000
    cached = min(usage.cached_tokens or 0, given)
    written = min(usage.cache_write_tokens or 0, given - cached)
    pico = (
        (given - cached - written) * price.input
        + cached * (price.input if price.cached_input is None else price.cached_input)
        + written * (price.input if price.cache_write is None else price.cache_write)
        + taken * price.output
    )
    return (pico + 500) // 1000


def _is_plain(usage: Usage, price: PriceConfig, given: int) -> bool:
    """Whether nothing in it may be priced apart but what is cached. Most attempts; a third of the work."""
    tier = usage.service_tier
    return (
        (tier is None or (tier in STANDARD and tier not in price.service))
        and not usage.cache_write_1h_tokens
        and not usage.audio_input_tokens
        and not usage.audio_output_tokens
        and not usage.image_input_tokens
        and not usage.image_output_tokens
        and price.reasoning is None
        and not price.request
        and not (price.tiers and given > price.tiers[0].above)
    )


def items(usage: Usage, price: PriceConfig) -> tuple[list[Item], int] | None:
    """The lines of the bill, those of no tokens left out, and the factor of all of them in millionths; None where it can not be
    known."""
    given, taken = usage.input_tokens, usage.output_tokens
    found = _in_force(price, usage.service_tier)
    if given is None or taken is None or found is None:
        return None
    base, factor = found
    tier = _tier(base, given)
    lines = [Item(name, count, _rate(name, base, tier)) for name, count in _classes(usage, given, taken) if count]
    if base.request:
        lines.append(Item("request", 1, base.request * 1000))
    return lines, factor


def most_nano(price: PriceConfig, input_tokens: int, output_tokens: int, service_tier: str | None = None) -> int | None:
    """At least what any attempt costs that has no more tokens than these, whatever part of them is cached, reasoned or heard;
    None where it can not be known. To reserve by."""
    found = _in_force(price, service_tier)
    if found is None:
        return None
    base, factor = found
    most = 0
    for tier in (_PLAIN, *(tier for tier in base.tiers if tier.above < input_tokens)):
        dearest_in = max(_rate(name, base, tier) for name in _INPUT)
        dearest_out = max(_rate(name, base, tier) for name in _OUTPUT)
        most = max(most, input_tokens * dearest_in + output_tokens * dearest_out)
    return -((most + (base.request or 0) * 1000) * factor // (-1000 * _MILLION))


def _rounded(pico: int, factor: int) -> int:
    if factor == _MILLION:
        return (pico + 500) // 1000
    return (2 * pico * factor + 1000 * _MILLION) // (2000 * _MILLION)


def _in_force(price: PriceConfig, service_tier: str | None) -> tuple[PriceConfig | ServicePrice, int] | None:
    """What is charged in that service tier, and the factor in millionths."""
    if service_tier is None:
        return price, _MILLION
    service = price.service.get(service_tier)
    if service is None:
        # A tier nobody priced. An operator who wrote one price meant it for all; the card, and one who wrote several, did not.
        known = service_tier in STANDARD or (price.origin == "config" and not price.service)
        return (price, _MILLION) if known else None
    return (service, _MILLION) if service.factor is None else (price, service.factor)


def _tier(base: PriceConfig | ServicePrice, given: int) -> PriceTier:
    """The last one the prompt is longer than."""
    found = _PLAIN
    for tier in base.tiers:
        if given > tier.above:
            found = tier
    return found


_INPUT = ("input", "cached_input", "cache_write", "cache_write_1h", "cached_audio", "audio_input", "image_input")
_OUTPUT = ("output", "reasoning", "audio_output", "image_output")
_ELSE = {
    "cached_input": "input",
    "cache_write": "input",
    "cache_write_1h": "cache_write",
    "cached_audio": "cached_input",
    "audio_input": "input",
    "image_input": "input",
    "reasoning": "output",
    "audio_output": "output",
    "image_output": "output",
}
"""What a class without a price of its own costs."""


def _rate(name: str, base: PriceConfig | ServicePrice, tier: PriceTier) -> int:
    while True:
        own: int | None = getattr(tier, name)
        if own is None:
            own = getattr(base, name)
        if own is not None:
            return own
        name = _ELSE[name]


def _classes(usage: Usage, given: int, taken: int) -> Iterator[tuple[str, int]]:
    """Each token in one class. Where a provider does not say how its classes overlap, what was cached is text first."""
    cached = min(usage.cached_tokens or 0, given)
    written = min(usage.cache_write_tokens or 0, given - cached)
    long = min(usage.cache_write_1h_tokens or 0, written)
    heard = min(usage.audio_input_tokens or 0, given)
    heard_cached = min(usage.cached_audio_tokens or 0, cached, heard)
    fresh = given - cached - written
    audio = min(heard - heard_cached, fresh)
    image = min(usage.image_input_tokens or 0, fresh - audio)
    yield "input", fresh - audio - image
    yield "cached_input", cached - heard_cached
    yield "cache_write", written - long
    yield "cache_write_1h", long
    yield "cached_audio", heard_cached
    yield "audio_input", audio
    yield "image_input", image
    spoken = min(usage.audio_output_tokens or 0, taken)
    drawn = min(usage.image_output_tokens or 0, taken - spoken)
    thought = min(usage.reasoning_tokens or 0, taken - spoken - drawn)
    yield "output", taken - spoken - drawn - thought
    yield "reasoning", thought
    yield "audio_output", spoken
    yield "image_output", drawn
