"""Which routes a model leads to, and which of them somebody may see."""

from __future__ import annotations

from collections.abc import Sequence

from clawproxy.config import Config
from clawproxy.config.groups import flat_routes
from clawproxy.messages import Grant, Principal, Route


def candidates_for(config: Config, model: str) -> Sequence[Route]:
    """Every route the request might take, so that prompts can be fitted before one is chosen."""
    return [
        Route(route.provider or "", route.model, context_tokens=route.context_tokens, max_output_tokens=route.max_output_tokens)
        for route in flat_routes(config.models, model)
    ]


def reached(config: Config, model: str, grants: Sequence[Grant]) -> set[tuple[str, str]]:
    """The places (provider, the model's name there) of a configured model that some grant reaches."""
    return {
        (route.provider, route.model)
        for route in flat_routes(config.models, model)
        if route.provider is not None and any(grant.reaches(route.provider, route.region) for grant in grants)
    }


def shown_provider(config: Config, principal: Principal, model: str, provider: str) -> str | None:
    """The first provider its roles let a request for the model go to; None where they show no such model."""
    if not principal.may_use(model):
        return None
    grants = [grant for grant in principal.grants or () if grant.covers(model)]
    routes = flat_routes(config.models, model)
    settings = config.providers.get(provider)
    own = None if settings is None else settings.region
    places = [(route.provider or "", route.region) for route in routes] or [(provider, own)]
    return next((name for name, region in places if any(grant.reaches(name, region) for grant in grants)), None)
