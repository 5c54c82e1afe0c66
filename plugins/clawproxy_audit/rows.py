"""One exchange as one line of JSON.

Rule 1: a line is valid JSON in printable characters: controls (C0, DEL, C1), line and paragraph separators, bidirectional
        controls and other invisible marks are escaped, so that a row can neither forge another nor hide in a terminal.
Rule 2: every text is bounded.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from clawproxy.context import Attempt, Exchange
from clawproxy.events import Outcome
from clawproxy.messages import Usage

MAX_TEXT = 256
MAX_ATTEMPTS = 50
MAX_NOTICES = 50

_encode = msgspec.json.Encoder().encode
_HIDDEN = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")


def audit_row(exchange: Exchange, outcome: Outcome) -> bytes:
    """The line without its place in the chain and without its LF: a JSON object."""
    principal, route = exchange.principal, exchange.route
    row: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": exchange.request_id,
        "instance": exchange.instance,
        "generation": exchange.generation,
        "surface": exchange.surface,
        "peer": exchange.peer,
        "client_request_id": exchange.client_request_id,
        "session_id": exchange.session_id,
        "key": principal.key,
        "user": exchange.user if exchange.user is not None else principal.user,
        "team": principal.team,
        "app": exchange.app if exchange.app is not None else principal.app,
        "model": exchange.requested_model,
        "stream": exchange.stream,
        "route": {"provider": route.provider, "model": route.model} if route is not None else None,
        "attempts": [_attempt(attempt) for attempt in exchange.attempts[-MAX_ATTEMPTS:]],
        "outcome": outcome.label,
        "finish": outcome.finish,
        "error": outcome.error.slug if outcome.error is not None else None,
        "usage": _usage(exchange.usage),
        "cost_nano": exchange.cost_nano,
        "timing_ms": exchange.timing.milliseconds(),
        "notices": [notice.code for notice in exchange.notices[:MAX_NOTICES]],
    }
    return to_line(row)


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "reason": attempt.reason,
        "provider": attempt.route.provider,
        "model": attempt.route.model,
        "outcome": attempt.outcome,
        "sent": attempt.sent,
        "status": attempt.status,
    }


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "source": usage.source,
    }


def to_line(row: dict[str, Any]) -> bytes:
    """Compact JSON in one printable line, as `Rule 1` says."""
    try:
        line = _encode(row)
    except UnicodeEncodeError:
        line = _encode(_tidy(row))  # a lone surrogate, which JSON can carry and UTF-8 can not
    if len(line) > 4096:
        line = _encode(_tidy(row))
    if line.isascii() and b"\x7f" not in line:
        return line
    return _HIDDEN.sub(_escape, line.decode()).encode()


def _escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def _tidy(value: Any) -> Any:
    """Every text bounded and valid UTF-8."""
    if isinstance(value, str):
        return value[:MAX_TEXT].encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _tidy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    return value
