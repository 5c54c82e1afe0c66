"""A model's routes as a tree: groups choose, leaves lead to providers. Made once for each configuration.

Rule: a leaf carries all that can be known of it beforehand, so that choosing only compares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from attrs import evolve, field, frozen

from clawproxy.config import Config, ModelConfig, PriceConfig, RouteConfig
from clawproxy.messages import Route
from clawproxy.rates import route_price
from clawproxy_router.needs import INFERRED

REASONS: Final[Mapping[str, str]] = {
    "priority": "priority",
    "weighted": "weighted",
    "cost": "cheapest",
    "latency": "fastest",
    "load": "least_loaded",
    "capability": "capable",
    "region": "region",
}
"""Why a route comes first, by strategy."""
LEFT_OUT: Final = frozenset({"incapable", "too_long", "low_quality", "other_region", "policy", "role", "residency"})
RESTING: Final = frozenset({"breaker_open", "cooling", "spent", "disabled", "ejected"})
"""Why a route is not asked now, or last: by what it did of late (`resting`)."""
WORDS: Final = frozenset(
    {*REASONS.values(), *LEFT_OUT, *RESTING, "cached", "explore", "failover", "retry", "hedge", "continue", "degraded", ""}
)
"""Every word that a route's reason, or `Considered.why`, can be."""
LEARNING: Final = frozenset({"cost", "latency", "load"})
"""Strategies that go by what was seen."""


@frozen(slots=True, eq=False)
class Leaf:
    route: Route
    """With the reason it has where it comes first."""
    other: Route
    """The same with the reason `failover`."""
    weight: int = 1
    price: PriceConfig | None = None
    quality: int = 0
    capabilities: frozenset[str] = INFERRED
    region: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.route.provider, self.route.model


@frozen(slots=True, eq=False)
class Group:
    strategy: str
    children: tuple[Leaf | Group, ...] = ()
    weight: int = 1
    places: tuple[tuple[str, str], ...] = field(default=())
    """Of all leaves below it, each once."""
    affinity: str = "off"
    """By what it knows where a prompt is cached: `prefix`, `session`."""
    sticky: frozenset[str] = frozenset()
    """`affinity` of the group and of all those below it, `off` left out."""


def tree_of(config: Config, name: str) -> Group:
    """The tree of a configured model. Routes below the tier that it, or a group on the way, demands are not in it."""
    return _group(config, config.models[name], 1, config.models[name].price, 0, "priority")


def bare(config: Config, routes: Sequence[Route]) -> Group:
    """Of routes that no model of the configuration has."""
    return Group("priority", tuple([Leaf(route, route, region=_region(config, route)) for route in routes]))


def _region(config: Config, route: Route) -> str | None:
    provider = config.providers.get(route.provider)
    return None if provider is None else provider.region


def _group(config: Config, model: ModelConfig, weight: int, price: PriceConfig | None, tier: int, above: str) -> Group:
    tier = max(tier, model.quality)
    deciding = model.strategy if model.strategy != "priority" else above
    children: list[Leaf | Group] = []
    for each in model.routes:
        if each.provider is not None:
            if each.quality >= tier:
                children.append(_leaf(config, each, each.provider, model, price, deciding))
        else:
            inner = config.models[each.model]
            group = _group(config, inner, each.weight, inner.price or price, tier, deciding)
            if group.children:
                children.append(group)
    places = dict.fromkeys(key for child in children for key in (child.places if isinstance(child, Group) else (child.key,)))
    below = [child.sticky for child in children if isinstance(child, Group)]
    sticky = frozenset({model.affinity} - {"off"}).union(*below)
    return Group(model.strategy, tuple(children), weight, tuple(places), model.affinity, sticky)


def _leaf(config: Config, each: RouteConfig, provider: str, model: ModelConfig, price: PriceConfig | None, strategy: str) -> Leaf:
    own = route_price(config, model, each, price)
    route = Route(provider, each.model, REASONS[strategy], strategy, each.context_tokens, each.max_output_tokens, price=own)
    return Leaf(
        route,
        evolve(route, reason="failover"),
        each.weight,
        own,
        each.quality,
        INFERRED if each.capabilities is None else frozenset(each.capabilities),
        each.region,
    )


def leaves(group: Group) -> Iterator[Leaf]:
    """In the order they are written."""
    for child in group.children:
        if isinstance(child, Group):
            yield from leaves(child)
        else:
            yield child


def strategies(group: Group) -> frozenset[str]:
    """Of the group and all those below it."""
    found = {group.strategy}
    for child in group.children:
        if isinstance(child, Group):
            found |= strategies(child)
    return frozenset(found)
