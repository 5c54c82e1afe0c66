"""Trying the same route again: when that is safe, how long to wait, and how much of it this process may do.

Rule 1: only what the provider provably did not work on: it was never sent, or the provider's status says that it failed.
Rule 2: the wait is drawn between nothing and a bound that doubles ("full jitter", Brooker 2015), so that many do not come back
        in the same moment. A short Retry-After is honoured; behind a long one nobody waits.
Rule 3: retries are a bounded share of the requests there are (a token bucket): a provider that fails is not asked twice as often
        just then. Going to another route takes nothing from it: it adds no load where the trouble is, `max_attempts` bounds it,
        and breakers take a dead route out.
"""

from __future__ import annotations

from random import Random
from typing import Final

from attrs import define, field, frozen, validators

from clawproxy.config import Duration
from clawproxy.context import Attempt

UNPROCESSED: Final = frozenset({500, 502, 503, 529})
"""Statuses after which a request may be sent again."""
_UNFIT: Final = frozenset({"timeout.queue", "provider_error.rate_limited", "provider_error.quota", "provider_error.auth"})
"""A full pool was waited for already; the others are the credential's."""


@frozen
class RetrySettings:
    """`[plugins.router.retries]`."""

    most: int = field(default=2, validator=validators.ge(0))
    """Of one request. 0: none."""
    first: Duration = field(default=Duration(0.25), validator=validators.gt(Duration(0.0)))
    """What the first wait is at most; twice as long each time..."""
    longest: Duration = field(default=Duration(5.0), validator=validators.gt(Duration(0.0)))
    """...up to this, which is also the longest Retry-After that is waited for."""
    share: float = field(default=0.2, validator=[validators.ge(0.0), validators.le(1.0)])
    """Retries for each request..."""
    floor: float = field(default=1.0, validator=validators.ge(0.0))
    """...and a second, however few there are..."""
    burst: int = field(default=20, validator=validators.ge(1))
    """...which may be saved up to this many."""


@define(slots=True, eq=False)
class Budget:
    """One process's."""

    tokens: float | None = None
    """None before it was first asked: then it is full."""
    at: float = 0.0
    requests: int = 0
    """How many there had been when it was last asked."""

    def take(self, requests: int, now: float, settings: RetrySettings) -> bool:
        """Whether there is one more. `requests`: how many there were since the process began."""
        if self.tokens is None:
            tokens = float(settings.burst)
        else:
            earned = (requests - self.requests) * settings.share + max(0.0, now - self.at) * settings.floor
            tokens = min(float(settings.burst), self.tokens + earned)
        self.at, self.requests = now, requests
        self.tokens = tokens - 1.0 if tokens >= 1.0 else tokens
        return tokens >= 1.0


def may_be_sent_again(attempt: Attempt) -> bool:
    """Whether the provider certainly did not work on it, and another try could help."""
    error = attempt.error
    if error is None or attempt.content or error.slug in _UNFIT:
        return False
    if not attempt.sent:
        return True
    return attempt.status is None and error.details.provider_status in UNPROCESSED


def wait_before(attempt: Attempt, retries: int, settings: RetrySettings, random: Random) -> float | None:
    """Seconds before it is tried again; None where the provider wants it left alone for longer. `retries`: made before."""
    drawn = random.random() * min(settings.longest, settings.first * 2.0 ** min(retries, 30))
    asked = attempt.error.details.retry_after_ms if attempt.error is not None else None
    if asked is None:
        return drawn
    return None if asked / 1000 > settings.longest else max(drawn, asked / 1000)
