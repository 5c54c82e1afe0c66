"""Finds secrets in whole texts, in linear time (RE2).

Rule 1: everything works on UTF-8 bytes; matches begin and end between characters.
Rule 2: the common text holds no secret, and finding that out is one call of `re2.Set`.
Rule 3: of all matches the one that begins first counts; of those that begin together, the first rule's whose check holds.
Rule 4: characters nobody sees go first, where the settings say so: they hide words from patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import re2
from attrs import frozen

from clawproxy.errors import Refusal
from clawproxy_sanitize.invisible import GATE, stripped
from clawproxy_sanitize.prefixes import Followed

if TYPE_CHECKING:
    from clawproxy_sanitize.restore import Vault

RuleAction = Literal["redact", "mask", "restore", "block", "flag"]
Hidden = Literal["strip", "flag", "block"]

_ESCAPED = re.compile(rb"\\(?:u[0-9A-Fa-f]{4}|[^u])", re.DOTALL)
_SHORT = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
_NOTHING = r"[^\x00-\x{10FFFF}]"
"""Matches no text at all."""
HEAD = 4096
MOST = 5000
"""Secrets in one prompt. A prompt of many more is no accident, and each costs 10 us of everybody's time."""
DOUBTS = 20_000
"""What only looks like one, in one prompt: each costs as much."""
SHORT_ENOUGH = 256
"""Bytes of what can be masked or restored; what is longer is redacted."""
INVISIBLE = "invisible"


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
    action: RuleAction
    followed: Followed
    waits: str
    """What a match can begin with and a stream must not let go before it knows."""
    tail: str
    """The same for text that does not hold the whole of `followed.head`."""
    opening: float = 0
    """Characters of a match's beginning, at most, that are let go at once; 0: none."""
    lead: str = ""
    accepts: Callable[[bytes], int] | None = None
    """As `catalogue.Shape`'s."""
    parts: Literal["all", "led", "none"] = "none"
    """Which part of an unfinished match must not be let go: all of it, what comes after its lead, none."""

    def replaced(self, found: bytes, vault: Vault | None = None) -> bytes:
        """What stands in a match's place."""
        if self.action == "mask" and len(found) <= SHORT_ENOUGH:
            text = decode(found)
            if len(text) >= 9:  # of less, the last four would be half of it
                return encode(f"****{text[-4:]}")
        elif self.action == "restore" and vault is not None and len(found) <= SHORT_ENOUGH:
            placeholder = vault.placeholder(self.name, decode(found))
            if placeholder is not None:
                return placeholder.encode()
        return f"[redacted:{self.name}]".encode()


class Doubts:
    """How many look-alikes one prompt may still hold."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = DOUBTS

    def one_more(self) -> None:
        """Raises Refusal."""
        self.left -= 1
        if self.left < 0:
            raise Refusal(
                "refused.sanitize",
                f"The prompt holds more than {DOUBTS} numbers that look like personal data.",
                policy="sanitize",
            )


@frozen
class Match:
    start: int
    """Where the secret begins, its lead left out."""
    end: int
    rule: Rule


@lru_cache(1)
def _gate() -> Any:
    return re2.compile(GATE.encode(), options())


class Patterns:
    """A list of rules. What tells that a text holds none is compiled at once (10 ms, 1 MB), the rest (20 ms, 2 MB) when it is
    first needed: most gateways never see a secret of most formats."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.context = int(max((rule.opening for rule in rules), default=0))
        """Bytes of what was let go already that a match may begin in."""
        self.quick = _set(
            [_any_of((rule.tail for rule in rules), r"\z"), _any_of(rule.followed.head for rule in rules)], options()
        )
        """0: the text's end must wait. 1: it may hold a match."""
        self._each: dict[int, tuple[Any, Any]] = {}
        if not all(rule.opening for rule in rules):
            # An operator's own patterns must neither fail in a request nor make it wait.
            for made in (self.union, self.waiting, self.parts, self.leads, self.which):
                assert made is not None

    @cached_property
    def union(self) -> Any:
        return re2.compile(_any_of(rule.followed.whole for rule in self.rules), options())

    @cached_property
    def waiting(self) -> Any:
        return re2.compile(_any_of((rule.waits for rule in self.rules), r"\z"), options())

    @cached_property
    def parts(self) -> Any:
        return re2.compile(_any_of((rule.waits for rule in self.rules if rule.parts == "all"), r"\z"), options())

    @cached_property
    def leads(self) -> Sequence[Any]:
        return [re2.compile(rule.lead.encode(), options()) for rule in self.rules if rule.parts == "led"]

    @cached_property
    def which(self) -> Any:
        return _set([rule.followed.head.encode() for rule in self.rules], options(), anchored=True)

    def each(self, place: int) -> tuple[Any, Any]:
        """A rule's pattern and its lead."""
        made = self._each.get(place)
        if made is None:
            rule, chosen = self.rules[place], options()
            lead = re2.compile(rule.lead.encode(), chosen) if rule.lead else None
            made = self._each[place] = re2.compile(rule.followed.whole.encode(), chosen), lead
        return made


