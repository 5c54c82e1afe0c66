"""`python -m benchmarks.run quick|full`: the gateway, nginx and the provider alone, side by side; `compare A.json B.json`.

quick: under three minutes. full: longer rounds and 10,000 idle WebSockets. Both write results.json and results.svg (to `--out
FOLDER`, default benchmarks/build/results) and print what each number means.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine, measure, parts, report
from benchmarks.chart import svg
from benchmarks.measure import Rounds
from benchmarks.parts import BenchError, Target

VERSION = 1


@dataclass(frozen=True)
class Plan:
    """How long and how often."""

    rounds: int = 3
    loaded: float = 1.6
    """Seconds of load at 32 connections, a round."""
    single: float = 0.8
    """... at one connection."""
    paced: float = 3.0
    streams: int = 500
    idle: int = 1000
    requests: int = 12_000
    starts: int = 3
    growth: float = 0.8
    steps: tuple[int, ...] = (1, 10, 100, 1000)


PLANS = {
    "quick": Plan(),
    "full": Plan(rounds=5, loaded=5.0, single=3.0, paced=10.0, idle=10_000, requests=100_000, starts=5, growth=3.0),
    "smoke": Plan(
        rounds=1, loaded=0.3, single=0.3, paced=1.5, streams=20, idle=20, requests=200, starts=1, growth=0.3, steps=(1, 20)
    ),
}

Starter = Callable[[], contextlib.AbstractContextManager[Target]]


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def just(target: Target) -> Iterator[Target]:
    yield target


def interleaved(plan: Plan, helper: Target, targets: dict[str, Starter], rounds: Rounds) -> None:
    """A B C, A B C, ...: each target gets the same moments of the machine. Only the one being measured has work."""
    for number in range(plan.rounds):
        say(f"round {number + 1} of {plan.rounds}: {', '.join(targets)}")
        for name, start in targets.items():
            with start() as target:
                for stream, kind in ((False, "whole"), (True, "stream")):
                    rounds.add(f"{kind}.c32", name, measure.closed_loop(target, helper, 32, plan.loaded, stream=stream))
                    rounds.add(f"{kind}.c1", name, measure.closed_loop(target, helper, 1, plan.single, stream=stream))


def websockets(plan: Plan, helper: Target, targets: dict[str, Starter], rounds: Rounds) -> None:
    for _ in range(plan.rounds):
        for name, start in targets.items():
            with start() as target:
                rounds.add("ws.c32", name, measure.closed_loop(target, helper, 32, plan.loaded, protocol="ws"))


def run(plan: Plan, more: dict[str, Starter] | None = None, more_ws: dict[str, Starter] | None = None) -> dict[str, Any]:
    """All measurements; `more` are further targets for the HTTP ones, `more_ws` for the WebSocket ones."""
    parts.compile_tools()
    elsewhere = measure.busy_elsewhere()
    rounds, notes, began = Rounds(), [], time.monotonic()
    results: dict[str, Any] = {}
    with parts.provider() as helper:
        start_gateway = partial(parts.gateway, helper.port)
        say("start-up and idle WebSockets")
        results["start"] = {"clawproxy": measure.best_start(start_gateway, plan.starts)}
        with start_gateway() as fresh:
            results["idle"] = {"clawproxy": measure.idle_websockets(fresh, plan.idle)}
        with start_gateway() as gateway:
            alone = Target("provider", helper.port)
            targets: dict[str, Starter] = {"provider": partial(just, alone)}
            if parts.nginx_path():
                targets["nginx"] = partial(parts.nginx, helper.port)
            else:
                notes.append("nginx is not installed: no comparison with a plain proxy (Debian: apt-get install nginx-light).")
            targets["clawproxy"] = partial(just, gateway)
            measure.closed_loop(gateway, helper, 8, 0.5)  # warm: the interpreter specialises what runs often
            interleaved(plan, helper, targets | (more or {}), rounds)
            say("WebSocket, paced streams, hang-ups")
            websockets(plan, helper, {"clawproxy": partial(just, gateway)} | (more_ws or {}), rounds)
            for name, start in targets.items():
                with start() as target:
                    rounds.add("paced", name, measure.paced(target, plan.streams, plan.paced))
                    if name != "provider":
                        rounds.add("hangup", name, measure.hang_ups(target, helper, plan.streams))
            rounds.add("paced.ws", "clawproxy", measure.paced(gateway, plan.streams, plan.paced, protocol="ws"))
            say("growth")
            results["growth"] = {"clawproxy": measure.growth(gateway, helper, plan.growth, plan.steps)}
            results["memory"] = {"clawproxy": measure.memory(gateway, helper, plan.requests)}
            time.sleep(0.5)
            assert gateway.state is not None
            results["audit_rows"] = measure.audited(gateway.state)
    if not results["audit_rows"]:
        raise BenchError("the gateway wrote no audit row: what was measured is not the default pipeline")
    results |= measure.as_json(rounds)
    if elsewhere > 0.1:
        notes.append(f"others used {elsewhere:.0%} of the machine before the run: ratios are rough, latencies worthless.")
    return {
        "version": VERSION,
        "machine": machine.fingerprint(),
        "commit": _commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "took_seconds": round(time.monotonic() - began, 1),
        "plan": plan.__dict__ | {"steps": list(plan.steps)},
        "busy_elsewhere": round(elsewhere, 3),
        "notes": notes,
        "results": results,
    }


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=parts.HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def publish(run_result: dict[str, Any], out: Path) -> None:
    """results.json and results.svg in `out`, and the tables on stdout."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(run_result, indent=1) + "\n")
    (out / "results.svg").write_text(svg(run_result))
    report.show(run_result)
    say(f"\nwritten: {out / 'results.json'} and results.svg")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in PLANS:
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=parts.BUILD / "results")
        command.add_argument("--rounds", type=int)
    commands.add_parser("show").add_argument("file", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    try:
        if given.command == "compare":
            report.compare(json.loads(given.before.read_text()), json.loads(given.after.read_text()))
        elif given.command == "show":
            report.show(json.loads(given.file.read_text()))
        else:
            plan = PLANS[given.command]
            if given.rounds:
                plan = Plan(**(plan.__dict__ | {"rounds": given.rounds}))
            publish(run(plan), given.out)
    except (BenchError, OSError, ValueError) as failure:
        sys.exit(f"benchmarks: {failure}")


if __name__ == "__main__":
    main()
