"""The wire formats, by name: `CLIENT` for those clients may speak over HTTP, `PROVIDER` for those providers do; and where each
client's is spoken: `PATHS`, and `PATTERNS` for paths that hold a name.

A plugin's own (`Registry.add_provider_dialect`) are looked up before these.
"""

from __future__ import annotations

import re

from clawproxy.dialects.base import ClientDialect, ProviderDialect
from clawproxy.dialects.openai_chat import OpenAIChatClient, OpenAIChatProvider, OpenAIEmbeddingsClient
from clawproxy.dialects.profiles import PROFILES

_openai_chat = OpenAIChatProvider()

CLIENT: dict[str, ClientDialect] = {
    "openai_chat": OpenAIChatClient(),
    "openai_embeddings": OpenAIEmbeddingsClient(),
}
PROVIDER: dict[str, ProviderDialect] = {
    "openai_chat": _openai_chat,
    "scripted": _openai_chat,  # the scripted provider answers as OpenAI does
    "azure": OpenAIChatProvider(PROFILES["azure"]),
}
PATHS: dict[str, str] = {
    "/v1/chat/completions": "openai_chat",
    "/openai/v1/chat/completions": "openai_chat",
    "/v1/embeddings": "openai_embeddings",
    "/openai/v1/embeddings": "openai_embeddings",
}
PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = ()

__all__ = ["CLIENT", "PATHS", "PATTERNS", "PROVIDER"]
