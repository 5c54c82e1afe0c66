"""Outliers: a place that does much worse than its siblings (the other routes of a model) is tried after them for a while.

Rule 1: it is put last, not out: where the others fail it still serves. What must not be asked at all is a breaker's business.
Rule 2: never more than `share` of a model's routes: where everybody does badly nobody is an outlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from attrs import field, frozen, validators

from clawproxy.config import Duration
from clawproxy_router.breakers import BreakerSettings
from clawproxy_router.health import Health
from clawproxy_router.learned import Place

LEAST_SECONDS: Final = 0.1
"""A first token that comes sooner than this is never late."""

Key = tuple[str, str]


@frozen
class EjectionSettings:
    """`[plugins.router.ejection]`."""

    enabled: bool = True
    margin: float = field(default=0.2, validator=[validators.gt(0.0), validators.le(1.0)])
    """How much more of its requests must fail than of its siblings', on average..."""
    requests: int = field(default=20, validator=validators.ge(1))
    """...where there were so many in the breaker's window."""
    slower: float = field(default=0.0, validator=validators.ge(0.0))
    """How many times as long as its siblings' median its first token must take; 0: whatever it takes."""
    time: Duration = field(default=Duration(30.0), validator=validators.gt(Duration(0.0)))
    share: float = field(default=0.5, validator=[validators.ge(0.0), validators.le(1.0)])
    """Of a model's routes, the most that are put last."""


def fails_more(
    place: Key, models: Sequence[Sequence[Key]], health: Health, now: float, settings: EjectionSettings, of: BreakerSettings
) -> bool:
    """`models`: the places of each model that has this one."""
    breaker = health.breakers.get(place)
    if not settings.enabled or breaker is None:
        return False
    rate, requests = breaker.rate(now, of)
    if requests < settings.requests:
        return False
    for places in models:
        others = [health.breakers[key].rate(now, of)[0] if key in health.breakers else 0.0 for key in places if key != place]
        if others and rate - sum(others) / len(others) > settings.margin:
            return True
    return False


def is_slower(place: Key, models: Sequence[Sequence[Key]], known: Mapping[Key, Place], settings: EjectionSettings) -> bool:
    if not settings.enabled or not settings.slower:
        return False
    own = known[place].first_token.mean if place in known else 0.0
    if own < LEAST_SECONDS:
        return False
    for places in models:
        others = [known[key].first_token.mean for key in places if key != place and key in known and known[key].first_token.mean]
        if others and own > settings.slower * median(others):
            return True
    return False


def ejected(places: Sequence[Key], health: Health, now: float, settings: EjectionSettings) -> frozenset[Key]:
    """Those to be tried last now: of one model's places, the ones ejected first, as many as may be."""
    if not settings.enabled:
        return frozenset()
    out = [key for key in dict.fromkeys(places) if (breaker := health.breakers.get(key)) is not None and now < breaker.ejected]
    most = int(settings.share * len(set(places)))
    return frozenset(sorted(out, key=lambda key: health.breakers[key].ejected)[:most])
