from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.config.units import (
    parse_address,
    parse_duration,
    parse_price,
    parse_size,
    render_duration,
    render_price,
    render_size,
    shown,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5.0),
        ("2m", 120.0),
        ("250ms", 0.25),
        ("1h30m", 5400.0),
        ("1.5s", 1.5),
        ("1d", 86400.0),
        ("10us", 0.00001),
        ("0s", 0.0),
        ("off", math.inf),
        ("inf", math.inf),
        ("OFF", math.inf),
        (" 5s ", 5.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (5, '5 has no unit; write "5s" if seconds are meant'),
        ("5", '"5" has no unit; write "5s" if seconds are meant'),
        (True, 'a boolean is no duration; write it as a string, like "5s", "250ms", "1h30m" or "off"'),
        ([], 'an array is no duration; write it as a string, like "5s", "250ms", "1h30m" or "off"'),
        (math.inf, 'inf is a number without a unit; write "off" where there is no limit'),
        ("-5s", '"-5s" is negative; write a duration from "0s" up, or "off"'),
        ("", '"" is no duration; write it like "5s", "250ms", "1h30m" or "off"'),
        ("5 sec", '"5 sec" is no duration; write it like "5s", "250ms", "1h30m" or "off"'),
        ("30m1h", '"30m1h" is no duration; write it like "5s", "250ms", "1h30m" or "off"'),
        ("5s5s", '"5s5s" is no duration; write it like "5s", "250ms", "1h30m" or "off"'),
        ("9" * 30 + "h", f'"{"9" * 30}h" is longer than a hundred years; write "off" where there is no limit'),
        ("٥s", '"٥s" is no duration; write it like "5s", "250ms", "1h30m" or "off"'),
    ],
)
def test_durations_refused(value: object, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration(value)
    assert str(caught.value) == sentence


@given(st.one_of(st.just(math.inf), st.floats(0, 1e9, allow_nan=False), st.integers(0, 10**9).map(float)))
def test_durations_survive_rendering(seconds: float) -> None:
    assert parse_duration(render_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(5400.0, "1h30m"), (0.25, "250ms"), (0.0, "0s"), (math.inf, "off"), (86400.0, "1d")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none()))
def test_only_sentences_are_raised(value: object) -> None:
    """Whatever comes, a parser answers or raises ValueError with a fix after its semicolon, on one line."""
    for parse in (parse_duration, parse_size):
        assert_sentence(parse, value)
    if isinstance(value, str):
        address = assert_sentence(parse_address, value)
        assert address is None or parse_address(str(address)) == address


def assert_sentence(parse: Callable[[Any], Any], value: object) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        sentence = str(error)
    assert "; " in sentence
    assert "\n" not in sentence
    return None


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("16KiB", 16384),
        ("1MiB", 1048576),
        ("2MB", 2000000),
        ("1.5KiB", 1536),
        (512, 512),
        ("512", 512),
        ("7B", 7),
        ("1mib", 1048576),
    ],
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("1M", '"1M" has an unknown unit; write MiB'),
        ("1.0001KiB", '"1.0001KiB" is no whole number of bytes; write a smaller unit, like "1024"'),
        (-1, "-1 is negative; write a number of bytes from 0 up"),
        (1.5, 'a float is no size; write it like "16KiB", "1MiB", or as a plain number of bytes'),
        ("big", '"big" is no size; write it like "16KiB", "1MiB", or as a plain number of bytes'),
        ("9999999GiB", "that is more than a pebibyte; write a smaller size"),
    ],
)
def test_sizes_refused(value: object, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_size(value)
    assert str(caught.value) == sentence


@given(st.integers(0, 2**50))
def test_sizes_survive_rendering(size: int) -> None:
    assert parse_size(render_size(size)) == size


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8642", "127.0.0.1", 8642),
        ("[::1]:0", "::1", 0),
        ("localhost:80", "localhost", 80),
        ("a-b.example:1", "a-b.example", 1),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert (address.kind, address.host, address.port, str(address)) == ("tcp", host, port, text)


def test_address_of_a_socket() -> None:
    address = parse_address("unix:/run/claw.sock")
    assert (address.kind, address.path, address.loopback, str(address)) == ("unix", "/run/claw.sock", True, "unix:/run/claw.sock")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("8642", '"8642" names no address; write "127.0.0.1:8642", or "0.0.0.0:8642" for every interface'),
        (":8642", '":8642" names no address; write "127.0.0.1:8642", or "0.0.0.0:8642" for every interface'),
        ("*:1", '"*:1" names no address; write "127.0.0.1:1", or "0.0.0.0:1" for every interface'),
        ("127.0.0.1", '"127.0.0.1" has no port; write "127.0.0.1:8642"'),
        ("http://127.0.0.1:1/", '"http://127.0.0.1:1/" is a URL; write "127.0.0.1:1"'),
        ("::1:80", '"::1:80" is ambiguous; write IPv6 in brackets: "[::1]:80"'),
        ("[::g]:80", '"[::g]:80" has no valid IPv6 address; write it like "[::1]:80"'),
        ("127.0.0.256:80", '"127.0.0.256:80" has no valid IPv4 address; write it like "127.0.0.1:80"'),
        ("localhost:65536", '"localhost:65536" has no valid port; write a number from 0 (any free one) to 65535'),
        ("a b:1", '"a b:1" has no valid host; write it like "127.0.0.1:1"'),
        ("unix:claw.sock", '"unix:claw.sock" names no socket; write an absolute path, like "unix:/run/clawproxy.sock"'),
    ],
)
def test_addresses_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_address(text)
    assert str(caught.value) == sentence


def test_reach_of_addresses() -> None:
    assert parse_address("0.0.0.0:1").wildcard
    assert parse_address("[::]:1").wildcard
    assert not parse_address("127.0.0.1:1").wildcard
    assert parse_address("127.0.0.2:1").loopback
    assert parse_address("[::1]:1").loopback
    assert not parse_address("10.0.0.1:1").loopback


@given(st.text())
def test_shown_text_is_one_printable_line(text: str) -> None:
    assert shown(text).isprintable()


@pytest.mark.parametrize(
    ("text", "micros"),
    [("0.15", 150_000), ("0", 0), ("15", 15_000_000), (" 2.50 ", 2_500_000), ("0.000001", 1), ("999999.999999", 999_999_999_999)],
)
def test_prices(text: str, micros: int) -> None:
    assert parse_price(text) == micros


@pytest.mark.parametrize(
    "value", [0.15, 1, True, None, {}, "", "-1", "+1", "1e3", "$1", ".5", "5.", "1,5", "0.0000001", "1000000", "٥", "nan"]
)
def test_prices_refused(value: object) -> None:
    with pytest.raises(ValueError, match="dollars per million tokens"):
        parse_price(value)


@given(st.integers(0, 10**12 - 1))
def test_prices_come_back(price: int) -> None:
    assert parse_price(render_price(price)) == price
