"""Nothing that looks like a secret is repeated."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawproxy.dialects.redact import redact, words


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-secret1234. You can find it",
        "Incorrect API key provided: sk-secr***************cret.",
        "key sk-proj-secret_0123456789-AB",
        "Authorization: Bearer secret.token/here+now==",
        "bearer secret",
        "Basic c2VjcmV0OnNlY3JldA==",
        '{"api_key": "secret-value"}',
        "x-api-key=secretvalue",
        "x-goog-api-key: secretvalue",
        "access_token=secretvalue&x=1",
        "password: secretvalue",
        "AIzaSySECRETsecretSECRETsecret-secret12",
        "AKIASECRETSECRET1234",
        "ghp_secretsecretsecretsecretsecretsecret",
        "gsk_secretsecret",
        "hf_secretsecret",
        "xoxb-secret-secret",
        "eyJhbGciOiJIUzI1NiJ9.secret.secret",
        "-----BEGIN PRIVATE KEY----- secret -----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY----- secret",
        "see https://x.test/path?key=secret&a=b for more",
        "see https://x.test/path#secret",
        "postgres://user:secret@host/db",
        "https://secret@host/",
        "wss://x.test/?secret",
        "in organization org-secret12345 on requests",
        "project proj_secret12345",
        "secret0secret1secret2secret3secret4",
        "sk-\u200bsec\0ret",
        "Bearer\nsecret",
        "KEY SK-SECRET1234",
    ],
)
def test_secrets_are_masked(text: str) -> None:
    shown = redact(text).lower()
    assert "secret" not in shown.replace("secrets", "")
    assert "c2vjc" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "Invalid value: 'x'. Supported values are: 'a', 'b'.",
        "max_tokens is too large: 100000. This model supports at most 4096 completion tokens.",
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
        "Missing required parameter: 'messages[0].content'.",
        "The model gpt-4o-mini-2024-07-18 does not support tools; see https://platform.openai.com/docs/guides.",
        "naïve 中文 text",
    ],
)
def test_plain_words_stay(text: str) -> None:
    assert words(text) == text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (5, None),
        ({"a": 1}, None),
        ("", None),
        (" \r\n\0 ", None),
        ("a\r\nb\tc\x1b[2Jd\u2028e\u202ef\x7fg", "a b c[2Jd efg"),
        ("a" * 400 + " " + "b" * 400, "a" * 400 + " " + "b" * 96 + "..."),
    ],
)
def test_words(value: object, shown: str | None) -> None:
    assert words(value) == shown


def test_a_secret_on_the_edge_is_not_cut_open() -> None:
    assert "sk-" not in (words("x" * 495 + " sk-secret123456") or "")


@settings(deadline=None)
@given(st.text())
def test_what_is_shown_is_short_and_printable(text: str) -> None:
    shown = words(text)
    assert shown is None or (shown.isprintable() and 0 < len(shown) <= 500)


@pytest.mark.parametrize("text", ["sk-", "a://", "-----BEGIN", "token=", "eyJ.", "Bearer ", "a1", "aA-_+/=", "key_", "x-api-"])
def test_no_text_costs_much(text: str) -> None:
    for tail in ("", "\0", "!", " x"):
        begin = time.thread_time()
        redact(text * 100_000 + tail)
        redact((text + tail) * 50_000)
        assert time.thread_time() - begin < 0.1
