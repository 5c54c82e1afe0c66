"""`/admin/...` on the admin listener: reports for operators and their tools. `GET` only, JSON only.

Rule 1: each needs `server.admin_token` as a bearer token, compared in constant time. Where none is configured there is no page.
Rule 2: the token is resolved anew for each request, in a thread: one that was replaced counts from the next reload on.
Rule 3: what is refused says what would be right, and nothing of what there is.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import trio
from attrs import frozen

from clawproxy.context import App
from clawproxy.errors import ClawError
from clawproxy.ops.logs import log_exception
from clawproxy.ops.reports import document, parse_query, report
from clawproxy.ops.standings import budget_standings, standings_document

PRIVATE: Mapping[str, str] = {"cache-control": "no-store"}
MOST_QUERY = 4096
"""Characters."""
_THREADS = trio.CapacityLimiter(2)

Answer = tuple[int, dict[str, Any], Mapping[str, str]]
"""Status, document, headers."""


@frozen
class AdminApi:
    app: App
    """The service's: its `config` is the current one."""
    refused: Callable[[], None] = lambda: None
    """Told of each credential that is not the right one."""

    async def handle(self, path: str, query: str, authorization: str | None) -> Answer:
        if self.app.config.server.admin_token is None:
            return _error(404, "there are no admin pages without server.admin_token; set it in the configuration")
        if not await self._knows(authorization):
            if authorization is not None:
                self.refused()
            return (
                401,
                _document("needs `Authorization: Bearer` and server.admin_token"),
                {"www-authenticate": "Bearer", **PRIVATE},
            )
        pages: dict[str, Callable[[dict[str, str]], Awaitable[dict[str, Any]]]] = {
            "/admin/usage": self._usage,
            "/admin/budgets": self._budgets,
        }
        page = pages.get(path)
        if page is None:
            return _error(404, f"there are {' and '.join(pages)}")
        try:
            return 200, await page(_asked(query)), PRIVATE
        except ValueError as error:
            return _error(400, str(error))
        except ClawError as error:
            return _error(error.status, error.message)
        except Exception as error:
            log_exception("admin.failed", error, path=path)
            return _error(500, "failed; the log says why")

    async def _knows(self, authorization: str | None) -> bool:
        ref = self.app.config.server.admin_token
        scheme, _, shown = (authorization or "").partition(" ")
        if ref is None or scheme.lower() != "bearer":
            return False
        try:
            token = await trio.to_thread.run_sync(self.app.resolve_secret, ref, limiter=_THREADS)
        except LookupError as error:
            log_exception("admin.no_token", error)
            return False
        return hmac.compare_digest(shown.strip().encode("utf-8", "replace"), token.reveal().encode())

    async def _usage(self, asked: dict[str, str]) -> dict[str, Any]:
        return document(await report(self.app.store, parse_query(asked, time.time())))

    async def _budgets(self, asked: dict[str, str]) -> dict[str, Any]:
        if asked:
            raise ValueError(f"{next(iter(asked))[:64]}: budgets are asked for without any; leave it out")
        now = time.time()
        return standings_document(await budget_standings(self.app.store, self.app.config, now, inside=True), now)


def _asked(query: str) -> dict[str, str]:
    """Raises ValueError."""
    if len(query) > MOST_QUERY:
        raise ValueError("the query is too long; ask for less")
    pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=32)
    asked = dict(pairs)
    if len(asked) < len(pairs):
        raise ValueError("the query names something twice; name each once")
    return asked


def _document(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


def _error(status: int, message: str) -> Answer:
    return status, _document(message), PRIVATE
