"""JSON in and out: RFC 8259, strict, bounded in depth before the parser sees it."""

from __future__ import annotations

from typing import Any

import msgspec

from clawproxy.errors import ClawError

encode = msgspec.json.encode


def decode(data: bytes, *, depth: int = 64) -> Any:
    """Decode one JSON document.

    Raises:
        ClawError: `json_too_deep`, or `invalid_json` with the place.
    """
    level = deepest = 0
    for byte in data:
        if byte in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif byte in b"]}":
            level -= 1
    if deepest > depth:
        raise ClawError("json_too_deep")
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ClawError("invalid_json") from error
