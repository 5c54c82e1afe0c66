"""What Ollama's clients look at before they ask: the models there are, one of them, the version.

Rule: nothing is made up. The gateway has no files, so sizes are 0 and digests empty; a capability nobody stated is not claimed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clawproxy.dialects import jsonio

API_VERSION = "0.12.0"
"""The release of Ollama whose API this is, not the gateway's: clients compare it with what they need."""
_MADE = "1970-01-01T00:00:00Z"
_DETAILS = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


def tags_body(models: Iterable[str]) -> bytes:
    """`GET /api/tags`: a name that comes twice is listed once."""
    return jsonio.encode({"models": [_entry(name) for name in dict.fromkeys(models)]})


def _entry(name: str) -> dict[str, Any]:
    return {"name": name, "model": name, "modified_at": _MADE, "size": 0, "digest": "", "details": _DETAILS}


def show_body(context_tokens: int | None) -> bytes:
    """`POST /api/show`: the context window, where the operator stated it."""
    known: dict[str, Any] = {"general.architecture": "gateway"}
    if context_tokens is not None:
        known["gateway.context_length"] = context_tokens
    page = {"modelfile": "", "parameters": "", "template": "", "details": _DETAILS, "model_info": known, "modified_at": _MADE}
    return jsonio.encode(page)


def version_body() -> bytes:
    return jsonio.encode({"version": API_VERSION})
