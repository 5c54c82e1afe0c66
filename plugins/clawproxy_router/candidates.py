"""Which routes could serve a model: a pure look-up in the configuration."""

from __future__ import annotations

import re

from clawproxy.config import Config
from clawproxy.messages import Principal, Route
from clawproxy.rates import price_of
from clawproxy_router.tree import leaves, tree_of

# Without [models] the client names the provider's model itself, and some formats put that name in a path: so only what a
# model's name can be passes.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,127}")


def candidates_for(config: Config, model: str, principal: Principal) -> tuple[Route, ...]:
    """Every route for `model`, best first; none where it is not known or `principal` may not use it.

    With any `[models]`, those names and no others. Without: `PROVIDER/MODEL`, or the bare name where one provider fits (it
    alone lists the name, or it is the only provider).
    """
    if not principal.may_use(model):
        return ()
    if config.models:
        if model not in config.models:
            return ()
        routes = [leaf.other if place else leaf.route for place, leaf in enumerate(leaves(tree_of(config, model)))]
        return tuple(routes)
    if not _NAME.fullmatch(model) or ".." in model or "//" in model or model.endswith("/"):
        return ()
    provider, slash, name = model.partition("/")
    if slash and provider in config.providers:
        return (Route(provider, name, "priority", price=price_of(config, provider, name)),)
    fits = [each for each, settings in config.providers.items() if model in settings.models]
    if not fits and len(config.providers) == 1:
        fits = list(config.providers)
    if len(fits) != 1:
        return ()
    return (Route(fits[0], model, "priority", price=price_of(config, fits[0], model)),)
