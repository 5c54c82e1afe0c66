"""What the lines of a log say, counted. One pass, bounded memory, whatever the lines hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from attrs import define, field

MOST_GROUPS = 2000
"""Groups of each kind; what comes after is counted as `other`."""
MOST_VALUES = 4096
"""Values kept of each distribution, chosen evenly from all there were."""
LONGEST = 120
"""Characters of a name."""
MOST_LIMIT = 7 * 86_400_000.0
"""Milliseconds: no clock is longer, whatever a line says."""


def text(line: Mapping[str, Any], name: str) -> str | None:
    value = line.get(name)
    return value[:LONGEST] if isinstance(value, str) and value else None


def number(line: Mapping[str, Any], name: str) -> float | None:
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return None
    return float(value)


def add(counter: Counter[str], name: str, count: int) -> None:
    """Of so many names; what comes after is in none."""
    if name in counter or len(counter) < MOST_GROUPS:
        counter[name] += count


@define
class Sample:
    """A distribution, by an even sample of it."""

    count: int = 0
    values: list[float] = field(factory=list)
    _random: Random = field(factory=lambda: Random(0))

    def add(self, value: float) -> None:
        self.count += 1
        if len(self.values) < MOST_VALUES:
            self.values.append(value)
        elif (place := self._random.randrange(self.count)) < MOST_VALUES:
            self.values[place] = value

    def quantile(self, share: float) -> float | None:
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


@define
class Group:
    """Failures alike."""

    lost: int = 0
    """Requests or connections that ended with it."""
    saved: int = 0
    limit_ms: float = 0.0
    fault: str = ""
    keys: Counter[str] = field(factory=Counter)
    models: Counter[str] = field(factory=Counter)
    surfaces: Counter[str] = field(factory=Counter)


@define
class Gone:
    """Clients that left: how long each had heard nothing, and whom it was."""

    quiet: Sample = field(factory=Sample)
    before_content: int = 0
    keys: Counter[str] = field(factory=Counter)


GroupKey = tuple[str, str, str, str]
"""Slug or clock, provider, setting, step; empty where it does not apply."""


@define
class Evidence:
    lines: int = 0
    """Lines of a gateway's log."""
    unread: int = 0
    """Lines that are something else."""
    requests: int = 0
    groups: dict[GroupKey, Group] = field(factory=dict)
    first_token: dict[tuple[str, str], Sample] = field(factory=dict)
    """Seconds, by provider and model asked for."""
    total: Sample = field(factory=Sample)
    """Seconds of good requests."""
    gone: dict[bool, Gone] = field(factory=dict)
    """By whether the answer was a stream."""
    first: str = ""
    last: str = ""
    stray: Counter[str] = field(factory=Counter)
    """Lines the log left out, by what they were rationed by."""

    def group(self, key: GroupKey) -> Group:
        group = self.groups.get(key)
        if group is None:
            if len(self.groups) >= MOST_GROUPS:
                key = ("other", "", "", "")
            group = self.groups.setdefault(key, Group())
        return group

    def read(self, line: Mapping[str, Any]) -> None:
        event = text(line, "event")
        if event is None:
            self.unread += 1
            return
        self.lines += 1
        stamp = text(line, "ts") or ""
        self.first = min(self.first or stamp, stamp)
        self.last = max(self.last, stamp)
        if event == "exchange.closed":
            self._closed(line)
        elif event == "attempt.failed":
            self._failed(line, saved=True)
        elif event in ("connection.cut", "auth.refused", "request.refused"):
            self._failed(line, saved=False)
        elif event == "log.suppressed":
            cause = text(line, "cause") or ""
            add(self.stray, cause.partition(" ")[2], int(number(line, "suppressed") or 0))

    def _closed(self, line: Mapping[str, Any]) -> None:
        alike = 1 + int(number(line, "suppressed") or 0)
        self.requests += alike
        outcome, provider, model = text(line, "outcome") or "", text(line, "provider") or "", text(line, "model") or ""
        first, total = number(line, "first_token_ms"), number(line, "total_ms")
        if first is not None and (len(self.first_token) < MOST_GROUPS or (provider, model) in self.first_token):
            self.first_token.setdefault((provider, model), Sample()).add(first / 1000)
        if outcome in ("complete", "truncated"):
            if total is not None:
                self.total.add(total / 1000)
        elif outcome == "client_gone":
            gone = self.gone.setdefault(line.get("stream") is True, Gone())
            gone.quiet.add((number(line, "quiet_ms") or 0.0) / 1000)
            gone.before_content += first is None
            add(gone.keys, text(line, "key") or "nobody", 1)
        else:
            self._failed(line, saved=False)

    def _failed(self, line: Mapping[str, Any], *, saved: bool) -> None:
        slug = text(line, "error") or text(line, "clock") or text(line, "outcome") or ""
        clock = text(line, "clock")
        setting, step = text(line, "setting") or "", text(line, "step") or ""
        key = text(line, "key") or ""
        group = self.group(
            (clock or slug, text(line, "provider") or "", setting or (key if slug == "auth.expired" else ""), step)
        )
        alike = 1 + int(number(line, "suppressed") or 0)
        if saved:
            group.saved += alike
        else:
            group.lost += alike
        group.limit_ms = min(number(line, "limit_ms") or group.limit_ms, MOST_LIMIT)
        group.fault = text(line, "fault") or group.fault
        for counter, name in ((group.keys, "key"), (group.models, "model"), (group.surfaces, "surface")):
            value = text(line, name)
            if value is not None:
                add(counter, value, alike)

    def settle(self) -> None:
        """Give what the log left out to the largest group it may have belonged to."""
        for cause, count in self.stray.items():
            clock = cause.removeprefix("timeout.")
            alike = [group for key, group in self.groups.items() if key[0] in (cause, clock)]
            if alike:
                max(alike, key=lambda group: group.lost + group.saved).lost += count
        self.stray.clear()


def gather(lines: Iterable[str], evidence: Evidence | None = None) -> Evidence:
    """Read the lines of one log; with `evidence`, after others. What stands before the JSON (a journal's prefix) is skipped."""
    evidence = evidence or Evidence()
    for line in lines:
        begin = line.find("{")
        if begin < 0:
            evidence.unread += bool(line.strip())
            continue
        try:
            value = json.loads(line[begin:])
        except (ValueError, RecursionError):
            evidence.unread += 1
            continue
        if isinstance(value, dict):
            evidence.read(value)
        else:
            evidence.unread += 1
    evidence.settle()
    return evidence
