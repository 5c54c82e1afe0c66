"""`[residency.NAME]`: where somebody's data may be processed. `checks_residency` says what does not fit.

Rule 1: rules only take away. Where several are somebody's, a place must fit each of them.
Rule 2: a place is a provider and the model's name there; its region is what its routes say, else the provider's own. One that
        says none is in none.
Rule 3: who somebody is may be the client's own word too (`may_assert`); then the rules of both hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from attrs import evolve, field, frozen

from clawproxy.config.policies import NONE, Words, fits

if TYPE_CHECKING:
    from clawproxy.config.schema import Config, ModelConfig
    from clawproxy.messages import Principal

GLOBAL: Final = "global"
SCOPES: Final = ("key", "user", "team", "app", "role", "tag")
Place = tuple[str, str]


@frozen
class ResidencyConfig:
    scope: Words = NONE
    """Whose: `team:clinic`, `user:prefix*` (key, app, role, tag), any of them; `global` is everybody."""
    region: Words = NONE
    provider: Words = NONE
    """Where both are given a place must fit both."""


@frozen(slots=True, eq=False)
class Residency:
    """What binds one exchange; the same object for the same rules of one configuration."""

    rules: tuple[str, ...]
    """Their names, in the order of the configuration."""
    _limits: tuple[ResidencyConfig, ...]
    _regions: Mapping[Place, frozenset[str | None]]
    _providers: Mapping[str, str | None]

    def allows(self, provider: str, model: str) -> bool:
        """Whether the data may be sent to the provider, for its `model`."""
        regions = self._of(provider, model)
        for limit in self._limits:
            if limit.provider and not fits(provider, limit.provider):
                return False
            if limit.region and not all(region is not None and fits(region, limit.region) for region in regions):
                return False
        return True

    def region(self, provider: str, model: str) -> str | None:
        """Where that is, as far as the configuration says one thing of it."""
        regions = self._of(provider, model)
        return next(iter(regions)) if len(regions) == 1 else None

    def _of(self, provider: str, model: str) -> frozenset[str | None]:
        regions = self._regions.get((provider, model))
        return frozenset((self._providers.get(provider),)) if regions is None else regions


@frozen(slots=True, eq=False)
class Residences:
    """Of one configuration."""

    config: Config
    _regions: Mapping[Place, frozenset[str | None]] = field(init=False)
    _known: dict[tuple[str, ...], Residency] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_regions", place_regions(self.config))

    def of(self, principal: Principal, user: str | None, app: str | None, also: Residency | None) -> Residency | None:
        """What binds a request; None where nothing does.

        Args:
            user, app: as the client says, where it may; else the principal's.
            also: what binds it already.
        """
        who = frozenset(_who(principal, user, app))
        rules = self.config.residency
        before = () if also is None else also.rules
        names = tuple([name for name, rule in rules.items() if name in before or _is_of(who, rule.scope)])
        if not names:
            return None
        found = self._known.get(names)
        if found is None:
            providers = {name: provider.region for name, provider in self.config.providers.items()}
            limits = tuple([rules[name] for name in names])
            found = self._known[names] = Residency(names, limits, self._regions, providers)
        return found


def _who(principal: Principal, user: str | None, app: str | None) -> Iterable[str]:
    named = (("key", principal.key), ("user", principal.user), ("user", user), ("team", principal.team))
    for kind, name in (*named, ("app", principal.app), ("app", app)):
        if name is not None:
            yield f"{kind}:{name}"
    if principal.maker is not None:
        yield f"key:{principal.maker}"
    yield from (f"role:{role}" for role in principal.roles)
    yield from (f"tag:{tag}" for tag in principal.tags)


def _is_of(who: frozenset[str], scope: Words) -> bool:
    return any(word == GLOBAL or any(fits(each, (word,)) for each in who) for word in scope)


def place_regions(config: Config) -> dict[Place, frozenset[str | None]]:
    """The regions that the routes to a place are in: more than one only where they contradict each other."""
    found: dict[Place, set[str | None]] = {}
    for model in config.models.values():
        for route in model.routes:
            if route.provider is not None:
                provider = config.providers.get(route.provider)
                region = route.region or (provider.region if provider is not None else None)
                found.setdefault((route.provider, route.model), set()).add(region)
    return {place: frozenset(regions) for place, regions in found.items()}


def known_regions(config: Config) -> set[str]:
    """All that the configuration names."""
    routes = {route.region for model in config.models.values() for route in model.routes if route.region}
    return routes | {provider.region for provider in config.providers.values() if provider.region}


def in_regions(config: Config) -> Mapping[str, ModelConfig]:
    """The models, with their provider's region on routes that state none."""
    if not any(provider.region for provider in config.providers.values()):
        return config.models
    made = {}
    for name, model in config.models.items():
        routes = []
        for route in model.routes:
            provider = None if route.provider is None else config.providers.get(route.provider)
            if route.region is None and provider is not None and provider.region is not None:
                route = evolve(route, region=provider.region)
            routes.append(route)
        made[name] = evolve(model, routes=tuple(routes))
    return made
