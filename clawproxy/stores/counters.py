"""What is used and held of one account, in memory. Three kinds: fixed windows, sliding ones, and things at the same time.

All have `used`, `held` and `overrun` of the present window, and are moved on by `roll`. Time never goes back in here
(`Accounts` sees to it), so that what left a window need not be known any longer: it is in the database.
"""

from __future__ import annotations

from clawproxy.stores.base import Account
from clawproxy.stores.windows import FOREVER, PARTS, span


class Counter:
    """One account in fixed windows; the base of the others."""

    __slots__ = ("account", "ends", "held", "holders", "overrun", "period", "scope", "sliding", "unit", "used", "window")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.scope, self.unit, self.window, self.sliding = account
        self.used = self.held = self.overrun = 0
        self.holders = 0
        """Holds that refer to this, in whatever period: it is not forgotten while there are any."""
        self.period = 0
        self.ends = -FOREVER
        """When it is to be rolled next."""

    def roll(self, now: float) -> None:
        """Called where `now >= self.ends`."""
        self.period, self.ends = span(self.account.window, now)
        self.used = self.held = self.overrun = 0

    def add(self, period: int, used: int, held: int, overrun: int = 0) -> None:
        """To what counts in `period`, if that counts still."""
        if period == self.period:
            self.used += used
            self.held += held
            self.overrun += overrun

    def hold(self, period: int, amount: int) -> None:
        """`add` of what is held, alone."""
        if period == self.period:
            self.held += amount

    def frees_at(self, amount: int, limit: int) -> float | None:
        """When `amount` may fit; None for never."""
        return None if amount > limit or self.ends == FOREVER else self.ends

    def at(self, now: float) -> tuple[int, int, int, float | None]:
        """Used, held, overrun and the next reset as seen at `now`, which may be later than the last `roll`."""
        if now < self.ends:
            return self.used, self.held, self.overrun, None if self.ends == FOREVER else self.ends
        return 0, 0, 0, span(self.account.window, now)[1]

    def is_over(self, now: float) -> bool:
        """Whether nothing is lost by forgetting it."""
        return not self.holders and (now >= self.ends or not (self.used or self.overrun))


class Concurrent(Counter):
    """What is held at the same time. Nothing is ever used up."""

    __slots__ = ()

    def roll(self, now: float) -> None:
        self.ends = FOREVER

    def add(self, period: int, used: int, held: int, overrun: int = 0) -> None:
        self.held += held

    def hold(self, period: int, amount: int) -> None:
        self.held += amount

    def frees_at(self, amount: int, limit: int) -> float | None:
        return None

    def at(self, now: float) -> tuple[int, int, int, float | None]:
        return 0, self.held, 0, None


class Sliding(Counter):
    """A window that ends now."""

    __slots__ = ("_count", "_parts", "_seconds")

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        self._seconds, self._count = PARTS[account.window]
        self._parts: dict[int, list[int]] = {}
        """[used, held, overrun] by when the part began, oldest first. The present one is there."""

    def roll(self, now: float) -> None:
        seconds = self._seconds
        self.period = period = int(now // seconds) * seconds
        self.ends = period + seconds
        first = period - seconds * self._count
        parts = self._parts
        for at in [at for at in parts if at < first or not any(parts[at])]:
            used, held, overrun = parts.pop(at)
            self.used -= used
            self.held -= held
            self.overrun -= overrun
        parts[period] = [0, 0, 0]

    def add(self, period: int, used: int, held: int, overrun: int = 0) -> None:
        part = self._parts.get(period)
        if part is None:
            if not self.period - self._seconds * self._count <= period < self.period:
                return
            part = self._parts[period] = [0, 0, 0]  # of a part that was empty, or is only loaded now
            self._parts = dict(sorted(self._parts.items()))
        part[0] += used
        part[1] += held
        part[2] += overrun
        self.used += used
        self.held += held
        self.overrun += overrun

    def hold(self, period: int, amount: int) -> None:
        self.add(period, 0, amount)

    def _leaves(self, period: int) -> int:
        return period + self._seconds * (self._count + 1)

    def frees_at(self, amount: int, limit: int) -> float | None:
        if amount > limit:
            return None
        left = self.used + self.held
        for period, (used, held, _) in self._parts.items():
            left -= used + held
            if left + amount <= limit:
                return self._leaves(period)
        return None

    def at(self, now: float) -> tuple[int, int, int, float | None]:
        first = int(now // self._seconds) * self._seconds - self._seconds * self._count
        seen = [(period, part) for period, part in self._parts.items() if period >= first and any(part)]
        used, held, overrun = (sum(part[index] for _, part in seen) for index in range(3))
        return used, held, overrun, self._leaves(seen[0][0]) if seen else None

    def is_over(self, now: float) -> bool:
        return not self.holders and self.at(now)[:3] == (0, 0, 0)


def make_counter(account: Account) -> Counter:
    if account.unit == "concurrent":
        return Concurrent(account)
    if account.sliding and account.window in PARTS:
        return Sliding(account)
    return Counter(account)
