"""Windows of time, in UTC. No clock in here: the time is given.

A fixed window is the minute, hour, day or month a time is in. A sliding one ends with that time and is counted in parts: all
parts that the window touches count, so that no window of that length, wherever it begins, holds more than the limit.
"""

from __future__ import annotations

from calendar import timegm
from time import gmtime

from clawproxy.stores.base import Window

FOREVER = float("inf")
LAST_TIME = 250_000_000_000.0
"""Seconds of Unix time: in the year 9892. No calendar goes on for ever."""

_SECONDS = {"minute": 60, "hour": 3600, "day": 86_400}

PARTS: dict[Window, tuple[int, int]] = {"minute": (1, 60), "hour": (60, 60), "day": (900, 96), "month": (21_600, 120)}
"""Of a sliding window: seconds of one part, and how many of them it is long."""


def span(window: Window, now: float) -> tuple[int, float]:
    """When the fixed window that `now` is in began, and when it ends."""
    seconds = _SECONDS.get(window)
    if seconds is not None:
        start = int(now // seconds) * seconds
        return start, start + seconds
    if window == "total":
        return 0, FOREVER
    date = gmtime(now)
    year, month = (date.tm_year, date.tm_mon + 1) if date.tm_mon < 12 else (date.tm_year + 1, 1)
    return timegm((date.tm_year, date.tm_mon, 1, 0, 0, 0)), timegm((year, month, 1, 0, 0, 0))


def period_of(window: Window, sliding: bool, now: float) -> int:
    """When the window, or the part of a sliding one, that `now` is in began."""
    if sliding and window in PARTS:
        seconds = PARTS[window][0]
        return int(now // seconds) * seconds
    return span(window, now)[0]


def oldest(window: Window, sliding: bool, now: float) -> int:
    """The first period that counts at `now`."""
    at = period_of(window, sliding, now)
    if sliding and window in PARTS:
        seconds, count = PARTS[window]
        return at - seconds * count
    return at
