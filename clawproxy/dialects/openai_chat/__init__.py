"""OpenAI Chat Completions, both sides.

`client_*` reads their requests and writes our answers; `provider_*` writes our requests and reads their answers.
"""

from __future__ import annotations

from clawproxy.dialects.openai_chat.client import OpenAIChatClient
from clawproxy.dialects.openai_chat.client_embeddings import OpenAIEmbeddingsClient
from clawproxy.dialects.openai_chat.provider import OpenAIChatProvider

__all__ = ["OpenAIChatClient", "OpenAIChatProvider", "OpenAIEmbeddingsClient"]
