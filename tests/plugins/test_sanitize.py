"""clawproxy_sanitize on whole texts: what is found, where, and what the settings do."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any

import pytest
import re2
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

import clawproxy_sanitize
from clawproxy.context import Registry
from clawproxy.errors import ConfigError, Refusal
from clawproxy.messages import FilePart, ImagePart, Message, ResponseFormat, TextPart, Thinking, Tool, ToolCall
from clawproxy.testing.factories import make_exchange, make_request
from clawproxy_sanitize import Sanitizer, SanitizeSettings
from clawproxy_sanitize.catalogue import CATALOGUE
from clawproxy_sanitize.prefixes import Unfollowable, follow
from clawproxy_sanitize.samples import BENIGN, BODY, LETTERS, SAMPLES
from clawproxy_sanitize.scanner import MOST, Scanner, options
from clawproxy_sanitize.settings import InvisibleSettings, groups, rules


def configured(**changes: Any) -> Sanitizer:
    return clawproxy_sanitize.compiled(SanitizeSettings(**changes))


def scanner(**changes: Any) -> Scanner:
    made = configured(**changes).output
    assert made is not None
    return made


DEFAULT = configured()
SCANNER = scanner()
CUSTOM = scanner(
    patterns={"ticket": r"\bACME-[0-9]{4}(?:-[a-z]+)?", "between": r"<<[^>]*>>", "open_end": r"zz+(?:top)?"},
    words={"project": ("Night Owl", "Ünder", "nightingale", "night")},
    actions={"github": "flag"},
)


def once(found: Scanner, text: str) -> str:
    return found.redact(text, Counter())


# --- the catalogue -----------------------------------------------------------------------------------------------------


def test_every_shape_has_a_sample() -> None:
    assert set(SAMPLES) == {shape.name for shape in CATALOGUE}
    assert len(CATALOGUE) == len(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("frame", ["%s", "key: %s.", "KEY=%s\nNEXT=1", '{"env":"A=1\\n%s"}', "é%s é", "(%s)", "-----%s\n-----"])
def test_a_secret_is_found_and_named(name: str, frame: str) -> None:
    counts: Counter[str] = Counter()
    text = SCANNER.redact(frame.replace("%s", SAMPLES[name]), counts)
    assert counts == {name: 1}
    assert f"[redacted:{name}]" in text
    before, after = frame.split("%s")
    assert text.startswith(before)
    assert text.endswith(after)
    windows = {SAMPLES[name][at : at + 12] for at in range(len(SAMPLES[name]) - 11)}
    if name not in ("aws_secret_key", "private_key", "azure", "authorization", "url_password"):
        assert not any(window in text for window in windows)
    assert LETTERS[:12] not in text


def test_the_context_of_an_aws_secret_stays() -> None:
    text = '{"aws_secret_access_key": "%s"}'
    assert once(SCANNER, text % LETTERS[:40]) == text % "[redacted:aws_secret_key]"
    text = '{\\"SecretAccessKey\\":\\"%s\\"}'
    assert once(SCANNER, text % LETTERS[:40]) == text % "[redacted:aws_secret_key]"


def test_a_key_that_is_cut_off_is_still_a_key() -> None:
    assert once(SCANNER, f"-----BEGIN PRIVATE KEY-----\n{BODY}") == "-----[redacted:private_key]"
    escaped = BODY.replace("\n", "\\n")
    assert once(SCANNER, f'{{"pem":"-----BEGIN EC PRIVATE KEY-----\\n{escaped}"}}') == '{"pem":"-----[redacted:private_key]"}'


def test_ordinary_text_passes_untouched() -> None:
    assert SCANNER.redact(BENIGN, Counter()) is BENIGN
    assert SCANNER.redact("", Counter()) == ""
    assert SCANNER.redact("\ud800", Counter()) == "\ud800"


# --- the prompt --------------------------------------------------------------------------------------------------------


def test_register() -> None:
    registry = Registry()
    clawproxy_sanitize.register(registry)
    assert registry.settings == {"sanitize": SanitizeSettings}


KEY = SAMPLES["openai"]
GONE = "[redacted:openai]"


async def prepared(request: Any, state: Sanitizer = DEFAULT, exchange: Any = None) -> Any:
    return await clawproxy_sanitize.prepare_request(exchange or make_exchange(), request, state)


async def test_a_clean_prompt_is_not_touched() -> None:
    exchange = make_exchange()
    assert await prepared(make_request(BENIGN), exchange=exchange) is None
    assert exchange.notices == []


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
async def test_every_role(role: Any) -> None:
    result = await prepared(make_request(messages=(Message(role, f"a {KEY} b"), Message("user", "clean"))))
    assert list(result.texts()) == [f"a {GONE} b", "clean"]


async def test_every_place_of_a_prompt() -> None:
    image = ImagePart(data=KEY)
    request = make_request(
        messages=(
            Message(
                "user",
                (TextPart(KEY, extra={"note": [KEY]}), image, FilePart(file_id="f", extra={"context": KEY})),
                reasoning=KEY,
                tool_calls=(ToolCall("id", "name", f'{{"k":"{KEY}"}}'),),
                extra={"blocks": [{"text": KEY, "n": 1}]},
            ),
        ),
        tools=(Tool("t", KEY, {"properties": {"a": {"description": KEY}}}, extra={"x": KEY}),),
        response_format=ResponseFormat("json_schema", {"description": KEY}),
        extra={"input": [KEY, 5, None, True]},
    )
    exchange = make_exchange()
    result = await prepared(request, exchange=exchange)
    assert KEY not in repr(evolve(result, messages=(evolve(result.messages[0], content=result.messages[0].content[:1]),)))
    assert result.messages[0].content[1] == image  # media is not text
    assert result.messages[0].content[2].extra == {"context": GONE}
    assert result.messages[0].tool_calls == (ToolCall("id", "name", f'{{"k":"{GONE}"}}'),)
    assert result.extra == {"input": [GONE, 5, None, True]}
    (notice,) = exchange.notices
    assert notice.code == "redacted"
    assert notice.details == {"where": "prompt", "patterns": {"openai": 11}}
    assert KEY[:12] not in repr(notice)


async def test_block_and_flag_and_off() -> None:
    request = make_request(f"my key {KEY}")
    with pytest.raises(Refusal) as caught:
        await prepared(request, configured(input="block"))
    assert caught.value.slug == "refused.sanitize"
    assert caught.value.details.extra == {"pattern": "openai"}
    assert KEY[:12] not in repr(caught.value.details) + str(caught.value)
    exchange = make_exchange()
    assert await prepared(request, configured(input="flag"), exchange) is None
    assert [(notice.code, notice.details["patterns"]) for notice in exchange.notices] == [("flagged", {"openai": 1})]
    assert await prepared(request, configured(input="off")) is None
    assert await prepared(request, configured(actions={"openai": "off", "sk_key": "off"})) is None
    with pytest.raises(Refusal):
        await prepared(request, configured(actions={"openai": "block"}))


async def test_a_flood_of_secrets_is_refused() -> None:
    with pytest.raises(Refusal):
        await prepared(make_request(f"{KEY} " * (MOST + 1)))


# --- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"patterns": {"x": "(a"}}, "RE2 refuses it"),
        ({"patterns": {"x": r"(a)\1"}}, "RE2 refuses it"),
        ({"patterns": {"x": "(?=a)b"}}, "RE2 refuses it"),
        ({"patterns": {"x": "a{5000}"}}, "RE2 refuses it"),
        ({"patterns": {"x": "a*"}}, "empty text"),
        ({"patterns": {"x": "^a"}}, "pieces"),
        ({"patterns": {"x": r"a\z"}}, "pieces"),
        ({"patterns": {"x": "(?i)a"}}, "group of their own"),
        ({"patterns": {"x": "\ud800"}}, "Unicode"),
        ({"patterns": {"X Y": "a"}}, "a name is"),
        ({"patterns": {"openai": "a"}}, "taken"),
        ({"words": {"x": ("a", " ")}}, "none of them empty"),
        ({"words": {"x": ()}}, "none of them empty"),
        ({"words": {"x": tuple(f"word number {n}" for n in range(5000))}}, "about a thousand"),
        ({"actions": {"nonesuch": "flag"}}, "no such pattern"),
    ],
)
def test_mistakes_are_refused_at_load(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        configured(**section)
    assert caught.value.problems[0].startswith("plugins.sanitize")


def test_a_nested_repeat_is_harmless_to_re2_or_refused() -> None:
    """2.10: a pattern that would take Python's `re` for ever."""
    with pytest.raises(ConfigError, match="no meaning in text that comes in pieces"):
        scanner(patterns={"nested": "(a+)+$"})
    found = scanner(patterns={"nested": "(a+)+c"})
    start = time.thread_time()
    once(found, "a" * 100_000 + "!")
    assert time.thread_time() - start < 0.2


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        configured(patterns={"a": "(", "b": ")"}, words={"c": ()})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("NIGHT OWL flies", "[redacted:project] flies"),
        ("nightingales", "nightingales"),
        ("a nightingale, at night", "a [redacted:project], at [redacted:project]"),
        ("wünder Ünder", "w[redacted:project] [redacted:project]"),
        ("ACME-1234-abc and ACME-123", "[redacted:ticket] and ACME-123"),
        (f"{SAMPLES['github']}", f"{SAMPLES['github']}"),
    ],
)
def test_custom_patterns_and_words(text: str, result: str) -> None:
    assert once(CUSTOM, text) == result


