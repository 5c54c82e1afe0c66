"""`GET /v1/models` and `GET /v1/models/NAME` as OpenAI writes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clawproxy.dialects import jsonio


def models_body(models: Iterable[tuple[str, str]], created: int = 0) -> bytes:
    """The list document of `(model, provider)` pairs, in their order; a name that comes twice is listed once.

    Args:
        created: Unix time. The gateway does not know when a model was made, so this is when it began to serve it, or 0.
    """
    listed: dict[str, dict[str, Any]] = {}
    for name, provider in models:
        listed.setdefault(name, _model(name, provider, created))
    return jsonio.encode({"object": "list", "data": list(listed.values())})


def model_body(name: str, provider: str, created: int = 0) -> bytes:
    """The document of one model."""
    return jsonio.encode(_model(name, provider, created))


def _model(name: str, provider: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": provider}
