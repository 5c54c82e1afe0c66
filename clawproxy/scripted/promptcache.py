"""A provider's prompt cache: whole blocks of a prompt's beginning, kept for a while since they were last used.

Rule 1: what counts is the beginning: a block is found again only if all that stood before it is the same, tools first, then the
        system prompt, then the messages, as real providers have it.
Rule 2: blocks are counted in words, as this provider's tokens are; of a block that is not whole nothing is kept.
Rule 3: a reading tells what was there before it, and refreshes it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

BLOCK: Final = 128
"""Words of a block; OpenAI counts cached tokens in steps of as many."""
MOST_BLOCKS: Final = 65_536
_ORDER: Final = ("tools", "system", "systemInstruction", "system_instruction", "instructions", "messages", "input", "contents")


class PromptCache:
    """One instance's. `ttl`: seconds."""

    def __init__(self, ttl: float = 300.0, block: int = BLOCK) -> None:
        self.ttl = ttl
        self.block = block
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def read(self, model: str, body: Any, now: float) -> tuple[int, int]:
        """`(cached, all)` words of a request's body (any format's), which is in the cache from now on."""
        words = [word for text in texts(body) for word in text.split()]
        digest, known, found = model.encode("utf-8", "replace"), True, 0
        until = self._until
        for at in range(0, len(words) - self.block + 1, self.block):
            block = " ".join(words[at : at + self.block]).encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(digest + b"\0" + block, digest_size=16).digest()
            known = known and until.get(digest, 0.0) > now
            found += known
            until[digest] = now + self.ttl
            until.move_to_end(digest)
        while len(until) > MOST_BLOCKS:
            until.popitem(last=False)
        return found * self.block, len(words)

    def clear(self) -> None:
        self._until.clear()


def texts(body: Any) -> Iterator[str]:
    """Every text of a prompt, in the order a model reads it."""
    if isinstance(body, dict):
        for name in _ORDER:
            yield from _leaves(body.get(name))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each)
