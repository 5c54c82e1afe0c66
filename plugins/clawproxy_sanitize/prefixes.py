"""How a pattern can begin: from an RE2 pattern, one that matches every non-empty beginning of its matches.

A stream is cut anywhere. To pass text on at once and yet catch a match that spans pieces, one must know whether the text so
far could be the beginning of one. RE2 does not tell, but the beginnings of a regular language are regular too:
    N(ab) = N(a) | a N(b)      N(a|b) = N(a) | N(b)      N(x{m,n}) = x{1,n} for one character      N(g*) = g* N(g)
Rule 1: the result may match more than the true beginnings (then text waits a little longer), never less.
Rule 2: what can not be followed across pieces (anchors, `\\B`) is refused, with a sentence. So is what RE2 does not know.
Rule 3: groups come out without capturing, so that RE2 can use its fastest engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import inf

from attrs import frozen

_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d+)(,?)(\d*)\})\??")
_ESCAPE = re.compile(r"\\(?:x\{[0-9A-Fa-f]{1,6}\}|x[0-9A-Fa-f]{2}|[pP](?:\{\^?\w+\}|\w)|[0-7]{1,3}|.)", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:P?<\w+>|([imsU]*(?:-[imsU]+)?):))?")


class Unfollowable(ValueError):
    """The pattern can not be followed through a stream. Its text is a sentence."""


@frozen
class Followed:
    """`whole`: the pattern, its groups not capturing. `begun`: its beginnings, None where it has none but the empty one.
    `longest`: characters a match may have at most; infinite where it has no end."""

    whole: str
    begun: str | None
    longest: float = 0


def follow(pattern: str) -> Followed:
    """Raises Unfollowable. That RE2 accepts `pattern` must have been checked before: this reads only what RE2 does."""
    parser = _Parser(pattern)
    result = parser.alternatives()
    if parser.place < len(pattern):
        raise Unfollowable("a `)` has no `(`.")
    return result


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.place = 0

    def alternatives(self) -> Followed:
        branches = [self._sequence()]
        while self._peek() == "|":
            self.place += 1
            branches.append(self._sequence())
        return Followed(
            "|".join(branch.whole for branch in branches),
            _either(branch.begun for branch in branches),
            max(branch.longest for branch in branches),
        )

    def _sequence(self) -> Followed:
        items: list[Followed] = []
        while self._peek() not in ("", "|", ")"):
            items.append(self._item())
        begun: str | None = None
        for item in reversed(items):
            rest = None if begun is None else f"{item.whole}(?:{begun})"
            begun = _either((item.begun, rest))
        return Followed("".join(item.whole for item in items), begun, sum(item.longest for item in items))

    def _item(self) -> Followed:
        char = self._peek()
        if char == "(":
            return self._group()
        if char == "[":
            return self._quantified(self._char_class(), single=True)
        if char == "\\":
            return self._escape()
        if char in "^$":
            raise Unfollowable("`^` and `$` have no meaning in text that comes in pieces; use `\\b`.")
        if char in "*+?":
            raise Unfollowable(f"a `{char}` has nothing to repeat.")
        self.place += 1
        return self._quantified(char, single=True)

    def _group(self) -> Followed:
        match = _GROUP.match(self.pattern, self.place)
        assert match is not None
        if match.end() < len(self.pattern) and match[0] == "(" and self.pattern[match.end()] == "?":
            raise Unfollowable("flags stand at a group of their own: `(?i:...)`.")
        opening = f"(?{match[1]}:" if match[1] else "(?:"
        self.place = match.end()
        inner = self.alternatives()
        if self._peek() != ")":
            raise Unfollowable("a `(` has no `)`.")
        self.place += 1
        begun = None if inner.begun is None else f"{opening}{inner.begun})"
        return self._quantified(f"{opening}{inner.whole})", begun, inner.longest, single=False)

    def _escape(self) -> Followed:
        match = _ESCAPE.match(self.pattern, self.place)
        if match is None:
            raise Unfollowable("a `\\` stands at the end.")
        self.place = match.end()
        if match[0] == "\\b":
            return Followed(match[0], None)
        if match[0] in ("\\A", "\\z", "\\B"):
            raise Unfollowable(f"`{match[0]}` has no meaning in text that comes in pieces; use `\\b`.")
        if match[0] in ("\\Q", "\\E", "\\C"):
            raise Unfollowable(f"`{match[0]}` is not supported.")
        return self._quantified(match[0], single=True)

    def _char_class(self) -> str:
        start = self.place
        self.place += 1
        if self._peek() == "^":
            self.place += 1
        first = True
        while first or self._peek() != "]":
            first = False
            char = self._peek()
            if char == "":
                raise Unfollowable("a `[` has no `]`.")
            if char == "[" and self.pattern[self.place : self.place + 2] == "[:":
                self.place = self.pattern.index(":]", self.place) + 2
            elif char == "\\":
                match = _ESCAPE.match(self.pattern, self.place)
                if match is None:
                    raise Unfollowable("a `\\` stands at the end.")
                self.place = match.end()
            else:
                self.place += 1
        self.place += 1
        return self.pattern[start : self.place]

    def _quantified(self, atom: str, begun: str | None = "", longest: float = 1, *, single: bool) -> Followed:
        """`begun` is the atom's own beginnings; "" stands for the atom itself. `longest` is the atom's."""
        match = _QUANTIFIER.match(self.pattern, self.place)
        if begun == "":
            begun = atom
        if match is None:
            return Followed(atom, begun, longest)
        self.place = match.end()
        if _QUANTIFIER.match(self.pattern, self.place):
            raise Unfollowable("two repetitions follow each other.")
        whole = atom + match[0]
        most = _most(match)
        if begun is None or most == 0:
            return Followed(whole, None)
        longest *= inf if most is None else most
        if single:
            return Followed(whole, f"{atom}+" if most is None else f"{atom}{{1,{most}}}" if most > 1 else atom, longest)
        before = f"(?:{atom})*" if most is None else f"(?:{atom}){{0,{most - 1}}}" if most > 1 else ""
        return Followed(whole, before + begun, longest)

    def _peek(self) -> str:
        return self.pattern[self.place] if self.place < len(self.pattern) else ""


def _most(match: re.Match[str]) -> int | None:
    """How often a quantifier repeats at most; None without end."""
    if match[1] is None:
        return 1 if match[0][0] == "?" else None
    if not match[2]:
        return int(match[1])
    return int(match[3]) if match[3] else None


def _either(branches: Iterable[str | None]) -> str | None:
    known = [branch for branch in branches if branch is not None]
    if not known:
        return None
    return known[0] if len(known) == 1 else f"(?:{'|'.join(known)})"
