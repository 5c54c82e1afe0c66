"""The wire formats, by name: `CLIENT` for those clients may speak over HTTP, `PROVIDER` for those providers do; and where each
client's is spoken: `PATHS`, and `PATTERNS` for paths that hold a name.

A plugin's own (`Registry.add_provider_dialect`) are looked up before these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TypeVar

from clawproxy.dialects.base import ClientDialect, ProviderDialect
from clawproxy.dialects.gemini.client_path import PATTERN as GEMINI_PATTERN
from clawproxy.dialects.gemini.models import asks_gemini
from clawproxy.http1.head import Head

Made = TypeVar("Made")


class _Shelf(Mapping[str, Made]):
    """Values by name, each imported and made when it is first asked for: a gateway speaks few of these formats, and all of them
    take 130 ms to import."""

    def __init__(self, places: Mapping[str, str]) -> None:
        """`places`: name -> `module:callable`, the module below this package."""
        self._places = places
        self._made: dict[str, Made] = {}

    def __getitem__(self, name: str) -> Made:
        made = self._made.get(name)
        if made is None:
            module, _, maker = self._places[name].partition(":")
            made = self._made[name] = getattr(import_module(f"{__name__}.{module}"), maker)()
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


CLIENT: Mapping[str, ClientDialect] = _Shelf(
    {
        "openai_chat": "openai_chat.client:OpenAIChatClient",
        "openai_responses": "openai_responses.client:OpenAIResponsesClient",
        "anthropic": "anthropic.client:AnthropicClient",
        "gemini": "gemini.client:GeminiClient",
        "cohere": "cohere.client:CohereChat",
        "cohere_embed": "cohere.client:CohereEmbed",
        "ollama": "ollama.client:OllamaChat",
        "ollama_generate": "ollama.client:OllamaGenerate",
        "ollama_embed": "ollama.client:OllamaEmbed",
        "ollama_embeddings": "ollama.client:old_embeddings",
        "openai_embeddings": "openai_chat.client_embeddings:OpenAIEmbeddingsClient",
    }
)
PROVIDER: Mapping[str, ProviderDialect] = _Shelf(
    {
        "openai_chat": "openai_chat.provider:OpenAIChatProvider",
        "openai_responses": "openai_responses.provider:OpenAIResponsesProvider",
        "anthropic": "anthropic.provider:AnthropicProvider",
        "gemini": "gemini.provider:GeminiProvider",
        "cohere": "cohere.provider:CohereProvider",
        "ollama": "ollama.provider:OllamaProvider",
        "scripted": "openai_chat.provider:OpenAIChatProvider",  # the scripted provider answers as OpenAI does
        "azure": "openai_chat.provider:azure",
    }
)
PATHS: dict[str, str] = {
    "/v1/chat/completions": "openai_chat",
    "/openai/v1/chat/completions": "openai_chat",
    "/v1/responses": "openai_responses",
    "/openai/v1/responses": "openai_responses",
    **{f"{root}/v1/messages": "anthropic" for root in ("", "/anthropic", "/v1/native/anthropic")},
    **{f"{root}/v1/messages/count_tokens": "anthropic" for root in ("", "/anthropic", "/v1/native/anthropic")},
    "/api/chat": "ollama",
    "/api/embed": "ollama_embed",
    "/api/embeddings": "ollama_embeddings",
    "/api/generate": "ollama_generate",
    "/v2/chat": "cohere",
    "/v2/embed": "cohere_embed",
    "/v1/embeddings": "openai_embeddings",
    "/openai/v1/embeddings": "openai_embeddings",
}
PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = ((GEMINI_PATTERN, "gemini"),)
PREFIXES: dict[str, str] = {
    "/api/": "ollama",
    "/v2/": "cohere",
}
"""Whose words an error has below a path that nothing serves, or another method: OpenAI's where none is listed."""
SPEAKERS: tuple[tuple[Callable[[Head], bool], str], ...] = ((asks_gemini, "gemini"),)
"""Whose words an error has at a path that is no dialect's own: the first that knows its client by the head."""

__all__ = ["CLIENT", "PATHS", "PATTERNS", "PREFIXES", "PROVIDER", "SPEAKERS", "Spoken", "is_served", "provider_dialects"]


def is_served(path: str) -> bool:
    """Whether a client's format is spoken at this path."""
    return path in PATHS or any(pattern.fullmatch(path) is not None for pattern, _ in PATTERNS)


def provider_dialects(own: Mapping[str, ProviderDialect]) -> Mapping[str, ProviderDialect]:
    """All of them, a plugin's `own` before these."""
    return {**PROVIDER, **own} if own else PROVIDER


class Spoken(Mapping[str, ClientDialect]):
    """Path -> the dialect spoken there, made when it is first asked for."""

    def __getitem__(self, path: str) -> ClientDialect:
        return CLIENT[PATHS[path]]

    def __iter__(self) -> Iterator[str]:
        return iter(PATHS)

    def __len__(self) -> int:
        return len(PATHS)

    def __contains__(self, path: object) -> bool:
        return path in PATHS
