"""clawproxy_sanitize: what is found, where, and that cutting the text changes nothing."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import re2
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st

import clawproxy_sanitize
from clawproxy.context import Registry
from clawproxy.errors import ClawError, ConfigError, Refusal
from clawproxy.events import (
    Begin,
    End,
    Event,
    Failed,
    Finish,
    KeepAlive,
    Reasoning,
    Refused,
    Text,
    ToolCallDelta,
    UsageReport,
)
from clawproxy.hookspecs import Transform
from clawproxy.messages import FilePart, ImagePart, Message, ResponseFormat, TextPart, Tool, ToolCall, Usage
from clawproxy.testing.factories import make_exchange, make_request
from clawproxy_sanitize import Sanitizer, SanitizeSettings
from clawproxy_sanitize.catalogue import CATALOGUE
from clawproxy_sanitize.prefixes import Unfollowable, follow
from clawproxy_sanitize.scanner import MOST, Scanner, options
from clawproxy_sanitize.settings import rules
from clawproxy_sanitize.window import BOUND, Window

LETTERS = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789" * 3
UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" * 2
HEX = "0123456789abcdef" * 6
BODY = "\n".join((LETTERS + "+/")[:64] for _ in range(5))

SAMPLES = {  # put together here, so that no scanner of repositories stumbles over the file
    "claw": "claw_" + LETTERS[:33],
    "anthropic": "sk-ant-" + "api03-" + LETTERS[:90] + "-AA",
    "openai": "sk-" + "proj-" + LETTERS[:48],
    "openrouter": "sk-or-" + "v1-" + HEX[:64],
    "sk_key": "sk-" + "canary-" + HEX[:32],
    "stripe": "sk_" + "live_" + LETTERS[:24],
    "webhook_secret": "whsec_" + LETTERS[:32],
    "aws_access_key": "AKIA" + UPPER[:16],
    "aws_secret_key": "aws_secret_access_key" + " = " + LETTERS[:40],
    "github": "ghp_" + LETTERS[:36],
    "gitlab": "glpat-" + LETTERS[:20],
    "google_api": "AIza" + LETTERS[:35],
    "google_oauth": "ya29." + LETTERS[:60],
    "slack": "xoxb-" + "123456789012-" + LETTERS[:24],
    "slack_webhook": "hooks.slack.com/services/" + "T00000000/B00000000/" + LETTERS[:24],
    "jwt": "eyJ" + LETTERS[:20] + ".eyJ" + LETTERS[:30] + "." + LETTERS[:43],
    "huggingface": "hf_" + LETTERS[:34],
    "groq": "gsk_" + LETTERS[:52],
    "xai": "xai-" + LETTERS[:80],
    "perplexity": "pplx-" + LETTERS[:48],
    "replicate": "r8_" + LETTERS[:37],
    "nvidia": "nvapi-" + LETTERS[:64],
    "npm": "npm_" + LETTERS[:36],
    "pypi": "pypi-" + LETTERS[:100],
    "docker": "dckr_pat_" + LETTERS[:27],
    "digitalocean": "dop_v1_" + HEX[:64],
    "databricks": "dapi" + HEX[:32],
    "sendgrid": "SG." + LETTERS[:22] + "." + LETTERS[:43],
    "shopify": "shpat_" + HEX[:32],
    "hashicorp_vault": "hvs." + LETTERS[:90],
    "notion": "ntn_" + LETTERS[:46],
    "age": "AGE-SECRET-KEY-1" + (UPPER + UPPER)[:58],
    "private_key": f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n-----END RSA PRIVATE KEY-----",
}


def configured(**changes: Any) -> Sanitizer:
    return clawproxy_sanitize.configure(SanitizeSettings(**changes))


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


def cut(text: str, places: Sequence[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def streamed(found: Scanner, pieces: Sequence[str]) -> list[str]:
    window = Window(found, Counter())
    out: list[str] = []
    for piece in pieces:
        passed = window.feed(piece)
        out += [piece] if passed is None else passed
    return out + window.finish()


def answer(found: Sanitizer = DEFAULT, **changes: Any) -> tuple[Transform, Any]:
    exchange = make_exchange(**changes)
    tap = clawproxy_sanitize.tap_response(exchange, found)
    assert tap is not None
    return tap, exchange


def run(tap: Transform, *batches: Sequence[Event]) -> list[Event]:
    assert tap.end is not None
    return [event for batch in batches for event in tap.change(batch)] + list(tap.end())


def joined(events: Sequence[Event], kind: type[Text] | type[Reasoning] | type[Refused] = Text) -> str:
    return "".join(event.text for event in events if type(event) is kind)


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
    if name not in ("aws_secret_key", "private_key"):
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


BENIGN = """
Run `pip install scikit-learn` and sk-learn works; a task-manager, a disk-usage tool, risk-averse-people-everywhere-today.
The header reads `-----BEGIN PRIVATE KEY-----` and ends with `-----END PRIVATE KEY-----`; never commit one.
OpenAI keys begin with sk-, GitHub's with ghp_, Slack's with xoxb-, AWS ids with AKIA and JWTs with eyJ.
commit 3f786850e387550fdab836ed7e6dc881de23001b, uuid 123e4567-e89b-12d3-a456-426614174000, task-0123456789abcdef01234567
ICD-10 E11.9; 500 mg b.i.d.; SK-II; AIza; a 9-5 job; x-ray; s3://bucket/key; https://example.com/?q=eyJ&r=1
def secret_access_key(): return os.environ["AWS_SECRET_ACCESS_KEY"]
"""


def test_ordinary_text_passes_untouched() -> None:
    assert SCANNER.redact(BENIGN, Counter()) is BENIGN
    assert SCANNER.redact("", Counter()) == ""
    assert SCANNER.redact("\ud800", Counter()) == "\ud800"


@pytest.mark.parametrize("shape", CATALOGUE, ids=lambda shape: shape.name)
def test_no_text_is_slow(shape: Any) -> None:
    sample = SAMPLES[shape.name]
    compiled, followed = re2.compile(shape.pattern.encode(), options()), follow(shape.pattern)
    begun = re2.compile(rf"(?:{followed.begun})\z".encode(), options())
    for unit in ("a", " ", "\t", "[(\"'", sample[:-1] + " ", sample[:6]):
        text = ((unit * (100_000 // len(unit))) + "!").encode()
        best = min(_seconds(pattern, text) for pattern in (compiled, begun) for _ in range(2))
        assert best < 0.05


def _seconds(pattern: Any, text: bytes) -> float:
    start = time.perf_counter()
    pattern.search(text)
    return time.perf_counter() - start


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


def test_a_nested_repeat_is_harmless_to_re2() -> None:
    found = scanner(patterns={"nested": "(a+)+c"})
    start = time.perf_counter()
    once(found, "a" * 100_000 + "!")
    assert time.perf_counter() - start < 0.2


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
    assert DEFAULT.input is DEFAULT.output
    assert configured(output="flag").input is not configured(output="flag").output
    assert configured(output="off").output is None
    assert clawproxy_sanitize.tap_response(make_exchange(), configured(output="off")) is None
    assert rules(SanitizeSettings(), "off") == []


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


# --- cut anywhere ------------------------------------------------------------------------------------------------------

FRAGMENTS = st.one_of(
    st.sampled_from(list(SAMPLES.values())),
    st.sampled_from([sample[: len(sample) // 2] for sample in SAMPLES.values()]),
    st.sampled_from(["ACME-1234", "ACME-12", "-abc", "<<", ">>", "zz", "top", "night", "Night Owl"]),
    st.sampled_from(["ingale", "Ünder", "Ü", "task-", "s", "sk-"]),
    st.sampled_from([" ", "\n", "\\n", ".", "é", "😀", "\ud800", "-----", "_", "=", "the quick brown fox", BENIGN]),
    st.text(max_size=8),
)  # fmt: skip
TEXTS = st.lists(FRAGMENTS, max_size=8).map("".join)


@pytest.mark.parametrize("found", [SCANNER, CUSTOM], ids=["default", "custom"])
@given(text=TEXTS, places=st.lists(st.integers(0, 4000), max_size=40))
@example(text=f"a {KEY} b", places=list(range(200)))
@example(text=SAMPLES["private_key"] + " and on", places=list(range(1000)))
@settings(max_examples=300, deadline=None)
def test_cutting_changes_nothing(found: Scanner, text: str, places: list[int]) -> None:
    assert "".join(streamed(found, cut(text, places))) == once(found, text)


@pytest.mark.parametrize("name", SAMPLES)
@given(places=st.lists(st.integers(0, 4000), max_size=20), before=TEXTS, after=st.sampled_from(["", " then", ".", "\n", "!x"]))
@settings(max_examples=12, deadline=None)
def test_no_part_of_a_secret_gets_out(name: str, places: list[int], before: str, after: str) -> None:
    secret = "Zq9" + LETTERS[7:40]
    sample = SAMPLES[name].replace(LETTERS[:20], secret[:20])
    out = "".join(streamed(SCANNER, cut(f"{before} {sample}{after}", places)))
    assert out == once(SCANNER, f"{before} {sample}{after}")
    assert secret[:12] not in out


def test_every_cut_of_every_sample() -> None:
    for name, sample in SAMPLES.items():
        text = f"x {sample}, y"
        expected = once(SCANNER, text)
        assert expected.count("[redacted:") == 1
        for place in range(len(text)):
            assert "".join(streamed(SCANNER, [text[:place], text[place:]])) == expected, (name, place)
        assert "".join(streamed(SCANNER, list(text))) == expected


def test_clean_text_goes_on_at_once() -> None:
    words = [f" {word}" for word in BENIGN.replace("\n", " ").split()]
    window, late = Window(SCANNER, Counter()), 0
    for word in words:
        passed = window.feed(word)
        late += passed is not None
    assert late < len(words) / 5


def test_an_event_stays_one_event() -> None:
    tap, _ = answer()
    words = ["It", " s", "eems", " a", " task", "-", "s", "k", "-", "b", " p", "ypi", "-", " e", "yJ", "!"]
    events = [Text(piece) for piece in words]
    assert run(tap, *([event] for event in events)) == events


def test_a_long_event_is_cut_where_the_doubt_begins() -> None:
    tap, _ = answer()
    assert joined(tap.change([Text("word " * 100 + "sk-ant")])) == "word " * 100
    assert joined(tap.change([Text(" is how they begin")])) == "sk-ant is how they begin"


def test_what_is_held_is_bounded() -> None:
    window = Window(SCANNER, Counter())
    out, most = [], 0
    pieces = ["-----BEGIN PRIVATE KEY-----\n", *["AbCdEfGh\n"] * 5000, "!", "done"]
    for piece in pieces:
        passed = window.feed(piece)
        out += [piece] if passed is None else passed
        most = max(most, window.held)
    out += window.finish()
    assert "".join(out) == "-----[redacted:private_key]!done"
    assert BOUND / 2 < most < BOUND * 1.2


def test_a_beginning_without_end_is_let_go() -> None:
    window = Window(CUSTOM, Counter())
    text = "<<" + "x" * 3 * BOUND + f" {KEY} end"
    out = []
    for piece in cut(text, range(0, len(text), 100)):
        passed = window.feed(piece)
        out += [piece] if passed is None else passed
    out += window.finish()
    assert "".join(out) == text.replace(KEY, GONE)


# --- events ------------------------------------------------------------------------------------------------------------


def test_the_same_sequence_comes_back_when_nothing_changed() -> None:
    tap, exchange = answer()
    batches: list[list[Event]] = [
        [Begin("m"), Text("Hello"), Text(" there.")],
        [Reasoning("hm,")],
        [ToolCallDelta(0, "id", "f", '{"a":'), ToolCallDelta(1, "id2", "g", "{}"), ToolCallDelta(0, None, None, "1}")],
        [Refused("no.")],
        [KeepAlive(), UsageReport(Usage(1, 2)), Finish("stop"), End()],
        [],
    ]
    for events in batches:
        assert tap.change(events) is events
    assert tap.streams == "window"
    assert exchange.notices == []


def test_what_is_held_comes_before_the_end() -> None:
    for last in (Finish("stop"), End(), Failed(ClawError("provider_error.cut"))):
        tap, _ = answer()
        assert run(tap, [Text("see sk-")], [last]) == [Text("see sk-"), last]
    tap, _ = answer()
    assert tap.change([Text("see sk-")]) == []
    assert run(tap) == [Text("see sk-")]


def test_usage_reports_pass_and_end_nothing() -> None:
    tap, _ = answer()
    report = UsageReport(Usage(1, 1))
    batches: list[list[Event]] = [[Text(piece), report] for piece in cut(f"key {KEY} ok", range(0, 90, 7))]
    out = run(tap, *batches, [Finish("stop")])
    assert out.count(report) == len(batches)
    assert joined(out) == f"key {GONE} ok"


def test_each_text_of_an_answer() -> None:
    tap, exchange = answer()
    half = len(KEY) // 2
    out = run(
        tap,
        [Reasoning(KEY[:half]), Reasoning(KEY[half:] + ".")],
        [Text(KEY[:half]), Text(KEY[half:] + ".")],
        [Refused(KEY[:half]), Refused(KEY[half:] + ".")],
        [ToolCallDelta(0, "c", "f", f'{{"k":"{KEY[:half]}'), ToolCallDelta(0, arguments=f'{KEY[half:]}"}}')],
        [Finish("tool_calls"), End()],
    )
    assert [joined(out, kind) for kind in (Reasoning, Text, Refused)] == [f"{GONE}."] * 3
    calls = [event for event in out if isinstance(event, ToolCallDelta)]
    assert (calls[0].call_id, calls[0].name) == ("c", "f")
    assert [call.call_id for call in calls].count("c") == 1
    assert "".join(call.arguments for call in calls) == f'{{"k":"{GONE}"}}'
    kinds = [type(event) for event in out]
    assert kinds == sorted(kinds, key=[Reasoning, Text, Refused, ToolCallDelta, Finish, End].index)
    assert [notice.details["where"] for notice in exchange.notices] == ["answer"]
    assert exchange.state["sanitize"]["answer"] == {"openai": 4}


@given(st.lists(st.integers(0, 60), max_size=12), st.lists(st.integers(0, 60), max_size=12))
@settings(deadline=None)
def test_texts_that_alternate_give_no_secret_away(mine: list[int], others: list[int]) -> None:
    tap, _ = answer()
    first = [ToolCallDelta(0, arguments=piece) for piece in cut(f"a {KEY} b", mine)]
    second = [ToolCallDelta(1, arguments=piece) for piece in cut("some other text that says nothing", others)]
    events = [event for pair in zip(first, second, strict=False) for event in pair]
    out = run(tap, *([event] for event in events), first[len(second) :], second[len(first) :])
    text = "".join(event.arguments for event in out if isinstance(event, ToolCallDelta) and event.index == 0)
    assert not any(KEY[at : at + 12] in text for at in range(len(KEY) - 11))
    assert joined([Text(e.arguments) for e in out if isinstance(e, ToolCallDelta) and e.index == 1]) == (
        "some other text that says nothing"
    )


def test_block_ends_the_answer() -> None:
    tap, _ = answer(configured(output="block"))
    tap.change([Text(f"key {KEY[:20]}")])
    with pytest.raises(Refusal) as caught:
        tap.change([Text(f"{KEY[20:]} ")])
    assert caught.value.slug == "refused.sanitize"


def test_flag_changes_nothing_but_tells() -> None:
    tap, exchange = answer(configured(output="flag"))
    out = run(tap, *([Text(piece)] for piece in cut(f"key {KEY} ok", range(0, 90, 5))))
    assert joined(out) == f"key {KEY} ok"
    assert [notice.code for notice in exchange.notices] == ["flagged"]


def test_any_number_of_tool_calls_is_bounded() -> None:
    tap, _ = answer()
    tap.change([ToolCallDelta(index, arguments="{}") for index in range(2000)])
    holder = tap.change.__self__  # type: ignore[attr-defined]
    assert len(holder._windows) <= 128
