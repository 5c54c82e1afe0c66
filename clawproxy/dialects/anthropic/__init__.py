"""Anthropic Messages, both sides: `POST /v1/messages` and `/v1/messages/count_tokens`.

`client_*` reads their requests and writes our answers; `provider_*` writes our requests and reads their answers; `words` holds
what both sides say.
"""

from __future__ import annotations

from clawproxy.dialects.anthropic.client import AnthropicClient
from clawproxy.dialects.anthropic.provider import AnthropicProvider

__all__ = ["AnthropicClient", "AnthropicProvider"]
