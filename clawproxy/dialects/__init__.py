"""The wire formats, by name: `CLIENT` for those clients may speak over HTTP, `PROVIDER` for those providers do; and where each
client's is spoken: `PATHS`, and `PATTERNS` for paths that hold a name.

A plugin's own (`Registry.add_provider_dialect`) are looked up before these.
"""

from __future__ import annotations

import re

from clawproxy.dialects.base import ClientDialect, ProviderDialect
from clawproxy.dialects.cohere import CohereChat, CohereEmbed, CohereProvider
from clawproxy.dialects.ollama import OllamaChat, OllamaEmbed, OllamaGenerate, OllamaProvider
from clawproxy.dialects.openai_chat import OpenAIChatClient, OpenAIChatProvider

_openai_chat = OpenAIChatProvider()

CLIENT: dict[str, ClientDialect] = {
    "openai_chat": OpenAIChatClient(),
    "cohere": CohereChat(),
    "cohere_embed": CohereEmbed(),
    "ollama": OllamaChat(),
    "ollama_generate": OllamaGenerate(),
    "ollama_embed": OllamaEmbed(),
    "ollama_embeddings": OllamaEmbed(old=True),
}
PROVIDER: dict[str, ProviderDialect] = {
    "openai_chat": _openai_chat,
    "cohere": CohereProvider(),
    "ollama": OllamaProvider(),
    "scripted": _openai_chat,  # the scripted provider answers as OpenAI does
}
PATHS: dict[str, str] = {
    "/v1/chat/completions": "openai_chat",
    "/openai/v1/chat/completions": "openai_chat",
    "/api/chat": "ollama",
    "/api/embed": "ollama_embed",
    "/api/embeddings": "ollama_embeddings",
    "/api/generate": "ollama_generate",
    "/v2/chat": "cohere",
    "/v2/embed": "cohere_embed",
}
PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = ()
PREFIXES: dict[str, str] = {
    "/api/": "ollama",
    "/v2/": "cohere",
}
"""Whose words an error has below a path that nothing serves, or another method: OpenAI's where none is listed."""

__all__ = ["CLIENT", "PATHS", "PATTERNS", "PREFIXES", "PROVIDER"]
