"""What was asked and answered, where the operator wants it kept: sealed before it is anywhere but in memory.

Rule 1: off unless `[plugins.audit] content` says otherwise; then it needs `content_key`. There is no unencrypted form.
Rule 2: `redacted` keeps the prompt as it went to the provider, after every policy; `full` as it came. Either keeps the answer as
        the client received it; `redacted` without what a policy put back into it.
Rule 3: bounded by `max_content`; what is beyond it is left out, and said (`cut`).
Rule 4: AES-256-GCM (NIST SP 800-38D) with a random nonce for each row, bound to the row's `request_id`: content can not be moved
        to another row.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from attrs import define, field

from clawproxy.errors import ConfigError
from clawproxy.events import Batch, Refused, Text, ToolCallDelta
from clawproxy.messages import ChatRequest, Message
from clawproxy.secrets import Secret

_PURPOSE: Final = b"clawproxy audit content 1"
_NONCE: Final = 12
_SHORTEST: Final = 16
MOST_CALLS: Final = 256
"""Tool calls of one answer."""


class Box:
    """Seals and opens under one key. Raises ConfigError where the key is too short, or `cryptography` is not installed."""

    def __init__(self, secret: Secret) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            words = "plugins.audit.content: needs the package cryptography; run `pip install clawproxy[crypto]`"
            raise ConfigError([words]) from None
        plain = secret.reveal().encode()
        if len(plain) < _SHORTEST:
            raise ConfigError(
                [f"plugins.audit.content_key: is shorter than {_SHORTEST} characters; use a random one of 32 or more"]
            )
        key = hmac.digest(plain, _PURPOSE, "sha256")
        self.name = hmac.digest(key, b"name", "sha256").hex()[:8]
        """By which a row says under which key it was sealed."""
        self._cipher = AESGCM(key)

    def seal(self, request_id: str, content: dict[str, Any]) -> bytes:
        """The row's `content`, as JSON."""
        nonce = os.urandom(_NONCE)
        sealed = self._cipher.encrypt(nonce, msgspec.json.encode(content), request_id.encode())
        data = base64.b64encode(nonce + sealed)
        return b'{"alg":"A256GCM","key":"%b","data":"%b"}' % (self.name.encode(), data)

    def open(self, request_id: str, sealed: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError with a sentence where it is not under this key, or was changed."""
        from cryptography.exceptions import InvalidTag

        try:
            if sealed.get("key") != self.name:
                raise ValueError(f"its content is under another key ({sealed.get('key')}); this one is {self.name}")
            data = base64.b64decode(str(sealed["data"]), validate=True)
            plain = self._cipher.decrypt(data[:_NONCE], data[_NONCE:], request_id.encode())
            return msgspec.json.decode(plain, type=dict[str, Any])
        except (InvalidTag, KeyError) as error:
            raise ValueError("its content was changed, or belongs to another row") from error


@define(slots=True, eq=False)
class Kept:
    """One exchange's, while it runs."""

    limit: int
    prompt: list[dict[str, Any]] = field(factory=list)
    answer: list[str] = field(factory=list)
    calls: dict[int, list[str]] = field(factory=dict)
    cut: bool = False
    _room: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._room = self.limit

    def asked(self, request: ChatRequest) -> None:
        """The prompt; of a second attempt, the one that went out last."""
        self._room, self.prompt, self.cut = self.limit, [], False
        for message in request.messages:
            words = {"role": message.role, "content": self._taken("".join(_texts(message)))}
            self.prompt.append({name: value for name, value in words.items() if value})
            if self.cut:
                return

    def see(self, batch: Batch) -> None:
        for event in batch.events:
            if isinstance(event, Text | Refused):
                self._add(self.answer, event.text)
            elif isinstance(event, ToolCallDelta):
                if len(self.calls) >= MOST_CALLS and event.index not in self.calls:
                    self.cut = True
                else:
                    self._add(self.calls.setdefault(event.index, []), (f"{event.name} " if event.name else "") + event.arguments)

    def _add(self, parts: list[str], text: str) -> None:
        """Nothing is kept of what has no room, or a provider could make it long with empty pieces."""
        taken = self._taken(text)
        if taken:
            parts.append(taken)

    def _taken(self, text: str) -> str:
        data = text.encode("utf-8", "replace")
        if len(data) > self._room:
            self.cut = True
            data = data[: self._room]
        self._room -= len(data)
        return data.decode("utf-8", "ignore")

    def content(self, veil: Callable[[str], str] | None = None) -> dict[str, Any]:
        """Args:
        veil: applied to what the client received.
        """
        shown = veil or str
        out: dict[str, Any] = {"prompt": self.prompt, "answer": shown("".join(self.answer))}
        if self.calls:
            out["tool_calls"] = [shown("".join(parts)) for parts in self.calls.values()]
        if self.cut:
            out["cut"] = True
        return out


def _texts(message: Message) -> Iterator[str]:
    yield message.text()
    for call in message.tool_calls:
        yield f"\n[{call.name} {call.arguments}]"
