"""The steps that say something, pace it, and end it: one frozen class each, so that a test can write them in Python.

Rule 1: a step checks its own values when it is made (ValueError); whether it may stand where it stands is `script`'s matter.
Rule 2: `str(step)` is its text form, and `script.parse` reads exactly that back.
Rule 3: steps are data. What they do is in `walk` (content) and `player` (bytes, time and connections).

Durations are seconds, sizes bytes. The steps that spoil the head, the bytes or the connection are in `faults`.
"""

from __future__ import annotations

import json
from typing import Literal

from attrs import field, frozen

from clawproxy.scripted import checks
from clawproxy.scripted.checks import MAX_SIZE, MAX_TOKENS, Step
from clawproxy.scripted.values import render_duration, render_size, render_text

Figures = Literal["plain", "absurd", "negative", "contradictory", "missing"]
When = Literal["end", "now", "late", "always"]

# --- what is said -----------------------------------------------------------------------------------------------------------


@frozen
class Say(Step):
    """Text, one event for each word (and its leading space); `whole`: one event in all."""

    said: str
    whole: bool = False

    def __str__(self) -> str:
        return f"say{'*' if self.whole else ''} {render_text(self.said)}"


@frozen
class Tokens(Step):
    """` tok0 tok1 ...`: `count` events, `every` seconds apart."""

    count: int = field(validator=checks.between(0, MAX_TOKENS))
    every: float = field(default=0.0, validator=checks.seconds)

    def __str__(self) -> str:
        return f"tokens {self.count}" + (f" every {render_duration(self.every)}" if self.every else "")


@frozen
class Echo(Step):
    """Say the last user message back."""

    text = "echo"


@frozen
class Reply(Step):
    """A short friendly answer that names a few words of the prompt."""

    text = "reply"


@frozen
class Reasoning(Step):
    """Reasoning text, word by word (`delta.reasoning_content` in OpenAI chat)."""

    said: str

    def __str__(self) -> str:
        return f"reasoning {render_text(self.said)}"


@frozen
class RefuseText(Step):
    """A model's refusal, word by word (`delta.refusal`)."""

    said: str

    def __str__(self) -> str:
        return f"refusal {render_text(self.said)}"


@frozen
class ToolCall(Step):
    """A call of a tool. `arguments` go out verbatim, a few characters an event, even where they are not JSON."""

    name: str = field(validator=checks.word)
    arguments: str = "{}"

    def __str__(self) -> str:
        arguments = self.arguments if _is_json_object(self.arguments) else render_text(self.arguments, quoted=True)
        return f"tool {self.name} {arguments}"


def _is_json_object(text: str) -> bool:
    if not text.startswith("{"):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return end == len(text)


# --- how it is said ---------------------------------------------------------------------------------------------------------


@frozen
class Chunk(Step):
    """From here on, `words` words to an event."""

    words: int = field(validator=checks.between(1, 10_000))

    def __str__(self) -> str:
        return f"chunk {self.words}"


@frozen
class Pace(Step):
    """From here on, a pause of `seconds` before each content event but the answer's first."""

    seconds: float = field(validator=checks.seconds)

    def __str__(self) -> str:
        return f"pace {render_duration(self.seconds)}"


@frozen
class Burst(Step):
    """From here on, gather events and write them together, at the next pause or 64 KiB."""

    text = "burst"


@frozen
class Pause(Step):
    """Nothing for a while. Before anything was said it holds the response head back too."""

    seconds: float = field(validator=checks.seconds)

    def __str__(self) -> str:
        return f"pause {render_duration(self.seconds)}"


@frozen
class Stall(Step):
    """Hang until the client leaves."""

    text = "stall"


# --- the end ----------------------------------------------------------------------------------------------------------------


@frozen
class Usage(Step):
    """The figures the provider reports. Without this step, or without `input` and `output`, they are counted in words.

    `figures` spoils them; `when`: `end` (after the finish, if the client asked), `always` (asked or not), `now` (where the step
    stands, besides the end), `late` (after the terminal marker).
    """

    input: int | None = None
    output: int | None = None
    cached: int = 0
    reasoning: int = 0
    figures: Figures = field(default="plain", validator=checks.one_of("plain", "absurd", "negative", "contradictory", "missing"))
    when: When = field(default="end", validator=checks.one_of("end", "now", "late", "always"))

    def __attrs_post_init__(self) -> None:
        if (self.input is None) != (self.output is None):
            raise ValueError("`usage` takes input and output tokens, or neither")
        if str(self) == "usage":
            raise ValueError("`usage` needs figures, or a way to spoil or place them")

    def __str__(self) -> str:
        words = ["usage"] + ([] if self.input is None else [str(self.input), str(self.output)])
        words += [f"cached {self.cached}"] if self.cached else []
        words += [f"reasoning {self.reasoning}"] if self.reasoning else []
        words += [self.figures] if self.figures != "plain" else []
        words += [self.when] if self.when != "end" else []
        return " ".join(words)


@frozen
class Finish(Step):
    """The finish reason, sent where the step stands."""

    reason: str = field(validator=checks.word)

    def __str__(self) -> str:
        return f"finish {self.reason}"


@frozen
class NoDone(Step):
    """End the body properly, but without the terminal marker (`data: [DONE]`)."""

    text = "no done"


@frozen
class End(Step):
    """The end, as it also comes by itself. `bare`: end the body at once, without finish reason, usage or marker."""

    bare: bool = False

    def __str__(self) -> str:
        return "end bare" if self.bare else "end"


@frozen
class Cut(Step):
    """Close the connection with a FIN: here, or once `after` bytes of the answer (head included) are sent."""

    after: int | None = field(default=None, validator=checks.between(0, MAX_SIZE))

    def __str__(self) -> str:
        return "cut" if self.after is None else f"cut after {render_size(self.after)}"


@frozen
class Reset(Step):
    """As `Cut`, with a RST: what the peer had not read yet is lost."""

    after: int | None = field(default=None, validator=checks.between(0, MAX_SIZE))

    def __str__(self) -> str:
        return "reset" if self.after is None else f"reset after {render_size(self.after)}"


@frozen
class ErrorEvent(Step):
    """An error inside a 200. No finish reason, usage or terminal marker follows."""

    message: str
    type: str = field(default="server_error", validator=checks.word)
    code: str | None = field(default=None, validator=checks.word)

    def __str__(self) -> str:
        kind = f" type {self.type}" if self.type != "server_error" else ""
        code = f" code {self.code}" if self.code is not None else ""
        return f"error{kind}{code} {render_text(self.message, quoted=True)}"
