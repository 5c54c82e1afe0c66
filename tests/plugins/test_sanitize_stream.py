"""clawproxy_sanitize on answers: that cutting the text changes nothing, and what happens to the events."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import re2
from hypothesis import example, given, settings
from hypothesis import strategies as st

import clawproxy_sanitize
from clawproxy.errors import ClawError, Refusal
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
from clawproxy.messages import Usage
from clawproxy.testing.factories import make_exchange
from clawproxy_sanitize import Sanitizer, SanitizeSettings
from clawproxy_sanitize.samples import BENIGN, LETTERS, SAMPLES
from clawproxy_sanitize.scanner import Scanner, options
from clawproxy_sanitize.stream import Answer
from clawproxy_sanitize.window import BOUND, Window
from tests.plugins.cuts import cut, says, streamed


def configured(**changes: Any) -> Sanitizer:
    return clawproxy_sanitize.compiled(SanitizeSettings(**changes))


def scanner(**changes: Any) -> Scanner:
    made = configured(**changes).output
    assert made is not None
    return made


KEY = SAMPLES["openai"]
GONE = "[redacted:openai]"
DEFAULT = configured()
SCANNER = scanner()
CUSTOM = scanner(
    patterns={"ticket": r"\bACME-[0-9]{4}(?:-[a-z]+)?", "between": r"<<[^>]*>>", "open_end": r"zz+(?:top)?"},
    words={"project": ("Night Owl", "Ünder", "nightingale", "night")},
    actions={"github": "flag"},
)


def once(found: Scanner, text: str) -> str:
    return found.redact(text, Counter())


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
LONG = int(os.environ.get("CLAWPROXY_TEST_SANITIZE", "0"))
"""Examples of each law; by default few, for it runs with every other test."""


@pytest.mark.parametrize("found", [SCANNER, CUSTOM], ids=["default", "custom"])
@given(text=TEXTS, places=st.lists(st.integers(0, 4000), max_size=40))
@example(text=f"a {KEY} b", places=list(range(200)))
@example(text=SAMPLES["private_key"] + " and on", places=list(range(1000)))
@settings(max_examples=LONG or 150, deadline=None)
def test_cutting_changes_nothing(found: Scanner, text: str, places: list[int]) -> None:
    assert says(found, text, "".join(streamed(found, cut(text, places)))) == once(found, text)


@pytest.mark.parametrize("name", SAMPLES)
@given(places=st.lists(st.integers(0, 4000), max_size=20), before=TEXTS, after=st.sampled_from(["", " then", ".", "\n", "!x"]))
@settings(max_examples=LONG // 40 or 5, deadline=None)
def test_no_part_of_a_secret_gets_out(name: str, places: list[int], before: str, after: str) -> None:
    secret = "Zq9" + LETTERS[7:40]
    sample = SAMPLES[name].replace(LETTERS[:20], secret[:20])
    text = f"{before} {sample}{after}"
    out = "".join(streamed(SCANNER, cut(text, places)))
    assert says(SCANNER, text, out) == once(SCANNER, text)
    assert secret[:12] not in out


def test_every_cut_of_every_sample() -> None:
    for name, sample in SAMPLES.items():
        text = f"x {sample}, y"
        expected = once(SCANNER, text)
        assert expected.count("[redacted:") == 1
        for place in {*range(24), *range(24, len(text), 7), *range(len(text) - 5, len(text))}:
            out = "".join(streamed(SCANNER, [text[:place], text[place:]]))
            assert says(SCANNER, text, out) == expected, (name, place)
        assert says(SCANNER, text, "".join(streamed(SCANNER, list(text)))) == expected


PROSE = """
Trains that leave the city in the morning reach the coast before noon, and those who get on at the second stop find that most of
the seats by the windows have been taken. The conductor, who has worked on this line for thirty years, says that nothing has ever
gone wrong: once a tree fell, once the snow was too deep, and in both cases people shared their bread and played cards until help
came. He keeps a list of the birds he sees on the way. Last spring it had forty names; this year a heron was added, and he hopes
that an owl will be next. If you ask him about it he will show you the page, written in a small and careful hand.
"""


@pytest.mark.parametrize("text", [PROSE, BENIGN])
def test_ordinary_text_goes_on_at_once(text: str) -> None:
    """Letter by letter, at any length of pieces: a word that begins like a token waits for nothing."""
    for size in (1, 2, 3, 4, 5, 7, 11, 23):
        window = Window(SCANNER, Counter())
        held = []
        for place in range(0, len(text), size):
            window.feed(text[place : place + size])
            held.append(window.held)
        assert text is BENIGN or max(held) == 0
        assert sum(map(bool, held)) <= 1 + len(held) / 10  # what begins like a secret and is none


def test_what_all_secrets_of_a_format_begin_with_waits_for_nothing() -> None:
    for opening in ("s", "sk-", "ghp_", "AKIA", "a", "access-production-", "https://someone:", "Authorization: Bearer ", "eyJ",
                    "-----BEGIN RSA PRIVATE KEY-----", "pattern", "path", "secret", "discord.com/api/webhooks/"):  # fmt: skip
        window = Window(SCANNER, Counter())
        assert [window.feed(f" {opening}"), window.held] in ([None, 0], [[f" {opening}"], 0])
    for held in ("sk-a", "ghp_0", "AKIAQ", "https://someone:p", "Authorization: Bearer x"):
        window = Window(SCANNER, Counter())
        assert window.feed(f" {held}") == []


def test_openings_are_known_and_bounded() -> None:
    assert SCANNER.context < 100
    for rule in SCANNER.rules:
        assert 3 <= rule.opening < 100, rule.name
        assert re2.compile(rule.waits.encode(), options()).search(b"") is None


def test_an_opening_that_went_on_is_known_however_late_the_rest_comes() -> None:
    for opening in ("s", "sk", "sk-"):
        window = Window(SCANNER, Counter())
        said = [window.feed(f"key {opening}") or f"key {opening}", *(window.feed(char) or [] for char in KEY[len(opening) :])]
        assert said[0] == [f"key {opening}"] or said[0] == f"key {opening}"
        assert said[1:] == [[]] * (len(KEY) - len(opening))
        assert "".join([*(window.feed(" ok") or []), *window.finish()]) == f"{GONE} ok"


def test_a_secret_in_the_place_of_a_name_is_found() -> None:
    text = f"git clone https://{SAMPLES['github']}:x-oauth-basic@git.example/a"
    expected = "git clone https://[redacted:github]:x-oauth-basic@git.example/a"
    assert once(SCANNER, text) == expected
    for place in range(len(text)):
        assert says(SCANNER, text, "".join(streamed(SCANNER, [text[:place], text[place:]]))) == expected


def test_an_event_stays_one_event() -> None:
    tap, _ = answer()
    words = ["It", " s", "eems", " a", " task", "-", "s", "k", "-", "b", " p", "ypi", "-", " e", "yJ", "!"]
    events = [Text(piece) for piece in words]
    assert run(tap, *([event] for event in events)) == events


def test_a_long_event_is_cut_where_the_doubt_begins() -> None:
    tap, _ = answer()
    assert joined(tap.change([Text("word " * 100 + "sk-ant-a")])) == "word " * 100
    assert joined(tap.change([Text(" is how they begin")])) == "sk-ant-a is how they begin"


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
        assert run(tap, [Text("see sk-a")], [last]) == [Text("see sk-a"), last]
    tap, _ = answer()
    assert tap.change([Text("see sk-a")]) == []
    assert run(tap) == [Text("see sk-a")]


def test_usage_reports_pass_and_end_nothing() -> None:
    tap, _ = answer()
    report = UsageReport(Usage(1, 1))
    batches: list[list[Event]] = [[Text(piece), report] for piece in cut(f"key {KEY} ok", range(0, 90, 7))]
    out = run(tap, *batches, [Finish("stop")])
    assert out.count(report) == len(batches)
    assert joined(out) == f"key sk-{GONE} ok"


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


EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Text, FRAGMENTS),
    st.builds(Text, st.sampled_from(["", " a", "s", " s", "k-", KEY[:20], KEY[20:], "Ü"])),
    st.builds(Reasoning, FRAGMENTS),
    st.builds(ToolCallDelta, st.integers(0, 1), arguments=FRAGMENTS),
    st.sampled_from([UsageReport(Usage(1, 1)), KeepAlive(), Begin("m"), Finish("stop"), End()]),
)


def merged(events: Sequence[Event]) -> list[tuple[object, str]]:
    """Neighbouring pieces of one text as one; what passes at once, wherever it stands, left out."""
    out: list[tuple[object, str]] = []
    key: object
    for event in events:
        if isinstance(event, ToolCallDelta):
            key, text = event.index, event.arguments
        elif isinstance(event, Text | Reasoning | Refused):
            key, text = type(event), event.text
        elif isinstance(event, Finish | End):
            key, text = type(event), ""
        else:
            continue
        if out and out[-1][0] == key:
            text = out.pop()[1] + text
        out.append((key, text))
    return out


@pytest.mark.parametrize("found", [SCANNER, CUSTOM], ids=["default", "custom"])
@given(st.lists(st.lists(EVENTS, max_size=6), max_size=6))
@example([[Text("Ünder"), Finish("stop"), Text("x")]])
@settings(max_examples=LONG or 150, deadline=None)
def test_a_batch_looked_at_at_once_says_the_same(found: Scanner, batches: list[list[Event]]) -> None:
    class OneByOne(Answer):
        def _is_clean(self, events: Sequence[Event]) -> bool:
            return False

    results = []
    for kind in (Answer, OneByOne):
        counts: dict[str, int] = {}
        made = kind(found, counts, lambda _: None)
        out = [event for batch in batches for event in made.change(batch)]
        results.append((merged([*out, *made.end()]), counts))
    assert results[0] == results[1]


def test_what_is_held_comes_before_another_text() -> None:
    tap, _ = answer()
    call = ToolCallDelta(0, "id", "f", "{}")
    assert run(tap, [Text("see sk-a")], [call], [Reasoning("hm.")]) == [Text("see sk-a"), call, Reasoning("hm.")]
    tap, _ = answer()
    out = run(tap, [Text(f"see {KEY[:8]}")], [call], [Text(f"{KEY[8:]} end")])
    assert out[:2] == [Text(f"see {KEY[:8]}"), call]
    assert joined(out) == f"see {KEY[:8]}{GONE} end"
    tap, _ = answer()
    assert run(tap, [Text(f"see {KEY[:20]}")], [call]) == [Text("see "), Text("[redacted:unfinished]"), call]


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


def test_signed_reasoning_keeps_its_signature_after_its_text() -> None:
    tap, _ = answer()
    said = [*tap.change([Reasoning("so k")]), *tap.change([Reasoning("", "c2ln")]), *tap.change([Reasoning("", None, "eA==")])]
    assert "".join(event.text for event in said if isinstance(event, Reasoning)) == "so k"
    assert said[-2:] == [Reasoning("", "c2ln"), Reasoning("", None, "eA==")]
    whole = tap.change([Reasoning(f"it is {KEY} ", "c2ln"), Text("a")])
    assert Reasoning("", "c2ln") in whole
    assert KEY not in "".join(event.text for event in whole if isinstance(event, Reasoning | Text))
