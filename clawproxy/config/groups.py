"""Models whose routes name other models: what they come to.

Rule: `flat_routes` is only asked of a configuration that `check_groups` found nothing wrong with, or of one without groups.
"""

from __future__ import annotations

from collections.abc import Mapping

from clawproxy.config.findings import Findings
from clawproxy.config.schema import ModelConfig, RouteConfig
from clawproxy.config.units import shown

MOST_ROUTES = 256
"""Routes a model may come to, its groups' included."""
MOST_DEEP = 8
"""Models that may stand in one another."""


def flat_routes(models: Mapping[str, ModelConfig], name: str) -> tuple[RouteConfig, ...]:
    """Every route to a provider that a request for the model may take, in the order they are written; none for an unknown one."""
    model = models.get(name)
    if model is None:
        return ()
    if all(route.provider is not None for route in model.routes):
        return model.routes
    found: list[RouteConfig] = []
    for route in model.routes:
        found += (route,) if route.provider is not None else flat_routes(models, route.model)
    return tuple(found)


def check_groups(models: Mapping[str, ModelConfig], found: Findings) -> bool:
    """Whether no model comes back to itself, and none comes to more than can be looked at for each request."""
    looked: dict[str, tuple[int, int]] = {}
    before = len(found.problems)

    def look(name: str, way: tuple[str, ...]) -> tuple[int, int]:
        """How many routes it comes to, and how deep it is."""
        if name in looked:
            return looked[name]
        routes, deep = 0, 1
        for index, route in enumerate(models[name].routes):
            where = ("models", name, "routes", index, "model")
            if route.provider is not None or route.model not in models:
                routes += 1
            elif route.model in way:
                circle = " -> ".join(shown(each) for each in (*way[way.index(route.model) :], route.model))
                found.wrong(where, f"comes back to itself ({circle}); name another model")
            else:
                inner = look(route.model, (*way, route.model)) if len(way) < MOST_DEEP else (1, MOST_DEEP)
                routes += inner[0]
                deep = max(deep, 1 + inner[1])
                if deep > MOST_DEEP:
                    found.wrong(where, f"is more than {MOST_DEEP} models deep; name a provider here")
                    deep = 1
        if routes > MOST_ROUTES:
            found.wrong(("models", name, "routes"), f"come to {routes} routes in all; {MOST_ROUTES} are the most")
            routes = 1
        looked[name] = routes, deep
        return looked[name]

    for name in models:
        look(name, (name,))
    return len(found.problems) == before
