"""Bars, in the terminal and as SVG: one panel a measurement, a bar a target, on a logarithmic scale that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, BAR, GAP = 760, 120, 110, 18, 7
INK, FAINT, OURS_COLOUR, OTHER_COLOUR, ALONE_COLOUR = "#1f2933", "#d5dbe1", "#0f766e", "#94a3b8", "#cbd5e1"
PANELS = (
    ("whole.c32", "per_second", "Whole answers a second, 32 connections", "longer is better"),
    ("stream.c32", "per_second", "50-token streams a second, 32 connections", "longer is better"),
    ("ws.c32", "per_second", "WebSocket answers of 50 tokens a second, 32 connections", "longer is better"),
    ("whole.c32", "cpu_us", "CPU for each whole answer, microseconds", "shorter is better"),
    ("whole.c1", "p50_us", "Latency of a whole answer, one connection, p50, microseconds", "shorter is better"),
)


def _scale(values: Mapping[str, float]) -> tuple[float, float]:
    """The decades the bars run over, as powers of ten."""
    low = math.floor(math.log10(max(1e-3, min(values.values()))) - 0.05)
    high = math.log10(max(values.values()))
    return low, max(high, low + 1)


def _share(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (math.log10(max(value, 1e-3)) - low) / (high - low)))


def bars(values: Mapping[str, float], ours: str, width: int = 56) -> str:
    """One line a target, with eighth-of-a-cell ends."""
    if not values:
        return ""
    low, high = _scale(values)
    lines = []
    for name, value in values.items():
        eighths = round(_share(value, low, high) * width * 8)
        bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
        lines.append(f"  {'no gateway' if name == 'provider' else name:<12}{'▶' if name == ours else ' '} {bar} {value:,.0f}")
    return "\n".join(lines)


def _panel(values: Mapping[str, float], title: str, hint: str, top: int, ours: str) -> tuple[list[str], int]:
    low, high = _scale(values)
    span = WIDTH - LEFT - RIGHT
    bottom = top + 30 + len(values) * (BAR + GAP)
    out = [
        f'<text x="16" y="{top + 12}" class="title">{escape(title)}</text>',
        f'<text x="{WIDTH - 16}" y="{top + 12}" text-anchor="end" class="hint">{escape(hint)}, logarithmic</text>',
    ]
    for decade in range(math.ceil(low), math.floor(high) + 1):
        x = LEFT + span * _share(10.0**decade, low, high)
        out.append(f'<line x1="{x:.1f}" y1="{top + 22}" x2="{x:.1f}" y2="{bottom - 4}" stroke="{FAINT}"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 8}" text-anchor="middle" class="tick">{10.0**decade:,.10g}</text>')
    for row, (name, value) in enumerate(values.items()):
        y = top + 26 + row * (BAR + GAP)
        length = max(2.0, span * _share(value, low, high))
        colour = OURS_COLOUR if name == ours else ALONE_COLOUR if name == "provider" else OTHER_COLOUR
        weight = ' font-weight="600"' if name == ours else ""
        label = "no gateway" if name == "provider" else name
        out.append(f'<text x="{LEFT - 10}" y="{y + 13}" text-anchor="end"{weight}>{escape(label)}</text>')
        out.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>')
        out.append(f'<text x="{LEFT + length + 8:.1f}" y="{y + 13}"{weight}>{value:,.0f}</text>')
    return out, bottom + 34


def svg(run: Mapping[str, Any], ours: str = "clawproxy") -> str:
    """The chart of a run: self-contained, no script, no font of its own."""
    results, about = run["results"], run["machine"]
    body: list[str] = []
    top = 64
    for measurement, number, title, hint in PANELS:
        found = {name: numbers[number] for name, numbers in results.get(measurement, {}).items() if numbers.get(number, 0) > 0}
        if len(found) > 1:
            order = sorted(found, key=lambda name: found[name], reverse=hint.startswith("longer"))
            panel, top = _panel({name: found[name] for name in order}, title, hint, top, ours)
            body += panel
    where = f"{about['cores']} cores of {about['cpu']}, Python {about['python']}, {run['at'][:10]}, {run['commit']}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" role="img" '
            'aria-label="Benchmark of ClawProxy">',
            f"<style>text{{font:13px system-ui,sans-serif;fill:{INK}}}.head{{font-size:17px;font-weight:600}}"
            ".title{font-weight:600}.hint,.tick{font-size:11px;fill:#64748b}</style>",
            f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>',
            '<text x="16" y="28" class="head">One core each, side by side in one run</text>',
            f'<text x="16" y="46" class="hint">{escape(where)}</text>',
            *body,
            "</svg>\n",
        ]
    )
