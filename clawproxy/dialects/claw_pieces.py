"""A prompt that comes in pieces (`llm_prompt_chunk`), put together. No I/O.

Rule 1: texts that follow each other are one text; a prompt of nothing else is a string.
Rule 2: what is kept is bounded: each piece counts for what it holds and for a little more, so that a million empty ones do not
        pass for nothing.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

from clawproxy.errors import ClawError
from clawproxy.messages import FilePart, ImagePart, Part, TextPart

PIECE: Final = 64
"""Bytes that a piece counts for beyond what it holds."""
_TEXTS: Final = 512
"""Texts kept apart before they are joined to one, once."""


def size_of(content: str | tuple[Part, ...]) -> int:
    """About how many bytes of memory it stands for."""
    if isinstance(content, str):
        return PIECE + _bytes(content)
    return PIECE + sum([PIECE + _held(part) for part in content])


def _held(part: Part) -> int:
    if isinstance(part, TextPart):
        return _bytes(part.text)
    if isinstance(part, ImagePart | FilePart):
        return len(part.data or "") + len(part.url or "")
    return len(part.data)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@define(slots=True, eq=False)
class Pieces:
    limit: int
    """Bytes."""
    size: int = 0
    _earlier: list[str] = field(factory=list, init=False)
    """Of the text that comes before `_texts`."""
    _texts: list[str] = field(factory=list, init=False)
    _parts: list[Part] = field(factory=list, init=False)

    def add(self, content: str | tuple[Part, ...]) -> None:
        """Raises ClawError("frame_too_large") where it would be more than `limit`; nothing is kept then."""
        self.size += size_of(content)
        if self.size > self.limit:
            self._earlier.clear()
            self._texts.clear()
            self._parts.clear()
            words = f"A streamed prompt may hold {self.limit} bytes (setting limits.frame)."
            raise ClawError("frame_too_large", words, param="content", setting="limits.frame")
        if isinstance(content, str):
            self._text(content)
            return
        for part in content:
            if isinstance(part, TextPart) and not part.extra:
                self._text(part.text)
            else:
                self._close_text()
                self._parts.append(part)

    def content(self) -> str | tuple[Part, ...]:
        """All of it so far."""
        if not self._parts:
            return self._text_so_far()
        self._close_text()
        return tuple(self._parts)

    def _text(self, text: str) -> None:
        self._texts.append(text)
        if len(self._texts) > _TEXTS:
            self._earlier.append("".join(self._texts))
            self._texts.clear()

    def _text_so_far(self) -> str:
        return "".join([*self._earlier, *self._texts])

    def _close_text(self) -> None:
        text = self._text_so_far()
        self._earlier.clear()
        self._texts.clear()
        if text:
            self._parts.append(TextPart(text))
