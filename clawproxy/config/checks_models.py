"""What must be right about `[models]`: routes that lead somewhere, and what their strategy needs to choose by."""

from __future__ import annotations

import re
from typing import Final

from clawproxy.config.findings import Findings, Names
from clawproxy.config.groups import check_groups, flat_routes
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.schema import Config, ModelConfig, RouteConfig
from clawproxy.config.structure import suggest
from clawproxy.config.units import shown
from clawproxy.rates import price_of

STRATEGIES: Final = ("priority", "weighted", "cost", "latency", "load", "capability", "region")
AFFINITIES: Final = ("off", "prefix", "session")
AFFINE: Final = ("weighted", "cost", "latency", "load")
"""Strategies that have a choice; the others take the routes as they are written."""
MOST_QUALITY: Final = 1000
MOST_WEIGHT: Final = 1_000_000
MOST_SAID: Final = 500
"""Characters of `unavailable`."""
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_OF_A_PROVIDER = ("context_tokens", "max_output_tokens", "price", "capabilities", "region")


def check_models(config: Config, names: Names, found: Findings) -> None:
    for name, model in config.models.items():
        path: KeyPath = ("models", name)
        if not name or len(name) > 256 or not name.isprintable():
            found.wrong(path, "is no name for a model; use 1 to 256 printable characters")
        if model.strategy not in STRATEGIES:
            found.wrong(
                (*path, "strategy"), f'"{shown(model.strategy)}" is no known strategy; {suggest(model.strategy, STRATEGIES)}'
            )
        _check_affinity(model, (*path, "affinity"), found)
        _check_tier(model.quality, (*path, "quality"), found)
        said = model.unavailable
        if said is not None and not (said.isprintable() and len(said.strip()) >= 1 and len(said) <= MOST_SAID):
            found.wrong((*path, "unavailable"), f"is no sentence for a client; write 1 to {MOST_SAID} printable characters")
        if not model.routes:
            found.wrong((*path, "routes"), 'is empty; add one, like { provider = "openai", model = "gpt-4o-mini" }')
        for index, route in enumerate(model.routes):
            check_route(route, (*path, "routes", index), names, found)
        if model.strategy == "weighted" and model.routes and not any(route.weight > 0 for route in model.routes):
            found.wrong((*path, "routes"), "have no weight among them; write a weight above 0 for one of them")
    if check_groups(config.models, found):
        for name, model in config.models.items():
            check_choice(name, model, config, found)


def check_route(route: RouteConfig, where: KeyPath, names: Names, found: Findings) -> None:
    if not route.model:
        found.wrong((*where, "model"), "is missing; add `model = ...` here")
    if route.provider is not None and route.provider not in names.providers:
        hint = suggest(route.provider, sorted(names.providers)) if names.providers else "add it under [providers]"
        found.wrong((*where, "provider"), f'"{shown(route.provider)}" is not in [providers]; {hint}')
    elif route.provider is None and route.model:
        if route.model not in names.models:
            hint = suggest(route.model, sorted(names.models))
            found.wrong((*where, "model"), f'"{shown(route.model)}" is not in [models]; {hint}, or add a provider')
        for key in _OF_A_PROVIDER:
            if getattr(route, key) is not None:
                found.wrong((*where, key), "has no meaning on a route to a model; write it on that model's own routes")
        if route.quality:
            found.wrong((*where, "quality"), "has no meaning on a route to a model; write it on that model's own routes")
    for key in ("context_tokens", "max_output_tokens"):
        value = getattr(route, key)
        if value is not None and value < 1:
            found.wrong((*where, key), f"{value} is no number of tokens; write 1 or more, or leave it out")
    if not 0 <= route.weight <= MOST_WEIGHT:
        found.wrong((*where, "weight"), f"{route.weight} is no weight; write 0 to {MOST_WEIGHT}")
    _check_tier(route.quality, (*where, "quality"), found)
    for index, tag in enumerate(route.capabilities or ()):
        if not _TAG.fullmatch(tag):
            sentence = f'"{shown(tag)}" is no capability; write small letters, digits, `.`, `_`, `-`, like "tools"'
            found.wrong((*where, "capabilities", index), sentence)
    if route.region is not None and not _TAG.fullmatch(route.region):
        sentence = f'"{shown(route.region)}" is no region; write small letters, digits, `.`, `_`, `-`, like "eu"'
        found.wrong((*where, "region"), sentence)


def check_choice(name: str, model: ModelConfig, config: Config, found: Findings) -> None:
    """What its strategy goes by is there. Only once the groups are known to end."""
    path: KeyPath = ("models", name)
    if model.strategy == "cost":
        for index, route in enumerate(model.routes):
            if not has_price(route, model, config):
                sentence = f'has no price, by which "cost" chooses; add price = {{ ... }} here, or to models.{shown(name)}'
                found.wrong((*path, "routes", index), sentence)
    routes = flat_routes(config.models, name)
    if model.strategy == "region" and routes and not any(route.region for route in routes):
        found.wrong((*path, "routes"), 'have no region among them, by which "region" chooses; add region = "..." to them')
    if model.hedge is not None and routes and len({route.provider for route in routes}) < 2:
        found.wrong((*path, "hedge"), "has no second provider among the routes to go to; add a route, or leave the key out")
    best = max((route.quality for route in routes), default=0)
    if routes and model.quality > best:
        found.wrong((*path, "quality"), f"{model.quality} is above every route's ({best}); no request could be served")


def has_price(route: RouteConfig, model: ModelConfig, config: Config) -> bool:
    if route.provider is not None:
        return (route.price or model.price or price_of(config, route.provider, route.model)) is not None
    inner = config.models.get(route.model)
    if inner is None:
        return True  # said already
    return all(has_price(each, inner, config) or model.price is not None for each in inner.routes)


def _check_affinity(model: ModelConfig, where: KeyPath, found: Findings) -> None:
    if model.affinity not in AFFINITIES:
        found.wrong(where, f'"{shown(model.affinity)}" is no affinity; {suggest(model.affinity, AFFINITIES)}')
    elif model.affinity != "off" and model.strategy in STRATEGIES and model.strategy not in AFFINE:
        sentence = f'has no meaning with strategy "{model.strategy}", which takes the routes as they are written; use "load", '
        found.wrong(where, sentence + '"weighted", "cost" or "latency"')


def _check_tier(tier: int, where: KeyPath, found: Findings) -> None:
    if not 0 <= tier <= MOST_QUALITY:
        found.wrong(where, f"{tier} is no tier; write 0 to {MOST_QUALITY}")
