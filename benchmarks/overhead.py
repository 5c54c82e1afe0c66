"""What metering, budgets and the ledger cost, in the gateway itself: `python -m benchmarks.overhead`.

The same gateway several times: without the plugin `meter`, with it, under one budget, under four. What an answer costs with it,
less what one costs without, is what the rows, the journal, the folding thread and the accounts cost together, caches as cold as
they are at work.

Rule 1: rounds are short, many and in changing order, and a figure is the median of differences within a round: what others do on
        the machine meets all alike.
Rule 2: with `--instructions` processes run under valgrind and count user-space instructions, which nobody else can change; they
        say nothing of the kernel's share, of caches, or of other processors. About 3,500 of them are a microsecond.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measure, parts
from benchmarks.parts import BenchError, Target

MODEL = f"""
[models."{parts.MODEL}"]
routes = [{{ provider = "bench", model = "{parts.MODEL}" }}]
price = {{ input = "0.15", output = "0.60" }}
"""
KEY = """
[budgets.key]
scope = "key:*"
limit = "$1000000"
window = "month"
"""
MORE = """
[budgets.provider]
scope = "provider:*"
limit = "1000000000000 tokens"
window = "day"
[budgets.model]
scope = "model:*"
limit = "1000000000000 output_tokens"
window = "hour"
[budgets.all]
scope = "global"
limit = "1000000000 requests"
window = "minute"
"""
WITHOUT: Final = "without the meter"
GATEWAYS: Final[Mapping[str, str]] = {
    WITHOUT: '[pipeline]\norder = ["audit", "auth", "sanitize", "truncate", "router"]\n' + MODEL,
    "metered": MODEL,
    "under one budget": MODEL + KEY,
    "under four budgets": MODEL + KEY + MORE,
}
CONNECTIONS = 32
FEW, MANY = 200, 2200
"""Requests under valgrind: what starting and ending takes is in both."""


def timed(rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Microseconds of CPU an answer: the median, and the median difference to `WITHOUT` in the same round."""
    spent: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        helper = stack.enter_context(parts.provider())
        gateways = {name: stack.enter_context(parts.gateway(helper.port, extra)) for name, extra in GATEWAYS.items()}
        for target in gateways.values():
            measure.closed_loop(target, helper, CONNECTIONS, 0.5)  # warm
        order = list(gateways)
        for number in range(rounds):
            random.Random(number).shuffle(order)
            for name in order:
                for kind in ("whole", "stream"):
                    numbers = measure.closed_loop(gateways[name], helper, CONNECTIONS, seconds, stream=kind == "stream")
                    spent.setdefault((kind, name), []).append(numbers["cpu_us"])
            sys.stderr.write(".")
            sys.stderr.flush()
    sys.stderr.write("\n")
    found: dict[str, dict[str, float]] = {name: {} for name in GATEWAYS}
    for (kind, name), each in spent.items():
        found[name][kind] = statistics.median(each)
        found[name][f"{kind}, more"] = statistics.median(a - b for a, b in zip(each, spent[kind, WITHOUT], strict=True))
    return found


def counted() -> dict[str, dict[str, float]]:
    """Thousands of user-space instructions an answer."""
    found: dict[str, dict[str, float]] = {}
    for name, extra in GATEWAYS.items():
        found[name] = {}
        for kind in ("whole", "stream"):
            few, many = (_instructions(extra, requests, stream=kind == "stream") for requests in (FEW, MANY))
            found[name][kind] = (many - few) / (MANY - FEW) / 1000
            found[name][f"{kind}, more"] = found[name][kind] - found[WITHOUT][kind]
            sys.stderr.write(".")
            sys.stderr.flush()
    sys.stderr.write("\n")
    return found


def _instructions(extra: str, requests: int, *, stream: bool) -> int:
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise BenchError("valgrind is not installed (Debian: apt-get install valgrind)")
    with parts.provider() as helper, tempfile.TemporaryDirectory(prefix="clawproxy-bench-") as folder:
        port, file = parts.free_port(), Path(folder, "clawproxy.toml")
        file.write_text(parts.GATEWAY.format(port=port, state=Path(folder, "state"), upstream=helper.port) + extra)
        command = [valgrind, "--tool=cachegrind", "--cache-sim=no", f"--cachegrind-out-file={os.devnull}"]
        running = subprocess.Popen(
            [*command, sys.executable, "-m", "clawproxy", "serve", "--config", str(file)],
            env={**os.environ, "BENCH_KEY": parts.KEY, "PYTHONHASHSEED": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with running:
            assert running.stdout is not None
            if "listening" not in running.stdout.readline():
                running.kill()
                raise BenchError(f"clawproxy did not start under valgrind:\n{running.communicate()[1][-2000:]}")
            parts.put_load(Target("clawproxy", port, running.pid), connections=8, requests=requests, stream=stream)
            running.send_signal(signal.SIGTERM)
            said = running.communicate(timeout=120)[1]
    total = re.search(r"I\s+refs:\s+([\d,]+)", said)
    if total is None:
        raise BenchError(f"valgrind said nothing of instructions:\n{said[-2000:]}")
    return int(total[1].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.7, help="of each load, in each round")
    parser.add_argument("--instructions", action="store_true", help="count them under valgrind instead: some minutes")
    given = parser.parse_args()
    try:
        parts.compile_tools()
        found = counted() if given.instructions else timed(given.rounds, given.seconds)
    except BenchError as failure:
        sys.exit(f"benchmarks: {failure}")
    unit = "k instructions" if given.instructions else "us of CPU"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{unit} an answer, {CONNECTIONS} connections", title_justify="left")
    table.add_column("")
    for column in ("whole", "more", "50-token stream", "more"):
        table.add_column(column, justify="right")
    for name, numbers in found.items():
        cells = [f"{numbers[column]:.0f}" for column in ("whole", "whole, more", "stream", "stream, more")]
        table.add_row(name, *(cell if name != WITHOUT or index % 2 == 0 else "" for index, cell in enumerate(cells)))
    Console().print(table)
    if not given.instructions:
        print(f"Load average {machine.load_average():.1f}: on a busy machine the differences are too large.")


if __name__ == "__main__":
    main()
