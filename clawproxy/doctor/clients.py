"""Findings about clients that left: because they wanted to, because they gave up, or because something between cut them off.

Whoever cuts by a clock cuts after the same time; people leave whenever they like. So the times for which those who left had
heard nothing are looked at: where many are alike, a clock did it.
"""

from __future__ import annotations

from attrs import frozen

from clawproxy.config import Config
from clawproxy.config.units import render_duration
from clawproxy.doctor.balancers import BALANCERS, Balancer
from clawproxy.doctor.beforehand import keepalive_under
from clawproxy.doctor.evidence import Evidence, Gone
from clawproxy.doctor.findings import CHOSEN, Change, Finding

ALIKE = 0.06
"""How far apart two times may be, as a share of them, and be one clock's."""
SLACK = 0.02
"""Seconds that scheduling adds to either."""
FEWEST = 3
SHARE = 0.3
"""The least part of those who left that a clock must explain."""


@frozen
class Cluster:
    seconds: float
    count: int


def cluster(values: list[float]) -> Cluster | None:
    """The largest heap of times that are alike, if one is large enough."""
    ordered = sorted(values)
    best, begin, at = 0, 0, 0
    for end, value in enumerate(ordered):
        while value - ordered[begin] > max(ordered[begin] * ALIKE, SLACK):
            begin += 1
        if end - begin + 1 > best:
            best, at = end - begin + 1, begin
    if best < max(FEWEST, SHARE * len(ordered)):
        return None
    middle = ordered[at + best // 2]
    return Cluster(middle, best) if middle > 2 * SLACK else None


def about_clients(config: Config, evidence: Evidence, behind: Balancer | None) -> list[Finding]:
    findings = []
    for stream, gone in evidence.gone.items():
        heap = cluster(gone.quiet.values)
        left = gone.quiet.count
        if heap is not None:
            count = round(heap.count * left / len(gone.quiet.values))
            findings.append(_by_a_clock(config, stream, heap.seconds, count, gone, behind))
            left -= count
        if left:
            findings.append(_by_choice(stream, left, gone, evidence))
    return findings


def _by_a_clock(config: Config, stream: bool, after: float, count: int, gone: Gone, behind: Balancer | None) -> Finding:
    limits = () if behind is None else (behind.idle, behind.first, behind.whole)
    cuts = [limit for limit in limits if abs(after - limit) <= max(limit * ALIKE, 2 * SLACK)]
    is_balancer = bool(cuts)
    after = cuts[0] if cuts else after
    how = f"{count} left when they had heard nothing for {_about(after)}"
    if is_balancer:
        assert behind is not None
        how += f", which is where {behind.name} cuts ({behind.setting})."
    else:
        alike = sorted(name for name, known in BALANCERS.items() if abs(known.idle - after) <= known.idle * ALIKE)
        how += ", all alike: a timeout of theirs, or of something between."
        if alike and behind is None:
            how += f" {' and '.join(alike)} cut there: see --behind."
    if stream:
        now = config.deadlines.keepalive_sse
        key, value = "deadlines.keepalive_sse", keepalive_under(after)
        how += f" Keep-alives come every {render_duration(now)}." if now < after * 100 else " Keep-alives are off."
    else:
        key, value = "deadlines.total", f"above {render_duration(config.deadlines.total)}"
        how += " An answer without streaming is silent until its end: let them stream, or wait for all of total."
    cause = "balancer_idle_cut" if is_balancer else "client_timeout"
    fault = "network" if is_balancer else "client"
    clock = key.rpartition(".")[2]
    if not stream:  # no clock of the gateway's can help: whoever cuts must wait longer
        change = Change(
            f"{behind.name}: {behind.setting}" if behind is not None and is_balancer else "the clients' timeout", value
        )
    else:
        change = Change(key, value)
    return Finding(cause, fault, how, count, 0, clock, key, _who(gone), (change,))


def _by_choice(stream: bool, left: int, gone: Gone, evidence: Evidence) -> Finding:
    early = min(left, gone.before_content)
    usual = evidence.total.quantile(0.5)
    why = "They left after times that have nothing in common: somebody pressed stop, or closed the page."
    if early:
        why += f" {early} of them before any content."
    if usual is not None:
        why += f" (Half of the good answers take {_about(usual)}.)"
    why += " The provider was cancelled each time; no setting is wrong."
    return Finding(
        "disconnecting_client", "client", why, left, 0, None, None, _who(gone), weight=CHOSEN, of=evidence.requests, wrong=False
    )


def _who(gone: Gone) -> tuple[str, ...]:
    return tuple(f"key {name}" for name, _ in gone.keys.most_common(3))


def _about(value: float) -> str:
    return f"{value * 1000:.0f}ms" if value < 1 else f"{value:.1f}s".replace(".0s", "s")
