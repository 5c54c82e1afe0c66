"""Finds secrets in whole texts, in linear time (RE2).

Rule 1: everything works on UTF-8 bytes; matches begin and end between characters.
Rule 2: the common text holds no secret, and finding that out is one call of `re2.Set`.
Rule 3: of all matches the one that begins first counts; of those that begin together, the first rule's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import re2
from attrs import field, frozen

from clawproxy.errors import Refusal
from clawproxy_sanitize.prefixes import Followed

_ESCAPED = re.compile(rb"\\(?:u[0-9A-Fa-f]{4}|[^u])", re.DOTALL)
_SHORT = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
HEAD = 4096
MOST = 1000
"""Secrets in one prompt. A prompt of many more is no accident, and each costs 10 us of everybody's time."""


def options() -> Any:
    """How every pattern is compiled."""
    chosen = re2.Options()
    chosen.log_errors = False
    chosen.never_capture = True
    chosen.max_mem = 64 << 20  # what the automaton's cache may grow to; at 8 MiB the whole catalogue would thrash it
    return chosen


@frozen
class Rule:
    name: str
    action: Literal["redact", "block", "flag"]
    followed: Followed
    lead: str = ""

    @property
    def replacement(self) -> bytes:
        return f"[redacted:{self.name}]".encode()


@frozen
class Match:
    start: int
    """Where the secret begins, its lead left out."""
    end: int
    rule: Rule


@frozen(init=False, slots=True)
class Scanner:
    """A compiled list of rules."""

    rules: Sequence[Rule]
    _union: Any = field(repr=False)
    _begun: Any = field(repr=False)
    _any: Any = field(repr=False)
    _quick: Any = field(repr=False)
    _which: Any = field(repr=False)
    _each: Sequence[tuple[Any, Any]] = field(repr=False)

    def __init__(self, rules: Sequence[Rule]) -> None:
        chosen = options()
        union = "|".join(f"(?:{rule.followed.whole})" for rule in rules).encode()
        begun = "|".join(f"(?:{rule.followed.begun})" for rule in rules if rule.followed.begun is not None)
        ending = rf"(?:{begun})\z".encode()
        each = [
            (re2.compile(rule.followed.whole.encode(), chosen), re2.compile(rule.lead.encode(), chosen) if rule.lead else None)
            for rule in rules
        ]
        self.__attrs_init__(
            tuple(rules),
            re2.compile(union, chosen),
            re2.compile(ending, chosen),
            _set([union], chosen),
            _set([union, ending], chosen),
            _set([rule.followed.whole.encode() for rule in rules], chosen, anchored=True),
            tuple(each),
        )

    def may_hold_any(self, texts: Iterable[str]) -> bool:
        """Whether any of the texts may hold a match; False is certain."""
        return bool(self._any.Match(encode("\n".join(texts))))

    def may_hold(self, data: bytes) -> bool:
        """Whether it may hold a match; False is certain."""
        return bool(self._any.Match(data))

    def holds(self, data: bytes, counts: dict[str, int]) -> bool:
        """Whether it holds a match of a rule that does more than flag. What was not counted before counts once. Raises Refusal
        where a rule blocks."""
        place = 0
        while (start := self.find(data, place)) is not None:
            match = self.match(data, start)
            assert match is not None
            if match.rule.name not in counts:
                noted(match.rule, counts)
            if match.rule.action != "flag":
                return True
            place = match.end
        return False

    def is_clean(self, data: bytes) -> bool:
        """Neither holds a match nor ends with what could begin one."""
        return not self._quick.Match(data)

    def find(self, data: bytes, start: int) -> int | None:
        """Where the first match begins, at `start` or later; what stands before `start` is seen by `\\b` only."""
        found = self._union.search(data, start)
        return None if found is None else int(found.start())

    def match(self, data: bytes, start: int) -> Match | None:
        """The match that begins exactly at `start`."""
        # One anchored set names the rules worth trying; it sees no context, so it may name one too many, never one too few
        # (but for a rule that needs more than HEAD bytes: then all are tried).
        named = self._which.Match(data[start : start + HEAD])
        for place in sorted(named) if named else range(len(self.rules)):
            whole, lead = self._each[place]
            found = whole.match(data, start)
            if found is not None:
                led = None if lead is None else lead.match(data, start)
                return Match(start if led is None else led.end(), found.end(), self.rules[place])
        return None

    def begins(self, data: bytes, start: int) -> int | None:
        """Where, from `start` on, the first text begins that runs to the end of `data` and may be the beginning of a match (or
        is a match that may go on)."""
        found = self._begun.search(data, start)
        return None if found is None else int(found.start())

    def redact(self, text: str, counts: dict[str, int]) -> str:
        """The text with its secrets replaced: the same object where there are none. Raises Refusal where a rule blocks."""
        data = encode(text)
        if not self._any.Match(data):
            return text
        pieces: list[bytes] = []
        place = 0
        while (start := self.find(data, place)) is not None:
            match = self.match(data, start)
            assert match is not None
            noted(match.rule, counts)
            if sum(counts.values()) > MOST:
                raise Refusal("refused.sanitize", f"The prompt holds more than {MOST} secrets.", policy="sanitize")
            if match.rule.action == "flag":
                pieces.append(data[place : match.end])
            else:
                pieces += (data[place : match.start], match.rule.replacement)
            place = match.end
        pieces.append(data[place:])
        changed = b"".join(pieces)
        return text if changed == data else decode(changed)


def noted(rule: Rule, counts: dict[str, int]) -> None:
    """Count a match. Raises Refusal where its rule blocks."""
    counts[rule.name] = counts.get(rule.name, 0) + 1
    if rule.action == "block":
        raise Refusal("refused.sanitize", policy="sanitize", extra={"pattern": rule.name})


def encode(text: str) -> bytes:
    """UTF-8; lone surrogates, which JSON can bring, survive the way there and back."""
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def unescaped(data: bytes) -> bytes:
    """JSON with the escapes in its strings undone: the same for every text in it, and no JSON any more."""
    return _ESCAPED.sub(_plain, data)


def _plain(match: re.Match[bytes]) -> bytes:
    said = match[0][1:]
    return chr(int(said[1:], 16)).encode("utf-8", "surrogatepass") if len(said) > 1 else _SHORT.get(said, said)


def _set(patterns: Sequence[bytes], chosen: Any, *, anchored: bool = False) -> Any:
    made = re2.Set.MatchSet(chosen) if anchored else re2.Set.SearchSet(chosen)
    for pattern in patterns:
        made.Add(pattern)
    made.Compile()
    return made
