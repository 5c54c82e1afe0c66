"""Metrics: plain integers while requests run, prometheus_client only when somebody scrapes.

Rule 1: a label's values are a closed set; anything else is counted as `other` (THREATS.md M-01), so that no client can make
        a series.
Rule 2: `count` and `observe` neither lock nor await: one thread, the event loop's, calls them.
Rule 3: a counter that a plugin counts without saying so before may have at most `MOST_SERIES` series, and there may be
        `MOST_NAMES` such counters.
"""

from __future__ import annotations

import os
import re
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from attrs import define, field

from clawproxy.clocks import CLOCKS
from clawproxy.errors import KINDS, OUTCOMES

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

OTHER = "other"
MOST_SERIES = 64
MOST_NAMES = 128
Kind = Literal["counter", "histogram", "gauge"]
Cell = tuple[dict[tuple[str, ...], int], tuple[str, ...]]
"""A family's series, and the key of one of them."""

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
FINE_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

CLOSED: Mapping[str, frozenset[str]] = {
    "surface": frozenset(
        {"claw", "openai_chat", "openai_embeddings", "openai_responses", "anthropic", "gemini", "cohere", "ollama"}
        | {"models", "none"}
    ),
    "outcome": OUTCOMES,
    "slug": frozenset(KINDS),
    "fault": frozenset({"client", "provider", "gateway", "operator"}),
    "direction": frozenset({"input", "output", "cached", "reasoning"}),
    "kind": frozenset({"http", "websocket", "admin"}),
    "clock": frozenset(CLOCKS),
    "reason": frozenset({"first", "retry", "failover", "steer", "priority", "invalid", "throttled"})
    | {"hedge", "continue", "server", "overloaded", "unreachable", "connect"},
    "code": frozenset({"1000", "1001", "1002", "1006", "1007", "1008", "1009", "1011", "1012", "1013"})
    | {"4400", "4401", "4403", "4408", "4429"},
    "state": frozenset({"active", "idle", "waiting", "closed", "open", "half_open"}),
    "action": frozenset({"refuse", "model", "choose", "restrict", "cap", "final"}),
    "shadow": frozenset({"true", "false"}),
    "result": frozenset({"ok", "failed", "hit", "miss", "stored", "bypass", "stale", "begun", "withheld"})
    | {"answered", "unreachable", "timeout", "unknown"},
}
"""The values each label may have. `provider` and `policy` get the configuration's names (`allow`)."""


@define(eq=False)
class Family:
    """One metric name. `series` maps label values, in the order of `labels`, to a count, or to `[buckets..., +Inf, sum]`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    open: bool = False
    """Its labels' values are not known in advance, only bounded in number."""
    series: dict[tuple[str, ...], int] = field(factory=dict)
    histograms: dict[tuple[str, ...], list[float]] = field(factory=dict)
    read: Callable[[], float | Mapping[tuple[str, ...], float]] | None = None


