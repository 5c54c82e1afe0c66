"""Finds secrets in whole texts, in linear time (RE2).

Rule 1: everything works on UTF-8 bytes; matches begin and end between characters.
Rule 2: the common text holds no secret, and finding that out is one call of `re2.Set`.
Rule 3: of all matches the one that begins first counts; of those that begin together, the first rule's whose check holds.
Rule 4: characters nobody sees go first, where the settings say so: they hide words from patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import re2
from attrs import field, frozen

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


@frozen(init=False, slots=True)
class Scanner:
    """A compiled list of rules."""

    rules: Sequence[Rule]
    hidden: Hidden | None
    _union: Any = field(repr=False)
    _begun: Any = field(repr=False)
    _parts: Any = field(repr=False)
    _leads: Sequence[Any] = field(repr=False)
    _any: Any = field(repr=False)
    _quick: Any = field(repr=False)
    _which: Any = field(repr=False)
    _each: Sequence[tuple[Any, Any]] = field(repr=False)

    def __init__(self, rules: Sequence[Rule], hidden: Hidden | None = None) -> None:
        chosen = options()
        union = ("|".join(f"(?:{rule.followed.whole})" for rule in rules) or _NOTHING).encode()
        begun = "|".join(f"(?:{rule.followed.begun})" for rule in rules if rule.followed.begun is not None) or _NOTHING
        ending = rf"(?:{begun})\z".encode()
        parts = (
            "|".join(f"(?:{rule.followed.begun})" for rule in rules if rule.parts == "all" and rule.followed.begun) or _NOTHING
        )
        gate = [] if hidden is None else [GATE.encode()]
        each = [
            (re2.compile(rule.followed.whole.encode(), chosen), re2.compile(rule.lead.encode(), chosen) if rule.lead else None)
            for rule in rules
        ]
        self.__attrs_init__(
            tuple(rules),
            hidden,
            re2.compile(union, chosen),
            re2.compile(ending, chosen),
            re2.compile(rf"(?:{parts})\z".encode(), chosen),
            tuple(lead for rule, (_, lead) in zip(rules, each, strict=True) if rule.parts == "led" and lead is not None),
            _set([union, *gate], chosen),
            _set([union, *gate, ending], chosen),
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
        if self.hidden is not None and 1 in (self._any.Match(data) or ()):
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
        """Neither holds a match nor ends with what could begin one."""
        return not self._quick.Match(data)

    def find(self, data: bytes, start: int) -> int | None:
        """Where the first match begins, at `start` or later; what stands before `start` is seen by `\\b` only."""
        found = self._union.search(data, start)
        return None if found is None else int(found.start())

    def match(self, data: bytes, start: int) -> Match | None:
        """The match that begins exactly at `start`; None where no check holds."""
        # One anchored set names the rules worth trying; it sees no context, so it may name one too many, never one too few
        # (but for a rule that needs more than HEAD bytes: then all are tried).
        named = self._which.Match(data[start : start + HEAD])
        for place in sorted(named) if named else range(len(self.rules)):
            whole, lead = self._each[place]
            found = whole.match(data, start)
            if found is not None:
                led = None if lead is None else lead.match(data, start)
                begin, end, rule = start if led is None else led.end(), found.end(), self.rules[place]
                if rule.accepts is not None:
                    end = begin + rule.accepts(data[begin:end])
                if end > begin:
                    return Match(begin, end, rule)
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

    def begins(self, data: bytes, start: int) -> int | None:
        """Where, from `start` on, the first text begins that runs to the end of `data` and may be the beginning of a match (or
        is a match that may go on)."""
        found = self._begun.search(data, start)
        return None if found is None else int(found.start())

    def shows(self, data: bytes, start: int, least: int) -> int | None:
        """Where, from `start` on, at least so many characters of an unfinished secret stand, to the end of `data`."""
        found = self._parts.search(data, start)
        if found is not None and len(decode(data[found.start() :])) >= least:
            return int(found.start())
        for lead in self._leads:
            led = lead.match(data, start)
            if led is not None and len(decode(data[led.end() :])) >= least:
                return int(led.end())
        return None

    def redact(self, text: str, counts: dict[str, int], vault: Vault | None = None, doubts: Doubts | None = None) -> str:
        """The text with its secrets replaced: the same object where there are none. Raises Refusal where a rule blocks."""
        if not self._any.Match(encode(text)):
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


def _set(patterns: Sequence[bytes], chosen: Any, *, anchored: bool = False) -> Any:
    made = re2.Set.MatchSet(chosen) if anchored else re2.Set.SearchSet(chosen)
    for pattern in patterns:
        made.Add(pattern)
    made.Compile()
    return made
