"""Reading along a script's text.

Rule 1: a step ends at a `;` or a line's end, unless escaped or quoted. White space is blank, tab and the CR of CRLF; nothing
        else, so that a text keeps its other spaces.
Rule 2: whatever is wrong is a `ScriptError` that says at which step, what stands there and what would be right.
"""

from __future__ import annotations

import json
import re

from clawproxy.scripted.values import shown, unescape, unescape_bytes

_BLANK = re.compile(r"[ \t\r]*")
_BETWEEN = re.compile(r"(?:[ \t\r\n;]|#[^\n]*)*")
_WORD = re.compile(r"[^ \t\r\n;]+")
_BARE = re.compile(r"(?:\\[^\n]|[^\\;\n])*")
_QUOTED = re.compile(r'"((?:\\[^\n]|[^"\\\n])*)"')


class ScriptError(ValueError):
    """A script that can not be played. `step` counts from 1; 0 where the script as a whole is wrong."""

    def __init__(self, step: int, problem: str) -> None:
        self.step = step
        self.problem = problem
        super().__init__(f"step {step}: {problem}" if step else problem)


class Cursor:
    """A place in a script's text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.step = 0

    def error(self, problem: str) -> ScriptError:
        return ScriptError(self.step, problem)

    def next_step(self) -> bool:
        """Go to the next step's first word; whether there is one."""
        self._skip(_BETWEEN)
        self.step += 1
        return self._at < len(self._text)

    def close_step(self, keyword: str) -> None:
        """The step is read; nothing may stand before its end."""
        if left := self.peek():
            raise self.error(f"`{shown(left)}` is too much after `{shown(keyword)}`")

    def peek(self) -> str:
        """The next word of this step, "" at its end."""
        self._skip(_BLANK)
        match = _WORD.match(self._text, self._at)
        return match[0] if match else ""

    def word(self, what: str) -> str:
        """Take the next word. `what` completes "... is missing"."""
        word = self.peek()
        if not word:
            raise self.error(f"{what} is missing")
        self._at += len(word)
        return word

    def take(self, word: str) -> bool:
        """Take the next word if it is this one."""
        if self.peek() != word:
            return False
        self._at += len(word)
        return True

    def value(self, what: str) -> str:
        """One word, or a quoted text."""
        quoted = self._quoted()
        return self.word(what) if quoted is None else self._unescaped(quoted)

    def text(self, what: str) -> str:
        """The rest of the step, or a quoted text."""
        return self._unescaped(self._raw(what))

    def data(self, what: str) -> bytes:
        """The same as bytes, where an `xNN` escape is one byte."""
        try:
            return unescape_bytes(self._raw(what))
        except ValueError as error:
            raise self.error(str(error)) from None

    def json_object(self) -> str | None:
        """A JSON object exactly as it is written, over as many lines as it takes; None where none begins here."""
        self._skip(_BLANK)
        if not self._text.startswith("{", self._at):
            return None
        try:
            _, end = json.JSONDecoder().raw_decode(self._text, self._at)
        except (ValueError, RecursionError):
            raise self.error("these are not whole JSON arguments; to send broken ones, quote them") from None
        start, self._at = self._at, end
        return self._text[start:end]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _quoted(self) -> str | None:
        self._skip(_BLANK)
        if not self._text.startswith('"', self._at):
            return None
        match = _QUOTED.match(self._text, self._at)
        if match is None:
            raise self.error("the quoted text does not end in this line")
        self._at = match.end()
        return match[1]

    def _raw(self, what: str) -> str:
        quoted = self._quoted()
        if quoted is not None:
            return quoted
        match = _BARE.match(self._text, self._at)
        raw = match[0] if match else ""
        self._at += len(raw)
        raw = raw.rstrip(" \t\r")
        if not raw:
            raise self.error(f'{what} is missing (an empty one is written "")')
        if self._text.startswith("\\", self._at):
            raise self.error("a backslash at the end of a line escapes nothing")
        return raw

    def _unescaped(self, raw: str) -> str:
        try:
            return unescape(raw)
        except ValueError as error:
            raise self.error(str(error)) from None
