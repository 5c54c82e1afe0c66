"""Is a provider there? Asked at intervals, though no client asked it anything: one small GET, where an operator wants that.

Rule 1: a connection of its own, outside the pool, closed when the head of the answer is there: a full pool says nothing of the
        provider, and name look-up, TCP and TLS are part of the question.
Rule 2: only what a provider does counts against it. Any status below 500 shows that it is there, 401 and 404 too; what the
        gateway itself lacks (descriptors, a key that can not be read) is `unknown` and changes nothing.
Rule 3: never two at once, each within `timeout`; the pause between them is drawn, so that many gateways do not ask in step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Final

import trio
from attrs import evolve

from clawproxy.config import HealthConfig
from clawproxy.context import Checked
from clawproxy.dialects.base import MODELS_PAGE
from clawproxy.errors import ClawError
from clawproxy.upstream.connection import Unsent

if TYPE_CHECKING:
    from clawproxy.upstream.provider import Provider

JITTER: Final = 0.2
"""Of `every`, how much chance may add or take off."""
SPARE: Final = 1.0
"""Seconds for which a result holds beyond the latest moment at which the next one can be there."""
BAD: Final = frozenset({"failed", "unreachable", "timeout"})
_OURS: Final = frozenset({"overloaded", "no_route", "invalid_request", "provider_error.auth"})
"""What does not come from the provider: nothing was sent."""


class Check:
    """One provider's."""

    def __init__(self, provider: Provider, settings: HealthConfig, random: Random) -> None:
        self._provider = provider
        self._settings = settings
        self._random = random
        self._failures = 0

    async def run(self, tell: Callable[[Checked], None]) -> None:
        """For ever. The first check is made soon, at a moment that is drawn."""
        every = self._settings.every
        await trio.sleep(every * JITTER * self._random.random())
        while True:
            tell(await self.once())
            await trio.sleep(every * (1.0 - JITTER + 2.0 * JITTER * self._random.random()))

    async def once(self) -> Checked:
        settings, began = self._settings, trio.current_time()
        result, status = "timeout", None
        with trio.move_on_after(settings.timeout):
            result, status = await self._ask()
        if result in BAD:
            self._failures += 1
        elif result != "unknown":
            self._failures = 0
        return Checked(
            self._provider.name,
            result,
            self._failures >= settings.failures,
            settings.every * (1.0 + JITTER) + settings.timeout + SPARE,
            self._failures,
            status,
            trio.current_time() - began,
            time.time(),
        )

    async def _ask(self) -> tuple[str, int | None]:
        provider, path = self._provider, self._settings.path
        page = getattr(provider.dialect, "models_page", MODELS_PAGE)
        connection = None
        try:
            data = provider.encode(page if path is None else evolve(page, path=path))
            connection = await provider.dial()
            await connection.send(data)
            status = (await connection.read_head()).status
        except Unsent:
            return "unreachable", None
        except ClawError as error:
            return "unknown" if error.slug in _OURS else "unreachable", None
        finally:
            if connection is not None:
                connection.close()
        return "failed" if status >= 500 else "ok" if status < 300 else "answered", status
