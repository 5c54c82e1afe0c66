"""Which places have a prompt in their cache: what `[models.X] affinity` goes by.

Rule 1: a prompt is known by digests of blocks of its text, each over all that stands before it, under a key made of the
        service's pepper and the caller's key: no text is kept, and nobody learns of another's prompts by how theirs are routed.
Rule 2: a place is known to have a prompt once it answered one; that is forgotten after the provider's own time (`affinity_ttl`),
        when the place fails, and when the provider reports that it did not have it.
Rule 3: a cache attracts, within bounds: what has more than `affinity_load` times its share of the requests at work counts as
        cold (consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2018). A cold prompt goes where rendezvous
        hashing (Thaler and Ravishankar 1998) puts it, so that all workers, and instances of one pepper, say the same.
Rule 4: it is bounded: `MOST_BLOCKS` of a prompt, `MOST_KNOWN` in all, the least lately used go first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec
from attrs import define, field, frozen

from clawproxy.context import App, Exchange
from clawproxy.messages import ChatRequest, Message, TextPart, Usage

BLOCK: Final = 1024
"""Bytes of text; about 256 tokens."""
MOST_BLOCKS: Final = 1024
"""Of one prompt: what stands after its first MiB is not looked at."""
MOST_KNOWN: Final = 65_536
DIGEST: Final = 16
SAMPLE: Final = 512
"""Characters at either end, and in the middle, that an image or a file is known by, with its length."""
MISSED: Final = 0.5
"""A cache that gave less than this share of what was expected of it did not have the prompt."""

Key = tuple[str, str]
"""A place: provider, and its model."""


@frozen(slots=True)
class Trail:
    """A prompt, as far as affinity goes by it."""

    blocks: tuple[bytes, ...]
    """One for each whole block; by session: one."""
    root: bytes
    """What a conversation has in common from its first request on: a cold one is placed by it."""
    size: int = 0
    """Bytes of the whole prompt; 0: by session."""
    expected: dict[Key, float] = field(factory=dict)
    """By place, the share of the prompt that it has in its cache, where any."""


@define(slots=True, eq=False)
class Memory:
    """One process's. `known` says until when (trio time) which places have a block."""

    known: OrderedDict[bytes, dict[Key, float]] = field(factory=OrderedDict)

    def recall(self, trail: Trail, now: float) -> dict[Key, float]:
        """By place, the share of the prompt in its cache."""
        known, found = self.known, dict[Key, int]()
        for at, block in enumerate(trail.blocks):
            places = known.get(block)
            alive = [key for key, until in places.items() if until > now and found.get(key, 0) == at] if places else ()
            if not alive:
                break
            for key in alive:
                found[key] = at + 1
        whole = trail.size or BLOCK
        return {key: blocks * BLOCK / whole for key, blocks in found.items()}

    def keep(self, trail: Trail, key: Key, until: float, now: float) -> None:
        known = self.known
        for block in reversed(trail.blocks):  # so that a prompt's end is forgotten before its beginning
            places = known.get(block)
            if places is None:
                known[block] = {key: until}
                continue
            known.move_to_end(block)
            if len(places) > 1:
                for each in [each for each, end in places.items() if end <= now]:
                    del places[each]
            places[key] = until
        while len(known) > MOST_KNOWN:
            known.popitem(last=False)

    def forget(self, trail: Trail, key: Key, kept: float = 0.0) -> None:
        """The place has no more of it than this share."""
        first = int(kept * trail.size) // BLOCK
        for block in trail.blocks[first:]:
            places = self.known.get(block)
            if places is not None and places.pop(key, None) is not None and not places:
                del self.known[block]


# --- prompts ---------------------------------------------------------------------------------------------------------------


def salt(app: App, principal: str) -> bytes:
    return blake2b(principal.encode("utf-8", "surrogatepass"), key=app.pepper[:64], digest_size=32).digest()


def trail_of(kind: str, exchange: Exchange, request: ChatRequest, app: App) -> Trail | None:
    """None where there is nothing to go by: a prompt shorter than a block, or nobody named the session."""
    key = salt(app, exchange.principal.key)
    if kind == "session":
        session = session_of(exchange, request)
        if session is None:
            return None
        digest = blake2b(f"{request.model}\0{session}".encode("utf-8", "surrogatepass"), key=key, digest_size=DIGEST).digest()
        return Trail((digest,), digest)
    return prefix_of(request, key)


