"""Errors as Google writes them: `{"error": {"code", "message", "status", "details"}}`, with `google.rpc` details.

Source: https://cloud.google.com/apis/design/errors and what google-genai reads (`code`, `message`, `status`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clawproxy.errors import ClawError

_TYPE = "type.googleapis.com/google.rpc."
_STATUS: Mapping[int, str] = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_object(error: ClawError, request_id: str = "") -> dict[str, Any]:
    """The value of `error`. The table's slug is the `reason` of an ErrorInfo; the parameter is a field violation."""
    found = error.details
    details: list[dict[str, Any]] = [{"@type": _TYPE + "ErrorInfo", "reason": error.slug, "domain": "clawproxy"}]
    if found.param is not None:
        details.append({"@type": _TYPE + "BadRequest", "fieldViolations": [{"field": found.param, "description": error.message}]})
    if found.retry_after_ms is not None:
        details.append({"@type": _TYPE + "RetryInfo", "retryDelay": _duration(found.retry_after_ms)})
    if request_id:
        details.append({"@type": _TYPE + "RequestInfo", "requestId": request_id})
    status = _STATUS.get(error.status, "INVALID_ARGUMENT" if error.status < 500 else "INTERNAL")
    return {"code": error.status, "message": error.message, "status": status, "details": details}


def _duration(millis: int) -> str:
    """Protobuf's JSON for a Duration: `12s`, `0.250s`."""
    whole, rest = divmod(max(0, millis), 1000)
    return f"{whole}.{rest:03d}s" if rest else f"{whole}s"
