"""Cohere's errors, as rows of the table: `openai_chat.provider_faults`, and what Cohere alone means by a status.

Source: the SDK's error classes (498 is a token that is not valid, 499 a request given up by its client).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from clawproxy.dialects.openai_chat.provider_faults import classify, retry_after_ms
from clawproxy.errors import ProviderFault

_OWN = {498: "provider_error.auth", 499: "provider_error.overloaded"}
_MONTHLY = re.compile(r"limited to [^.]{0,60}\bmonth", re.IGNORECASE)
"""A trial key's calls for the month are used up: trying again can not help."""


def decode_error(status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
    """The fault behind a status from 300 up, and its `{"message": ...}`."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        document = None
    said = document if isinstance(document, dict) else {}
    retry = retry_after_ms(headers)
    message = said.get("message")
    if status in _OWN:
        return ProviderFault(_OWN[status], provider_status=status, retry_after_ms=retry)
    if status == 429 and isinstance(message, str) and _MONTHLY.search(message[:4096]):
        return ProviderFault("provider_error.quota", provider_status=status)
    return classify(said.get("error", said), status, retry)


def from_end(reason: str, words: Any) -> ProviderFault:
    """The fault behind an answer that ended with `ERROR` or `TIMEOUT`. Its words decide, and are not shown."""
    return classify({"message": words, "type": "timeout" if reason == "TIMEOUT" else "server_error"})
