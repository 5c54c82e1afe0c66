"""A script: what a provider does with one request. Text and Python say the same, `parse(str(script)) == script`.

    say Hello world; pause 200ms; say " and more"; usage 12 9; end

    Script.of("Hello world", Pause(0.2), " and more", Usage(12, 9), End())

Rule: a script that exists can be played. Steps that could never run, or stand where the wire no longer allows them, are
refused when the script is made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import field, frozen

from clawproxy.scripted import faults as f
from clawproxy.scripted import steps as s
from clawproxy.scripted.checks import Step
from clawproxy.scripted.cursor import Cursor, ScriptError
from clawproxy.scripted.grammar import read_step

MAX_STEPS = 10_000

_TO_HEAD = (f.Status, f.Redirect, f.Framing, f.Header, f.Head, f.RawHead)
"""They shape the head: no use once it is gone."""
_SILENT = (s.Chunk, s.Pace, s.Burst, s.Pause, s.Usage, s.NoDone, f.Framing, f.Header, f.Split, f.Drip, f.Close, f.CloseIdle,
           f.CloseAtReuse, s.Stall, s.Cut, s.Reset)  # fmt: skip
"""They put nothing on the wire."""
_FENCE = re.compile(r"^```script[ \t]*\r?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"^[ \t]*script:", re.MULTILINE)


def _steps(value: Sequence[Step]) -> tuple[Step, ...]:
    return tuple(value)


@frozen
class Script:
    """Steps in order. Raises ScriptError where they make no sense together."""

    steps: tuple[Step, ...] = field(converter=_steps)

    def __attrs_post_init__(self) -> None:
        _check(self.steps)

    @classmethod
    def of(cls, *parts: str | Step) -> Script:
        """From steps; a bare string is said word by word."""
        return cls(tuple(s.Say(part) if isinstance(part, str) else part for part in parts))

    def __str__(self) -> str:
        return "; ".join(map(str, self.steps))


def parse(text: str) -> Script:
    """The script a text describes. Raises ScriptError, which names the step and what would be right."""
    cursor = Cursor(text)
    steps: list[Step] = []
    while cursor.next_step():
        if len(steps) == MAX_STEPS:
            raise cursor.error(f"a script has at most {MAX_STEPS} steps")
        steps.append(read_step(cursor))
    return Script(tuple(steps))


def as_script(script: Script | Step | str) -> Script:
    """A script from whatever form it was given in; a string is a script's text."""
    if isinstance(script, str):
        return parse(script)
    return Script((script,)) if isinstance(script, Step) else script


def find_script(prompt: str) -> str | None:
    """The script inside a prompt: a block fenced as ```` ```script ````, or everything after a line's `script:`."""
    if fenced := _FENCE.search(prompt):
        return fenced[1]
    line = _LINE.search(prompt)
    return prompt[line.end() :] if line else None


def _ends(step: Step) -> bool:
    if isinstance(step, s.Cut | s.Reset):
        return step.after is None
    return isinstance(step, s.Stall | s.End | f.Status | f.Redirect)


def _check(steps: tuple[Step, ...]) -> None:
    if not steps:
        raise ScriptError(0, "the script is empty (an empty answer is written `end`)")
    if len(steps) > MAX_STEPS:
        raise ScriptError(0, f"a script has at most {MAX_STEPS} steps")
    head_sent = begun = False
    for number, step in enumerate(steps, 1):
        if not isinstance(step, Step):
            raise ScriptError(number, f"{type(step).__name__} is not a step")
        before = steps[number - 2]
        if number > 1 and _ends(before):
            raise ScriptError(number, f"`{_name(step)}` can never run: step {number - 1} (`{_name(before)}`) ends the answer")
        if head_sent and isinstance(step, _TO_HEAD):
            raise ScriptError(number, f"`{_name(step)}` comes too late: the response head was sent by an earlier step")
        if begun and isinstance(step, f.Begin):
            raise ScriptError(number, "`begin` comes too late: the answer has begun already")
        if not isinstance(step, _SILENT):
            head_sent = True
            begun = begun or not isinstance(step, f.Head | f.RawHead | f.Comment | f.Raw)


def _name(step: Step) -> str:
    return str(step).split(" ", 1)[0]
