"""The shipped rate card: prices as data, with a version, a date and a source. `generate.py` makes the file.

`card.json` is `{"version", "date", "source", "licence", "providers": {VENDOR: [MODEL, ...]}}`. A MODEL has an `id`, further
`names`, and `prices`: dated, in rising order, the first of them for all time before the second's `from`.

Rule 1: prices are micro-dollars per million tokens (`request`: nano-dollars), as everywhere.
Rule 2: a model is found by one of its names, letters' case apart. A name that ends in a date and is not there itself costs what
        the name without the date does, which is how vendors price snapshots; those that differ are there by their full names.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import msgspec
from attrs import field, frozen

from clawproxy.config.prices import PerRequest, Price, PriceConfig, PriceTier, ServicePrice

FILE = "card.json"
_DATED = re.compile(r"(.+?)[-@](?:20[0-9]{2}-[01][0-9]-[0-3][0-9]|20[0-9]{2}[01][0-9][0-3][0-9])")


class Classes(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    input: int | None = None
    output: int | None = None
    cached_input: int | None = None
    cache_write: int | None = None
    cache_write_1h: int | None = None
    cached_audio: int | None = None
    reasoning: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None
    image_input: int | None = None
    image_output: int | None = None


class Above(Classes, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    above: int


class Whole(Classes, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    request: int | None = None
    tiers: list[Above] = []


class Dated(Whole, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    since: datetime.date | None = msgspec.field(default=None, name="from")
    service: dict[str, Whole] = {}


class Model(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    id: str
    names: list[str] = []
    prices: list[Dated]


class CardFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    version: str
    date: datetime.date
    source: str
    licence: str
    providers: dict[str, list[Model]]


@frozen(slots=True)
class Card:
    version: str
    date: datetime.date
    source: str
    models: Mapping[str, Mapping[str, Model]]
    """By vendor and name, in small letters."""
    _made: dict[tuple[str, str, int], PriceConfig] = field(factory=dict, repr=False)

    def find(self, vendor: str, name: str) -> Model | None:
        models = self.models.get(vendor)
        if models is None:
            return None
        name = name.lower()
        found = models.get(name)
        if found is None and (dated := _DATED.fullmatch(name)) is not None:
            found = models.get(dated[1])
        return found

    def price(self, vendor: str, name: str, day: datetime.date) -> PriceConfig | None:
        """What the model costs on that day."""
        model = self.find(vendor, name)
        if model is None:
            return None
        place = 0
        for at, dated in enumerate(model.prices):
            if dated.since is None or dated.since <= day:
                place = at
        key = vendor, model.id, place
        price = self._made.get(key)
        if price is None:
            price = self._made[key] = _price(model.prices[place], f"{self.version} {vendor}/{model.id}")
        return price


def read_card() -> Card:
    file = msgspec.json.decode(resources.files("clawproxy.rates").joinpath(FILE).read_bytes(), type=CardFile)
    models = {
        vendor: {name.lower(): model for model in listed for name in (model.id, *model.names)}
        for vendor, listed in file.providers.items()
    }
    return Card(file.version, file.date, file.source, models)


_CLASSES = Classes.__struct_fields__


def _own(classes: Classes) -> dict[str, Any]:
    return {name: Price(figure) for name in _CLASSES if (figure := getattr(classes, name)) is not None}


def _request(whole: Whole) -> PerRequest | None:
    return None if whole.request is None else PerRequest(whole.request)


def _tiers(whole: Whole) -> tuple[PriceTier, ...]:
    return tuple(PriceTier(above=tier.above, **_own(tier)) for tier in whole.tiers)


def _price(dated: Dated, origin: str) -> PriceConfig:
    service = {
        name: ServicePrice(**_own(whole), request=_request(whole), tiers=_tiers(whole)) for name, whole in dated.service.items()
    }
    return PriceConfig(**_own(dated), request=_request(dated), tiers=_tiers(dated), service=service, origin=origin)
