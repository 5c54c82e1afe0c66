"""Cohere's API v2, both sides: `/v2/chat` and `/v2/embed`.

`client_*` reads their requests and writes our answers; `provider_*` writes our requests and reads their answers. Source: the
official Python SDK's models (cohere 7).
"""

from __future__ import annotations

from clawproxy.dialects.cohere.client import CohereChat, CohereEmbed
from clawproxy.dialects.cohere.provider import CohereProvider

__all__ = ["CohereChat", "CohereEmbed", "CohereProvider"]
