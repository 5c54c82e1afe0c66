"""`GET /v1beta/models` and `GET /v1beta/models/NAME` as Google writes them; and who is to be answered so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clawproxy.dialects import jsonio
from clawproxy.dialects.gemini.client_path import OURS
from clawproxy.http1.head import Head

METHODS = ("generateContent", "countTokens")


def asks_gemini(head: Head) -> bool:
    """Whether this is a Gemini client: by its path, or, where others ask the same one, by the headers only it sends."""
    if OURS.fullmatch(head.path) is not None:
        return True
    google = head.get("x-goog-api-client") is not None or head.get("x-goog-api-key") is not None
    return google and head.path.startswith("/v1/models")


def models_body(names: Iterable[str]) -> bytes:
    """All of them on one page; a name that comes twice is listed once."""
    return jsonio.encode({"models": [_model(name) for name in dict.fromkeys(names)]})


def model_body(name: str) -> bytes:
    return jsonio.encode(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"name": f"models/{name}", "displayName": name, "supportedGenerationMethods": METHODS}