def session_of(exchange: Exchange, request: ChatRequest) -> str | None:
    """The conversation's name, in its client's words; a name of a user counts only where the key may assert it."""
    said = exchange.session_id or request.extra.get("prompt_cache_key")
    if not said and exchange.principal.may_assert:
        said = request.user or request.metadata.get("user_id")
    return said if isinstance(said, str) and said else None


def prefix_of(request: ChatRequest, key: bytes) -> Trail | None:
    """Linear in the prompt, up to `MOST_BLOCKS`: about 3 us for each block."""
    most = BLOCK * MOST_BLOCKS
    pieces: list[bytes] = [request.model.encode("utf-8", "surrogatepass")]
    read = size = 0
    root: int | None = None
    for tool in request.tools:
        given = msgspec.json.encode(dict(tool.parameters)) if tool.parameters else b""
        pieces.append(f"\0{tool.name}\0{tool.description or ''}\0".encode("utf-8", "surrogatepass") + given)
    read = size = sum(map(len, pieces))
    for message in request.messages:
        if read >= most:
            size += _about(message)
            continue
        for text in _texts(message):
            begun = text[: max(0, most - read)]  # one message may have many MiB
            piece = begun.encode("utf-8", "surrogatepass")
            pieces.append(piece)
            read += len(piece)
            size += len(piece) + len(text) - len(begun)
        if root is None and message.role == "user":
            root = read
    data = memoryview(b"".join(pieces))
    digest, blocks = key, list[bytes]()
    for at in range(0, min(len(data), most) - BLOCK + 1, BLOCK):
        digest = blake2b(data[at : at + BLOCK], key=digest, digest_size=DIGEST).digest()
        blocks.append(digest)
    if not blocks:
        return None
    opening = data[: min(root or read, most)]
    return Trail(tuple(blocks), blake2b(opening, key=key, digest_size=DIGEST).digest(), size)


def _texts(message: Message) -> Iterator[str]:
    """All that a model reads of it, in order, each piece with what it is."""
    yield f"\0{message.role}\0{message.name or ''}\0{message.tool_call_id or ''}\0"
    for thought in message.thinking:
        yield thought.text
    content = message.content
    if isinstance(content, str):
        yield content
    else:
        for part in content or ():
            if isinstance(part, TextPart):
                yield part.text
            else:
                yield _medium(part)
    for call in message.tool_calls:
        yield f"\0{call.name}\0{call.arguments}"


def _medium(part: Any) -> str:
    """An image, a sound or a file, known by a sample: whole ones are megabytes."""
    data = getattr(part, "data", None) or getattr(part, "url", None) or getattr(part, "file_id", None) or ""
    middle = len(data) // 2
    return f"\0{len(data)}\0{data[:SAMPLE]}{data[middle : middle + SAMPLE]}{data[-SAMPLE:]}"


def _about(message: Message) -> int:
    content = message.content
    texts = (content,) if isinstance(content, str) else [part.text for part in content or () if isinstance(part, TextPart)]
    return sum(map(len, texts)) + sum(len(call.arguments) for call in message.tool_calls)


# --- places ----------------------------------------------------------------------------------------------------------------


def rank(root: bytes, key: Key, weight: int) -> float:
    """Less is better. Each place comes first for its share of all conversations, by weight (weighted rendezvous hashing)."""
    if not weight:
        return math.inf
    drawn = blake2b(f"{key[0]}\0{key[1]}".encode("utf-8", "surrogatepass"), key=root, digest_size=8).digest()
    return -math.log((int.from_bytes(drawn, "big") + 1) / (2**64 + 1)) / weight


def with_room(loads: Sequence[int], weights: Sequence[int], bound: float) -> list[bool]:
    """Which of them may take one more request, that no one has more than `bound` times its share (rounded up)."""
    total, shares = sum(loads) + 1, sum(weights)
    if not shares:
        return [True] * len(loads)
    return [load < math.ceil(bound * total * weight / shares) for load, weight in zip(loads, weights, strict=True)]


def learn(memory: Memory, trail: Trail, key: Key, ttl: float, now: float, usage: Usage | None) -> None:
    """An answer came from there, and its provider reported this."""
    share = trail.expected.get(key, 0.0)
    given, cached = (usage.input_tokens, usage.cached_tokens) if usage is not None else (None, None)
    if share and type(given) is int and type(cached) is int and given > 0:
        # How much of a session's prompt is new, nobody knows.
        least = MISSED * min(share, 1.0) * given if trail.size else 1.0
        if cached < least:
            memory.forget(trail, key, max(0, cached) / given)
            return
    memory.keep(trail, key, now + ttl, now)
