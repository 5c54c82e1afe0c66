"""Whether a provider's own bytes say nothing that the client was not to hear.

The events that end a part, an item or the answer repeat its whole text. A policy that reads a stream sees a text once, in its
pieces, and may hold one back while the repetition is already there. So a repetition passes only where it says just what passed
before, or what the batch it came in says itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

_CALLS = ("function_call", "custom_tool_call")
_FIELDS = ("text", "refusal", "arguments", "input")


class Known(Protocol):
    def texts_of(self, index: int) -> list[str] | None:
        """The texts of an item's parts (or its call's arguments) as far as they passed; None where it is not known."""
        ...


def agrees(known: Known, events: Sequence[Mapping[str, Any]], said: Collection[str]) -> bool:
    """Args: events: of one batch, decoded. said: the texts that the batch itself says, as policies saw them."""
    parts: dict[int, list[str]] = {}
    for event in events:
        kind, index = event.get("type"), event.get("output_index")
        if not isinstance(kind, str):
            return False
        response = event.get("response")
        if isinstance(response, Mapping):
            output = response.get("output")
            for place, item in enumerate(output if isinstance(output, list) else ()):
                if not _same(_item_text(item), parts.get(place) or known.texts_of(place), said):
                    return False
            continue
        if type(index) is not int:
            continue
        now = parts.setdefault(index, list(known.texts_of(index) or ()))
        if kind.endswith("_part.added"):
            now.append("")
        elif kind.endswith(".delta"):
            now[-1:] = [(now[-1] if now else "") + str(event.get("delta"))]
        elif kind == "response.output_item.done":
            if not _same(_item_text(event.get("item")), now, said):
                return False
        elif kind.endswith(".done"):
            text = whole_text(event)
            if not _same(text, now[-1:], said):
                return False
            now[-1:] = [text or ""]
    return True


def _same(text: str | None, passed: Sequence[str] | None, said: Collection[str]) -> bool:
    return not text or text == "".join(passed or ()) or text in said


def whole_text(event: Mapping[str, Any]) -> str | None:
    """The text that an event ending a part repeats."""
    part = event.get("part")
    return _text(part if isinstance(part, Mapping) else event)


def _text(fields: Mapping[str, Any]) -> str | None:
    return next((fields[name] for name in _FIELDS if isinstance(fields.get(name), str)), None)


def _item_text(item: Any) -> str | None:
    """The whole text of an item that has a word in the vocabulary; None for others, which are not policies' to read."""
    if not isinstance(item, Mapping):
        return None
    if item.get("type") in _CALLS:
        return _text(item)
    if item.get("type") not in ("message", "reasoning"):
        return None
    lists = [item[name] for name in ("summary", "content") if isinstance(item.get(name), list)]
    return "".join([_text(part) or "" for parts in lists for part in parts if isinstance(part, Mapping)])
