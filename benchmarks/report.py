"""A run as tables: each figure beside its rivals', its ratio, its aim, and a sentence that says what it means.

Rule: figures of two machines are never put side by side (`compare` raises ValueError).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.chart import bars

OURS, ALONE, PROXY, FLOOR = "clawproxy", "provider", "nginx", "trial"


@dataclass(frozen=True)
class Figure:
    """One figure of a run.

    Attributes:
        measurement, number: where it stands in the results.
        unit: us, ms (from us), /s, B (bytes), s, % or x (times).
        added: what the provider alone takes is subtracted: the figure is what the target adds.
        aim: at most this, or for a `/s` at least this; None where the aim is a ratio or there is none.
    """

    measurement: str
    number: str
    title: str
    unit: str
    meaning: str
    aim: float | None = None
    added: bool = False

    @property
    def more_is_better(self) -> bool:
        return self.unit == "/s"

    def of(self, results: dict[str, Any], target: str) -> float | None:
        value: float | None = results.get(self.measurement, {}).get(target, {}).get(self.number)
        if value is None or not self.added:
            return value
        alone = results[self.measurement].get(ALONE, {}).get(self.number)
        return None if alone is None or target == ALONE else value - alone

    def reached(self, value: float) -> bool | None:
        return None if self.aim is None else value >= self.aim if self.more_is_better else value <= self.aim


FIGURES = (
    Figure("whole.c32", "per_second", "whole answers, 32 connections", "/s", "what one core of each can do", 9000),
    Figure("whole.c32", "cpu_us", "CPU for each", "us", "CPU of the target alone: moves least with the noise", 110),
    Figure("stream.c32", "per_second", "50-token streams, 32 connections", "/s", "the same over SSE; times 50 for tokens", 5000),
    Figure("stream.c32", "cpu_us", "CPU for each", "us", "CPU of the target alone, for a stream", 200),
    Figure("whole.c1", "p50_us", "added latency, p50", "us", "one connection, less what the provider alone takes", 120, True),
    Figure("whole.c1", "p99_us", "added latency, p99", "us", "the same for the slowest in a hundred", 400, True),
    Figure("stream.c1", "first_p50_us", "added time to first token, p50", "us", "one connection, streams", 200, True),
    Figure("ws.c32", "per_second", "Claw WebSocket answers, 32 connections", "/s", "50 tokens each, over /websocket", 3000),
    Figure("ws.c32", "tokens_per_second", "tokens over the WebSocket", "/s", "tokens read together may share a frame", 150_000),
    Figure("ws.c32", "cpu_us", "CPU for each answer", "us", "CPU of the target alone"),
    Figure(
        "paced",
        "age_p99_us",
        "paced streams: added age of a token, p99",
        "ms",
        "from the provider's write to the client's read, one token each 50 ms and stream, less the same without anything between",
        10_000,
        True,
    ),
    Figure("paced", "cpu_us_per_token", "CPU for each paced token", "us", "nothing to merge: the cost of one token by itself"),
    Figure("paced.ws", "age_p99_us", "the same over the WebSocket, not subtracted", "ms", "age of a token on arrival", 10_000),
    Figure(
        "hangup",
        "p50_us",
        "client gone to provider closed, p50",
        "ms",
        "streams of a token each 200 ms, one client hangs up each 2 ms",
        2000,
    ),
    Figure("hangup", "p99_us", "client gone to provider closed, p99", "ms", "the provider stops being billed for nobody", 20_000),
    Figure("idle", "bytes_each", "an idle authenticated WebSocket", "B", "growth of resident memory, by their number", 20 * 1024),
    Figure("idle", "idle_cpu_percent", "CPU to hold them", "%", "of one core, while nobody says anything"),
    Figure("idle", "p99_times", "a request's p99 beside them", "x", "to what it is without them", 2.0),
    Figure("start", "seconds", "start to listening", "s", "from exec to the line that says it listens", 0.6),
    Figure("start", "rss_bytes", "resident memory at rest", "B", "right after the start", 60e6),
)


RATIOS = (
    ("whole.c32", PROXY, "whole answers", 0.11),
    ("stream.c32", PROXY, "50-token streams", None),
    ("whole.c32", "portkey", "whole answers", 10.0),
    ("whole.c32", "litellm", "whole answers", 100.0),
    ("stream.c32", "portkey", "50-token streams", None),
    ("stream.c32", "litellm", "50-token streams", None),
    ("ws.c32", "fastapi", "WebSocket answers", 30.0),
)
"""measurement, rival, what is counted, at least so many times the rival's."""
OF_THE_FLOOR = 110 / 70
"""CPU for a whole answer: 110 us on a machine where `benchmarks.trial` takes 70, so that it is the same aim on any machine."""