def test_rules_of_both_directions_are_compiled_once() -> None:
    both = configured(invisible=InvisibleSettings("strip", "strip"))
    assert both.input is both.output
    assert DEFAULT.input is not None is not DEFAULT.output
    assert DEFAULT.input._patterns is DEFAULT.output._patterns
    assert configured(output="flag").input is not configured(output="flag").output
    off = SanitizeSettings(output="off", invisible=InvisibleSettings(output="off"))
    assert clawproxy_sanitize.compiled(off).output is None
    assert clawproxy_sanitize.tap_response(make_exchange(), clawproxy_sanitize.compiled(off)) is None
    assert rules(groups(off), off, "output") == []


# --- beginnings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    ["abc", "a|bc|", "(ab|c)+d", "(?:a{2,3}b?)*c", "[a-c]{2}[^x]", "(?i:ab)c", r"a\.\x41\d+", "a??b+?c*?", "(?P<n>ab){2}c",
     "é+[ü-ÿ]", "[]a]b", "[^]a]b", "[[:digit:]]x", "(a|(b|c{2}))d{0}e", "x{3,}y"],
)  # fmt: skip
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_each_beginning_of_a_match_is_known(pattern: str, data: st.DataObject) -> None:
    followed = follow(pattern)
    python = pattern.replace("[[:digit:]]", "[0-9]")
    text = data.draw(st.from_regex(re.compile(python, re.ASCII), fullmatch=True))[:400]
    whole = re2.compile(followed.whole.encode(), options())
    assert whole.groups == 0
    if followed.begun is None:
        assert text == ""
        return
    begun = re2.compile(followed.begun.encode(), options())
    for end in range(1, len(text) + 1):
        assert begun.fullmatch(text[:end].encode()) is not None
    assert begun.search(b"") is None


