"""What can go wrong: one closed table, and the errors that carry its rows.

Rule 1: every error a client, a log line, a metric or the ledger can see is a row of `KINDS`. None is made up elsewhere.
Rule 2: a row says whose fault it is, its HTTP status, its WebSocket close code (where the connection ends with it), the
        OpenAI `type` and `code`, whether trying again can help, and which outcome the exchange gets.
Rule 3: messages are English and fixed. What a provider said passes only through `upstream.faults`, never from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen

Fault = Literal["client", "provider", "gateway", "operator"]


@frozen
class Kind:
    """One row of the table: everything about an error that does not depend on the occasion."""

    slug: str
    status: int
    fault: Fault
    outcome: str
    message: str
    retryable: bool = False
    close: int | None = None
    """The WebSocket close code, where the error ends a whole connection."""
    openai_type: str = "invalid_request_error"
    openai_code: str | None = None
    """The `code` an OpenAI client sees; the slug where None."""


def _rows() -> list[Kind]:  # one row a line, however long: it is a table
    api, limit, denied = "api_error", "rate_limit_error", "permission_error"
    client = [
        Kind("invalid_request", 400, "client", "refused.request", "The request is not valid."),
        Kind("invalid_json", 400, "client", "refused.request", "The body is not valid JSON (RFC 8259, UTF-8)."),
        Kind("json_too_deep", 400, "client", "refused.request", "The JSON is nested deeper than 64 levels."),
        Kind("unknown_parameter", 400, "client", "refused.request", "This parameter is not known."),
        Kind(
            "unsupported_parameter",
            400,
            "client",
            "refused.request",
            "This parameter can not be honoured on the way to this provider.",
        ),
        Kind("context_length_exceeded", 400, "client", "refused.context", "The prompt does not fit the model's context window."),
        Kind("model_not_found", 404, "client", "refused.model", "The model does not exist or you do not have access to it."),
        Kind("endpoint_not_found", 404, "client", "refused.request", "This endpoint is not served here."),
        Kind("method_not_allowed", 405, "client", "refused.request", "This method is not allowed here."),
        Kind(
            "unsupported_media_type", 415, "client", "refused.request", "Send the body as application/json in UTF-8, unencoded."
        ),
        Kind("bad_head", 400, "client", "refused.request", "The request head breaks RFC 9112.", close=1002),
        Kind("bad_body", 400, "client", "refused.request", "The request body breaks RFC 9112.", close=1002),
        Kind("head_too_large", 431, "client", "refused.request", "The request head is too large."),
        Kind("target_too_long", 414, "client", "refused.request", "The request target is too long."),
        Kind("body_too_large", 413, "client", "refused.request", "The body is too large.", close=1009),
        Kind("frame_too_large", 413, "client", "refused.request", "The message is too large.", close=1009),
        Kind("expectation_failed", 417, "client", "refused.request", "Only `Expect: 100-continue` is understood."),
        Kind("misdirected", 421, "client", "refused.request", "This host is not served here."),
        Kind("upgrade_required", 426, "client", "refused.request", "Upgrade to WebSocket version 13 to use this endpoint."),
        Kind("not_implemented", 501, "client", "refused.request", "This method or coding is not implemented."),
        Kind("http_version", 505, "client", "refused.request", "Speak HTTP/1.1."),
        Kind(
            "bad_frame",
            400,
            "client",
            "refused.request",
            "A frame must be one JSON object in a text message, with a `type`.",
            close=4400,
        ),
        Kind("abuse", 400, "client", "refused.request", "The connection broke the protocol's limits.", close=1008),
        Kind("duplicate_id", 409, "client", "refused.request", "This id is still open on this connection."),
        Kind("unknown_id", 404, "client", "refused.request", "No open request has this id."),
        Kind("session.expired", 410, "client", "refused.session", "The session is gone."),
        Kind(
            "previous_response_not_found",
            400,
            "client",
            "refused.request",
            "No response with this id is kept on this connection.",
        ),
        Kind(
            "websocket_connection_limit_reached",
            400,
            "client",
            "refused.request",
            "This connection has reached its 60 minutes. Open a new one.",
            retryable=True,
        ),
    ]
    access = [
        Kind(
            "auth.missing",
            401,
            "client",
            "refused.auth",
            "No credential came with the request.",
            close=4401,
            openai_type="authentication_error",
            openai_code="invalid_api_key",
        ),
        Kind(
            "auth.invalid",
            401,
            "client",
            "refused.auth",
            "The credential is not accepted.",
            close=4401,
            openai_type="authentication_error",
            openai_code="invalid_api_key",
        ),
        Kind(
            "auth.expired",
            401,
            "client",
            "refused.auth",
            "The credential has expired or was revoked.",
            close=4401,
            openai_type="authentication_error",
            openai_code="invalid_api_key",
        ),
        Kind("auth.ambiguous", 400, "client", "refused.auth", "More than one credential came, and they differ.", close=4400),
        Kind("auth.throttled", 429, "client", "refused.auth", "Too many failed attempts to authenticate.", True, 4429, limit),
        Kind("forbidden", 403, "client", "refused.forbidden", "This credential may not do that.", close=4403, openai_type=denied),
        Kind("origin", 403, "client", "refused.origin", "This origin is not allowed.", openai_type=denied),
    ]
    policy = [
        Kind(
            "refused.sanitize",
            400,
            "client",
            "refused.sanitize",
            "The content was refused by policy.",
            openai_code="content_filter",
        ),
        Kind("refused.plugin", 403, "client", "refused.plugin", "A policy refused the request.", openai_type=denied),
        Kind(
            "refused.residency",
            403,
            "client",
            "refused.residency",
            "No route for this model is where this credential's data may go.",
            openai_type=denied,
        ),
        Kind("budget.exhausted", 429, "client", "refused.budget", "The budget is used up.", False, openai_type=limit),
        Kind("limit.in_flight", 429, "client", "refused.limit", "Too many requests at once.", True, openai_type=limit),
    ]
    rows: tuple[tuple[str, int, Fault, str, bool, int | None], ...] = (
        ("head", 408, "client", "The request head did not arrive in time.", True, None),
        ("auth", 408, "client", "No credential arrived in time.", True, 4408),
        ("body", 408, "client", "The request body did not arrive in time.", True, 4408),
        ("queue", 503, "gateway", "No place became free in time.", True, None),
        ("connect", 504, "provider", "The provider could not be reached in time.", True, None),
        ("first_token", 504, "provider", "The provider began no answer in time.", True, None),
        ("stall", 504, "provider", "The provider stopped in the middle of the answer.", True, None),
        ("rate", 504, "provider", "The provider answered too slowly.", True, None),
        ("total", 504, "gateway", "The whole request took too long.", True, None),
        ("write", 408, "client", "The client did not read its answer in time.", False, 4408),
        ("idle", 408, "client", "The connection was idle too long.", True, 4408),
    )
    clocks = [
        Kind(f"timeout.{clock}", status, fault, f"timeout.{clock}", message, retryable, close, "timeout_error")
        for clock, status, fault, message, retryable, close in rows
    ]
    provider = [
        Kind(f"provider_error.{kind}", status, "provider", f"provider_error.{kind}", message, retryable, None, api, code)
        for kind, status, message, retryable, code in (
            ("unreachable", 502, "The provider could not be reached.", True, None),
            ("cut", 502, "The provider's answer was cut off.", True, None),
            ("malformed", 502, "The provider's answer could not be understood.", True, None),
            ("too_large", 502, "The provider's answer was larger than allowed.", False, None),
            ("redirect", 502, "The provider answered with a redirect, which is never followed.", False, None),
            ("auth", 502, "The provider refused the gateway's credential.", False, None),
            ("quota", 503, "The provider's spending limit is reached.", False, None),
            ("rate_limited", 429, "The provider is limiting requests.", True, "rate_limit_exceeded"),
            ("overloaded", 503, "The provider is overloaded.", True, None),
            ("server", 502, "The provider failed.", True, None),
            ("rejected", 400, "The provider rejected the request.", False, None),
            ("not_found", 502, "The provider does not know the model it was asked for.", False, None),
            ("breaker_open", 503, "Every route for this model is resting after failures.", True, None),
        )
    ]
    gateway = [
        Kind("no_route", 503, "gateway", "provider_error.no_route", "No route could serve the request.", True, openai_type=api),
        Kind("overloaded", 503, "gateway", "overloaded", "The gateway is overloaded.", True, 1013, api),
        Kind("store_unavailable", 503, "gateway", "overloaded", "The gateway can not record the request.", True, None, api),
        Kind("shutting_down", 503, "operator", "shutting_down", "The gateway is shutting down.", True, 1012, api),
        Kind("internal", 500, "gateway", "internal", "The gateway failed. The log has the request id.", False, 1011, api),
        Kind("client_gone", 499, "client", "client_gone", "The client went away."),
        Kind("cancelled", 499, "client", "cancelled", "The client cancelled the request."),
    ]
    return [*client, *access, *policy, *clocks, *provider, *gateway]


KINDS: Mapping[str, Kind] = {kind.slug: kind for kind in _rows()}


@frozen(slots=True)
class Details:
    """What the occasion adds to a row. Every field is safe to show to the client."""

    param: str | None = None
    """The client's parameter at fault, as a path: `messages[2].content`."""
    clock: str | None = None
    limit_ms: int | None = None
    setting: str | None = None
    """The configuration key that holds the limit: `deadlines.first_token`."""
    retry_after_ms: int | None = None
    provider: str | None = None
    provider_status: int | None = None
    policy: str | None = None
    extra: Mapping[str, Any] = field(factory=dict)
    fault: Fault | None = None
    """Whose it was this time, where the row leaves that to the occasion (`timeout.total`)."""
    step: str | None = None
    """How far a connection to a provider had got: one of `STEPS`."""
    key: str | None = None
    """The name of the key that was refused. For the log; no encoder shows it."""


