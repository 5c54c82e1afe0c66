"""The targets of the fuzzer in every run of the tests: over the corpus that was kept, over noise, and over what nearly fits."""

from __future__ import annotations

import json
import math
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import ISSUER, TARGETS, timed

CORPUS = Path(__file__).parents[1] / "corpus" / "fuzz"


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    inputs = sorted((CORPUS / name).glob("*"))
    assert inputs
    for path in inputs:
        timed(name, path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_noise(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.binary(max_size=300))
    def run(data: bytes) -> None:
        timed(name, data)

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_and_then_spoilt(name: str) -> None:
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(inputs), st.lists(st.tuples(st.integers(0, 4096), st.binary(max_size=3)), min_size=1, max_size=4))
    def run(base: bytes, changes: list[tuple[int, bytes]]) -> None:
        data = bytearray(base)
        for at, piece in changes:
            place = at % (len(data) + 1)
            data[place : place + (at // 7) % 3] = piece
        timed(name, bytes(data))

    run()


SCALAR = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=6)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6
)
CLAIMS = st.fixed_dictionaries(
    {},
    optional={
        "iss": st.just(ISSUER) | JSON,
        "aud": st.just("gateway") | st.just(["gateway"]) | JSON,
        "sub": st.just("alice") | JSON,
        "exp": st.just(1e10) | JSON,
        "nbf": JSON,
        "iat": JSON,
        "team": JSON,
        "roles": JSON,
    },
)
HEADER = st.fixed_dictionaries(
    {},
    optional={
        name: st.sampled_from(["none", "HS256", "ES256", "RS256", "a"]) | JSON
        for name in ("alg", "kid", "typ", "crit", "jku", "b64")
    },
)


@settings(max_examples=60, deadline=None)
@given(HEADER, CLAIMS, st.booleans())
def test_tokens(header: dict[str, Any], claims: dict[str, Any], signed: bool) -> None:
    """Any header and claims: refused, or, where the signature is good, somebody."""
    said = json.dumps(claims).encode()
    timed("token", b"\x02" + said if signed else b"\x01" + json.dumps(header).encode() + b"\0" + said)


WORDS = st.text(string.ascii_letters + '0123456789 $%:*-."\\\u2028', max_size=8)
POLICY = [
    "when",
    "then",
    "model",
    "models",
    "deny",
    "route",
    "add",
    "key",
    "user",
    "tags",
    "content",
    "time",
    "budget",
    "prompt_tokens",
    "shadow",
]
BUDGET = ["scope", "limit", "window", "sliding", "soft", "action", "mode"]
GOOD = {
    "scope": ["global", "key:k", "user:*", "team:a", "key:"],
    "limit": ["10 requests", "$5.00", "1 tokens", "3 concurrent", "-1 requests", "$1e9"],
    "window": ["day", "minute", "hour", "month", "total"],
    "action": ["block", "throttle", "notify", "fallback:m", "fallback:"],
    "soft": ["80%", "0%", "101%"],
}
OTHERS = ["first_token", "body", "order", "level", "patterns", "issuer", "audiences"]
SECTIONS = [
    "policies.a",
    "budgets.a",
    "deadlines",
    "limits",
    "pipeline",
    "server",
    "plugins.sanitize",
    "plugins.auth.issuers.a",
    "rates",
    "log",
]


def toml(value: Any) -> str:
    """A value as TOML has it, as far as it has one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "nan"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(str(name), ensure_ascii=False)} = {toml(each)}" for name, each in value.items()) + "}"
        )
    return json.dumps(value, ensure_ascii=False) if value is not None else '""'


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_sections(data: st.DataObject) -> None:
    """Policies, budgets and the rest, with keys that are theirs and values that may be."""
    text = ""
    for section in data.draw(st.lists(st.sampled_from(SECTIONS), min_size=1, max_size=2, unique=True)):
        text += f"[{section}]\n"
        names = POLICY if "policies" in section else BUDGET if "budgets" in section else OTHERS
        for name in data.draw(st.lists(st.sampled_from(names), max_size=5, unique=True)):
            value = data.draw(st.sampled_from(GOOD.get(name, [""])) | WORDS | JSON)
            text += f"{name} = {toml(value)}\n"
    timed("configuration", b"\0" + text.encode("utf-8", "replace"))
