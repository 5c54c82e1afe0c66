"""Which routes a model leads to, and which models, by their routes, somebody may see."""

from __future__ import annotations

from collections.abc import Sequence

from clawproxy.config import Config
from clawproxy.config.groups import flat_routes
from clawproxy.config.policies import fits
from clawproxy.config.residency import Residency
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


def shown(config: Config, principal: Principal, residency: Residency | None) -> Sequence[tuple[str, str]]:
    """The models that somebody may use, each with the first provider that a request for it may go to."""
    if config.models:
        pairs = [(name, "") for name in config.models]
    else:
        pairs = [(f"{name}/{model}", name) for name, provider in config.providers.items() for model in provider.models]
    return [
        (model, first)
        for model, provider in pairs
        if principal.may_use(model) and (first := _first(config, principal, residency, model, provider)) is not None
    ]


def _first(config: Config, principal: Principal, residency: Residency | None, model: str, provider: str) -> str | None:
    """None where its roles, or where its data may go, leave no route of the model."""
    routes = flat_routes(config.models, model)
    places = [(route.provider or "", route.model, route.region) for route in routes]
    if not places:
        settings = config.providers.get(provider)
        places = [(provider, model.removeprefix(f"{provider}/"), None if settings is None else settings.region)]
    if principal.grants is not None:
        grants = [grant for grant in principal.grants if grant.covers(model)]
        places = [place for place in places if any(grant.reaches(place[0], place[2]) for grant in grants)]
    if residency is not None:
        allowed = [place for place in places if residency.allows(place[0], place[1])]
        places = allowed if allowed or not _may_be_led_elsewhere(config, model) else places
    return places[0][0] if places else None


def _may_be_led_elsewhere(config: Config, model: str) -> bool:
    """Whether a policy may have another model, or another route, answer for it."""
    return any(
        (policy.model is not None or policy.choose is not None)
        and not policy.shadow
        and (policy.when is None or not policy.when.model or fits(model, policy.when.model))
        for policy in config.policies.values()
    )
