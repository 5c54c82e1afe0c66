"""From a script and a request to what goes on the wire: bytes of whole events, and the steps that are not bytes.

Rule 1: no I/O and no waiting here. What the player has to do itself (pause, cut, split ...) passes through as the step it is.
Rule 2: a stream is walked lazily, so that a million tokens cost no memory; a whole answer is walked once, before its head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import frozen

from clawproxy.scripted import faults as f
from clawproxy.scripted import steps as s
from clawproxy.scripted.checks import Step
from clawproxy.scripted.formats import Answer, Asked, Encoder, Figures
from clawproxy.scripted.script import Script

Move = bytes | Step
"""One thing to do: write these bytes of the body, or do what the step says."""

_WORDS = re.compile(r"\s*\S+|\s+")
_PASSED = (s.Burst, s.Pause, s.Stall, s.Cut, s.Reset, f.Head, f.RawHead, f.Header, f.Status, f.Redirect, f.Framing, f.Split,
           f.Drip, f.Close, f.CloseIdle, f.CloseAtReuse)  # fmt: skip
_ARGUMENT_PIECE = 8
_SAYS = (s.Say, s.Tokens, s.Echo, s.Reply, s.Reasoning, s.RefuseText, s.ToolCall)


@frozen(slots=True)
class Plan:
    """How to answer one request."""

    moves: Iterator[Move]
    content_type: str
    length: int | None
    """Of the body, where it is known beforehand."""


def plan(script: Script, asked: Asked, encoder: Encoder) -> Plan:
    if asked.stream:
        return Plan(_Stream(asked, encoder).walk(script), encoder.content_type, None)
    moves, length = _Whole(asked, encoder).walk(script)
    return Plan(iter(moves), "application/json", length)


class _Walk:
    """What both ways of answering keep count of."""

    def __init__(self, asked: Asked, encoder: Encoder) -> None:
        self.asked = asked
        self.encoder = encoder
        self.chunk = 1
        self.pace = 0.0
        self.events = 0
        self.output = 0
        self.reasoned = 0
        self.tools = 0
        self.reported: s.Usage | None = None

    def pieces(self, step: Step) -> Iterator[str]:
        """What a step says, cut as its events are."""
        if isinstance(step, s.Tokens):
            return self._counted(f" tok{number}" for number in range(step.count))
        if isinstance(step, s.ToolCall):
            text = step.arguments
            return self._counted(text[at : at + _ARGUMENT_PIECE] for at in range(0, len(text), _ARGUMENT_PIECE))
        if isinstance(step, s.Say | s.Reasoning | s.RefuseText):
            said = step.said
        else:
            said = self.asked.prompt if isinstance(step, s.Echo) else friendly(self.asked.prompt)
        if isinstance(step, s.Reasoning):
            self.reasoned += len(said.split())
        if isinstance(step, s.Say) and step.whole:
            self.output += len(said.split())
            return iter((said,))
        return self._counted(match[0] for match in _WORDS.finditer(said))

    def _counted(self, tokens: Iterator[str]) -> Iterator[str]:
        held: list[str] = []
        for token in tokens:
            self.output += 1
            held.append(token)
            if len(held) >= self.chunk:
                yield "".join(held)
                held.clear()
        if held:
            yield "".join(held)

    def wait(self, step: Step) -> float:
        """Seconds before the next content event."""
        every = step.every if isinstance(step, s.Tokens) and step.every else self.pace
        self.events += 1
        return every if self.events > 1 else 0.0

    def setting(self, step: Step) -> bool:
        """Take in a step that only changes how the rest is said."""
        if isinstance(step, s.Chunk):
            self.chunk = step.words
        elif isinstance(step, s.Pace):
            self.pace = step.seconds
        elif isinstance(step, s.Usage):
            self.reported = step
        else:
            return False
        return True

    def reason(self) -> str:
        return self.encoder.called if self.tools else self.encoder.stop

    def figures(self) -> Figures | None:
        """What to report; None where the script says `missing`."""
        step = self.reported
        kind = step.figures if step else "plain"
        spent = self.asked.words if step is None or step.input is None else step.input
        made = self.output if step is None or step.output is None else step.output
        cached, reasoning = (step.cached, step.reasoning) if step else (self.asked.cached, self.reasoned)
        if kind == "missing":
            return None
        if kind == "absurd":
            return Figures(10**15, 10**18, 10**18 + 10**15, cached, reasoning)
        if kind == "negative":
            return Figures(-abs(spent) or -1, -abs(made) or -1, -abs(spent) - abs(made), cached, reasoning)
        if kind == "contradictory":
            return Figures(spent, made, spent + made + 1000, spent + 1, made + 1)
        return Figures(spent, made, spent + made, cached, reasoning)


class _Stream(_Walk):
    def __init__(self, asked: Asked, encoder: Encoder) -> None:
        super().__init__(asked, encoder)
        self.begun = False
        self.finished = False
        self.failed = False
        self.marked = True

    def walk(self, script: Script) -> Iterator[Move]:
        for step in script.steps:
            if isinstance(step, _SAYS):
                yield from self._say(step)
            elif isinstance(step, s.End):
                if step.bare:
                    return
            elif isinstance(step, _PASSED):
                yield step
                if isinstance(step, f.Status | f.Redirect):
                    return
            elif isinstance(step, s.Usage):
                yield from self._usage_step(step)
            elif not self.setting(step):
                yield from self._event(step)
        yield from self._end()

    def _begin(self) -> Iterator[bytes]:
        if not self.begun:
            self.begun = True
            yield self.encoder.begin()

    def _say(self, step: Step) -> Iterator[Move]:
        yield from self._begin()
        write = self.encoder.text
        if isinstance(step, s.Reasoning):
            write = self.encoder.reasoning
        elif isinstance(step, s.RefuseText):
            write = self.encoder.refusal
        elif isinstance(step, s.ToolCall):
            index, self.tools = self.tools, self.tools + 1
            yield self.encoder.tool(index, step.name)
            write = lambda piece: self.encoder.arguments(index, piece)  # noqa: E731
        for piece in self.pieces(step):
            if seconds := self.wait(step):
                yield s.Pause(seconds)
            yield write(piece)

    def _event(self, step: Step) -> Iterator[bytes]:
        encoder = self.encoder
        if isinstance(step, f.Begin):
            yield from self._begin()
        elif isinstance(step, s.Finish):
            yield from self._begin()
            self.finished = True
            yield encoder.finish(step.reason)
        elif isinstance(step, s.ErrorEvent):
            self.failed = True
            yield encoder.error(step.message, step.type, step.code)
        elif isinstance(step, s.NoDone):
            self.marked = False
        elif isinstance(step, f.Raw):
            yield step.data
        elif isinstance(step, f.Comment):
            yield encoder.comment(step.said)
        elif isinstance(step, f.BadJson):
            yield encoder.bad_json()
        elif isinstance(step, f.UnknownEvent):
            yield encoder.unknown_event()
        else:
            raise TypeError(f"nobody plays {type(step).__name__}")

    def _usage_step(self, step: s.Usage) -> Iterator[bytes]:
        self.reported = step
        if step.when == "now":
            yield from self._report()

    def _report(self) -> Iterator[bytes]:
        figures = self.figures()
        if figures is not None:
            yield self.encoder.usage(figures)

    def _end(self) -> Iterator[bytes]:
        if self.failed:
            return
        yield from self._begin()
        if not self.finished:
            yield self.encoder.finish(self.reason())
        when = self.reported.when if self.reported else "end"
        asked = self.asked.usage or when == "always"
        if asked and when != "late":
            yield from self._report()
        if self.marked:
            yield self.encoder.done()
        if asked and when == "late":
            yield from self._report()


class _Whole(_Walk):
    def __init__(self, asked: Asked, encoder: Encoder) -> None:
        super().__init__(asked, encoder)
        self.answer = Answer()
        self.moves: list[Move] = []
        self.raw: list[bytes] = []
        self.error: s.ErrorEvent | None = None
        self.broken = False
        self.bare = False

    def walk(self, script: Script) -> tuple[list[Move], int]:
        """The moves, and the body's length as the head announces it."""
        last = script.steps[-1]
        for step in script.steps:
            self._step(step)
        body = self._body()
        if isinstance(last, s.Stall | f.Status | f.Redirect):
            return [*self.moves, last], len(body)
        if isinstance(last, s.Cut | s.Reset) and last.after is None:
            # Cut in the middle of the body, or before its head where nothing was said.
            half = [body[: len(body) // 2]] if self.events or self.raw or self.error else []
            return [*self.moves, *half, last], len(body)
        return [*self.moves, body], len(body)

    def _step(self, step: Step) -> None:
        if isinstance(step, _SAYS):
            self._say(step)
        elif isinstance(step, f.Begin):
            self.moves.append(f.Head())
        elif isinstance(step, _PASSED):
            ending = isinstance(step, s.Stall | f.Status | f.Redirect)
            if not ending and not (isinstance(step, s.Cut | s.Reset) and step.after is None):
                self.moves.append(step)
        elif isinstance(step, s.Finish):
            self.answer.finish = step.reason
        elif isinstance(step, s.ErrorEvent):
            self.error = step
        elif isinstance(step, f.Raw):
            self.raw.append(step.data)
        elif isinstance(step, f.BadJson):
            self.broken = True
        elif isinstance(step, s.End):
            self.bare = step.bare
        else:
            self.setting(step)

    def _say(self, step: Step) -> None:
        pieces, seconds = [], 0.0
        for piece in self.pieces(step):
            pieces.append(piece)
            seconds += self.wait(step)
        text = "".join(pieces)
        if isinstance(step, s.ToolCall):
            self.tools += 1
            self.answer.tools.append((step.name, text))
        elif isinstance(step, s.Reasoning):
            self.answer.reasoning += text
        elif isinstance(step, s.RefuseText):
            self.answer.refusal += text
        else:
            self.answer.text += text
        if seconds:
            self.moves.append(s.Pause(seconds))

    def _body(self) -> bytes:
        if self.raw:
            return b"".join(self.raw)
        if self.error is not None:
            return self.encoder.whole_error(self.error.message, self.error.type, self.error.code)
        if not self.bare:
            self.answer.finish = self.answer.finish or self.reason()
            self.answer.usage = self.figures()
        body = self.encoder.whole(self.answer)
        return body[: len(body) * 2 // 3] if self.broken else body


def friendly(prompt: str) -> str:
    """What `reply` says."""
    words = prompt.split()[:8]
    if not words:
        return "Hello! I am the scripted provider. Ask me something."
    few = " ".join(words)[:80]
    return f'Hello! You said "{few}", and the scripted provider is glad you did. It answers the same way every time.'