STEPS: frozenset[str] = frozenset({"dns", "tcp", "tls"})


class ClawError(Exception):
    """An error with a row in the table. Raise it anywhere on the request path; one place turns it into an answer.

    Args:
        slug: a key of `KINDS`; anything else is a KeyError, at once.
        message: replaces the row's fixed words; it must hold nothing that a client or a provider sent, unless escaped.
        details: any field of `Details`.
    """

    def __init__(self, slug: str, message: str | None = None, **details: Any) -> None:
        self.kind = KINDS[slug]
        self.details = Details(**details)
        self.message = message or self.kind.message
        super().__init__(f"{slug}: {self.message}")

    @property
    def slug(self) -> str:
        return self.kind.slug

    @property
    def status(self) -> int:
        return self.kind.status

    @property
    def fault(self) -> Fault:
        return self.details.fault or self.kind.fault

    @property
    def retryable(self) -> bool:
        return self.kind.retryable


class Refusal(ClawError):
    """A plugin says no. `Refusal("refused.plugin", "Not on Sundays.", policy="sabbath")`."""


class ClockExpired(ClawError):
    """A clock ran out. Made by `clocks.expired`, so that it always names the clock, its limit and its setting."""


class ProviderFault(ClawError):
    """The provider's doing. `sent` tells whether it may have begun to work on the request, so whether it may be billed."""

    sent: bool = True


class ConfigError(Exception):
    """The operator's mistakes, all of them at once: `problems` are whole sentences that name file, key and fix."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


OUTCOMES: frozenset[str] = frozenset({"complete", "truncated"} | {kind.outcome for kind in KINDS.values()})
"""The closed set of ends an exchange can have: log, metric label, trace, ledger and audit use no other word."""