def shown(value: float | None, unit: str) -> str:
    """A figure for people: three significant digits, its unit."""
    if value is None:
        return "-"
    if unit == "ms":
        value /= 1000
    if unit == "B":
        return f"{value / 1e6:.1f} MB" if value >= 1e6 else f"{value / 1024:.1f} KiB"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}" + ("" if unit == "/s" else f" {unit}")


def targets_of(results: dict[str, Any]) -> list[str]:
    """Everything measured, ours last but for nobody: provider, nginx, peers, clawproxy."""
    named = {target for name, of in results.items() if isinstance(of, dict) and name != "audit_rows" for target in of}
    fixed = [name for name in (ALONE, PROXY, FLOOR) if name in named]
    return fixed + sorted(named - {ALONE, PROXY, FLOOR, OURS}) + [OURS]


def wide() -> Console:
    """A console that does not squeeze the tables where nobody looks at a terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def show(run: dict[str, Any], console: Console | None = None) -> None:
    console = console or wide()
    results, targets = run["results"], targets_of(run["results"])
    about = run["machine"]
    console.print(
        f"\nClawProxy {run['commit']} on {about['cores']} cores of {about['cpu']}, Python {about['python']}; "
        f"best of {run['plan']['rounds']} interleaved rounds, each target alone on one core; {run['plan']['streams']} paced "
        f"streams, {run['plan']['idle']:,} idle WebSockets"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for target in targets:
        table.add_column({ALONE: "no gateway"}.get(target, target), justify="right", style="bold" if target == OURS else "")
    rival = PROXY if PROXY in targets else ALONE
    table.add_column(f"ours : {rival}" if rival == PROXY else "ours : none", justify="right")
    table.add_column("aim", justify="right")
    for figure in FIGURES:
        values = {target: figure.of(results, target) for target in targets}
        if all(value is None for value in values.values()):
            continue
        table.add_row(
            figure.title,
            *(shown(values[target], figure.unit) for target in targets),
            _ratio(values[OURS], values[rival]),
            _verdict(figure, values[OURS]),
        )
    console.print(table)
    for measurement, other, counted, aim in RATIOS:
        ours, theirs = (results.get(measurement, {}).get(name, {}).get("per_second") for name in (OURS, other))
        if ours and theirs:
            said = f"{ours / theirs:.3g} times the {counted} of {other} on one core"
            console.print(said + ("" if aim is None else f"  (aim >= {aim:g}: {'yes' if ours / theirs >= aim else 'NO'})"))
    for measurement, counted, limit in (("whole.c32", "whole answer", OF_THE_FLOOR), ("stream.c32", "stream", None)):
        ours, floor = (results.get(measurement, {}).get(name, {}).get("cpu_us") for name in (OURS, FLOOR))
        if ours and floor:
            said = f"{ours / floor:.2f} times the CPU of the least a Trio gateway can be (`trial`), for each {counted}"
            verdict = "" if limit is None else f"  (aim <= {limit:.2f}: {'yes' if ours / floor <= limit else 'NO'})"
            console.print(said + verdict)
    _growth(console, results)
    for title, number in (("whole answers a second", "whole.c32"), ("50-token streams a second", "stream.c32")):
        console.print(Text(f"\n{title} (one core each; logarithmic)"))
        console.print(
            Text(bars({target: results[number][target]["per_second"] for target in targets if target in results[number]}, OURS))
        )
    _meanings(console, run)


def _ratio(ours: float | None, theirs: float | None) -> str:
    return f"{ours / theirs:.3g}" if ours and theirs and ours > 0 and theirs > 0 else ""


def _verdict(figure: Figure, ours: float | None) -> Text:
    if figure.aim is None or ours is None:
        return Text("")
    sign = ">=" if figure.more_is_better else "<="
    reached = figure.reached(ours)
    return Text(f"{sign} {shown(figure.aim, figure.unit)} {'yes' if reached else 'NO'}", style="green" if reached else "yellow")


def _growth(console: Console, results: dict[str, Any]) -> None:
    steps = results["growth"][OURS]
    flat = max(step["cpu_us"] for step in steps.values()) / min(step["cpu_us"] for step in steps.values())
    console.print(
        "CPU for each whole answer as connections grow: "
        + ", ".join(f"{count}: {step['cpu_us']:.0f} us" for count, step in steps.items())
        + f"  (most : least = {flat:.2f}, aim <= 1.25)"
    )
    seen = results["memory"][OURS]
    console.print(
        "resident memory after N answers: " + ", ".join(f"{count}: {shown(value, 'B')}" for count, value in seen.items())
    )


def _meanings(console: Console, run: dict[str, Any]) -> None:
    console.print("\nwhat they mean", style="bold")
    for figure in FIGURES:
        if any(figure.of(run["results"], target) is not None for target in targets_of(run["results"])):
            console.print(Text(f"  {figure.title}: {figure.meaning}.", style="dim"))
    for kind in ("whole.c32", "stream.c32", "ws.c32"):
        for target, numbers in run["results"].get(kind, {}).items():
            if target != ALONE and numbers["helper_busy"] > 0.9:
                console.print(
                    f"  ! {kind} {target}: the provider and the load generator used {numbers['helper_busy']:.0%} of their core: "
                    "the figure is a lower bound.",
                    style="yellow",
                )
    for kind in ("whole.c32", "stream.c32", "ws.c32", "whole.c1", "stream.c1"):
        waited = run["results"].get(kind, {}).get(OURS, {}).get("waited", 0.0)
        if waited > 0.1:
            console.print(f"  ! {kind}: others kept the gateway from its core {waited:.0%} of the time.", style="yellow")
    for note in run["notes"]:
        console.print(f"  ! {note}", style="yellow")
    console.print(
        "  nginx passes bytes on and knows no key, policy or ledger; the trial has no error handling, policy, ledger or log. "
        "The gateway's audit log holds "
        f"{run['results']['audit_rows']:,} rows of this run: one for each request. "
        "Compare ratios, not absolute figures, and never across machines.",
        style="dim",
    )


def compare(before: dict[str, Any], after: dict[str, Any], console: Console | None = None) -> None:
    """Two runs of one machine, figure by figure. Raises ValueError where they are of two."""
    console = console or wide()
    if before["machine"]["id"] != after["machine"]["id"]:
        different = [key for key, value in before["machine"].items() if after["machine"].get(key) != value and key != "id"]
        told = ", ".join(f"{key}: {before['machine'][key]} and {after['machine'].get(key)}" for key in different)
        raise ValueError(f"these runs are of different machines and can not be compared ({told}); run both on one")
    if before["version"] != after["version"]:
        raise ValueError("these runs were made by different versions of the benchmark and can not be compared")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", f"{before['commit']} {before['at']}", f"{after['commit']} {after['at']}", "after : before"):
        table.add_column(name, justify="left" if not name else "right")
    for figure in FIGURES:
        old, new = figure.of(before["results"], OURS), figure.of(after["results"], OURS)
        if old is None or new is None:
            continue
        ratio = new / old if old > 0 else 1.0
        worse = ratio < 0.95 if figure.more_is_better else ratio > 1.05
        better = ratio > 1.05 if figure.more_is_better else ratio < 0.95
        table.add_row(
            figure.title,
            shown(old, figure.unit),
            shown(new, figure.unit),
            Text(f"{ratio:.2f}", style="yellow" if worse else "green" if better else ""),
        )
    console.print(table)
    drift: Callable[[dict[str, Any]], float | None] = lambda run: run["results"]["whole.c32"].get(ALONE, {}).get("per_second")  # noqa: E731
    old_alone, new_alone = drift(before), drift(after)
    if old_alone and new_alone:
        console.print(
            f"The provider alone did {new_alone / old_alone:.2f} of what it did before: so much the machine itself moved.",
            style="dim",
        )
