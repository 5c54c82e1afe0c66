"""How many tokens a text has: the bound holds, the exact count is the vendor's own, the running one is near it."""

from __future__ import annotations

import base64
import gzip
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy import counting
from clawproxy.counting import Limited, Running, counter_for, estimate, only_text, prompt_bound, text_bytes
from clawproxy.messages import ImagePart, Message, TextPart
from clawproxy.testing import make_request

texts = (
    st.text(max_size=200) | st.text("aé漢😀 \n.1'", max_size=200) | st.binary(max_size=80).map(lambda raw: raw.decode("latin-1"))
)
EXAMPLES = ["", "hello <|endoftext|> world", "a" * 5000, " " * 3000, "漢字" * 500, "don't stop\r\n\n  1234567", "👩‍👩‍👧‍👦" * 20]


def test_estimates() -> None:
    assert [estimate(size) for size in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    assert estimate(10, 2.5) == 4
    assert estimate(0.0) == 0
    assert text_bytes("aé漢😀\ud800") == 1 + 2 + 3 + 4 + 3


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        *(
            (name, "o200k_base")
            for name in ("gpt-4o", "gpt-4o-mini-2024-07-18", "gpt-5", "o3", "o4-mini", "gpt-4.1-nano", "gpt-oss-120b")
        ),
        *(
            (name, "cl100k_base")
            for name in ("gpt-4", "gpt-4-turbo", "gpt-4-0613", "gpt-3.5-turbo-0125", "text-embedding-3-small")
        ),
        ("openai/gpt-4o", "o200k_base"),
        *(
            (name, None)
            for name in ("claude-sonnet-4-5", "gemini-2.5-pro", "gpt-50", "gpt-2", "o5", "my-gpt-4o", "", "scripted-1")
        ),
    ],
)
def test_whose_vocabulary_is_known(model: str, vocabulary: str | None) -> None:
    found = [name for name, pattern in counting.VOCABULARIES if pattern.fullmatch(model)]
    assert found == ([vocabulary] if vocabulary else [])


def test_without_the_extra_nothing_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(counting, "import_module", missing)
    counting._vocabulary.cache_clear()
    counter_for.cache_clear()
    try:
        assert counter_for("gpt-4o") is None
        assert not counting.installed()
    finally:
        counting._vocabulary.cache_clear()
        counter_for.cache_clear()


def test_a_limited_count_goes_on_by_the_bound() -> None:
    count = Limited(lambda text: 1, most=10)
    assert [count("12345"), count("123456"), count("1234é"), count("")] == [1, 6, 6, 1]


def test_what_is_only_text() -> None:
    assert only_text(make_request(messages=(Message("user", "x"), Message("assistant", None), Message("user", (TextPart("y"),)))))
    assert not only_text(make_request(messages=(Message("user", (TextPart("y"), ImagePart("http://x"))),)))


# --- with the vocabularies -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["o200k_base", "cl100k_base"])
def vocabulary(request: pytest.FixtureRequest) -> tuple[counting.Count, object]:
    """Ours, and tiktoken's, which OpenAI makes, with the same file: it would fetch it itself."""
    pytest.importorskip("bpe_openai", reason="the `tokenizers` extra")
    tiktoken = pytest.importorskip("tiktoken", reason="the `dev` extra")
    name: str = request.param
    raw = gzip.decompress(resources.files("bpe_openai").joinpath(f"data/{name}.tiktoken.gz").read_bytes())
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in raw.splitlines() if line)}
    theirs = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={})
    ours = counter_for({"o200k_base": "gpt-4o", "cl100k_base": "gpt-4"}[name])
    assert ours is not None
    return ours, theirs


# As tiktoken_ext.openai_public has them.
PATTERNS = {
    "cl100k_base": (
        r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|"""
        r"""\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
    ),
    "o200k_base": "|".join(
        [
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
            r"""\p{N}{1,3}""",
            r""" ?[^\s\p{L}\p{N}]+[\r\n/]*""",
            r"""\s*[\r\n]+""",
            r"""\s+(?!\S)""",
            r"""\s+""",
        ]
    ),
}


@settings(max_examples=200)
@given(text=texts)
def test_the_count_is_the_vendors(vocabulary: tuple[counting.Count, object], text: str) -> None:
    count, theirs = vocabulary
    assert count(text) == len(theirs.encode_ordinary(text))  # type: ignore[attr-defined]
    assert count(text) <= text_bytes(text), "a token has at least one byte"


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text[:8])
def test_odd_texts_are_counted_alike(vocabulary: tuple[counting.Count, object], text: str) -> None:
    count, theirs = vocabulary
    assert count(text) == len(theirs.encode_ordinary(text))  # type: ignore[attr-defined]


@settings(max_examples=50)
@given(pieces=st.lists(texts, max_size=60))
def test_a_running_count_is_near_the_whole(vocabulary: tuple[counting.Count, object], pieces: list[str]) -> None:
    count, _ = vocabulary
    running = Running(count)
    for piece in pieces:
        running.add(piece)
        running.tokens  # noqa: B018  # looking changes nothing
    whole = "".join(pieces)
    blocks = len(whole) // Running.BLOCK
    assert abs(running.tokens - count(whole)) <= 4 * blocks
    assert running.tokens <= text_bytes(whole)


def test_a_lone_surrogate_is_counted_as_what_is_sent(vocabulary: tuple[counting.Count, object]) -> None:
    count, _ = vocabulary
    assert count("a\ud800b") == count("a?b")


@settings(max_examples=50)
@given(contents=st.lists(texts, min_size=1, max_size=5))
def test_the_tight_bound_is_between_the_text_and_the_bytes(
    vocabulary: tuple[counting.Count, object], contents: list[str]
) -> None:
    count, _ = vocabulary
    request = make_request(messages=tuple(Message("user", text) for text in contents))
    tight, loose = prompt_bound(request, None, Limited(count)), prompt_bound(request)
    assert sum(count(text) for text in contents) + 8 * len(contents) == tight <= loose
