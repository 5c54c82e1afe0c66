from __future__ import annotations

import os
import tracemalloc

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from clawproxy.errors import KINDS, OUTCOMES
from clawproxy.ops.lag import LoopLag
from clawproxy.ops.metrics import MOST_NAMES, MOST_SERIES, Metrics, add_process, families


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scraper reads, with the official parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.expose().decode())
        for sample in family.samples
    }


def test_counters_arrive_at_a_scrape() -> None:
    metrics = Metrics()
    metrics.count("clawproxy_requests_total", surface="claw", outcome="complete")
    metrics.count("clawproxy_requests_total", outcome="complete", surface="claw")
    metrics.count("clawproxy_tokens_total", 41, direction="output")
    seen = samples(metrics)
    assert seen["clawproxy_requests_total", (("outcome", "complete"), ("surface", "claw"))] == 2
    assert seen["clawproxy_tokens_total", (("direction", "output"),)] == 41
    assert seen["clawproxy_websocket_connections_total", ()] == 0
    assert (
        metrics.value("clawproxy_requests_total", surface="claw", outcome="complete")
        == metrics.total("clawproxy_requests_total")
        == 2
    )


def test_histograms_are_cumulative() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.005, 0.3, 9999.0):
        metrics.observe("clawproxy_request_seconds", seconds, surface="claw")
    seen = samples(metrics)
    label = ("surface", "claw")
    assert seen["clawproxy_request_seconds_bucket", (("le", "0.005"), label)] == 2
    assert seen["clawproxy_request_seconds_bucket", (("le", "0.5"), label)] == 3
    assert seen["clawproxy_request_seconds_bucket", (("le", "+Inf"), label)] == 4
    assert seen["clawproxy_request_seconds_count", (label,)] == 4
    assert seen["clawproxy_request_seconds_sum", (label,)] == pytest.approx(9999.306)


def test_a_client_can_not_make_a_series() -> None:
    metrics = Metrics()
    metrics.allow("provider", ["openai"])
    metrics.count("clawproxy_attempts_total", provider="openai", outcome="complete")
    metrics.count("clawproxy_attempts_total", provider="x", outcome="complete")
    before = len(samples(metrics))
    tracemalloc.start()
    start = tracemalloc.get_traced_memory()[0]
    for number in range(100_000):
        metrics.count("clawproxy_attempts_total", provider=f"evil{number}", outcome="complete")
    grown = tracemalloc.get_traced_memory()[0] - start
    tracemalloc.stop()
    seen = samples(metrics)
    assert len(seen) == before
    assert seen["clawproxy_attempts_total", (("outcome", "complete"), ("provider", "other"))] == 100_001
    assert grown < 1 << 20


def test_what_plugins_count_is_bounded_too() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.count("clawproxy_acme_total", flavour=f"f{number}")
        metrics.count(f"clawproxy_acme_{number}_total")
        metrics.count('evil"} 1\n', x="y")
    seen = samples(metrics)
    flavours = [value for (name, _), value in seen.items() if name == "clawproxy_acme_total"]
    assert len(flavours) <= MOST_SERIES + 1
    assert sum(flavours) == 1000
    assert sum(value for (name, _), value in seen.items() if name == "clawproxy_undeclared_total") >= 1000
    names = {name for name, _ in seen if name.startswith("clawproxy_acme_")}
    assert len(names) == MOST_NAMES


def test_label_values_are_escaped() -> None:
    metrics = Metrics()
    metrics.allow("provider", ['a"b\\c'])
    metrics.count("clawproxy_attempts_total", provider='a"b\\c', outcome="complete")
    assert ("clawproxy_attempts_total", (("outcome", "complete"), ("provider", 'a"b\\c'))) in samples(metrics)


def test_gauges_are_asked_at_a_scrape() -> None:
    metrics = Metrics()
    pool: dict[tuple[str, ...], float] = {("openai", "active"): 1.0}
    metrics.gauge("clawproxy_provider_connections", "Connections to providers.", lambda: pool, ("provider", "state"))
    metrics.gauge("clawproxy_in_flight", "Requests at work.", lambda: 7)
    pool["openai", "active"] = 2.0
    seen = samples(metrics)
    assert seen["clawproxy_provider_connections", (("provider", "openai"), ("state", "active"))] == 2
    assert seen["clawproxy_in_flight", ()] == 7


def test_every_name_is_ours_and_every_label_is_closed() -> None:
    metrics = Metrics()
    for family in families():
        assert family.name.startswith("clawproxy_")
        assert not family.open or family.name in ("clawproxy_plugin_faults_total", "clawproxy_ledger_rows_total")
    for slug, kind in KINDS.items():
        metrics.count("clawproxy_errors_total", slug=slug, fault=kind.fault)
    for outcome in OUTCOMES:
        metrics.count("clawproxy_requests_total", surface="claw", outcome=outcome)
    assert "other" not in metrics.expose().decode()


def test_the_process() -> None:
    metrics = Metrics()
    add_process(metrics)
    seen = samples(metrics)
    assert 1 << 20 < seen["clawproxy_process_resident_bytes", ()] < 1 << 34
    before = seen["clawproxy_process_open_fds", ()]
    descriptor = os.open("/dev/null", os.O_RDONLY)
    try:
        assert samples(metrics)["clawproxy_process_open_fds", ()] == before + 1
    finally:
        os.close(descriptor)
    assert seen["clawproxy_process_cpu_seconds_total", ()] > 0


async def test_a_blocked_loop_shows() -> None:
    lag = LoopLag(interval=0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lag.watch)
        await trio.sleep(0.03)
        until = trio.current_time() + 0.08
        while trio.current_time() < until:
            pass
        await trio.sleep(0.015)
        assert lag.seconds > 0.03
        nursery.cancel_scope.cancel()
