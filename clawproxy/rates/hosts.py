"""Whose prices a provider's are: told by its `profile`, or by the host of its `base_url`.

Rule: who else answers at an address of their own (a server of one's own, a reseller, a proxy) charges what they like, so they
      have no shipped price. Neither have Azure, Bedrock and Vertex AI: prices there go by region and contract, and a deployment's
      name is the operator's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from clawproxy.config.schema import ProviderConfig

HOSTS: Final[Mapping[str, str]] = {
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "google",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral",
    "api.deepseek.com": "deepseek",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "openrouter.ai": "openrouter",
    "api.x.ai": "x-ai",
    "api.together.xyz": "together",
    "api.together.ai": "together",
    "api.fireworks.ai": "fireworks",
    "api.cerebras.ai": "cerebras",
    "api.moonshot.ai": "moonshotai",
    "api.moonshot.cn": "moonshotai",
    "api.minimax.io": "minimax",
    "api.minimaxi.com": "minimax",
    "api.z.ai": "zai",
}
PROFILES: Final[Mapping[str, str]] = {name: name for name in ("openai", "groq", "mistral", "deepseek", "openrouter")}
"""`[providers.NAME] profile`: whoever names one of these means that vendor, whatever the address."""
VENDORS: Final = frozenset(HOSTS.values())


def vendor_of(provider: ProviderConfig) -> str | None:
    """The card's name for who bills this provider's requests; None where nobody can know."""
    if provider.profile is not None:
        return PROFILES.get(provider.profile)
    try:
        host = urlsplit(provider.base_url or "").hostname or ""
    except ValueError:  # who checks addresses says so
        return None
    return HOSTS.get(host)
