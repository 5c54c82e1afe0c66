"""The output items of one answer, made of events: each change gives the stream's own events, in the order clients rely on.

    output_item.added, content_part.added, output_text.delta*, output_text.done, content_part.done, output_item.done

Rule 1: one message or reasoning item is open at a time; calls stay open until the answer ends, for pieces of several may come in
        turns.
Rule 2: an item's place (`output_index`) and id never change once told, whoever told them: `follow` takes over those that
        passed by in the provider's own bytes.
Rule 3: the pieces are kept: the events that close an item repeat all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field

from clawproxy.dialects.openai_responses.client_agree import whole_text
from clawproxy.dialects.openai_responses.items import OWN_REASONING
from clawproxy.dialects.openai_responses.tools import Names, unwrapped
from clawproxy.events import Reasoning, ToolCallDelta

Told = list[dict[str, Any]]
"""Events to tell the client, without their sequence numbers."""


@define
class _Part:
    kind: str
    """output_text, refusal, summary_text, reasoning_text."""
    pieces: list[str] = field(factory=list)
    done: bool = False

    def document(self) -> dict[str, Any]:
        text = "".join(self.pieces)
        if self.kind == "output_text":
            return {"type": self.kind, "text": text, "annotations": [], "logprobs": []}
        return {"type": self.kind, "refusal" if self.kind == "refusal" else "text": text}


@define
class _Item:
    index: int
    kind: str
    """message, reasoning, function_call, custom_tool_call."""
    id: str
    parts: list[_Part] = field(factory=list)
    name: str = ""
    call_id: str = ""
    arguments: list[str] = field(factory=list)
    plain: bool = False
    """Of a custom call: its pieces are the input itself."""
    encrypted: str | None = None
    final: dict[str, Any] | None = None
    """As its provider ended it."""
    done: bool = False

    def document(self, names: Names, status: str) -> dict[str, Any]:
        if self.final is not None:
            return self.final
        if self.kind == "message":
            content = [part.document() for part in self.parts]
            return {"type": self.kind, "id": self.id, "status": status, "role": "assistant", "content": content}
        if self.kind == "reasoning":
            item = {"type": self.kind, "id": self.id, "summary": [part.document() for part in self.parts]}
            return item if self.encrypted is None else {**item, "encrypted_content": self.encrypted}
        said = "".join(self.arguments)
        item = {"type": self.kind, "id": self.id, "call_id": self.call_id, **names.said(self.name)}
        if self.kind == "custom_tool_call":
            return {**item, "status": status, "input": said if self.plain else unwrapped(said)}
        return {**item, "status": status, "arguments": said}


class Items:
    """Args: suffix: what the ids made here end with."""

    def __init__(self, names: Names, suffix: str) -> None:
        self._names = names
        self._suffix = suffix
        self._items: list[_Item] = []
        self._open: _Item | None = None
        """The message or reasoning item under way."""
        self._calls: dict[int, _Item] = {}

    def output(self, status: str = "completed") -> list[dict[str, Any]]:
        return [item.document(self._names, status) for item in sorted(self._items, key=lambda item: item.index)]

    def has_calls(self) -> bool:
        return any(item.kind in ("function_call", "custom_tool_call") for item in self._items)

    # --- events in ---------------------------------------------------------------------------------------------------------

    def text(self, piece: str, refusal: bool = False) -> Told:
        return self._say("message", "refusal" if refusal else "output_text", piece)

    def reasoning(self, event: Reasoning, own: bool) -> Told:
        """`own`: it came from a provider of this format, so what is encrypted means something to the client."""
        told = self._say("reasoning", "summary_text", event.text) if event.text else []
        if own and event.data is not None:
            item, opened = self._begin("reasoning")
            item.encrypted = event.data
            told += opened + self._close_open()
        return told

    def call(self, event: ToolCallDelta, own: bool) -> Told:
        item = self._calls.get(event.index)
        told: Told = []
        if item is None:
            told += self._close_open()
            item = self._new("function_call", f"fc_{self._suffix}{len(self._items)}")
            item.call_id = event.call_id or f"call_{self._suffix}{len(self._items)}"
            self._calls[event.index] = item
        if event.name and not item.name:
            item.name = event.name
            if self._names.is_custom(item.name):
                item.kind, item.id, item.plain = "custom_tool_call", "ctc" + item.id[2:], own
            told.append(self._added(item))
            event = ToolCallDelta(event.index, None, None, "".join(item.arguments) + event.arguments)
            item.arguments.clear()
        if event.arguments:
            item.arguments.append(event.arguments)
            if item.name and (item.kind == "function_call" or item.plain):
                kind = "function_call_arguments" if item.kind == "function_call" else "custom_tool_call_input"
                told.append({"type": f"response.{kind}.delta", **_at(item), "delta": event.arguments})
        return told

    def close(self, status: str = "completed") -> Told:
        """End all items that are open."""
        told = self._close_open(status)
        for item in sorted(self._calls.values(), key=lambda item: item.index):
            if not item.done:
                told += self._close_call(item, status)
        self._calls.clear()
        return told

    # --- what passed by ----------------------------------------------------------------------------------------------------

    def follow(self, event: Mapping[str, Any]) -> None:
        """Take over what a provider's own event changed; anything unexpected in it is left alone."""
        kind, index, item = event.get("type"), event.get("output_index"), event.get("item")
        if type(index) is not int or not isinstance(kind, str):
            return
        known = next((each for each in self._items if each.index == index), None)
        if kind == "response.output_item.added" and isinstance(item, dict) and known is None:
            self._adopt(item, index)
        elif known is None:
            return
        elif kind == "response.output_item.done" and isinstance(item, dict):
            known.final, known.done = item, True
            if self._open is known:
                self._open = None
        elif kind in ("response.content_part.added", "response.reasoning_summary_part.added"):
            part = event.get("part")
            if isinstance(part, dict) and isinstance(part.get("type"), str):
                known.parts.append(_Part(part["type"]))
        elif kind.endswith(".delta") and isinstance(event.get("delta"), str):
            if known.kind in ("function_call", "custom_tool_call"):
                known.arguments.append(event["delta"])
            elif known.parts:
                known.parts[-1].pieces.append(event["delta"])
        elif kind.endswith(".done"):
            pieces = known.parts[-1].pieces if known.parts else known.arguments
            if not pieces and (text := whole_text(event)):
                pieces.append(text)  # of a provider that sends no deltas
            if kind.endswith("_part.done") and known.parts:
                known.parts[-1].done = True

    def _adopt(self, item: dict[str, Any], index: int) -> None:
        known = _Item(index, str(item.get("type")), str(item.get("id")))
        self._items.append(known)
        if known.kind in ("message", "reasoning"):
            self._open = known
        elif known.kind in ("function_call", "custom_tool_call"):
            known.name, known.call_id, known.plain = str(item.get("name")), str(item.get("call_id")), True
            self._calls[len(self._calls)] = known
        else:
            known.final = item

    def texts_of(self, index: int) -> list[str] | None:
        """`client_agree.Known`."""
        item = next((each for each in self._items if each.index == index), None)
        if item is None:
            return None
        return ["".join(part.pieces) for part in item.parts] or ["".join(item.arguments)]

    def heard(self, piece: str) -> None:
        """A text that passed by: what `follow` does for a delta, at a fraction of the cost."""
        if self._open is not None and self._open.parts:
            self._open.parts[-1].pieces.append(piece)

    # --- making them -------------------------------------------------------------------------------------------------------

    def _new(self, kind: str, ident: str) -> _Item:
        index = max((item.index for item in self._items), default=-1) + 1
        item = _Item(index, kind, ident)
        self._items.append(item)
        return item

    def _added(self, item: _Item) -> dict[str, Any]:
        document = item.document(self._names, "in_progress")
        document |= {"content": []} if item.kind == "message" else {"summary": []} if item.kind == "reasoning" else {}
        if item.kind in ("function_call", "custom_tool_call"):
            document["input" if item.kind == "custom_tool_call" else "arguments"] = ""
        return {"type": "response.output_item.added", "output_index": item.index, "item": document}

    def _begin(self, kind: str) -> tuple[_Item, Told]:
        """The open item of this kind, and what to tell where it had to be made."""
        item = self._open
        if item is not None and item.kind == kind:
            return item, []
        told = self._close_open()
        ident = f"msg_{self._suffix}" if kind == "message" else f"{OWN_REASONING}{self._suffix}"
        item = self._open = self._new(kind, f"{ident}{len(self._items)}")
        return item, [*told, self._added(item)]

    def _say(self, kind: str, part_kind: str, piece: str) -> Told:
        item, told = self._begin(kind)
        part = item.parts[-1] if item.parts else None
        if part is None or part.done or (part.kind != part_kind and kind == "message"):
            if part is not None and not part.done:
                told += _close_part(item)
            part = _Part(part_kind)
            item.parts.append(part)
            told.append({"type": f"response.{_part_name(item)}.added", **_place(item), "part": part.document()})
        part.pieces.append(piece)
        if piece:
            logprobs: dict[str, Any] = {"logprobs": []} if part.kind == "output_text" else {}
            told.append({"type": f"response.{_text_name(item)}.delta", **_place(item), "delta": piece, **logprobs})
        return told

    def _close_open(self, status: str = "completed") -> Told:
        item, self._open = self._open, None
        if item is None:
            return []
        item.done = True
        told = _close_part(item) if item.parts and not item.parts[-1].done else []
        return [*told, self._done(item, status)]

    def _close_call(self, item: _Item, status: str) -> Told:
        item.done = True
        told: Told = []
        if not item.name:
            told.append(self._added(item))  # a call nobody named: told, so that nothing is lost
        document = item.document(self._names, status)
        if item.kind == "custom_tool_call":
            if not item.plain and document["input"]:
                told.append({"type": "response.custom_tool_call_input.delta", **_at(item), "delta": document["input"]})
            told.append({"type": "response.custom_tool_call_input.done", **_at(item), "input": document["input"]})
        else:
            done = {"name": document["name"], "arguments": document["arguments"]}
            told.append({"type": "response.function_call_arguments.done", **_at(item), **done})
        return [*told, self._done(item, status)]

    def _done(self, item: _Item, status: str) -> dict[str, Any]:
        return {"type": "response.output_item.done", "output_index": item.index, "item": item.document(self._names, status)}


def _at(item: _Item) -> dict[str, Any]:
    return {"item_id": item.id, "output_index": item.index}


def _place(item: _Item) -> dict[str, Any]:
    """Where the last part of an item is."""
    summary = item.kind == "reasoning" and item.parts[-1].kind == "summary_text"
    return {**_at(item), "summary_index" if summary else "content_index": len(item.parts) - 1}


def _part_name(item: _Item) -> str:
    return "reasoning_summary_part" if item.parts[-1].kind == "summary_text" else "content_part"


def _text_name(item: _Item) -> str:
    kind = item.parts[-1].kind
    return {"summary_text": "reasoning_summary_text"}.get(kind, kind)


def _close_part(item: _Item) -> Told:
    part = item.parts[-1]
    part.done = True
    whole = part.document()
    text: dict[str, Any] = {"refusal": whole["refusal"]} if part.kind == "refusal" else {"text": whole["text"]}
    if part.kind == "output_text":
        text["logprobs"] = []
    return [
        {"type": f"response.{_text_name(item)}.done", **_place(item), **text},
        {"type": f"response.{_part_name(item)}.done", **_place(item), "part": whole},
    ]
