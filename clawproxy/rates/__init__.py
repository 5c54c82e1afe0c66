"""What a provider's model costs: the operator's own price, else the shipped card's, else nothing is known.

Rule 1: a price is found or it is None: by the provider's host and the model's own name, never by likeness.
Rule 2: one look-up (`price_of`) for the meter, the router, the catalogue and the checks. It is made when a configuration is
        loaded, not for each request: a price that changes on a date holds from the next load.
Rule 3: the card is read when first asked for, so who needs none pays nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from clawproxy.rates.hosts import vendor_of

if TYPE_CHECKING:
    from clawproxy.config.prices import PriceConfig
    from clawproxy.config.schema import Config, ModelConfig, RouteConfig
    from clawproxy.rates.card import Card

__all__ = ["may_price", "price_of", "prices_of", "route_price", "shipped"]


@lru_cache(1)
def shipped() -> Card:
    """The card this version came with."""
    from clawproxy.rates.card import read_card

    return read_card()


def price_of(config: Config, provider: str, model: str) -> PriceConfig | None:
    """What `model`, by its name at a configured provider, costs; None where it is not known.

    A price written on a route, or on a model of `[models]`, goes before it (`route_price`).
    """
    own = config.rates.prices.get(f"{provider}/{model}")
    if own is not None or config.rates.card == "none":
        return own
    settings = config.providers.get(provider)
    vendor = None if settings is None else vendor_of(settings)
    if vendor is None:
        return None
    return shipped().price(vendor, model, datetime.fromtimestamp(time.time(), UTC).date())


def may_price(config: Config) -> bool:
    """Whether `price_of` can find anything at all."""
    if config.rates.prices:
        return True
    return config.rates.card == "shipped" and any(vendor_of(each) is not None for each in config.providers.values())


def prices_of(config: Config, name: str, above: PriceConfig | None = None) -> Iterator[PriceConfig | None]:
    """What each route costs that a request for one of `[models]` may take, in their order."""
    model = config.models[name]
    for route in model.routes:
        if route.provider is None:
            yield from prices_of(config, route.model, model.price or above)
        else:
            yield route_price(config, model, route, above)


def route_price(config: Config, model: ModelConfig, route: RouteConfig, above: PriceConfig | None = None) -> PriceConfig | None:
    """What a route to a provider costs: its own price, else its model's, else that of the model `above` whose route led there,
    else what is known of the provider's model."""
    own = route.price or model.price or above
    if own is None and route.provider is not None:
        own = price_of(config, route.provider, route.model)
    return own
