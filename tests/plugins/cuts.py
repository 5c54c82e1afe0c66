"""Text cut into pieces and sanitized, and what may come out of it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import re2

from clawproxy_sanitize.scanner import Match, Scanner, encode, options, width
from clawproxy_sanitize.window import Window


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def streamed(found: Scanner, pieces: Sequence[str], counts: dict[str, int] | None = None) -> list[str]:
    window = Window(found, Counter() if counts is None else counts)
    out: list[str] = []
    for piece in pieces:
        passed = window.feed(piece)
        out += [piece] if passed is None else passed
    return out + window.finish()


def matches(found: Scanner, data: bytes) -> list[tuple[int, Match]]:
    """All of them, and where each one's lead begins."""
    out: list[tuple[int, Match]] = []
    search = 0
    while (start := found.find(data, search)) is not None:
        match = found.match(data, start)
        if match is not None:
            out.append((start, match))
        search = start + width(data, start) if match is None else match.end
    return out


def says(found: Scanner, text: str, out: str) -> str:
    """What `out` would be, had the text come whole: openings that went on before it was known what they open are left out.

    Raises AssertionError where more of a match went on than its opening.
    """
    data, said = encode(found.unhidden(text, "", {})), encode(out)
    place, rest = 0, b""
    for start, match in matches(found, data):
        rest += data[place : match.start]
        place = match.end
        if match.rule.action == "flag":
            rest += data[match.start : match.end]
            continue
        replaced = match.rule.replaced(data[match.start : match.end])
        waits = re2.compile(match.rule.waits.encode(), options())
        for end in range(match.start, match.end):
            if said.startswith(rest + data[match.start : end] + replaced):
                assert end == match.start or waits.fullmatch(data[start:end]) is None, data[start:end]
                said = rest + replaced + said[len(rest) + end - match.start + len(replaced) :]
                break
        rest += replaced
    return said.decode("utf-8", "surrogatepass")
