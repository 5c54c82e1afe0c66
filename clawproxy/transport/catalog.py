"""What a client may know of the gateway it talks to: `/v1/catalog`, `/v1/usage`, `/v1/me`, `/v1/key/inspect`, `/v1/health`.

It is the contract of OpenClaw's bundled ClawRouter client, which finds models here, prices them and reports on them.

Rule 1: what is said is what the key that asks may use and has used, and nothing of anybody else.
Rule 2: prices are whole micro-dollars per million tokens. What is not known is left out, and never zero.
Rule 3: a path is named only where it is served. Clients send a model's `id` on OpenAI's paths and its `upstream` on native ones:
        both are the name the gateway knows it by.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote

import trio

from clawproxy.config import Config, ModelConfig, PriceConfig, RouteConfig
from clawproxy.config.groups import flat_routes
from clawproxy.dialects import jsonio
from clawproxy.http1.head import Head
from clawproxy.messages import Principal
from clawproxy.ops.standings import BudgetStanding, window_key
from clawproxy.rates import price_of, prices_of
from clawproxy.service import Service
from clawproxy.stores.base import UsageRow
from clawproxy.transport.access import read_credentials
from clawproxy.transport.http import PlainHandler, PlainResponse

PRIVATE = {"cache-control": "private, no-store"}
_ANTHROPIC = "/v1/native/anthropic"
_GOOGLE = "/v1/native/google"


class Bookkeeper(Service, Protocol):
    """A service that also knows what its keys have used."""

    async def usage(self, principal: Principal, since: float) -> UsageRow:
        """Raises ClawError("store_unavailable")."""
        ...

    async def budget(self, principal: Principal) -> BudgetStanding | None:
        """The dollar budget it comes under, if any. Raises ClawError("store_unavailable")."""
        ...


def catalog_pages(service: Bookkeeper, serves: Callable[[str], bool]) -> Mapping[tuple[str, str], PlainHandler]:
    """The pages as `Surfaces.plain` takes them. `serves`: whether requests in a client's format are taken at a path."""
    return {
        ("GET", "/v1/health"): functools.partial(_health, service),
        ("GET", "/v1/catalog"): _for_principals(service, functools.partial(_catalog, service, serves)),
        ("GET", "/v1/usage"): _for_principals(service, functools.partial(_usage, service)),
        ("GET", "/v1/me"): _for_principals(service, _me),
        ("GET", "/v1/key/inspect"): _for_principals(service, functools.partial(_inspect, service)),
    }


def _for_principals(service: Service, page: Callable[[Principal], Any]) -> PlainHandler:
    async def handler(head: Head, body: bytes, peer: str) -> PlainResponse:
        principal = await service.authenticate(read_credentials(head, peer, "catalog"))
        refused = service.admit()
        if refused is not None:
            raise refused
        return PlainResponse(body=jsonio.encode(await page(principal)), headers=PRIVATE)

    return handler


async def _health(service: Service, head: Head, body: bytes, peer: str) -> PlainResponse:
    """Whether a request would be taken now. Nobody has to say who asks, so it tells nothing else."""
    await trio.lowlevel.checkpoint()
    refused = service.admit()
    document = {"ok": refused is None, "service": "clawproxy", "status": "ok" if refused is None else refused.slug}
    return PlainResponse(200 if refused is None else 503, body=jsonio.encode(document), headers=PRIVATE)


# --- what there is -----------------------------------------------------------------------------------------------------------


async def _catalog(service: Service, serves: Callable[[str], bool], principal: Principal) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    return catalog(service.config, service.models(principal), serves)


def catalog(config: Config, models: Any, serves: Callable[[str], bool]) -> dict[str, Any]:
    """The document of `(model, provider)` pairs, by provider, in their order."""
    providers: dict[str, dict[str, Any]] = {}
    for name, provider in models:
        entry = providers.get(provider)
        settings = config.providers.get(provider)
        dialect = settings.dialect if settings else ""
        if entry is None:
            entry = providers[provider] = _provider(provider, dialect, serves)
        entry["models"].append(_model(name, provider, config, _capabilities(dialect, serves)))
    return {"providers": list(providers.values())}


def _provider(name: str, dialect: str, serves: Callable[[str], bool]) -> dict[str, Any]:
    """A client prefers OpenAI's formats where they are `openaiCompatible`. A model of a provider that speaks another is best
    asked in that: reasoning and signatures come through whole. So it is only said where the native way is not served."""
    native, routes = f"/v1/native/{quote(name, safe='')}", []
    if dialect == "anthropic" and serves(f"{_ANTHROPIC}/v1/messages"):
        native, routes = _ANTHROPIC, [_route("/v1/messages", "anthropic.messages")]
    elif dialect == "gemini":
        paths = [path for version in ("v1beta", "v1") if serves(_GOOGLE + (path := f"/{version}/models/m:streamGenerateContent"))]
        if paths:
            native, routes = _GOOGLE, [_route(paths[0].replace("/m:", "/${model}:"), "google.generate_content")]
    return {
        "id": name,
        "displayName": name,
        "openaiCompatible": not routes,
        "nativeBaseUrl": native,
        "routes": routes,
        "models": [],
    }


