"""How a pattern can begin: from an RE2 pattern, one that matches every non-empty beginning of its matches.

A stream is cut anywhere. To pass text on at once and yet catch a match that spans pieces, one must know whether the text so
far could be the beginning of one. RE2 does not tell, but the beginnings of a regular language are regular too:
    N(ab) = N(a) | a N(b)      N(a|b) = N(a) | N(b)      N(x{m,n}) = x{1,n} for one character      N(g*) = g* N(g)
Rule 1: the result may match more than the true beginnings (then text waits a little longer), never less.
Rule 2: what can not be followed across pieces (anchors, `\\B`) is refused, with a sentence. So is what RE2 does not know.
Rule 3: groups come out without capturing, so that RE2 can use its fastest engine.
Rule 4: the opening of a match is what stands before its first repetition: `sk-` of `sk-[a-z0-9]{20,}`. The
        beginnings that go on after it are `Followed.firm`.
Rule 5: each match begins with one of `Followed.head`: the pattern up to the first `HEAD` of a long repetition. So an automaton
        of a few kilobytes tells that a text holds no match of a hundred patterns, and only what it lets by costs more.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from functools import lru_cache
from math import inf

from attrs import evolve, frozen

HEAD = 8
_LOOSE = 16
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d+)(,?)(\d*)\})\??")
_ESCAPE = re.compile(r"\\(?:x\{[0-9A-Fa-f]{1,6}\}|x[0-9A-Fa-f]{2}|[pP](?:\{\^?\w+\}|\w)|[0-7]{1,3}|.)", re.DOTALL)
_GROUP = re.compile(r"\((?:\?(?:P?<\w+>|([imsU]*(?:-[imsU]+)?):))?")


class Unfollowable(ValueError):
    """The pattern can not be followed through a stream. Its text is a sentence."""


@frozen
class Followed:
    """A pattern, or a part of one."""

    whole: str
    """Itself, its groups not capturing."""
    begun: str | None
    """Its beginnings, None where it has none but the empty one."""
    longest: float = 0
    """Characters a match may have at most; infinite where it has no end."""
    firm: str | None = None
    """The beginnings that are longer than the opening; None where a match is nothing but its opening."""
    opening: float = 0
    """Characters of the opening at most."""
    head: str = ""
    """What every match begins with."""
    cut: bool = False
    """Whether the head is less than the whole."""


@lru_cache(256)
def follow(pattern: str, opening: str = "", *, loose: bool = False) -> Followed:
    """Raises Unfollowable. That RE2 accepts `pattern` must have been checked before: this reads only what RE2 does.

    Args:
        opening: what `pattern` begins with, where more is its opening than rule 4 says.
        loose: in `begun` and `firm`, what repeats often may repeat without end: then text waits longer where more follows than
            a match has, and the automaton is many times smaller.
    """
    parser = _Parser(pattern, loose)
    result = parser.alternatives()
    if parser.place < len(pattern):
        raise Unfollowable("a `)` has no `(`.")
    if opening:
        assert pattern.startswith(opening)
        known, rest = follow(opening), follow(pattern.removeprefix(opening), loose=loose)
        firm = _after(known.whole, rest.begun)
        result = evolve(result, firm=firm, opening=known.longest, head=known.whole + rest.head, cut=rest.cut)
    return result


class _Parser:
    def __init__(self, pattern: str, loose: bool) -> None:
        self.pattern = pattern
        self.loose = loose
        self.place = 0

    def alternatives(self) -> Followed:
        branches = [self._sequence()]
        while self._peek() == "|":
            self.place += 1
            branches.append(self._sequence())
        cut = all(branch.cut for branch in branches)
        return Followed(
            "|".join(branch.whole for branch in branches),
            _either(branch.begun for branch in branches),
            max(branch.longest for branch in branches),
            _either(branch.firm for branch in branches),
            max(branch.opening for branch in branches),
            "|".join(branch.head if cut else branch.whole for branch in branches),
            cut,
        )

    def _sequence(self) -> Followed:
        items: list[Followed] = []
        while self._peek() not in ("", "|", ")"):
            items.append(self._item())
        begun: str | None = None
        firm: str | None = None
        opening: float = 0
        for item in reversed(items):
            after = _after(item.whole, begun if item.firm is not None else firm)
            firm = _either((item.firm, after))
            opening = item.opening + (0 if item.firm is not None else opening)
            begun = _either((item.begun, _after(item.whole, begun)))
        longest = sum(item.longest for item in items)
        heads = list(itertools.takewhile(lambda item: not item.cut, items))
        heads += items[len(heads) : len(heads) + 1]
        return Followed(
            "".join(item.whole for item in items),
            begun,
            longest,
            firm,
            opening,
            "".join(item.head for item in heads),
            any(item.cut for item in items),
        )

    def _item(self) -> Followed:
        char = self._peek()
        if char == "(":
            return self._group()
        if char == "[":
            return self._single(self._char_class())
        if char == "\\":
            return self._escape()
        if char in "^$":
            raise Unfollowable("`^` and `$` have no meaning in text that comes in pieces; use `\\b`.")
        if char in "*+?":
            raise Unfollowable(f"a `{char}` has nothing to repeat.")
        self.place += 1
        return self._single(char)

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

        def again(pattern: str | None) -> str | None:
            return None if pattern is None else f"{opening}{pattern})"

        return self._quantified(
            evolve(
                inner,
                whole=f"{opening}{inner.whole})",
                begun=again(inner.begun),
                firm=again(inner.firm),
                head=f"{opening}{inner.head})",
            )
        )

    def _escape(self) -> Followed:
        match = _ESCAPE.match(self.pattern, self.place)
        if match is None:
            raise Unfollowable("a `\\` stands at the end.")
        self.place = match.end()
        if match[0] == "\\b":
            return Followed(match[0], None, head=match[0])
        if match[0] in ("\\A", "\\z", "\\B"):
            raise Unfollowable(f"`{match[0]}` has no meaning in text that comes in pieces; use `\\b`.")
        if match[0] in ("\\Q", "\\E", "\\C"):
            raise Unfollowable(f"`{match[0]}` is not supported.")
        return self._single(match[0])

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

    def _single(self, atom: str) -> Followed:
        """One character."""
        return self._quantified(Followed(atom, atom, 1, None, 1, atom), single=True)

    def _quantified(self, item: Followed, *, single: bool = False) -> Followed:
        match = _QUANTIFIER.match(self.pattern, self.place)
        if match is None:
            return item
        self.place = match.end()
        if _QUANTIFIER.match(self.pattern, self.place):
            raise Unfollowable("two repetitions follow each other.")
        atom, most = item.whole, _most(match)
        whole = atom + match[0]
        if item.begun is None or most == 0:
            return Followed(whole, None, head=whole)
        longest = item.longest * (inf if most is None else most)
        cut = match[1] is not None and int(match[1]) >= HEAD
        head = f"{atom}{{{HEAD}}}" if cut else whole
        if single:
            endless = most is None or (self.loose and most > _LOOSE)
            begun = f"{atom}+" if endless else f"{atom}{{1,{most}}}" if most != 1 else atom
            return Followed(whole, begun, longest, begun, 0, head, cut)
        before = f"(?:{atom})*" if most is None else f"(?:{atom}){{0,{most - 1}}}" if most > 1 else ""
        begun = before + item.begun
        return Followed(whole, begun, longest, begun, 0, head, cut)

    def _peek(self) -> str:
        return self.pattern[self.place] if self.place < len(self.pattern) else ""


def _most(match: re.Match[str]) -> int | None:
    """How often a quantifier repeats at most; None without end."""
    if match[1] is None:
        return 1 if match[0][0] == "?" else None
    if not match[2]:
        return int(match[1])
    return int(match[3]) if match[3] else None


def _after(whole: str, rest: str | None) -> str | None:
    return None if rest is None else f"{whole}(?:{rest})"


def _either(branches: Iterable[str | None]) -> str | None:
    known = [branch for branch in branches if branch is not None]
    if not known:
        return None
    return known[0] if len(known) == 1 else f"(?:{'|'.join(known)})"
