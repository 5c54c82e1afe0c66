"""A provider's credential that can not be used for now: because it is over its rate, its money is spent, or it was refused.

Rule 1: a rate limit rests for what the provider says, held within 1 to 600 s; else for a while that grows with each in a row.
Rule 2: the key itself is never here: a credential is its provider's name and its place in the configuration.
Rule 3: a record exists from the first such answer until a good one.
"""

from __future__ import annotations

import math
from typing import Final, Literal

from attrs import define, field, frozen, validators

from clawproxy.config import Duration, SecretRef

LEAST, MOST = 1.0, 600.0
"""Seconds a provider can make a credential rest."""
LIMITED: Final = "provider_error.rate_limited"
SPENT: Final = "provider_error.quota"
REFUSED: Final = "provider_error.auth"
FAULTS: Final = frozenset({LIMITED, SPENT, REFUSED})
"""What is the credential's own: with another one the same request may do."""

Why = Literal["", "cooling", "spent", "disabled"]
_positive = validators.gt(Duration(0.0))


@frozen
class CredentialSettings:
    """`[plugins.router.credentials]`."""

    enabled: bool = True
    """Whether a credential rests at all, whatever its provider answers."""
    rest: Duration = field(default=Duration(1.0), validator=_positive)
    """After a rate limit that does not say how long; twice as long each time in a row..."""
    longest: Duration = field(default=Duration(60.0), validator=_positive)
    """...up to this."""
    spent: Duration = field(default=Duration(600.0), validator=_positive)
    """After its spending limit."""
    refusals: int = field(default=3, validator=validators.ge(1))
    """Refusals in a row that disable it."""
    disabled: Duration = field(default=Duration(600.0), validator=_positive)
    """For how long, unless the configuration is read anew: then it is read again, and tried."""


@define(slots=True, eq=False)
class Resting:
    """One credential's trouble."""

    ref: SecretRef | None = None
    """What was configured: another one in its place is not this one."""
    owner: object = None
    """The generation that disabled it."""
    until: float = -math.inf
    why: Why = ""
    limits: int = 0
    """Rate limits in a row."""
    refusals: int = 0

    def wait(self, now: float) -> float:
        """Seconds until it may be used; 0 where it may now."""
        return max(0.0, self.until - now)

    def limited(self, said: float | None, now: float, settings: CredentialSettings) -> bool:
        """Over its rate. `said`: the seconds the provider asked for. Returns whether that is news."""
        resting = now < self.until
        if said is not None:
            seconds = min(max(said, LEAST), MOST)
        elif resting and self.why == "cooling":
            return False  # asked before it rested: one of the same burst
        else:
            seconds = min(settings.longest, settings.rest * 2.0 ** min(self.limits, 30), MOST)
        if not resting:
            self.limits += 1
        return self._rest(seconds, "cooling", now)

    def overspent(self, now: float, settings: CredentialSettings) -> bool:
        return self._rest(settings.spent, "spent", now)

    def refused(self, now: float, settings: CredentialSettings, owner: object) -> bool:
        """Refused as such. Returns whether it is disabled by that."""
        self.refusals += 1
        if self.refusals < settings.refusals:
            return False
        self.owner = owner
        return self._rest(settings.disabled, "disabled", now)

    def _rest(self, seconds: float, why: Why, now: float) -> bool:
        news = now >= self.until or self.why != why
        if now + seconds > self.until:
            self.until, self.why = now + seconds, why
        return news
