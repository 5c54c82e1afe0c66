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
    "full": Plan(rounds=5, loaded=5.0, single=3.0, paced=10.0, idle=10_000, requests=200_000, starts=5, growth=3.0),
    "smoke": Plan(
        rounds=1, loaded=0.3, single=0.3, paced=0.6, streams=20, idle=20, requests=200, starts=1, growth=0.3, steps=(1, 20)
    ),
}

Starter = Callable[[], contextlib.AbstractContextManager[Target]]
PortStarter = Callable[[int], contextlib.AbstractContextManager[Target]]


LOADS = (("whole", 32, "loaded"), ("whole", 1, "single"), ("stream", 32, "loaded"), ("stream", 1, "single"))


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def just(target: Target) -> Iterator[Target]:
    yield target


def interleaved(plan: Plan, helper: Target, targets: dict[str, Starter], rounds: Rounds, notes: list[str]) -> None:
    """A B C, A B C, ...: each target gets the same moments of the machine. Only the one being measured has work.

    Raises BenchError where the gateway or the provider fails; another that does is left out of what it failed at, and noted.
    """
    failed: set[tuple[str, str]] = set()
    for number in range(plan.rounds):
        say(f"round {number + 1} of {plan.rounds}: {', '.join(targets)}")
        for name, start in targets.items():
            with start() as target:
                for kind, connections, seconds in LOADS:
                    measurement = f"{kind}.c{connections}"
                    if (name, measurement) in failed:
                        continue
                    try:
                        numbers = measure.closed_loop(
                            target, helper, connections, getattr(plan, seconds), stream=kind == "stream"
                        )
                    except BenchError as failure:
                        if name in ("provider", "clawproxy"):
                            raise
                        failed.add((name, measurement))
                        notes.append(f"{name} failed at {measurement}: {failure}")
                    else:
                        rounds.add(measurement, name, numbers)


def tried(notes: list[str], rounds: Rounds, measurement: str, target: Target, work: Callable[[], measure.Numbers]) -> None:
    """Measure what a target may be too slow for: then it has no figure, and a note that says why."""
    try:
        rounds.add(measurement, target.name, work())
    except BenchError as failure:
        target.disturbed = True
        notes.append(f"{target.name} FAILED at {measurement}: {failure}")


def websockets(plan: Plan, helper: Target, targets: dict[str, Starter], rounds: Rounds) -> None:
    for _ in range(plan.rounds):
        for name, start in targets.items():
            with start() as target:
                rounds.add("ws.c32", name, measure.closed_loop(target, helper, 32, plan.loaded, protocol="ws"))


def run(plan: Plan, more: dict[str, PortStarter] | None = None, more_ws: dict[str, PortStarter] | None = None) -> dict[str, Any]:
    """All measurements; `more` are further targets for the HTTP ones, `more_ws` for the WebSocket ones, each started with the
    provider's port. Raises BenchError."""
    parts.compile_tools()
    elsewhere = measure.busy_elsewhere()
    rounds, notes, began = Rounds(), [], time.monotonic()
    results: dict[str, Any] = {}
    with parts.provider() as helper:
        start_gateway = partial(parts.gateway, helper.port)
        say("start-up and idle WebSockets")
        results["start"] = {"clawproxy": measure.best_start(start_gateway, plan.starts)}
        with start_gateway() as fresh:
            results["idle"] = {"clawproxy": measure.idle_websockets(fresh, helper, plan.idle)}
        with start_gateway() as gateway:
            alone = Target("provider", helper.port)
            targets: dict[str, Starter] = {"provider": partial(just, alone)}
            if parts.nginx_path():
                targets["nginx"] = partial(parts.nginx, helper.port)
            else:
                notes.append("nginx is not installed: no comparison with a plain proxy (Debian: apt-get install nginx-light).")
            targets["clawproxy"] = partial(just, gateway)
            measure.closed_loop(gateway, helper, 8, 0.5)  # warm: the interpreter specialises what runs often
            floor: dict[str, PortStarter] = {"trial": parts.trial}
            others: dict[str, Starter] = {name: partial(start, helper.port) for name, start in (floor | (more or {})).items()}
            interleaved(plan, helper, targets | others, rounds, notes)
            say("WebSocket, paced streams, hang-ups")
            others = {name: partial(start, helper.port) for name, start in (more_ws or {}).items()}
            websockets(plan, helper, {"clawproxy": partial(just, gateway)} | others, rounds)
            for name, start in targets.items():
                with start() as target:
                    tried(notes, rounds, "paced", target, partial(measure.paced, target, plan.streams, plan.paced))
                    if name != "provider":
                        tried(notes, rounds, "hangup", target, partial(measure.hang_ups, target, helper, plan.streams))
            tried(notes, rounds, "paced.ws", gateway, partial(measure.paced, gateway, plan.streams, plan.paced, protocol="ws"))
            say("growth")
            results["growth"] = {"clawproxy": measure.growth(gateway, helper, plan.growth, plan.steps)}
            results["memory"] = {"clawproxy": measure.memory(gateway, helper, plan.requests)}
            assert gateway.state is not None
            results["audit_rows"] = measure.audited(gateway.state, gateway.asked)
    if results["audit_rows"] != gateway.asked and not gateway.disturbed:
        raise BenchError(
            f"the audit log holds {results['audit_rows']} rows of {gateway.asked} requests: this was not the whole pipeline"
        )
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
    if any(note.startswith("clawproxy FAILED") for note in run_result["notes"]):
        sys.exit(1)


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
