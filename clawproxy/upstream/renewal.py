"""Credentials that are had from somewhere and do not last: renewed while they are still good, by one task each.

Rule 1: requests never fetch. They take what is there; where nothing is yet they wait for it, on the `connect` clock.
Rule 2: one at a time, whoever asks: a hundred requests that find no token, or have one refused, cause one renewal.
Rule 3: what is there stays in use until the new one is. A renewal that fails is tried again, later each time, and fails no
        request before the old one is refused.
Rule 4: without a request nothing is asked of anybody: what nobody used since the last renewal is let lapse.
Rule 5: a refusal by the provider brings the next renewal forward, once in `EARLY` seconds: a provider that refuses them all must
        not become a storm at the authorization server.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

import trio
from attrs import frozen

from clawproxy.secrets import Secret

logger = logging.getLogger("clawproxy.upstream")

EARLY: Final = 30.0
LEAD: Final = 300.0
"""Seconds before its end at which a credential is renewed, or a quarter of its life where that is less; give or take a fifth."""
PAUSES: Final = (0.25, 30.0)
"""Seconds between attempts that fail: the first, doubled up to the second."""
SHORTEST, LONGEST = 0.5, 30 * 86400.0
"""Seconds a credential is taken to live, whatever its issuer says."""


class Unobtainable(Exception):
    """A sentence without a secret. `final`: it will be the same at the next attempt, as far as one can tell."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


@frozen
class Obtained:
    secret: Secret
    lasts: float = math.inf
    """Seconds, from when it was asked for."""


class Renewal:
    """One credential. `run` is a task of the providers' maintenance."""

    def __init__(
        self,
        name: str,
        obtain: Callable[[], Awaitable[Obtained]],
        used: Callable[[], int],
        give: Callable[[Secret | None], None],
        *,
        every: float = math.inf,
        random: Random | None = None,
    ) -> None:
        """Args:
        name: the configuration key, for the log.
        obtain: raises Unobtainable.
        used: how often the provider was called, ever.
        give: takes what is to be used from now on; None where nothing is.
        every: seconds after which it is renewed in any case.
        """
        self.secret: Secret | None = None
        self.renewals = 0
        """How many there were that brought something."""
        self._name = name
        self._obtain = obtain
        self._used = used
        self._give = give
        self._every = every
        self._random = random or Random()
        self._one = trio.Lock()
        self._asked = trio.Event()
        self._turned = trio.Event()
        """That an attempt is over, however it ended."""
        self._waiting = 0
        self._at_work = False
        self._failure: Unobtainable | None = None
        self._failures = 0
        self._used_before = -1
        self._due = math.inf
        self._not_before = self._early_at = -math.inf

    def ask(self) -> None:
        """Renew now, whatever the clock says: where it comes from was read anew. What is there stays in use until then."""
        if self.secret is not None:
            self._asked.set()

    def refused(self, secret: Secret | None) -> bool:
        """The provider refused `secret`. Returns whether another one is there, or on its way: worth waiting for."""
        if self.secret is not secret:
            return True
        now = trio.current_time()
        if now < self._early_at + EARLY:
            return self._asked.is_set() or self._at_work
        self._early_at = now
        self._asked.set()
        return True

    async def another(self, than: Secret | None) -> Secret:
        """One that is not `than` (None: any). Raises Unobtainable where there is no hope; whoever waits holds a clock."""
        while self.secret is None or self.secret is than:
            if self._failure is not None and self._failure.final and trio.current_time() < self._not_before:
                raise self._failure
            self._asked.set()
            self._waiting += 1
            try:
                await self._turned.wait()
            finally:
                self._waiting -= 1
            if (self.secret is None or self.secret is than) and self._failure is not None and self._failure.final:
                raise self._failure
        return self.secret

    async def run(self) -> None:
        """For ever. Where another task runs this (of the configuration before), it is waited for."""
        async with self._one:
            while True:
                with trio.CancelScope(deadline=self._due):
                    await self._asked.wait()
                if not self._asked.is_set() and self._used() == self._used_before:
                    self._lapse()
                    continue
                await trio.sleep_until(max(self._not_before, trio.current_time()))
                await self._renew()

    # --- one renewal -----------------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        began = trio.current_time()
        self._at_work = True
        try:
            made = await self._obtain()
        except Unobtainable as error:
            self._fail(error)
        except Exception as error:  # a defect: as harmless as a server that is down
            logger.exception("%s: renewing failed", self._name)
            self._fail(Unobtainable(type(error).__name__))
        else:
            self._take(made, began)
        finally:
            self._at_work = False
        self._turned.set()
        self._turned = trio.Event()

    def _take(self, made: Obtained, began: float) -> None:
        if self._failures:
            logger.info("%s: is there again", self._name)
        self._asked = trio.Event()
        self._failure, self._failures, self._not_before = None, 0, -math.inf
        self._used_before = self._used()
        self.renewals += 1
        self.secret = made.secret
        self._give(made.secret)
        life = min(max(made.lasts, SHORTEST), self._every)
        if life > LONGEST:
            self._due = math.inf
            return
        self._due = began + life - min(life / 4, LEAD) * self._random.uniform(0.8, 1.2)

    def _fail(self, error: Unobtainable) -> None:
        now = trio.current_time()
        first, longest = PAUSES
        pause = min(first * 2.0 ** min(self._failures, 20), longest) * self._random.uniform(0.8, 1.2)
        self._failures += 1
        self._failure = error
        self._not_before = now + pause
        if error.final or not self._waiting:  # what is there is renewed later; where nothing is, the next request asks again
            self._asked = trio.Event()
        self._due = self._not_before if self.secret is not None else math.inf
        level = logging.ERROR if self.secret is None or error.final else logging.WARNING
        logger.log(level, "%s: can not be had: %s", self._name, error)

    def _lapse(self) -> None:
        self._due = math.inf
        self.secret = None
        self._give(None)
