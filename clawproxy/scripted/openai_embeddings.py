"""OpenAI embeddings, as a provider writes them. Source: OpenAI's API reference and the official Python SDK.

An answer says nothing, so of a script only its figures, its faults and its waiting count. The vectors come from the inputs alone:
the same text has the same vector everywhere, and each number is one that float32 holds exactly.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections.abc import Sequence
from typing import Any

from clawproxy.scripted.formats import Answer, Asked, BadRequest, Encoder
from clawproxy.scripted.openai_chat import ChatEncoder, OpenAIChat

DIMENSIONS = 16


class OpenAIEmbeddings(OpenAIChat):
    name = "openai_embeddings"
    answers: Sequence[str] = ("/v1/embeddings", "/embeddings")
    pattern: re.Pattern[str] | None = re.compile(r"(?:/[^/]+)*/embeddings")
    lists: Sequence[str] = ()

    def read(self, body: Any, target: str) -> Asked:
        if not isinstance(body, dict):
            raise BadRequest(400, "The body must be a JSON object.")
        model, given = body.get("model"), body.get("input")
        if not isinstance(model, str) or not model:
            raise BadRequest(400, "you must provide a model parameter", "model")
        inputs = [given] if isinstance(given, str) or _are_tokens(given) else given
        if not isinstance(inputs, list) or not inputs or not all(isinstance(each, str) or _are_tokens(each) for each in inputs):
            raise BadRequest(400, "'$.input' is invalid. Please check the API reference.", "input")
        if "" in inputs:
            raise BadRequest(400, "'$.input' cannot be an empty string.", "input")
        form, size = body.get("encoding_format") or "float", body.get("dimensions") or DIMENSIONS
        if form not in ("float", "base64"):
            raise BadRequest(400, "encoding_format is float or base64", "encoding_format")
        if not isinstance(size, int) or not 0 < size <= 4096:
            raise BadRequest(400, "dimensions is a number up to 4096", "dimensions")
        words = sum(len(each.split()) if isinstance(each, str) else len(each) for each in inputs)
        prompt = next((each for each in reversed(inputs) if isinstance(each, str)), "")
        options = {"vectors": [vector(each, size) for each in inputs], "base64": form == "base64"}
        return Asked(model, False, prompt, words, options=options)

    def encoder(self, asked: Asked, serial: int) -> Encoder:
        return _Encoder(asked, serial)


class _Encoder(ChatEncoder):
    def whole(self, answer: Answer) -> bytes:
        options = self._asked.options
        vectors = [encoded(each) if options["base64"] else each for each in options["vectors"]]
        document: dict[str, Any] = {
            "object": "list",
            "data": [{"object": "embedding", "index": place, "embedding": each} for place, each in enumerate(vectors)],
            "model": self._asked.model,
        }
        if answer.usage is not None:
            document["usage"] = {"prompt_tokens": answer.usage.input, "total_tokens": answer.usage.input}
        return json.dumps(document, separators=(",", ":")).encode()


def vector(text: str | list[int], size: int = DIMENSIONS) -> list[float]:
    """`size` numbers from -1 up to 1."""
    seed = hashlib.sha256(json.dumps(text).encode()).digest()
    data = b"".join([hashlib.sha256(seed + place.to_bytes(4, "big")).digest() for place in range(-(-size // 16))])
    return [number / 32768 for number in struct.unpack(f">{size}h", data[: 2 * size])]


def encoded(values: Sequence[float]) -> str:
    """base64 of little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)
