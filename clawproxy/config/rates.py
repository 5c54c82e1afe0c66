"""`[rates]`: `card`, and beside it a table for each `PROVIDER/MODEL` whose price the operator states; and what must be right
about any price.

Rule: prices are stated, never derived. What has none is left without one (`clawproxy.rates`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cattrs import Converter

from clawproxy.config.findings import Findings, Names
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.prices import PriceConfig, PriceTier, RatesConfig, ServicePrice
from clawproxy.config.schema import Config
from clawproxy.config.structure import structure_section, suggest
from clawproxy.config.units import shown

Rows = list[tuple[KeyPath, str]]
MOST_ABOVE = 2**31


def structure_rates(converter: Converter, section: Mapping[str, Any]) -> tuple[RatesConfig | None, Rows]:
    """The section, and what is wrong with it, by its keys in the file."""
    wrong: Rows = []
    prices = {}
    for name, value in section.items():
        if "/" in name:
            prices[name] = value
        elif name != "card":
            hint = suggest(name, ["card"])
            wrong.append((("rates", name), f'is not a key here; {hint}, or write a table of prices for "PROVIDER/MODEL"'))
    plain = {"prices": prices, **({"card": section["card"]} if "card" in section else {})}
    made, rows = structure_section(converter, RatesConfig, plain, ("rates",))
    wrong += [((path[0], *path[2:]) if path[1:2] == ("prices",) else path, sentence) for path, sentence in rows]
    return made, wrong


def check_prices(config: Config, names: Names, found: Findings) -> None:
    for path, price in _prices(config):
        _check_tiers(price.tiers, path, found)
        for name, service in price.service.items():
            _check_service(service, (*path, "service", name), found)
    for name in config.rates.prices:
        provider, _, model = name.partition("/")
        if provider not in names.providers:
            hint = suggest(provider, sorted(names.providers)) if names.providers else "add it under [providers]"
            found.wrong(("rates", name), f'"{shown(provider)}" is not in [providers]; {hint}')
        elif not model:
            found.wrong(("rates", name), 'names no model; write "PROVIDER/MODEL"')


def _prices(config: Config) -> Iterator[tuple[KeyPath, PriceConfig]]:
    for name, model in config.models.items():
        if model.price is not None:
            yield ("models", name, "price"), model.price
        for index, route in enumerate(model.routes):
            if route.price is not None:
                yield ("models", name, "routes", index, "price"), route.price
    for name, price in config.rates.prices.items():
        yield ("rates", name), price


def _check_tiers(tiers: tuple[PriceTier, ...], path: KeyPath, found: Findings) -> None:
    last = 0
    for index, tier in enumerate(tiers):
        if not 0 < tier.above < MOST_ABOVE:
            found.wrong((*path, "tiers", index, "above"), f"{tier.above} is no length of a prompt; write 1 token or more")
        elif tier.above <= last:
            found.wrong((*path, "tiers", index, "above"), f"{tier.above} is not above {last}; write the tiers in rising order")
        last = max(last, tier.above)


def _check_service(service: ServicePrice, path: KeyPath, found: Findings) -> None:
    own = service.input is not None and service.output is not None
    if (service.factor is not None) == (service.input is not None or service.output is not None) or not (
        own or service.factor is not None
    ):
        found.wrong(path, 'is no price; write { factor = "0.5" }, or prices of its own: { input = "...", output = "..." }')
    elif service.factor is not None and service != ServicePrice(service.factor):
        found.wrong(path, "has a factor and prices; write one or the other")
    _check_tiers(service.tiers, path, found)
