"""Where a key stands in a TOML file: `lines(text)` gives the line of every key, table and array element.

Rule 1: it is asked only about text that `tomllib` has accepted, so it checks nothing; it only counts.
Rule 2: it knows strings (four kinds), comments, brackets, dotted and quoted keys. What is none of these is a bare value.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

Path = tuple[str | int, ...]
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_VALUE = re.compile(r"[^,\]}#\r\n]+")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.line = 1
        self.found: dict[Path, int] = {(): 1}
        self.elements: dict[Path, int] = {}
        """How many tables each array of tables has so far."""

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self.skip():
            if self.text.startswith("[[", self.at):
                table = self.header(2)
            elif self.text[self.at] == "[":
                table = self.header(1)
            else:
                self.pair(table)
        return self.found

    def skip(self) -> bool:
        """Pass white space, line ends and comments; False at the end of the text."""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == "\n":
                self.line += 1
            elif char == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
                continue
            elif char not in " \t":
                return True
            self.at += 1
        return False

    def blanks(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1

    def header(self, brackets: int) -> Path:
        self.at += brackets
        names = self.key()
        self.blanks()
        self.at += brackets
        path: Path = ()
        for place, name in enumerate(names):
            path = self.note((*path, name))
            last = place == len(names) - 1
            if last and brackets == 2:
                index = self.elements.get(path, 0)
                self.elements[path] = index + 1
                path = self.note((*path, index))
            elif path in self.elements:  # a header inside an array of tables means its latest element
                path = (*path, self.elements[path] - 1)
        if brackets == 1:
            self.found[path] = self.line  # its own header, not a child's that stood before it
        return path

    def pair(self, table: Path) -> None:
        path = table
        for name in self.key():
            path = self.note((*path, name))
        self.blanks()
        self.at += 1  # =
        self.blanks()
        self.value(path)

    def note(self, path: Path) -> Path:
        self.found.setdefault(path, self.line)
        return path

    def key(self) -> list[str]:
        names = []
        while True:
            self.blanks()
            if self.text[self.at] in "\"'":
                start = self.at
                self.string()
                names.append(str(tomllib.loads("k = " + self.text[start : self.at])["k"]))
            else:
                match = _BARE.match(self.text, self.at)
                assert match is not None
                names.append(match[0])
                self.at = match.end()
            self.blanks()
            if self.at >= len(self.text) or self.text[self.at] != ".":
                return names
            self.at += 1

    def string(self) -> None:
        """Pass one string, whichever of the four kinds."""
        quote = self.text[self.at]
        if self.text.startswith(quote * 3, self.at):
            self.at += 3
            while not self.text.startswith(quote * 3, self.at):
                if self.text[self.at] == "\\" and quote == '"':
                    self.at += 1
                if self.text[self.at] == "\n":
                    self.line += 1
                self.at += 1
            self.at += 3
            for _ in range(2):  # up to two quotes may stand just before the closing three
                if self.text.startswith(quote, self.at):
                    self.at += 1
            return
        self.at += 1
        while self.text[self.at] != quote:
            self.at += 2 if self.text[self.at] == "\\" and quote == '"' else 1
        self.at += 1

    def value(self, path: Path) -> None:
        char = self.text[self.at]
        if char in "\"'":
            self.string()
        elif char == "[":
            self.at += 1
            index = 0
            while self.skip() and self.text[self.at] != "]":
                if self.text[self.at] == ",":
                    self.at += 1
                    continue
                self.value(self.note((*path, index)))
                index += 1
            self.at += 1
        elif char == "{":
            self.at += 1
            while self.skip() and self.text[self.at] != "}":
                if self.text[self.at] == ",":
                    self.at += 1
                    continue
                self.pair(path)
            self.at += 1
        else:
            match = _VALUE.match(self.text, self.at)
            assert match is not None
            self.at = match.end()


def lines(text: str) -> Mapping[Path, int]:
    """The line (from 1) of every path in a TOML document: keys as `str`, places in arrays as `int`."""
    return _Scanner(text).scan()


def line_of(found: Mapping[Path, int], path: Path) -> int:
    """The line of a path, or of the nearest thing around it that the file has."""
    while path not in found:
        path = path[:-1]
    return found[path]


def dotted(path: Path) -> str:
    """A path as one would write it: `models."gpt-4.1".routes[0].provider`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _PLAIN.fullmatch(part) else quoted(part)
            text += f".{name}" if text else name
    return text


def quoted(text: str) -> str:
    """A basic TOML string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else f"\\U{ord(char):08X}" for char in escaped) + '"'
