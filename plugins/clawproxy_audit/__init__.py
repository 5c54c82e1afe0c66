"""The audit log: who asked for what, what became of it, one row per exchange. Never what was said.

Rule 1: a row is built from named fields (`rows`), so nothing gets in because it happened to be there: no prompt, no answer, no
        header, no credential.
Rule 2: rows are on the disk within 250 ms, in one hash chain per writer (`chain`).
Rule 3: the audit observes. Where it can not write it says so loudly and requests go on.
"""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager

from attrs import field, frozen, validators

from clawproxy.config import MIB, Size
from clawproxy.context import App, Exchange, Registry
from clawproxy.events import Outcome
from clawproxy.hookspecs import hookimpl
from clawproxy_audit.rows import audit_row
from clawproxy_audit.writer import Writer, writer_of

__all__ = ["AuditSettings", "configure", "exchange_closed", "lifespan", "register"]


@frozen
class AuditSettings:
    """`[plugins.audit]`."""

    max_bytes: Size = field(default=Size(64 * MIB), validator=validators.ge(Size(4096)))
    """A file that has grown to this is put aside and a new one begun."""
    keep: int = field(default=10, validator=validators.ge(0))
    """How many files put aside are kept; together with the open ones they never hold more than `(keep + 1) * max_bytes`."""


@hookimpl
def register(registry: Registry) -> None:
    registry.add_settings("audit", AuditSettings)


@hookimpl
def configure(config: AuditSettings | None) -> AuditSettings:
    return config or AuditSettings()


@hookimpl
def lifespan(app: App) -> AbstractAsyncContextManager[None]:
    return Writer(app)


@hookimpl
def exchange_closed(exchange: Exchange, outcome: Outcome, state: AuditSettings) -> Awaitable[None] | None:
    writer = writer_of(exchange)
    if writer is None:
        return None
    return writer.add(audit_row(exchange, outcome), state.max_bytes, state.keep)
