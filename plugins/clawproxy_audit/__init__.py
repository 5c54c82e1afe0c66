"""The audit log: who asked for what, what became of it, one row per exchange. What was said only where the operator asks for it.

Rule 1: a row is built from named fields (`rows`), so nothing gets in because it happened to be there: no header, no credential;
        prompt and answer only encrypted (`content`).
Rule 2: rows are on the disk within 250 ms, in one chain per writer (`chain`), whose place is anchored (`anchors`).
Rule 3: the audit observes. Where it can not write it says so loudly and requests go on.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager

from attrs import frozen

from clawproxy.context import App, Exchange, Registry
from clawproxy.errors import ConfigError
from clawproxy.events import Outcome
from clawproxy.hookspecs import Observe, hookimpl
from clawproxy.messages import ChatRequest
from clawproxy_audit.content import Box, Kept
from clawproxy_audit.rows import audit_row
from clawproxy_audit.settings import AuditSettings
from clawproxy_audit.writer import SETTINGS, Writer, writer_of

__all__ = [
    "Audit",
    "AuditSettings",
    "configure",
    "exchange_closed",
    "lifespan",
    "open_attempt",
    "prepare_request",
    "register",
    "tap_response",
]


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("audit", AuditSettings)


@frozen(slots=True)
class Audit:
    """One generation of the plugin."""

    settings: AuditSettings
    box: Box | None = None

    @property
    def unused_hooks(self) -> frozenset[str]:
        match self.settings.content:
            case "none":
                return frozenset({"prepare_request", "open_attempt", "tap_response"})
            case "redacted":
                return frozenset({"prepare_request"})
            case "full":
                return frozenset({"open_attempt"})


@hookimpl
def configure(config: AuditSettings | None, app: App) -> Audit:
    """Raises ConfigError where content is to be kept and there is no key to keep it under, or a team's rows longer than any."""
    settings = config or AuditSettings()
    for name, team in settings.teams.items():
        if team.retain != math.inf and team.retain > settings.retain:
            words = "is longer than plugins.audit.retain, after which whole files go; write a shorter time, or raise that"
            raise ConfigError([f"plugins.audit.teams.{name}.retain: {words}"])
    app.shared.setdefault(SETTINGS, settings)  # those it starts with: nothing may be asked of it for long
    if settings.content == "none":
        return Audit(settings)
    if settings.content_key is None:
        raise ConfigError(['plugins.audit.content_key: is required to keep content; set it, like "env:CLAW_AUDIT_KEY"'])
    try:
        secret = app.resolve_secret(settings.content_key)
    except LookupError as error:
        raise ConfigError([f"plugins.audit.content_key: {error.args[0] if error.args else 'not found'}"]) from None
    return Audit(settings, Box(secret))


@hookimpl
def lifespan(app: App) -> AbstractAsyncContextManager[None]:
    return Writer(app)


@hookimpl
async def prepare_request(exchange: Exchange, request: ChatRequest, state: Audit) -> None:
    """`full`: as it came. The audit stands first in the order."""
    _kept(exchange, state).asked(request)


@hookimpl
def open_attempt(exchange: Exchange, request: ChatRequest, state: Audit) -> None:
    """`redacted`: as it goes out."""
    _kept(exchange, state).asked(request)


@hookimpl
def tap_response(exchange: Exchange, state: Audit) -> Observe:
    return Observe(_kept(exchange, state).see)


def _kept(exchange: Exchange, state: Audit) -> Kept:
    kept: Kept | None = exchange.state.get("audit")
    if kept is None:
        kept = exchange.state["audit"] = Kept(state.settings.max_content)
    return kept


@hookimpl
def exchange_closed(exchange: Exchange, outcome: Outcome, state: Audit) -> Awaitable[None] | None:
    writer = writer_of(exchange)
    if writer is None:
        return None
    row = audit_row(exchange, outcome)
    if state.box is not None and (kept := exchange.state.get("audit")) is not None:
        # What a policy put back for the client alone is not kept as redacted.
        veil = exchange.scanned.veil if exchange.scanned is not None and state.settings.content == "redacted" else None
        row = b'%b,"content":%b}' % (row[:-1], state.box.seal(exchange.request_id, kept.content(veil)))
    return writer.add(row, state.settings)