def families() -> list[Family]:
    """Every metric the gateway itself has."""
    return [
        Family("clawproxy_requests_total", "counter", "Requests closed.", ("surface", "outcome")),
        Family("clawproxy_request_seconds", "histogram", "Request, from understood to closed.", ("surface",), SECONDS),
        Family("clawproxy_first_token_seconds", "histogram", "Sent to a provider, to its first content.", ("provider",), SECONDS),
        Family("clawproxy_gateway_seconds", "histogram", "What the gateway itself added.", ("surface",), FINE_SECONDS),
        Family("clawproxy_errors_total", "counter", "Errors answered.", ("slug", "fault")),
        Family("clawproxy_timeouts_total", "counter", "Clocks that ran out, of attempts too.", ("clock", "fault")),
        Family("clawproxy_tokens_total", "counter", "Tokens, measured or estimated.", ("direction",)),
        Family("clawproxy_attempts_total", "counter", "Attempts at providers closed.", ("provider", "outcome")),
        Family("clawproxy_routes_total", "counter", "Routes chosen, and why.", ("provider", "reason")),
        Family("clawproxy_connections_total", "counter", "Clients' connections accepted.", ("kind",)),
        Family("clawproxy_websocket_connections_total", "counter", "WebSockets opened."),
        Family("clawproxy_websocket_closed_total", "counter", "WebSockets closed.", ("code",)),
        Family("clawproxy_http_refused_total", "counter", "Requests refused before they were understood.", ("slug",)),
        Family("clawproxy_auth_failures_total", "counter", "Credentials refused.", ("slug", "reason")),
        Family("clawproxy_jwks_fetches_total", "counter", "Issuers' key sets fetched.", ("result",)),
        Family("clawproxy_plugin_faults_total", "counter", "Hooks that raised or were slow.", ("plugin", "what"), open=True),
        Family("clawproxy_ledger_rows_total", "counter", "Attempts booked.", ("source", "outcome"), open=True),
        Family("clawproxy_drained_total", "counter", "Answers read on for their figures.", ("provider", "result")),
        Family("clawproxy_usage_clamped_total", "counter", "Usage figures of providers out of bounds.", ("provider",)),
        Family(
            "clawproxy_policy_verdicts_total",
            "counter",
            "Policies that applied, and what they did.",
            ("policy", "action", "shadow"),
        ),
        Family("clawproxy_provider_checks_total", "counter", "Active checks of providers.", ("provider", "result")),
        Family("clawproxy_reloads_total", "counter", "Reloads: configurations taken over (ok) or refused (failed).", ("result",)),
    ]


