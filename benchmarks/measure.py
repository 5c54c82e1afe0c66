"""The measurements. Each function puts one kind of load on one target and gives plain numbers; `Rounds` keeps the best.

Units: microseconds (`_us`), bytes, per second. CPU is that of the target alone, from the kernel's clock of its processes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.parts import BUILD, BenchError, Target, load_command, pin_to_second_core, put_load

Numbers = dict[str, float]

HIGHER_IS_BETTER = {"per_second", "tokens_per_second"}
NOT_A_SCORE = {"helper_busy", "waited"}
"""Kept as it was in the round that gave the best rate."""


FEW, LONGEST = 40, 8.0
"""A closed loop with fewer answers is run again four times as long, unless it took LONGEST seconds."""


class Rounds:
    """The best of several rounds, number by number: noise only ever makes a run slower."""

    def __init__(self) -> None:
        self.best: dict[str, dict[str, Numbers]] = {}
        """measurement -> target -> number -> value"""

    def add(self, measurement: str, target: str, numbers: Mapping[str, float]) -> None:
        kept = self.best.setdefault(measurement, {}).setdefault(target, dict(numbers))
        if numbers.get("per_second", 0) > kept.get("per_second", 0):
            kept.update((name, numbers[name]) for name in NOT_A_SCORE & set(numbers))
        for name, value in numbers.items():
            if name not in NOT_A_SCORE:
                kept[name] = max(kept[name], value) if name in HIGHER_IS_BETTER else min(kept[name], value)


def closed_loop(
    target: Target,
    helper: Target,
    connections: int,
    seconds: float,
    *,
    protocol: str = "http",
    stream: bool = False,
    requests: int | None = None,
    warmup: float = 0.15,
) -> Numbers:
    """Each connection sends its next request when it has its answer: what one core can do, and what each answer costs.

    `helper_busy` is the share of the other core that the provider and the load generator used: near 1, they were the limit.
    `waited` is the share of the time the target waited for its core: more than a little, and others were using it.
    """
    waited = 0.0 if target.pid is None else machine.waited_seconds(target.pid)
    before, helper_before, began = _cpu(target), machine.cpu_seconds(helper.pid or 0), time.monotonic()
    result = put_load(
        target,
        protocol,
        connections=connections,
        seconds=None if requests else seconds,
        stream=stream,
        requests=requests,
        warmup=0 if requests else warmup,
    )
    took = time.monotonic() - began
    helper_cpu = machine.cpu_seconds(helper.pid or 0) - helper_before + result["cpu_seconds"]
    if result["answers"] < FEW and not requests and seconds < LONGEST:
        return closed_loop(target, helper, connections, seconds * 4, protocol=protocol, stream=stream, warmup=warmup)
    if not result["answers"]:
        raise BenchError(f"{target.name}: no answer within {seconds:g} s of load")
    numbers: Numbers = {
        "per_second": result["answers_per_second"],
        "p50_us": result["whole_us"]["p50"],
        "p99_us": result["whole_us"]["p99"],
        "helper_busy": helper_cpu / took,
    }
    if target.pid is not None:
        # all that was started was answered, warm-up and last ones included
        numbers["waited"] = (machine.waited_seconds(target.pid) - waited) / took
        numbers["cpu_us"] = (_cpu(target) - before) / result["started"] * 1e6
    if stream or protocol == "ws":
        numbers["tokens_per_second"] = result["tokens_per_second"]
        numbers["first_p50_us"] = result["first_us"]["p50"]
        numbers["first_p99_us"] = result["first_us"]["p99"]
    return numbers


def _cpu(target: Target) -> float:
    return 0.0 if target.pid is None else machine.cpu_seconds(target.pid)


def paced(target: Target, streams: int, seconds: float, interval_ms: int = 50, protocol: str = "http") -> Numbers:
    """`streams` at once, one token each `interval_ms`: how old a token is when it arrives, and the gap to the one before it."""
    tokens, ramp = 20 if seconds > 1 else 5, min(1.0, seconds / 2)
    before = _cpu(target)
    result = put_load(
        target,
        protocol,
        connections=streams,
        seconds=seconds,
        ramp=ramp,
        warmup=ramp + 0.2,
        timed=True,
        tokens=tokens,
        model=f"paced-{tokens}x{interval_ms * 1000}",
    )
    numbers: Numbers = {
        "tokens_per_second": result["tokens_per_second"],
        "age_p50_us": result["age_us"]["p50"],
        "age_p99_us": result["age_us"]["p99"],
        "gap_p99_us": result["gap_us"]["p99"],
    }
    if target.pid is not None:
        numbers["cpu_us_per_token"] = (_cpu(target) - before) / (result["started"] * tokens) * 1e6
    return numbers


def hang_ups(target: Target, helper: Target, streams: int, every_us: int = 2000) -> Numbers:
    """`streams` at once, a token each 200 ms, then one client hangs up each `every_us`: how long until its connection at the
    provider was closed."""
    result = put_load(
        target,
        connections=streams,
        ramp=0.5,
        seconds=60,
        timed=True,
        model="paced-100000x200000",
        hangup=every_us,
        provider=helper.port,
    )
    noticed = result["noticed_us"]
    return {"p50_us": noticed["p50"], "p99_us": noticed["p99"], "max_us": noticed["max"], "streams": noticed["count"]}


def idle_websockets(target: Target, helper: Target, count: int, seconds: float = 0.8) -> Numbers:
    """`count` authenticated WebSockets that say nothing: memory for each, how fast they were opened, and what they do to the
    slowest in a hundred of somebody else's requests."""
    assert target.pid is not None
    free = min(closed_loop(target, helper, 1, seconds)["p99_us"] for _ in range(3))
    before, cpu, began = machine.rss_bytes(target.pid), _cpu(target), time.monotonic()
    command = load_command(target, "ws", BUILD, connections=count, hold=True, seconds=120)
    holder = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=pin_to_second_core
    )
    try:
        assert holder.stdout is not None
        line = holder.stdout.readline()
        took, spent = time.monotonic() - began, _cpu(target) - cpu
        if not line.startswith("held"):
            raise BenchError(f"{target.name}: could not hold {count} WebSockets:\n{holder.communicate()[1][-800:]}")
        time.sleep(0.5)
        held_cpu, held_from, grown = _cpu(target), time.monotonic(), machine.rss_bytes(target.pid) - before
        time.sleep(1.0)
        idle_share = (_cpu(target) - held_cpu) / (time.monotonic() - held_from)
        beside = min(closed_loop(target, helper, 1, seconds)["p99_us"] for _ in range(3))
        errors = holder.communicate("\n", timeout=30)[1]
        if holder.returncode:
            raise BenchError(f"{target.name}: WebSockets were lost while held:\n{errors[-800:]}")
    finally:
        holder.kill()
        holder.wait()
    return {
        "bytes_each": grown / count,
        "opened_per_second": count / took,
        "cpu_us_to_open": spent / count * 1e6,
        "idle_cpu_percent": idle_share * 100,
        "p99_times": beside / free,
        "count": count,
    }


