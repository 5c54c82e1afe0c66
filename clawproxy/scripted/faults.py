"""The steps that act on the head, the bytes and the connection. The rules of `steps` hold here too.

Durations are seconds, sizes bytes.
"""

from __future__ import annotations

from attrs import field, frozen

from clawproxy.scripted import checks
from clawproxy.scripted.checks import MAX_SIZE, Step
from clawproxy.scripted.values import render_bytes, render_duration, render_size, render_text

# --- the head ---------------------------------------------------------------------------------------------------------------


@frozen
class Head(Step):
    """Send the response head now; `over`: byte by byte, evenly over so many seconds."""

    over: float = field(default=0.0, validator=checks.seconds)

    def __str__(self) -> str:
        return "head" + (f" over {render_duration(self.over)}" if self.over else "")


@frozen
class RawHead(Step):
    """These bytes instead of a response head; what follows goes out without framing."""

    data: bytes

    def __str__(self) -> str:
        return f"raw head {render_bytes(self.data)}"


@frozen
class Begin(Step):
    """Send the head and the format's opening event (OpenAI: the role) now, without content."""

    text = "begin"


@frozen
class Header(Step):
    """A response header, instead of the provider's own of that name."""

    name: str = field(validator=checks.header_name)
    value: str = field(validator=checks.header_value)

    def __str__(self) -> str:
        return f"header {self.name}: {render_text(self.value, quoted=True)}"


@frozen
class Status(Step):
    """An answer that is no answer: a status with a body (`body`, or `size` bytes of filling, or the format's own error)."""

    code: int = field(validator=checks.between(200, 599))
    body: str | None = None
    size: int | None = field(default=None, validator=checks.between(0, MAX_SIZE))
    retry_after: str | None = field(default=None, validator=checks.header_value)
    headers: tuple[tuple[str, str], ...] = field(default=(), validator=checks.headers)

    def __attrs_post_init__(self) -> None:
        if self.body is not None and self.size is not None:
            raise ValueError("`status` takes `body` or `size`, not both")

    def __str__(self) -> str:
        words = [f"status {self.code}"]
        if self.retry_after is not None:
            words.append(f"retry-after {render_text(self.retry_after, quoted=True)}")
        words += [f"header {name}: {render_text(value, quoted=True)}" for name, value in self.headers]
        if self.size is not None:
            words.append(f"size {render_size(self.size)}")
        if self.body is not None:
            words.append(f"body {render_text(self.body, quoted=True)}")
        return " ".join(words)


@frozen
class Redirect(Step):
    """307 to another address."""

    url: str = field(validator=checks.header_value)

    def __str__(self) -> str:
        return f"redirect {render_text(self.url)}"


@frozen
class Framing(Step):
    """How the body's end is marked: `chunked` (as streams are by default), or `close`, by the connection's end."""

    kind: str = field(validator=checks.one_of("chunked", "close"))

    def __str__(self) -> str:
        return f"framing {self.kind}"


# --- spoiled bytes ----------------------------------------------------------------------------------------------------------


@frozen
class Split(Step):
    """From here on, at most `size` bytes a write."""

    size: int = field(validator=checks.between(1, MAX_SIZE))

    def __str__(self) -> str:
        return f"split {render_size(self.size)}"


@frozen
class Drip(Step):
    """From here on, `size` bytes of the body every `every` seconds."""

    size: int = field(validator=checks.between(1, MAX_SIZE))
    every: float = field(validator=checks.seconds)

    def __str__(self) -> str:
        return f"drip {render_size(self.size)} every {render_duration(self.every)}"


@frozen
class Raw(Step):
    """These bytes in the body, as they are. In an answer without streaming they are the body."""

    data: bytes

    def __str__(self) -> str:
        return f"raw {render_bytes(self.data)}"


@frozen
class Comment(Step):
    """A comment, such as providers send to keep a connection alive."""

    said: str

    def __str__(self) -> str:
        return f"comment {render_text(self.said)}"


@frozen
class BadJson(Step):
    """An event whose JSON breaks off."""

    text = "bad json"


@frozen
class UnknownEvent(Step):
    """A whole event of a kind nobody knows."""

    text = "unknown event"


# --- the connection ---------------------------------------------------------------------------------------------------------


@frozen
class Close(Step):
    """Announce and do it: close the connection after this answer."""

    text = "close"


@frozen
class CloseIdle(Step):
    """Say nothing, and close the connection once it was idle so long after this answer."""

    seconds: float = field(validator=checks.seconds)

    def __str__(self) -> str:
        return f"close idle {render_duration(self.seconds)}"


@frozen
class CloseAtReuse(Step):
    """Say nothing, and close the connection when the first byte of its next request arrives."""

    text = "close at reuse"