def _route(path: str, request_format: str) -> dict[str, Any]:
    return {"path": path, "requestFormat": request_format, "methods": ["POST"]}


def _capabilities(dialect: str, serves: Callable[[str], bool]) -> list[str]:
    """What can be asked of a model, since the gateway translates. Of OpenAI's two formats a client takes Responses wherever it is
    named; so it is named only where the provider speaks it, and chat completions come to the others as they are."""
    paths = {
        "llm.responses": "/v1/responses",
        "llm.chat": "/v1/chat/completions",
        "llm.messages": f"{_ANTHROPIC}/v1/messages",
    }
    if dialect != "openai_responses":
        del paths["llm.responses"]
    return [*(capability for capability, path in paths.items() if serves(path)), "llm.stream"]


def _model(name: str, provider: str, config: Config, capabilities: list[str]) -> dict[str, Any]:
    model: ModelConfig | None = config.models.get(name)
    document: dict[str, Any] = {"id": name, "upstream": name, "capabilities": capabilities}
    if model is not None:
        pricing = _pricing(flat_routes(config.models, name), _price(config, name))
    else:
        pricing = _pricing((), price_of(config, provider, name.removeprefix(f"{provider}/")))
    if pricing:
        document["pricing"] = pricing
    return document


def _price(config: Config, name: str) -> PriceConfig | None:
    """The model's own, or the one that all of its routes have. Where they differ nobody can say beforehand."""
    if (own := config.models[name].price) is not None:
        return own
    first, *others = prices_of(config, name)
    return first if all(other == first for other in others) else None


def _pricing(routes: Sequence[RouteConfig], price: PriceConfig | None) -> dict[str, int]:
    """Prices, as far as they are known, and limits, which the contract keeps here too: those every route keeps, for the request
    may take any of them."""
    windows = [route.context_tokens for route in routes if route.context_tokens is not None]
    answers = [route.max_output_tokens for route in routes if route.max_output_tokens is not None]
    figures = {
        "inputMicrosPerMillion": price.input if price is not None else None,
        "outputMicrosPerMillion": price.output if price is not None else None,
        "cachedInputMicrosPerMillion": price.cached_input if price is not None else None,
        "cacheWrite5mInputMicrosPerMillion": price.cache_write if price is not None else None,
        "maxInputTokens": min(windows, default=None),
        "defaultMaxOutputTokens": min(answers, default=None),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}


# --- who asks, and what it has used --------------------------------------------------------------------------------------------


async def _usage(service: Bookkeeper, principal: Principal) -> dict[str, Any]:
    """This month's, in UTC. Without a budget in dollars there is nothing to be used up."""
    now = time.time()
    month = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    row = await service.usage(principal, month.timestamp())
    summary: dict[str, Any] = {
        "requestCount": row.requests,
        "totalTokens": row.input_tokens + row.output_tokens,
        "inputTokens": row.input_tokens,
        "outputTokens": row.output_tokens,
    }
    if row.cost_nano is not None:
        summary["actualCostMicros"] = (row.cost_nano + 500) // 1000
    window = f"key:{principal.key}/{month:%Y-%m}"
    budget: dict[str, Any] = {"configured": False, "windowKey": window}
    standing = await service.budget(principal)
    if standing is not None:
        budget = {
            "configured": True,
            "limitMicros": standing.limit // 1000,
            "spentMicros": (standing.used + 500) // 1000,
            "heldMicros": ((standing.held or 0) + 500) // 1000,
            "windowKey": window_key(standing.scope, standing.window, now),
        }
        if standing.resets_at is not None:
            budget["resetsAt"] = standing.resets_at
    return {"budget": budget, "usage": {"windowKey": window, "summary": summary}}


async def _me(principal: Principal) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    return {
        "authenticated": True,
        "auth": "proxy_key",
        "role": "user",
        "key": principal.key,
        "subject": principal.user,
        "tenantId": principal.team or "default",
        "app": principal.app,
        "groups": list(principal.roles),
        "models": list(principal.models),
    }


async def _inspect(service: Service, principal: Principal) -> dict[str, Any]:
    """Who gets this far has a key that is known, enabled and not expired."""
    await trio.lowlevel.checkpoint()
    return {
        "verified": True,
        "enabled": True,
        "kid": principal.key,
        "tenantId": principal.team or "default",
        "expires": principal.expires,
        "providers": list(dict.fromkeys(provider for _, provider in service.models(principal))),
    }
