"""The wire formats, by name: `CLIENT` for those clients may speak over HTTP, `PROVIDER` for those providers do; and where each
client's is spoken: `PATHS`, and `PATTERNS` for paths that hold a name.

A plugin's own (`Registry.add_provider_dialect`) are looked up before these.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from clawproxy.dialects.anthropic import AnthropicClient, AnthropicProvider
from clawproxy.dialects.base import ClientDialect, ProviderDialect
from clawproxy.dialects.cohere import CohereChat, CohereEmbed, CohereProvider
from clawproxy.dialects.gemini import PATTERN as GEMINI_PATTERN
from clawproxy.dialects.gemini import GeminiClient, GeminiProvider
from clawproxy.dialects.gemini.models import asks_gemini
from clawproxy.dialects.ollama import OllamaChat, OllamaEmbed, OllamaGenerate, OllamaProvider
from clawproxy.dialects.openai_chat import OpenAIChatClient, OpenAIChatProvider, OpenAIEmbeddingsClient
from clawproxy.dialects.openai_responses import OpenAIResponsesClient, OpenAIResponsesProvider
from clawproxy.dialects.profiles import PROFILES
from clawproxy.http1.head import Head

_openai_chat = OpenAIChatProvider()

CLIENT: dict[str, ClientDialect] = {
    "openai_chat": OpenAIChatClient(),
    "openai_responses": OpenAIResponsesClient(),
    "anthropic": AnthropicClient(),
    "gemini": GeminiClient(),
    "cohere": CohereChat(),
    "cohere_embed": CohereEmbed(),
    "ollama": OllamaChat(),
    "ollama_generate": OllamaGenerate(),
    "ollama_embed": OllamaEmbed(),
    "ollama_embeddings": OllamaEmbed(old=True),
    "openai_embeddings": OpenAIEmbeddingsClient(),
}
PROVIDER: dict[str, ProviderDialect] = {
    "openai_chat": _openai_chat,
    "openai_responses": OpenAIResponsesProvider(),
    "anthropic": AnthropicProvider(),
    "gemini": GeminiProvider(),
    "cohere": CohereProvider(),
    "ollama": OllamaProvider(),
    "scripted": _openai_chat,  # the scripted provider answers as OpenAI does
    "azure": OpenAIChatProvider(PROFILES["azure"]),
}
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

__all__ = ["CLIENT", "PATHS", "PATTERNS", "PREFIXES", "PROVIDER", "SPEAKERS", "is_served"]


def is_served(path: str) -> bool:
    """Whether a client's format is spoken at this path."""
    return path in PATHS or any(pattern.fullmatch(path) is not None for pattern, _ in PATTERNS)
