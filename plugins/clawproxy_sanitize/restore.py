"""Placeholders go up, the originals come back: `[MAIL-5d1f0c3a]` for an address, and the address again in the answer.

Rule 1: a placeholder is made of its original under a key (HMAC-SHA-256): the same value of the same client key has the same
        one in every turn, so that histories agree and providers' prompt caches still match; nobody can make or reverse one
        without the key, and other client keys have others.
Rule 2: originals live in one exchange's `Vault` and nowhere else. What an exchange did not put there, it never gets back.
Rule 3: reasoning keeps its placeholders: its provider checks in the next turn that it was not changed.
Rule 4: a placeholder is known however it is cut; what may begin one waits, at most `LONGEST` characters.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Sequence

import msgspec
from attrs import evolve

from clawproxy.events import End, Event, Failed, Finish, Opaque, Refused, Text, ToolCallDelta
from clawproxy_sanitize.stream import MACHINES, Answer
from clawproxy_sanitize.values import deep

MOST = 1000
"""Values one exchange may have replaced; what comes after is redacted."""
LONGEST = 60
SHAPE = re.compile(r"\[[A-Z0-9-]{1,40}-(?:[0-9a-f]{8}|[0-9a-f]{16})\]")
_SHAPE_BYTES = re.compile(SHAPE.pattern.encode())


class Vault:
    """One exchange's originals, by their placeholders. Its `repr` holds none of them."""

    __slots__ = ("_key", "_originals", "_placeholders")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._originals: dict[str, str] = {}
        self._placeholders: dict[tuple[str, str], str] = {}

    def __len__(self) -> int:
        return len(self._originals)

    def __repr__(self) -> str:
        return f"<Vault of {len(self)}>"

    def placeholder(self, name: str, original: str) -> str | None:
        """What stands for it. None where it can not come back: there are too many, or it would have to be unescaped."""
        known = self._placeholders.get((name, original))
        if known is not None:
            return known
        if len(self) >= MOST or "\\" in original:
            return None
        digest = hmac.digest(self._key, f"{name}\0{original}".encode("utf-8", "surrogatepass"), "sha256").hex()
        for digits in (8, 16):
            made = f"[{name.upper().replace('_', '-')}-{digest[:digits]}]"
            if made not in self._originals:
                self._originals[made] = original
                self._placeholders[name, original] = made
                return made
        return None

    def restored(self, text: str, written: Callable[[str], str] = str) -> str:
        """The text with the originals of this exchange back in, each as `written` writes it."""

        def original(match: re.Match[str]) -> str:
            found = self._originals.get(match[0])
            return match[0] if found is None else written(found)

        return SHAPE.sub(original, text) if "[" in text else text

    def veiled(self, text: str) -> str:
        """The text with the placeholders again: for what is kept of an answer."""
        for placeholder, original in self._originals.items():
            for form in {original, in_json(original)}:
                text = text.replace(form, placeholder)
                # It may have been cut within one.
                size = next((size for size in range(len(form) - 1, 3, -1) if text.endswith(form[:size])), 0)
                if size:
                    text = text[:-size] + placeholder
        return text

    def begins(self, text: str) -> int:
        """Where the last piece of the text begins that may be the beginning of a placeholder; its length where none does."""
        place = text.rfind("[", max(0, len(text) - LONGEST))
        if place >= 0:
            rest = text[place:]
            if any(placeholder.startswith(rest) for placeholder in self._originals if placeholder != rest):
                return place
        return len(text)


def in_json(text: str) -> str:
    """As it stands within a JSON string."""
    return msgspec.json.encode(text.encode("utf-8", "replace").decode()).decode()[1:-1]


class Restoring:
    """The transform of one attempt: what `Answer` leaves of it, with the originals back in."""

    __slots__ = ("_answer", "_held", "_key", "_vault")

    def __init__(self, answer: Answer, vault: Vault) -> None:
        self._answer = answer
        self._vault = vault
        self._key: type[Event] | int = Text
        self._held = ""

    def change(self, events: Sequence[Event]) -> Sequence[Event]:
        """Raises Refusal where a rule blocks."""
        return self._restored(self._answer.change(events))

    def end(self) -> Sequence[Event]:
        out = list(self._restored(self._answer.end()))
        self._let_go(out)
        return out

    def passes(self, raw: bytes) -> bool:
        return self._answer.passes(raw) and _SHAPE_BYTES.search(raw) is None

    def _restored(self, events: Sequence[Event]) -> Sequence[Event]:
        out: list[Event] = []
        for event in events:
            kind = type(event)
            if isinstance(event, Text | Refused):
                self._turn(kind, out)
                ready = self._ready(event.text)
                if ready:
                    out.append(event if ready == event.text else evolve(event, text=ready))
            elif isinstance(event, ToolCallDelta):
                self._turn(event.index, out)
                name = event.name and self._vault.restored(event.name)
                ready = self._ready(event.arguments, in_json)
                if ready == event.arguments and name == event.name:
                    out.append(event)
                elif ready or event.call_id is not None or name is not None:
                    out.append(evolve(event, name=name, arguments=ready))
            elif isinstance(event, Opaque):
                self._let_go(out)
                out.append(self._opaque(event))
            else:
                if kind is Finish or kind is End or kind is Failed:
                    self._let_go(out)
                out.append(event)
        same = len(out) == len(events) and all(one is other for one, other in zip(out, events, strict=True))
        return events if same else out

    def _ready(self, text: str, written: Callable[[str], str] = str) -> str:
        """What may go on of it and of what was held, restored; the rest is held."""
        text = self._held + text
        place = self._vault.begins(text)
        self._held = text[place:]
        return self._vault.restored(text[:place], written)

    def _turn(self, key: type[Event] | int, out: list[Event]) -> None:
        if key != self._key:
            self._let_go(out)
            self._key = key

    def _let_go(self, out: list[Event]) -> None:
        held, self._held = self._held, ""
        if held:
            key = self._key
            out.append(
                ToolCallDelta(key, arguments=held) if isinstance(key, int) else Refused(held) if key is Refused else Text(held)
            )

    def _opaque(self, event: Opaque) -> Opaque:
        if event.data is None or _SHAPE_BYTES.search(event.data) is None:
            return event
        said = msgspec.json.decode(event.data)
        made = deep(said, self._vault.restored, MACHINES)
        return event if made is said else evolve(event, data=msgspec.json.encode(made))
