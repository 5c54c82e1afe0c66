"""One exchange as one line of JSON.

Rule 1: a line is valid JSON in printable characters: controls (C0, DEL, C1), line and paragraph separators, bidirectional
        controls and other invisible marks are escaped, so that a row can neither forge another nor hide in a terminal.
Rule 2: every text is bounded.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from clawproxy.context import Attempt, Exchange
from clawproxy.events import Outcome
from clawproxy.messages import Usage

MAX_TEXT = 256
MAX_ATTEMPTS = 50
MAX_NOTICES = 50
MAX_CONSIDERED = 16
MAX_RULES = 64

_encode = msgspec.json.Encoder().encode
_HIDDEN = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")


class _Attribution(msgspec.Struct, gc=False):
    """In the client's own words."""

    client: str | None
    agent_id: str | None
    session_id: str | None
    project_id: str | None


class _Route(msgspec.Struct, gc=False):
    provider: str
    model: str


class _Attempt(msgspec.Struct, gc=False):
    number: int
    reason: str
    provider: str
    model: str
    outcome: str | None
    sent: bool
    status: int | None
    region: str | msgspec.UnsetType | None = msgspec.UNSET
    """Only where residency rules bind the request."""


class _Usage(msgspec.Struct, gc=False):
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    source: str


class _Considered(msgspec.Struct, gc=False):
    provider: str
    model: str
    why: str
    score: float | None
    cached: int | msgspec.UnsetType = msgspec.UNSET


class _Rule(msgspec.Struct, gc=False):
    rule: str
    action: str
    shadow: bool


class _Scanned(msgspec.Struct, gc=False, omit_defaults=True):
    """What policies looked at: the groups of rules, bytes of text, and how often each rule matched. Never what."""

    prompt: list[str]
    answer: list[str]
    prompt_bytes: int = 0
    answer_bytes: int = 0
    found: dict[str, int] = {}


class Row(msgspec.Struct, gc=False):
    """What a row holds beside `seq` and `prev`, in its order; nothing stays out but what the router had no need to weigh,
    the rules where none spoke, and roles, tags and residency where there are none."""

    time: str
    request_id: str
    instance: str
    generation: int
    surface: str
    peer: str
    client_request_id: str | None
    session_id: str | None
    attribution: _Attribution | None
    key: str
    user: str | None
    team: str | None
    app: str | None
    model: str
    stream: bool
    route: _Route | None
    attempts: list[_Attempt]
    outcome: str
    finish: str | None
    error: str | None
    usage: _Usage | None
    cost_nano: int | None
    timing_ms: Mapping[str, float]
    notices: list[str]
    operation: str
    considered: list[_Considered] | msgspec.UnsetType = msgspec.UNSET
    tags: list[str] | msgspec.UnsetType = msgspec.UNSET
    """The key's, its `region:` among them."""
    rules: list[_Rule] | msgspec.UnsetType = msgspec.UNSET
    roles: list[str] | msgspec.UnsetType = msgspec.UNSET
    residency: list[str] | msgspec.UnsetType = msgspec.UNSET
    """The rules that said where its data may go; each attempt then tells its `region`."""
    scanned: _Scanned | msgspec.UnsetType = msgspec.UNSET


def audit_row(exchange: Exchange, outcome: Outcome) -> bytes:
    """The line without its place in the chain and without its LF: a JSON object."""
    principal, route, usage, said = exchange.principal, exchange.route, exchange.usage, exchange.attribution
    row = Row(  # by place: a third of the time that names take
        _now(),
        exchange.request_id,
        exchange.instance,
        exchange.generation,
        exchange.surface,
        exchange.peer,
        exchange.client_request_id,
        exchange.session_id,
        _Attribution(said.client, said.agent_id, said.session_id, said.project_id) if said is not None else None,
        principal.key,
        exchange.user if exchange.user is not None else principal.user,
        principal.team,
        exchange.app if exchange.app is not None else principal.app,
        exchange.requested_model,
        exchange.stream,
        _Route(route.provider, route.model) if route is not None else None,
        [_attempt(attempt) for attempt in exchange.attempts[-MAX_ATTEMPTS:]],
        outcome.label,
        outcome.finish,
        outcome.error.slug if outcome.error is not None else None,
        _usage(usage) if usage is not None else None,
        exchange.cost_nano,
        exchange.timing.milliseconds(),
        [notice.code for notice in exchange.notices[:MAX_NOTICES]] if exchange.notices else [],
        exchange.operation,
    )
    if exchange.considered:
        weighed = exchange.considered[:MAX_CONSIDERED]
        row.considered = [
            _Considered(each.provider, each.model, each.why, each.score, each.cached if each.cached else msgspec.UNSET)
            for each in weighed
        ]
    if principal.tags:
        row.tags = list(principal.tags[:MAX_NOTICES])
    if exchange.rules:
        row.rules = [_Rule(hit.rule, hit.action, hit.shadow) for hit in exchange.rules[:MAX_RULES]]
    if principal.roles:
        row.roles = list(principal.roles[:MAX_RULES])
    residency = exchange.residency
    if residency is not None:
        row.residency = list(residency.rules[:MAX_RULES])
        for told, attempt in zip(row.attempts, exchange.attempts[-MAX_ATTEMPTS:], strict=True):
            if attempt.route.recorded is None:
                told.region = residency.region(attempt.route.provider, attempt.route.model)
    if (seen := exchange.scanned) is not None:
        found = seen.found() if seen.counts else {}
        row.scanned = _Scanned(list(seen.prompt), list(seen.answer), seen.prompt_bytes, seen.answer_bytes, found)
    return to_line(row)


def _attempt(attempt: Attempt) -> _Attempt:
    route = attempt.route
    return _Attempt(attempt.number, attempt.reason, route.provider, route.model, attempt.outcome, attempt.sent, attempt.status)


def _usage(usage: Usage) -> _Usage:
    return _Usage(usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens, usage.source)


_second = (0, "")
"""A second, and what it is called."""


def _now() -> str:
    """The time in milliseconds; the date is made once a second (2.3 -> 0.4 us)."""
    global _second
    now = time.time()
    second, called = _second
    if int(now) != second:
        second = int(now)
        called = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        _second = second, called
    return f"{called}{int((now - second) * 1000):03d}+00:00"


def to_line(row: Row | dict[str, Any]) -> bytes:
    """Compact JSON in one printable line, as `Rule 1` says."""
    try:
        line = _encode(row)
    except UnicodeEncodeError:
        line = _encode(_tidy(msgspec.to_builtins(row)))  # a lone surrogate, which JSON can carry and UTF-8 can not
    if len(line) > 4096:
        line = _encode(_tidy(msgspec.to_builtins(row)))
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
