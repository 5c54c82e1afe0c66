"""Where Gemini's methods are called: `/v1beta/models/NAME:METHOD`, under the prefixes its clients are given.

Rule 1: the name is percent-decoded once, and only looked up: it never becomes a path of ours as it is.
Rule 2: a key in the query is refused: URLs end in logs, histories and referrers. google-genai sends it in `x-goog-api-key`.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

from clawproxy.dialects.openai_chat import check
from clawproxy.errors import ClawError
from clawproxy.http1.head import Head

_PREFIXES = r"(?:/v1(?:beta)?|/v1/native/(?:gemini|google)/v1(?:beta)?)"
_METHODS = "generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents"
PATTERN = re.compile(_PREFIXES + r"/models/(?P<name>[^:].*):(?P<method>" + _METHODS + ")")
LIST = re.compile(_PREFIXES + "/models(?:/(?P<name>.+))?")
OURS = re.compile(r"/v1beta(?:/|$).*|/v1/native/(?:gemini|google)(?:/|$).*")
"""Paths that only this format's clients call: what is not served there is refused in their words."""


class Asked(NamedTuple):
    model: str
    method: str
    sse: bool
    """`alt=sse`; otherwise a stream is a JSON array."""


def read_target(head: Head) -> Asked:
    """Raises ClawError("invalid_request" | "endpoint_not_found")."""
    match = PATTERN.fullmatch(head.path)
    if match is None:  # pragma: no cover - the surface matched the same pattern
        raise ClawError("endpoint_not_found")
    query = parse_qs(head.query, keep_blank_values=True)
    if "key" in query:
        raise ClawError("invalid_request", "Send the key in the `x-goog-api-key` header, not in the URL.", param="key")
    alt = (query.get("alt") or query.get("$alt") or ["json"])[-1]
    if alt not in ("json", "sse"):
        check.refuse("alt", "be json or sse")
    try:
        model = unquote(match["name"], errors="strict")
    except UnicodeDecodeError:
        check.refuse("model", "be UTF-8")
    return Asked(check.token(model, "model", longest=512), match["method"], alt == "sse")