@pytest.mark.parametrize("shape", CATALOGUE, ids=lambda shape: shape.name)
def test_each_beginning_of_a_sample_is_known(shape: Any) -> None:
    followed = follow(shape.pattern)
    found = re2.search(followed.whole, SAMPLES[shape.name])
    assert found is not None
    begun = re2.compile((followed.begun or "").encode(), options())
    for end in range(1, len(found.group()) + 1):
        assert begun.fullmatch(found.group()[:end].encode()) is not None
    assert begun.search(b"") is None


@pytest.mark.parametrize("pattern", ["(a", "a)", "[a", "a**", "*a", "a\\", r"\Ba", r"\Aa", r"\Qa\E", "a$", "^a", "(?i)a"])
def test_what_can_not_be_followed_is_refused(pattern: str) -> None:
    with pytest.raises(Unfollowable):
        follow(pattern)


async def test_signed_reasoning_stays_as_it_is_or_goes() -> None:
    """Its provider checks the signature, so it can not be changed; with a secret in it, it does not go out."""
    clean, telling = Thinking("hm", "sig", dialect="anthropic"), Thinking(f"it is {KEY}", "sig", dialect="anthropic")
    call = ToolCall("id", "name", KEY, "signed")
    message = Message("assistant", KEY, thinking=(clean, telling), tool_calls=(call,))
    result = await prepared(make_request(messages=(message,)))
    assert result.messages[0].thinking == (clean,)
    assert result.messages[0].tool_calls == (ToolCall("id", "name", GONE, "signed"),)
    assert await prepared(make_request(messages=(Message("assistant", "x", thinking=(clean,)),))) is None
    with pytest.raises(Refusal):
        await prepared(make_request(messages=(Message("assistant", "x", thinking=(telling,)),)), configured(input="block"))