def growth(target: Target, helper: Target, seconds: float, steps: tuple[int, ...] = (1, 10, 100, 1000)) -> dict[str, Numbers]:
    """CPU per whole answer by number of connections: must be flat."""
    return {str(count): closed_loop(target, helper, count, seconds) for count in steps}


def memory(target: Target, helper: Target, requests: int, parts: int = 4) -> dict[str, float]:
    """Resident bytes at the start and after each part of `requests`: must stop growing."""
    assert target.pid is not None
    seen = {"0": float(machine.rss_bytes(target.pid))}
    for part in range(1, parts + 1):
        closed_loop(target, helper, 32, 0, stream=part % 2 == 0, requests=requests // parts)
        seen[str(requests // parts * part)] = float(machine.rss_bytes(target.pid))
    return seen


def audited(state: Path, wanted: int) -> int:
    """Rows of the audit log: what the gateway itself says it answered. Gives it three seconds to reach `wanted`."""
    until = time.monotonic() + 3.0
    while True:
        rows = 0
        for file in (state / "audit").glob("*.jsonl*"):
            with file.open("rb") as lines:
                rows += sum(1 for _ in lines)
        if rows >= wanted or time.monotonic() > until:
            return rows
        time.sleep(0.1)


def best_start(start: Callable[[], contextlib.AbstractContextManager[Target]], times: int) -> dict[str, float]:
    """Seconds from the process's start to its listening line, and resident bytes then; the best of `times`."""
    seconds, resident = [], []
    for _ in range(times):
        with start() as target:
            assert target.pid is not None
            seconds.append(target.start_seconds)
            resident.append(float(machine.rss_bytes(target.pid)))
    return {"seconds": min(seconds), "rss_bytes": min(resident)}


def busy_elsewhere() -> float:
    """The share of all cores others used over a quarter of a second: above 0.1 the figures of this run are not to be trusted."""

    def idle_and_all() -> tuple[int, int]:
        values = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        return values[3] + values[4], sum(values[:8])

    idle, total = idle_and_all()
    time.sleep(0.25)
    idle_after, total_after = idle_and_all()
    return 1.0 - (idle_after - idle) / max(1, total_after - total) if os.cpu_count() else 0.0


def as_json(rounds: Rounds) -> dict[str, Any]:
    return {name: {target: dict(numbers) for target, numbers in of.items()} for name, of in rounds.best.items()}
