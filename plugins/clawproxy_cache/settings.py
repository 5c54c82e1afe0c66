"""`[plugins.cache]`."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen, validators

from clawproxy.config import MIB, Duration, Size

Scope = Literal["key", "team", "global"]


@frozen
class CacheSettings:
    models: tuple[str, ...] = ("*",)
    """Whose answers are kept: names or `prefix*`, as in `[keys]`."""
    scope: Scope = "key"
    """Who gets them again: the key that asked, its team (the key alone, where it has none), or every key."""
    ttl: Duration = field(default=Duration(600.0), validator=validators.gt(Duration(0.0)))
    """How long."""
    max_bytes: Size = field(default=Size(64 * MIB), validator=validators.ge(Size(0)))
    """What all of them may take of memory; the one asked for longest ago goes first."""
    max_answer: Size = field(default=Size(1 * MIB), validator=validators.ge(Size(1)))
    """What one may take."""
    deterministic_only: bool = False
    """Only where the same answer was to be expected: `temperature = 0`, and embeddings."""
    stale_if_error: Duration = field(default=Duration(0.0), validator=validators.ge(Duration(0.0)))
    """How long after `ttl` it may still be given where no route can answer (RFC 5861, 4)."""

    def covers(self, model: str) -> bool:
        return any(pattern == model or (pattern.endswith("*") and model.startswith(pattern[:-1])) for pattern in self.models)
