"""Redaction of an answer's events.

Rule 1: each text of the answer (its words, its reasoning, its refusal, the arguments of each tool call) is a text of its own,
        looked at in its own `Window`.
Rule 2: the order of content is kept: at most one text holds anything back, and it lets go before another text's event.
Rule 3: usage reports pass at once, for some providers send one with every piece and none ends a text. What ends the answer
        (`Finish`, `End`, `Failed`) lets go what is held first.
Rule 4: when nothing was changed and nothing is held, the very sequence that came in goes out; and the provider's bytes with it,
        if they hold nothing where events do not reach (`passes`).
Rule 5: content the vocabulary has no word for (`Opaque`) is one text more. It is never held: what may be the beginning of a
        secret is let go while it is short, and taken out when it is not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import msgspec
from attrs import evolve

from clawproxy.context import Scanned
from clawproxy.events import CONTENT, End, Event, Failed, Finish, Opaque, Reasoning, Refused, Text, ToolCallDelta
from clawproxy_sanitize.scanner import Scanner, unescaped
from clawproxy_sanitize.values import deep
from clawproxy_sanitize.window import Window

Key = type[Text] | type[Reasoning] | type[Refused] | str | int
"""A kind of text, a kind of `Opaque`, or a tool call's index."""
MACHINES = frozenset({"type", "id", "item_id", "obfuscation", "tool_use_id"})
"""Of an `Opaque`: strings that stand between the pieces of a text and are none of it."""
_ENDS = frozenset({Finish, End, Failed})
TEXTS = 128
"""Texts remembered at once: a provider may make up any number of tool calls."""


class Answer:
    """The transform of one attempt. `told(counts)` is called when a secret of a kind not seen before was found."""

    __slots__ = ("_counts", "_current", "_key", "_scanned", "_scanner", "_told", "_told_of", "_windows")

    def __init__(
        self,
        scanner: Scanner,
        counts: dict[str, int],
        told: Callable[[dict[str, int]], None],
        scanned: Scanned | None = None,
    ) -> None:
        self._scanner = scanner
        self._scanned = scanned
        self._counts = counts
        self._told = told
        self._told_of = len(counts)
        self._windows: dict[Key, Window] = {}
        self._key: Key = Text
        self._current = self._window(Text)

    def change(self, events: Sequence[Event]) -> Sequence[Event]:
        """Raises Refusal where a rule blocks."""
        if self._is_clean(events):
            return events
        out: list[Event] = []
        for event in events:
            kind = type(event)
            if isinstance(event, Reasoning) and not (event.signature is event.data is None):
                self._signed(event, out)
            elif kind is Text or kind is Reasoning or kind is Refused:
                if kind is not self._key:
                    self._turn(kind, out)
                pieces = self._current.feed(event.text)  # type: ignore[union-attr]
                if pieces is None:
                    out.append(event)
                else:
                    self._pass_on(pieces, event, event.text, out)  # type: ignore[union-attr]
            elif isinstance(event, ToolCallDelta):
                if self._key != event.index:
                    self._turn(event.index, out)
                self._tool(event, out)
            elif isinstance(event, Opaque):
                self._let_go(out)
                out.append(self._opaque(event))
            else:
                if kind is Finish or kind is End or kind is Failed:
                    self._let_go(out)
                out.append(event)
        if len(self._counts) > self._told_of:
            self._told_of = len(self._counts)
            self._told(self._counts)
        if len(out) == len(events) and all(map(operator.is_, out, events)):
            return events
        return out

    def passes(self, raw: bytes) -> bool:
        """Whether a provider's bytes hold no secret, wherever in them. Raises Refusal where a rule blocks."""
        data = unescaped(raw) if b"\\" in raw else raw
        if not self._scanner.may_hold(data):
            return True
        good = not self._scanner.holds(data, self._counts)
        if len(self._counts) > self._told_of:
            self._told_of = len(self._counts)
            self._told(self._counts)
        return good

    def _is_clean(self, events: Sequence[Event]) -> bool:
        """Whether nothing is held, and all the text of this batch may go on: one look, however many tokens it is."""
        key, kinds = self._key, [*map(type, events)]
        others = {*kinds} - {key}
        if not others.isdisjoint(CONTENT):
            return False
        over = min(map(kinds.index, others & _ENDS), default=len(kinds))
        if key in kinds[over:]:
            return False  # the text before its end is a text of its own
        return self._current.passes("".join([event.text for event in events if type(event) is key]))

    def end(self) -> Sequence[Event]:
        out: list[Event] = []
        self._let_go(out)
        if len(self._counts) > self._told_of:
            self._told(self._counts)
        return out

    def _signed(self, event: Reasoning, out: list[Event]) -> None:
        """The end of a block of reasoning: what is held goes before its signature, which goes on as it is."""
        if self._key is not Reasoning:
            self._turn(Reasoning, out)
        pieces = self._current.feed(event.text)
        if pieces is None:
            out.append(event)
            return
        out += map(self._event, pieces)
        if self._current.held:
            out += map(self._event, self._current.interrupt())
        out.append(evolve(event, text=""))

    def _opaque(self, event: Opaque) -> Opaque:
        if event.data is None:
            return event
        window = self._window(event.kind)

        def change(text: str) -> str:
            pieces = window.feed(text)
            if pieces is None:
                return text
            changed = "".join([*pieces, *window.interrupt()] if window.held else pieces)
            return text if changed == text else changed  # the same object where it says the same: then its bytes may stand

        said = msgspec.json.decode(event.data)
        made = deep(said, change, MACHINES, lambda key: self._scanner.redact(key, self._counts))
        return event if made is said else evolve(event, data=msgspec.json.encode(made))

    def _tool(self, event: ToolCallDelta, out: list[Event]) -> None:
        if event.name:
            event = (
                evolve(event, name=name) if (name := self._scanner.redact(event.name, self._counts)) is not event.name else event
            )
        if not event.arguments:
            out.append(event)
            return
        pieces = self._current.feed(event.arguments)
        if pieces is None:
            out.append(event)
            return
        begins = event.call_id is not None or event.name is not None
        if begins and (len(pieces) != 1 or pieces[0] != event.arguments):
            out.append(evolve(event, arguments=""))
        self._pass_on(pieces, event, event.arguments, out)

    def _pass_on(self, pieces: Sequence[str], event: Event, text: str, out: list[Event]) -> None:
        if len(pieces) == 1 and pieces[0] == text:
            out.append(event)
        else:
            out += map(self._event, pieces)

    def _turn(self, key: Key, out: list[Event]) -> None:
        """Another text goes on."""
        if self._current.held:
            out += map(self._event, self._current.interrupt())
        self._key = key
        self._current = self._window(key)

    def _let_go(self, out: list[Event]) -> None:
        if self._current.held:
            out += map(self._event, self._current.finish())

    def _window(self, key: Key) -> Window:
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window(self._scanner, self._counts, self._scanned)
            if len(self._windows) > TEXTS:
                del self._windows[next(iter(self._windows))]
        return window

    def _event(self, text: str) -> Event:
        key = self._key
        assert not isinstance(key, str), "an Opaque holds nothing"
        return ToolCallDelta(key, arguments=text) if isinstance(key, int) else key(text)
