"""The text form of each step: one small reader per keyword. What a step is rendered as stands at the step itself.

A reader is called with the cursor after the keyword and gives the step. It raises `ScriptError` by way of the cursor, and
ValueError where a value is refused by the step's own checks; `script.parse` puts the step's number to those.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, cast

from clawproxy.scripted import faults as f
from clawproxy.scripted import steps as s
from clawproxy.scripted.checks import Step
from clawproxy.scripted.cursor import Cursor
from clawproxy.scripted.values import read_count, read_duration, read_size, shown

Read = Callable[[Cursor], Step]


def _said(cls: Callable[[str], Step]) -> Read:
    return lambda c: cls(c.text("the text"))


def _just(cls: Callable[[], Step]) -> Read:
    return lambda c: cls()


def _duration(c: Cursor) -> float:
    return read_duration(c.word("a duration such as 200ms"))


def _every(c: Cursor) -> float:
    if not c.take("every"):
        raise c.error("`every` and a duration such as 200ms are missing")
    return _duration(c)


def _tokens(c: Cursor) -> Step:
    count = read_count(c.word("how many tokens"))
    return s.Tokens(count, _every(c) if c.peek() else 0.0)


def _tool(c: Cursor) -> Step:
    name = c.word("the tool's name")
    arguments = c.json_object()
    return s.ToolCall(name, c.text("a JSON object of arguments") if arguments is None else arguments)


def _head(c: Cursor) -> Step:
    return f.Head(_duration(c)) if c.take("over") else f.Head()


def _header_pair(c: Cursor) -> tuple[str, str]:
    name = c.word("the header, as NAME: VALUE,")
    if not name.endswith(":"):
        raise c.error(f"write the header as NAME: VALUE, with a blank after the colon, not `{shown(name)}`")
    return name[:-1], c.value("the header's value")


def _header(c: Cursor) -> Step:
    name = c.word("the header, as NAME: VALUE,")
    if not name.endswith(":"):
        raise c.error(f"write the header as NAME: VALUE, with a blank after the colon, not `{shown(name)}`")
    return f.Header(name[:-1], c.text("the header's value"))


def _status(c: Cursor) -> Step:
    values: dict[str, Any] = {"code": read_count(c.word("the status code"))}
    headers: list[tuple[str, str]] = []
    while option := c.peek():
        c.take(option)
        if option == "retry-after":
            values["retry_after"] = c.value("seconds or a quoted date")
        elif option == "header":
            headers.append(_header_pair(c))
        elif option == "size":
            values["size"] = read_size(c.word("a size such as 10MiB"))
        elif option == "body":
            values["body"] = c.text("the body's text")
            break
        else:
            raise c.error(f"`status` takes retry-after V, header NAME: V, size N or body TEXT, not `{shown(option)}`")
    return f.Status(headers=tuple(headers), **values)


_FIGURES = ("absurd", "negative", "contradictory", "missing")
_WHEN = ("now", "late", "always")


def _usage(c: Cursor) -> Step:
    values: dict[str, Any] = {}
    if c.peek().lstrip("-")[:1].isdigit():
        values["input"] = read_count(c.word("input tokens"))
        values["output"] = read_count(c.word("the number of output tokens"))
    while option := c.peek():
        c.take(option)
        if option in ("cached", "reasoning"):
            values[option] = read_count(c.word(f"the number of {option} tokens"))
        elif option in _FIGURES:
            values["figures"] = option
        elif option in _WHEN:
            values["when"] = option
        else:
            known = ", ".join((*_FIGURES, *_WHEN))
            raise c.error(f"`usage` takes IN OUT, cached N, reasoning N, {known}, not `{shown(option)}`")
    if not values:
        raise c.error("the figures are missing: usage IN OUT, or one of " + ", ".join(_FIGURES))
    return s.Usage(**values)


def _error(c: Cursor) -> Step:
    values: dict[str, str] = {}
    for option in ("type", "code"):
        if c.take(option):
            values[option] = c.word(f"the error's {option}")
    return s.ErrorEvent(c.text("the error's message"), **values)


def _drip(c: Cursor) -> Step:
    return f.Drip(read_size(c.word("how many bytes")), _every(c))


def _split(c: Cursor) -> Step:
    c.take("every")
    return f.Split(read_size(c.word("how many bytes")))


def _breaking(cls: Callable[[int | None], Step]) -> Read:
    return lambda c: cls(read_size(c.word("after how many bytes")) if c.take("after") else None)


def _raw(c: Cursor) -> Step:
    return f.RawHead(c.data("the head")) if c.take("head") else f.Raw(c.data("the bytes"))


def _close(c: Cursor) -> Step:
    if c.take("idle"):
        return f.CloseIdle(_duration(c))
    if c.take("at"):
        _second(c, "close at", "reuse")
        return f.CloseAtReuse()
    return f.Close()


def _second(c: Cursor, first: str, second: str) -> None:
    if not c.take(second):
        raise c.error(f"`{first}` goes on with `{second}`")


def _two_words(first: str, second: str, cls: Callable[[], Step]) -> Read:
    def read(c: Cursor) -> Step:
        _second(c, first, second)
        return cls()

    return read


GRAMMAR: Mapping[str, tuple[str, Read]] = {
    "say": ("say TEXT", _said(s.Say)),
    "say*": ("say* TEXT", _said(lambda text: s.Say(text, whole=True))),
    "tokens": ("tokens N [every D]", _tokens),
    "echo": ("echo", _just(s.Echo)),
    "reply": ("reply", _just(s.Reply)),
    "reasoning": ("reasoning TEXT", _said(s.Reasoning)),
    "refusal": ("refusal TEXT", _said(s.RefuseText)),
    "tool": ("tool NAME JSON", _tool),
    "chunk": ("chunk N", lambda c: s.Chunk(read_count(c.word("how many words")))),
    "pace": ("pace D", lambda c: s.Pace(_duration(c))),
    "burst": ("burst", _just(s.Burst)),
    "pause": ("pause D", lambda c: s.Pause(_duration(c))),
    "stall": ("stall", _just(s.Stall)),
    "usage": ("usage IN OUT [cached N] [reasoning N] [absurd|negative|contradictory|missing] [now|late|always]", _usage),
    "finish": ("finish REASON", lambda c: s.Finish(c.word("the finish reason"))),
    "no": ("no done", _two_words("no", "done", s.NoDone)),
    "end": ("end [bare]", lambda c: s.End(c.take("bare"))),
    "error": ("error [type T] [code C] TEXT", _error),
    "cut": ("cut [after N]", _breaking(s.Cut)),
    "reset": ("reset [after N]", _breaking(s.Reset)),
    "head": ("head [over D]", _head),
    "begin": ("begin", _just(f.Begin)),
    "header": ("header NAME: VALUE", _header),
    "status": ("status CODE [retry-after V] [header NAME: V] [size N | body TEXT]", _status),
    "redirect": ("redirect URL", lambda c: f.Redirect(c.text("the address"))),
    "framing": ("framing chunked|close", lambda c: f.Framing(c.word("the kind of framing"))),
    "split": ("split [every] N", _split),
    "drip": ("drip N every D", _drip),
    "raw": ("raw [head] TEXT", _raw),
    "comment": ("comment TEXT", _said(f.Comment)),
    "bad": ("bad json", _two_words("bad", "json", f.BadJson)),
    "unknown": ("unknown event", _two_words("unknown", "event", f.UnknownEvent)),
    "close": ("close [idle D | at reuse]", _close),
}
"""Each keyword with the form to show someone who got it wrong, and its reader."""


def read_step(c: Cursor) -> Step:
    """The step at the cursor. Raises ScriptError."""
    keyword = c.word("a step")
    if keyword not in GRAMMAR:
        near = difflib.get_close_matches(keyword, GRAMMAR, 1)
        hint = f"did you mean `{GRAMMAR[near[0]][0]}`?" if near else "the steps are " + " ".join(GRAMMAR)
        escape = " (inside a text, write \\; or quote the text)" if c.step > 1 else ""
        raise c.error(f"`{shown(keyword)}` is not a step; {hint}{escape}")
    form, read = GRAMMAR[keyword]
    try:
        step = read(c)
    except ValueError as error:
        problem = cast(str, getattr(error, "problem", str(error)))
        raise c.error(f"{problem}; write `{form}`") from None
    c.close_step(keyword)
    return step