class Scanner:
    """A list of rules, and what is done about characters nobody sees."""

    __slots__ = ("_patterns", "_quick", "context", "hidden", "rules")

    def __init__(self, rules: Sequence[Rule] | Patterns, hidden: Hidden | None = None) -> None:
        self._patterns = rules if isinstance(rules, Patterns) else Patterns(rules)
        self.rules = self._patterns.rules
        self.context = self._patterns.context
        self.hidden = hidden
        self._quick = self._patterns.quick

    def may_hold(self, data: bytes) -> bool:
        """Whether it may hold a match; False is certain."""
        hits = self._quick.Match(data)
        return bool(hits and any(hits)) or self._may_hide(data)

    def _may_hide(self, data: bytes) -> bool:
        return self.hidden is not None and not data.isascii() and _gate().search(data) is not None

    def holds(self, data: bytes, counts: dict[str, int]) -> bool:
        """Whether it holds a match of a rule that does more than flag. What was not counted before counts once. Raises Refusal
        where a rule blocks."""
        if self._may_hide(data):
            if INVISIBLE not in counts:
                self._hidden_found(1, counts)
            if self.hidden == "strip":
                return True
        place = 0
        while (start := self.find(data, place)) is not None:
            match = self.match(data, start)
            if match is None:
                place = start + width(data, start)
                continue
            if match.rule.name not in counts:
                noted(match.rule, counts)
            if match.rule.action != "flag":
                return True
            place = match.end
        return False

    def is_clean(self, data: bytes) -> bool:
        """Neither holds a match nor ends with what must wait."""
        return not self._quick.Match(data) and not self._may_hide(data)

    def find(self, data: bytes, start: int) -> int | None:
        """Where the first match begins, at `start` or later; what stands before `start` is seen by `\\b` only."""
        found = self._patterns.union.search(data, start)
        return None if found is None else int(found.start())

    def match(self, data: bytes, start: int) -> Match | None:
        """The match that begins exactly at `start`; None where no check holds."""
        # One anchored set names the rules worth trying; it sees no context, so it may name one too many, never one too few
        # (but for a rule whose head needs more than HEAD bytes: then all are tried).
        patterns = self._patterns
        named = patterns.which.Match(data[start : start + HEAD])
        for place in sorted(named) if named else range(len(self.rules)):
            whole, lead = patterns.each(place)
            found = whole.match(data, start)
            if found is not None:
                led = None if lead is None else lead.match(data, start)
                begin, end, rule = start if led is None else led.end(), found.end(), self.rules[place]
                if rule.accepts is not None:
                    end = begin + rule.accepts(data[begin:end])
                if end > begin:
                    inner = self._within(data[start:begin], start) if rule.parts == "led" else None
                    return inner or Match(begin, end, rule)
        return None

    def _within(self, lead: bytes, offset: int) -> Match | None:
        """The first match within a lead: `https://TOKEN:x@host` has its secret where others have a name."""
        search = 1
        while (start := self.find(lead, search)) is not None:
            match = self.match(lead, start)
            if match is not None and match.end < len(lead):
                return Match(match.start + offset, match.end + offset, match.rule)
            search = start + 1
        return None

    def unhidden(self, text: str, before: str, counts: dict[str, int]) -> str:
        """The text without characters nobody sees, where the settings say so. Raises Refusal where they block."""
        if self.hidden is None or text.isascii():
            return text
        clean, gone = stripped(text, before)
        if not gone:
            return text
        self._hidden_found(gone, counts)
        return clean if self.hidden == "strip" else text

    def _hidden_found(self, gone: int, counts: dict[str, int]) -> None:
        counts[INVISIBLE] = counts.get(INVISIBLE, 0) + gone
        if self.hidden == "block":
            raise Refusal("refused.sanitize", policy="sanitize", extra={"pattern": INVISIBLE})

    def waits(self, data: bytes, start: int) -> int | None:
        """Where, from `start` on, the first text begins that runs to the end of `data` and must wait: the beginning of a match
        that goes on after its opening (or a match that may go on)."""
        found = self._patterns.waiting.search(data, start)
        return None if found is None else int(found.start())

    def shows(self, data: bytes, start: int, least: int) -> int | None:
        """Where, from `start` on, at least so many characters of an unfinished secret stand, to the end of `data`."""
        found = self._patterns.parts.search(data, start)
        if found is not None and len(decode(data[found.start() :])) >= least:
            return int(found.start())
        for lead in self._patterns.leads:
            led = lead.match(data, start)
            if led is not None and len(decode(data[led.end() :])) >= least:
                return int(led.end())
        return None

    def redact(self, text: str, counts: dict[str, int], vault: Vault | None = None, doubts: Doubts | None = None) -> str:
        """The text with its secrets replaced: the same object where there are none. Raises Refusal where a rule blocks."""
        if not self.may_hold(encode(text)):
            return text
        clean = self.unhidden(text, "", counts)
        data = encode(clean)
        pieces: list[bytes] = []
        place = search = 0
        while (start := self.find(data, search)) is not None:
            match = self.match(data, start)
            if match is None:
                search = start + width(data, start)
                if doubts is not None:
                    doubts.one_more()
                continue
            noted(match.rule, counts)
            if sum(counts.values()) - counts.get(INVISIBLE, 0) > MOST:
                raise Refusal("refused.sanitize", f"The prompt holds more than {MOST} secrets.", policy="sanitize")
            if match.rule.action == "flag":
                pieces.append(data[place : match.end])
            else:
                pieces += (data[place : match.start], match.rule.replaced(data[match.start : match.end], vault))
            place = search = match.end
        if not pieces:
            return clean
        pieces.append(data[place:])
        changed = b"".join(pieces)
        return clean if changed == data else decode(changed)


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


def width(data: bytes, place: int) -> int:
    """Bytes of the character at `place`."""
    end = place + 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    return end - place


def unescaped(data: bytes) -> bytes:
    """JSON with the escapes in its strings undone: the same for every text in it, and no JSON any more."""
    return _ESCAPED.sub(_plain, data)


def _plain(match: re.Match[bytes]) -> bytes:
    said = match[0][1:]
    return chr(int(said[1:], 16)).encode("utf-8", "surrogatepass") if len(said) > 1 else _SHORT.get(said, said)


def _any_of(patterns: Iterable[str | None], end: str = "") -> bytes:
    return f"(?:{'|'.join(f'(?:{pattern})' for pattern in patterns if pattern is not None) or _NOTHING}){end}".encode()


def _set(patterns: Sequence[bytes], chosen: Any, *, anchored: bool = False) -> Any:
    made = re2.Set.MatchSet(chosen) if anchored else re2.Set.SearchSet(chosen)
    for pattern in patterns:
        made.Add(pattern)
    made.Compile()
    return made
