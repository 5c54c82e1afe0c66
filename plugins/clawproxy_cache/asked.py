"""What a request asks of the cache: its key, whether an answer may come from it, and whether one may go in. Pure functions.

Rule 1: the key is a digest of the whole request as it was authorised. Left out is only what can not change the answer: whether it
        is streamed, who asked, and hints for the provider's own caches.
        Formats whose answers repeat those (`ECHOING`) have them in the key.
Rule 2: what one dialect alone understands (`extra`) binds a key to that dialect; without any, all dialects share it.
Rule 3: what refers to state at the provider, or leaves some there, is not cached: an answer played again would not do that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import msgspec
from attrs import evolve, frozen

from clawproxy.messages import EMPTY, ChatRequest

LEFT_OUT = frozenset(
    {
        "max_completion_tokens",  # said by `max_tokens` as well
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "stream_options",
    }
)
"""Of a request's `extra`: changes nothing an answer says."""
ECHOING = frozenset({"openai_responses"})
"""Formats whose answers repeat what the request said beside its question, `metadata`, `user` and hints too: to somebody else who
asks the same, an answer played again would tell it."""
STATEFUL = frozenset({"background", "conversation", "previous_response_id"})
PLAIN = frozenset({"logit_bias", "prediction", "service_tier", "store", "verbosity"})
"""Of `extra`: may change what an answer says, never the form it takes."""

_MAX_AGE = re.compile(r'max-age="?([0-9]{1,9})"?')


def _plain_values(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical form")


_encode = msgspec.json.Encoder(enc_hook=_plain_values, order="deterministic").encode


@frozen(slots=True)
class Asked:
    """One request, as the cache sees it."""

    key: bytes
    form: tuple[str, bool, bool, str]
    """Requests of one form can be answered with the same bytes."""
    plain: bool
    """Events say all that an answer to it says, so that it can be written in any form."""
    lookup: bool
    store: bool
    max_age: float | None


def asked_of(request: ChatRequest, scope: tuple[str, ...], fingerprint: bytes, control: str | None) -> Asked | None:
    """None for what can not be cached.

    Args:
        scope: who shares answers.
        fingerprint: stands for the configuration they were given under.
        control: the client's `Cache-Control`.
    """
    if request.operation == "count_tokens" or _keeps_state(request):
        return None
    echoed = request.dialect in ECHOING
    extra = {name: value for name, value in request.extra.items() if echoed or name not in LEFT_OUT}
    canonical = evolve(
        request,
        stream=False,
        include_usage=False,
        form="",
        user=request.user if echoed else None,
        metadata=request.metadata if echoed else EMPTY,
        extra=extra,
        dialect=request.dialect if echoed or extra or _is_bound(request) else "",
    )
    try:
        text = _encode((scope, canonical))
    except (TypeError, ValueError, OverflowError, RecursionError):  # ValueError: a lone surrogate, which UTF-8 can not say
        return None
    no_cache, no_store, max_age = cache_control(control)
    return Asked(
        blake2b(text, digest_size=32, key=fingerprint).digest(),
        (request.dialect, request.stream, request.include_usage, request.form),
        extra.keys() <= PLAIN and not any(tool.extra for tool in request.tools),
        not (no_cache or no_store),
        not no_store,
        max_age,
    )


def _keeps_state(request: ChatRequest) -> bool:
    extra = request.extra
    if any(extra.get(name) for name in STATEFUL):
        return True
    kept = extra.get("store")
    return kept is not False if request.dialect == "openai_responses" else bool(kept)  # Responses are kept unless one says no


def _is_bound(request: ChatRequest) -> bool:
    """Whether anything but the request itself brings what only its dialect understands."""
    return bool(request.headers) or any(
        bool(message.extra or message.thinking)
        or (not isinstance(message.content, str) and any(part.extra for part in message.content or ()))
        or any(call.signature is not None for call in message.tool_calls)
        for message in request.messages
    ) or any(tool.extra for tool in request.tools)  # fmt: skip


def cache_control(said: str | None) -> tuple[bool, bool, float | None]:
    """`no-cache`, `no-store` and the seconds of `max-age` (RFC 9111, 5.2.1). What is not understood is passed over, but for a
    `max-age` that is no number: it allows nothing."""
    no_cache = no_store = False
    max_age: float | None = None
    for directive in (said or "").lower().split(","):
        name = directive.strip()
        if name == "no-cache":
            no_cache = True
        elif name == "no-store":
            no_store = True
        elif name.startswith("max-age"):
            match = _MAX_AGE.fullmatch(name)
            age = float(match[1]) if match is not None else 0.0
            max_age = age if max_age is None else min(age, max_age)
    return no_cache, no_store, max_age


def wish(request: ChatRequest, header: str | None) -> str | None:
    """What the client says about caching: the header, or `metadata.cache_control` on a Claw WebSocket, which has none."""
    if header is not None or request.dialect != "claw":
        return header
    said: Mapping[str, Any] = request.metadata
    value = said.get("cache_control")
    return value if isinstance(value, str) else None
