"""`python -m benchmarks.replay --trace FILE`: load that has the shape of real users, sped up, against the scripted provider.

The trace is a CSV with TIMESTAMP, ContextTokens and GeneratedTokens, as in Azure's LLM inference dataset 2023. Arrivals keep
their order and their gaps, divided by `--speed`; a prompt has four characters for each of its tokens; the answer has as many
tokens as it had then, one each `--pace` milliseconds. It is an open loop: a gateway that falls behind is not spared.

The same is sent to the provider alone first: what the gateway adds is the difference.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import machine, parts
from benchmarks.parts import BenchError, Target

CONNECTIONS = 4000
MOST_SECONDS = 600.0

Row = tuple[float, int, int]
"""Seconds since the first arrival, tokens of the prompt, tokens of the answer."""


def read_trace(path: Path, limit: int) -> list[Row]:
    """The first `limit` rows. Raises BenchError where it is not such a trace."""
    rows: list[Row] = []
    first: datetime | None = None
    with path.open(newline="") as file:
        for number, line in enumerate(csv.DictReader(file), 2):
            try:
                at = datetime.fromisoformat(line["TIMESTAMP"][:26])
                sizes = int(line["ContextTokens"]), int(line["GeneratedTokens"])
            except (KeyError, TypeError, ValueError) as error:
                raise BenchError(f"{path}:{number}: not TIMESTAMP, ContextTokens, GeneratedTokens ({error})") from error
            first = first or at
            rows.append(((at - first).total_seconds(), *sizes))
            if len(rows) == limit:
                break
    if not rows:
        raise BenchError(f"{path} holds no requests")
    return rows


def schedule(rows: Sequence[Row], speed: float) -> str:
    """As `load --schedule` reads it."""
    return "".join(f"{round(at / speed * 1e6)} {max(1, answer)} {prompt * 4}\n" for at, prompt, answer in rows)


@contextlib.contextmanager
def scripted() -> Iterator[Target]:
    """The scripted provider, on the core of all else. It is Python: past some thousand tokens a second it is the limit."""
    port = parts.free_port()
    with parts.process([sys.executable, "-m", "clawproxy.scripted", "--port", port], machine.cores()[1]) as running:
        parts.wait_for_port(port, running)
        yield Target("scripted provider", port, running.pid)


def replay(rows: Sequence[Row], speed: float, pace_ms: int, kind: str) -> dict[str, Any]:
    """Provider alone, then through the gateway. Raises BenchError on a wrong or missing answer."""
    parts.compile_tools()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="clawproxy-replay-") as folder:
        file = Path(folder, "schedule")
        file.write_text(schedule(rows, speed))
        with scripted() if kind == "scripted" else parts.provider() as helper, parts.gateway(helper.port) as gateway:
            for target in (helper, gateway):
                assert target.pid is not None
                assert helper.pid is not None
                cpu, helper_cpu = machine.cpu_seconds(target.pid), machine.cpu_seconds(helper.pid)
                result = parts.put_load(
                    target, schedule=file, pace=pace_ms, connections=CONNECTIONS, stream=True, timed=kind != "scripted"
                )
                result["cpu_share"] = (machine.cpu_seconds(target.pid) - cpu) / result["seconds"]
                result["helper_share"] = (machine.cpu_seconds(helper.pid) - helper_cpu + result["cpu_seconds"]) / result[
                    "seconds"
                ]
                result["rss_bytes"] = machine.rss_bytes(target.pid)
                found["alone" if target is helper else "gateway"] = result
    return found


def show(rows: Sequence[Row], found: dict[str, Any], speed: float) -> None:
    def at(values: list[int], share: float) -> int:
        return sorted(values)[min(len(values) - 1, int(len(values) * share))]

    console = Console(highlight=False)
    prompts, answers = [row[1] for row in rows], [row[2] for row in rows]
    console.print(
        f"{len(rows):,} requests over {rows[-1][0]:,.0f} s of the trace, {speed:g} times as fast; prompts p50/p99 "
        f"{at(prompts, 0.5)}/{at(prompts, 0.99)} tokens, answers {at(answers, 0.5)}/{at(answers, 0.99)}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "provider alone", "through the gateway", "added"):
        table.add_column(name, justify="right" if name else "left")
    alone, through = found["alone"], found["gateway"]
    table.add_row("answers", f"{alone['answers']:,}", f"{through['answers']:,}", "")
    table.add_row("requests/s, tokens/s", *(f"{each['answers_per_second']:,.0f}, {each['tokens_per_second']:,.0f}"
                                            for each in (alone, through)), "")  # fmt: skip
    for title, kind, number in (
        ("time to first token, p50", "first_us", "p50"),
        ("time to first token, p99", "first_us", "p99"),
        ("gap between tokens, p99", "gap_us", "p99"),
        ("age of a token on arrival, p99", "age_us", "p99"),
        ("whole answer, p99", "whole_us", "p99"),
    ):
        if through[kind]["count"]:
            old, new = alone[kind][number] / 1000, through[kind][number] / 1000
            table.add_row(title, f"{old:,.1f} ms", f"{new:,.1f} ms", f"{new - old:,.1f} ms")
    table.add_row("CPU of one core", f"{alone['cpu_share']:.0%}", f"{through['cpu_share']:.0%}", "")
    table.add_row("resident memory", f"{alone['rss_bytes'] / 1e6:.0f} MB", f"{through['rss_bytes'] / 1e6:.0f} MB", "")
    console.print(table)
    if max(alone["helper_share"], through["helper_share"]) > 0.9:
        console.print("! the provider and the load generator filled their core: what is added may be theirs. Lower --speed.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__.partition("\n")[0])
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--speed", type=float, default=10.0, help="how many times as fast (default 10)")
    parser.add_argument("--limit", type=int, default=1000, help="at most so many requests (default 1000)")
    parser.add_argument("--pace", type=int, default=20, help="milliseconds between two tokens (default 20)")
    parser.add_argument("--provider", choices=("scripted", "c"), default="scripted", help="c: the one that costs next to nothing")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    given = parser.parse_args()
    try:
        if given.speed <= 0 or given.limit < 1 or given.pace < 1:
            raise BenchError("--speed, --limit and --pace must be positive")
        rows = read_trace(given.trace, given.limit)
        if rows[-1][0] / given.speed > MOST_SECONDS:
            raise BenchError(f"this would take {rows[-1][0] / given.speed:,.0f} s: raise --speed or lower --limit")
        found = replay(rows, given.speed, given.pace, given.provider)
        show(rows, found, given.speed)
        if given.json is not None:
            given.json.write_text(json.dumps({"machine": machine.fingerprint(), "speed": given.speed, **found}, indent=1) + "\n")
    except (BenchError, OSError) as failure:
        sys.exit(f"benchmarks: {failure}")


if __name__ == "__main__":
    main()
