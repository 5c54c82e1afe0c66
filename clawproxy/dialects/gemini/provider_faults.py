"""Gemini's errors, as rows of the table.

Rule 1: Google says "you exceeded your current quota" for a rate that passes within the minute as well as for a day's allowance:
        which of them it is stands in the details, and only the latter is `quota`.
Rule 2: a bad key is a 400 here; the details' reason tells it from a bad request.
Rule 3: all else is as `openai_chat.provider_faults` has it, its words included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from clawproxy.dialects.openai_chat import provider_faults as common
from clawproxy.errors import ProviderFault

_DELAY = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?s")
_KEY = frozenset({"API_KEY_INVALID", "API_KEY_SERVICE_BLOCKED", "API_KEY_HTTP_REFERRER_BLOCKED", "API_KEY_IP_ADDRESS_BLOCKED"})


def decode_error(status: int, headers: Mapping[str, str], body: bytes, now: float | None = None) -> ProviderFault:
    """The fault behind a status from 300 up. `now`: Unix time, for a Retry-After that is a date."""
    return classify(error_of(body), status, common.retry_after_ms(headers, now))


def error_of(body: bytes) -> Any:
    """The value of `error` in an error document, which may stand alone in an array; None where there is none."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    return document.get("error", document) if isinstance(document, dict) else None


def classify(error: Any, status: int | None = None, retry_ms: int | None = None) -> ProviderFault:
    """The fault behind an `error` value. Inside a stream there is no status but its `code`."""
    fields = error if isinstance(error, dict) else {}
    if status is None:
        code = fields.get("code")
        status = code if type(code) is int and 300 <= code <= 599 else None
    details = list(_details(fields))
    if retry_ms is None:
        retry_ms = _retry_ms(details)
    known: dict[str, Any] = {"provider_status": status, "retry_after_ms": retry_ms}
    if status == 429 or fields.get("status") == "RESOURCE_EXHAUSTED":
        return ProviderFault("provider_error.quota" if _for_the_day(details) else "provider_error.rate_limited", **known)
    if any(detail.get("reason") in _KEY for detail in details if isinstance(detail.get("reason"), str)):
        return ProviderFault("provider_error.auth", **known)
    return common.classify(error, status, retry_ms)


def _details(fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    listed = fields.get("details")
    if isinstance(listed, list):
        yield from [detail for detail in listed[:32] if isinstance(detail, dict)]


def _retry_ms(details: list[dict[str, Any]]) -> int | None:
    """RetryInfo's `retryDelay`, held within 1..600 s as a Retry-After is."""
    for detail in details:
        delay = detail.get("retryDelay")
        match = _DELAY.fullmatch(delay) if isinstance(delay, str) else None
        if match is not None:
            millis = int(match[1]) * 1000 + int((match[2] or "0")[:3].ljust(3, "0"))
            return min(max(millis, 1_000), 600_000)
    return None


def _for_the_day(details: list[dict[str, Any]]) -> bool:
    """Whether a QuotaFailure names an allowance that no short wait brings back."""
    for detail in details:
        violations = detail.get("violations")
        for each in violations[:32] if isinstance(violations, list) else ():
            ident = each.get("quotaId") if isinstance(each, dict) else None
            if isinstance(ident, str) and "PerDay" in ident:
                return True
    return False
