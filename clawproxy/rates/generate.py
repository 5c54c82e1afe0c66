"""Make `card.json` of genai-prices' data: `python -m clawproxy.rates.generate [--date YYYY-MM-DD]`, with the `dev` extra.

Rule 1: what can not be stated exactly is left out, by name and reason: a price by the hour of the day, one finer than a
        micro-dollar per million tokens, one for what the gateway does not count (video, cached images, characters, pages,
        requests that search).
Rule 2: names are those the source lists; its patterns (`contains`, regular expressions) are not taken over, for they guess.
Rule 3: 0 is a price only where the name says so (OpenRouter's `:free`).

What is charged beside tokens and requests (web searches, storage, containers) is in no row: nobody reports it to the gateway.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from clawproxy.rates.card import FILE, Above, CardFile, Dated, Model, Whole
from clawproxy.rates.hosts import VENDORS

LICENCE = "MIT, Copyright (c) Pydantic Services Inc. 2025 to present"
UNITS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "cache_audio_read_mtok": "cached_audio",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "audio_input",
    "output_audio_mtok": "audio_output",
    "input_image_mtok": "image_input",
    "output_image_mtok": "image_output",
}
BESIDE = frozenset({"web_searches_kcount", "storage_searches_kcount"})
"""Charged beside tokens, and left out."""
SERVICE = {"service_tier", "processing", "speed"}
HEARD = ("audio", "realtime", "transcribe", "tts", "whisper", "voice", "speech")


class LeftOut(Exception):
    """Its words say why."""


def units_of(prices: Any) -> dict[str, Any]:
    return {name: figure for name, figure in vars(prices).items() if figure is not None and not name.startswith("_")}


def in_force(model: Any, day: date) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The source's prices on that day, and those of its service tiers, both by unit."""
    rows = model.prices if isinstance(model.prices, list) else [None]
    base: dict[str, Any] = {}
    for row in rows:
        if row is None:
            base = units_of(model.prices)
        elif type(row.constraint).__name__ == "TimeOfDateConstraint":
            raise LeftOut("its price goes by the hour of the day")
        elif row.constraint is None or row.constraint.start_date <= day:
            base = units_of(row.prices)
    service = {}
    for variant in model.price_variants or []:
        (kind, name), *more = variant.when.items()
        started = variant.constraint is None or getattr(variant.constraint, "start_date", date.max) <= day
        if kind in SERVICE and not more and started and (own := units_of(variant.prices)):
            service[name] = {**base, **own}
    return base, service


def days(model: Any, today: date) -> Iterator[date]:
    """Today, and those to come on which something changes."""
    rows = [*(model.prices if isinstance(model.prices, list) else []), *(model.price_variants or [])]
    coming = {start for row in rows if (start := getattr(row.constraint, "start_date", today)) > today}
    yield today
    yield from sorted(coming)


def micros(figure: Decimal) -> int:
    scaled = figure * 1_000_000
    if scaled != int(scaled) or scaled < 0:
        raise LeftOut(f"${figure} per million tokens is no whole number of micro-dollars")
    return int(scaled)


def whole(units: dict[str, Any], name: str) -> dict[str, Any]:
    """The fields of a `Whole`."""
    flat: dict[str, Any] = {}
    tiers: dict[int, dict[str, int]] = {}
    for unit, figure in units.items():
        if figure is None or unit in BESIDE:
            continue
        if unit not in UNITS:
            raise LeftOut(f"it is charged by {unit}")
        field = UNITS[unit]
        flat[field] = micros(getattr(figure, "base", figure))
        for tier in getattr(figure, "tiers", ()):
            tiers.setdefault(tier.start, {})[field] = micros(tier.price)
    if "output" not in flat and "embed" in name:
        flat["output"] = 0  # vectors are no tokens
    if "input" not in flat or "output" not in flat:
        raise LeftOut("it has no price for input, or none for output")
    if not flat["input"] and not flat["output"] and not name.endswith(":free"):
        raise LeftOut("a price of 0 is none")
    if hears(name, flat):
        raise LeftOut("it hears or speaks, and has no price for that")
    rising: dict[str, int] = {}  # a tier holds all that differs from the base, so that only one counts
    made = []
    for above in sorted(tiers):
        rising = {**rising, **tiers[above]}
        made.append(Above(above=above, **rising))
    return {**flat, "tiers": made}


def hears(name: str, prices: dict[str, Any]) -> bool:
    """Whether it hears or speaks, and nothing says what that costs."""
    return any(word in name for word in HEARD) and "audio_input" not in prices and "audio_output" not in prices


def names(model: Any, provider: Any, prices: dict[str, Any]) -> list[str]:
    """What the source knows the model by, as far as it is names. One that searches is charged for that, too."""

    def walk(clause: Any) -> Iterator[str]:
        for part in getattr(clause, "or_", None) or getattr(clause, "and_", None) or [clause]:
            if part is not clause:
                yield from walk(part)
            else:
                yield from (said for key in ("equals", "starts_with") if (said := getattr(part, key, None)))

    every = dict.fromkeys([model.id, *walk(model.match)])
    return [name for name in every if provider.find_model(name) is model and not hears(name, prices) and "search" not in name]


def models(provider: Any, today: date) -> Iterator[Model]:
    for model in provider.models:
        try:
            prices: list[Dated] = []
            for day in days(model, today):
                base, service = in_force(model, day)
                tiers = {name: Whole(**whole(units, model.id)) for name, units in service.items()}
                made = Dated(**whole(base, model.id), service=tiers, since=None if day == today else day)
                prices.append(made)
        except LeftOut as why:
            sys.stderr.write(f"left out: {provider.id}/{model.id}: {why}\n")
            continue
        known = names(model, provider, whole(in_force(model, today)[0], model.id))
        if known:
            others = {name.lower() for name in known} - {known[0].lower()}
            yield Model(id=known[0], names=sorted(others), prices=prices)


def main() -> None:
    from genai_prices.data import providers

    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--date", type=date.fromisoformat, default=datetime.now(UTC).date())
    today = options.parse_args().date
    found = {
        provider.id: sorted(models(provider, today), key=lambda model: model.id)
        for provider in providers
        if provider.id in VENDORS
    }
    card = CardFile(
        version=today.isoformat(),
        date=today,
        source=f"genai-prices {version('genai-prices')}, https://github.com/pydantic/genai-prices",
        licence=LICENCE,
        providers={vendor: found[vendor] for vendor in sorted(VENDORS)},
    )
    lines = [b"{"]
    fields = msgspec.to_builtins(card)
    vendors = fields.pop("providers")
    lines += [msgspec.json.encode({name: value})[1:-1] + b"," for name, value in fields.items()]
    lines.append(b'"providers": {')  # a line for each model, so that a change of prices reads as one
    for at, (vendor, listed) in enumerate(vendors.items()):
        rows = b",\n".join(msgspec.json.encode(model) for model in listed)
        lines.append(msgspec.json.encode(vendor) + b": [\n" + rows + b"\n]" + (b"," if at < len(vendors) - 1 else b""))
    lines += [b"}", b"}", b""]
    (Path(__file__).parent / FILE).write_bytes(b"\n".join(lines))


if __name__ == "__main__":
    main()