@define(eq=False)
class Metrics:
    """All counters of one process."""

    _families: dict[str, Family] = field(factory=lambda: {family.name: family for family in families()})
    _allowed: dict[str, frozenset[str]] = field(factory=lambda: dict(CLOSED))
    _undeclared: int = 0
    _seen: dict[tuple[Any, ...], Cell] = field(factory=dict)
    """Counters by name and labels as they were given, where those needed no change: no larger than the series there are."""
    plans: dict[tuple[str | bool | None, ...], Any] = field(factory=dict)
    """What `books` counts for each kind of good exchange."""

    def declare(
        self,
        name: str,
        kind: Literal["counter", "histogram"],
        help_text: str,
        labels: Iterable[str] = (),
        buckets: tuple[float, ...] = SECONDS,
    ) -> None:
        """Add a metric with its words. Labels that `allow` does not know may have `MOST_SERIES` series."""
        names = tuple(labels)
        known = all(label in self._allowed for label in names)
        family = Family(name, kind, help_text, names, buckets if kind == "histogram" else (), open=not known)
        self._families.setdefault(name, family)

    def allow(self, label: str, values: Iterable[str]) -> None:
        """The values a label may have from now on, beside those it had: `allow("provider", config.providers)`."""
        self._allowed[label] = self._allowed.get(label, frozenset()) | frozenset(values)

    def count(self, name: str, amount: int = 1, /, **labels: str) -> None:
        """Add to a counter."""
        given = (name, *labels.items())
        cell = self._seen.get(given)
        if cell is not None:  # 2.3 -> 0.8 us
            series, key = cell
            series[key] += amount
            return
        family = self._families.get(name)
        if family is None:
            family = self._unknown(name, tuple(labels))
        key = self._key(family, labels)
        family.series[key] = family.series.get(key, 0) + amount
        if family.name == name and labels == dict(zip(family.labels, key, strict=True)):
            self._seen[given] = (family.series, key)

    def cell(self, name: str, /, **labels: str) -> Cell | None:
        """The place of a counter that was counted before with just these labels: `series, key = cell; series[key] += 1`.

        None where the labels did not stand as they are (`other`)."""
        return self._seen.get((name, *labels.items()))

    def row(self, name: str, /, **labels: str) -> list[float] | None:
        """The place of a histogram that was observed before with these labels: a count for each bucket, `+Inf`, the sum."""
        family = self._families[name]
        return family.histograms.get(self._key(family, labels))

    def observe(self, name: str, seconds: float, /, **labels: str) -> None:
        """Add a measurement to a histogram. KeyError where there is none of that name."""
        family = self._families[name]
        key = self._key(family, labels)
        row = family.histograms.get(key)
        if row is None:
            row = family.histograms[key] = [0.0] * (len(family.buckets) + 2)
        row[bisect_left(family.buckets, seconds)] += 1
        row[-1] += seconds

    def gauge(
        self,
        name: str,
        help_text: str,
        read: Callable[[], float | Mapping[tuple[str, ...], float]],
        labels: Iterable[str] = (),
        kind: Literal["gauge", "counter"] = "gauge",
    ) -> None:
        """A value asked for at each scrape: a number, or with labels a mapping from their values to numbers."""
        self._families[name] = Family(name, kind, help_text, tuple(labels), read=read)
        self._seen.clear()
        self.plans.clear()

    def value(self, name: str, /, **labels: str) -> int:
        """What a counter has counted; 0 where nothing."""
        family = self._families.get(name)
        return 0 if family is None else family.series.get(self._key(family, labels), 0)

    def total(self, name: str) -> int:
        """A counter's sum over all labels."""
        family = self._families.get(name)
        return 0 if family is None else sum(family.series.values())

    def _key(self, family: Family, labels: Mapping[str, str]) -> tuple[str, ...]:
        allowed = self._allowed
        if not family.open:
            nothing: frozenset[str] = frozenset()
            return tuple([
                value if not (value := labels.get(label, "")) or value in allowed.get(label, nothing) else OTHER
                for label in family.labels
            ])  # fmt: skip
        key = tuple([_plain(labels.get(label, "")) for label in family.labels])
        if key in family.series or len(family.series) < MOST_SERIES:
            return key
        return (OTHER,) * len(key)

    def _unknown(self, name: str, labels: tuple[str, ...]) -> Family:
        if self._undeclared >= MOST_NAMES or not re.fullmatch(r"clawproxy_[a-z0-9_]{1,80}_total", name):
            name, labels = "clawproxy_undeclared_total", ()
        else:
            self._undeclared += 1
        closed = all(label in self._allowed for label in labels)
        family = Family(name, "counter", "Counted by a plugin.", labels, open=not closed)
        return self._families.setdefault(name, family)

    # --- at a scrape -----------------------------------------------------------------------------------------------------

    def expose(self) -> bytes:
        """Everything in Prometheus' text format 0.0.4."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)

    def describe(self) -> Iterable[Metric]:
        """prometheus_client asks for it at registration: nothing to check, the names are ours."""
        return ()

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for family in self._families.values():
            if family.kind == "histogram":
                histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
                for key, row in family.histograms.items():
                    histogram.add_metric(key, list(_cumulated(family.buckets, row)), row[-1])
                yield histogram
                continue
            make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = make(family.name, family.help, labels=family.labels)
            series: Mapping[tuple[str, ...], float] = family.series
            if family.read is not None:
                read = family.read()
                series = read if isinstance(read, Mapping) else {(): read}
            elif not family.labels and not series:
                series = {(): 0}
            for key, number in series.items():
                metric.add_metric(key, number)
            yield metric


def _cumulated(buckets: tuple[float, ...], row: list[float]) -> Iterator[tuple[str, float]]:
    seen = 0.0
    for bound, count in zip((*map(str, buckets), "+Inf"), row[:-1], strict=True):
        seen += count
        yield bound, seen


def _plain(value: str) -> str:
    """A label value of a plugin's: short and printable."""
    return value if len(value) <= 64 and value.isprintable() else OTHER


def add_process(metrics: Metrics) -> None:
    """The process's own resources."""
    metrics.gauge("clawproxy_process_resident_bytes", "Memory in RAM.", resident_bytes)
    metrics.gauge("clawproxy_process_open_fds", "Open file descriptors.", open_descriptors)
    metrics.gauge("clawproxy_process_cpu_seconds_total", "Processor time used.", time.process_time, kind="counter")


def resident_bytes() -> float:
    """Bytes in RAM now; where there is no /proc, the most there ever were; 0 where neither can be known."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        try:
            import resource
        except ImportError:
            return 0.0
        scale = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale)


def open_descriptors() -> float:
    """Descriptors open now, the one that lists them not counted; 0 where it can not be known."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return float(len(os.listdir(folder)) - 1)
        except OSError:
            continue
    return 0.0
