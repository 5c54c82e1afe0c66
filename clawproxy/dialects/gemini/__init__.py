"""Google's Gemini API (`generateContent`), both sides.

`client_*` reads their requests and writes our answers; `provider_*` writes our requests and reads their answers.
"""

from __future__ import annotations

from clawproxy.dialects.gemini.client import GeminiClient
from clawproxy.dialects.gemini.client_path import PATTERN
from clawproxy.dialects.gemini.provider import GeminiProvider

__all__ = ["PATTERN", "GeminiClient", "GeminiProvider"]
