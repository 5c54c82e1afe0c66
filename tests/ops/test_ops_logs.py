from __future__ import annotations

import io
import json
import logging
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.errors import ClawError
from clawproxy.ops import logs
from clawproxy.ops.logs import Log, Ration, escape, log_event, log_exception, setup
from clawproxy.secrets import Secret


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """The process's log into a string; everything as it was afterwards."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    kept = {
        name: getattr(logs.LOG, name) for name in ("stream", "level", "instance", "generation", "ration", "foreign", "suppressed")
    }
    logs.LOG.ration, logs.LOG.foreign = Ration(50, 5), Ration(3, 0.1)
    text = io.StringIO()
    setup("info", instance="i1", generation=3, stream=text)
    yield text
    logging.captureWarnings(False)
    root.handlers[:], root.level = before[0], before[1]
    for name, value in kept.items():
        setattr(logs.LOG, name, value)


def rows(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line(stream: io.StringIO) -> None:
    log_event("request.closed", outcome="complete", total_ms=12.3456789, stream=True, model=None, notices=["redacted"])
    [row] = rows(stream)
    assert row.pop("ts").endswith("Z")
    assert row == {
        "level": "info",
        "event": "request.closed",
        "instance": "i1",
        "generation": 3,
        "outcome": "complete",
        "total_ms": 12.345679,
        "stream": True,
        "notices": ["redacted"],
    }


def test_only_listed_fields_and_no_secrets(stream: io.StringIO) -> None:
    log_event("x", prompt="hello", user="u", key=Secret("sk-hunter2"))
    assert "hello" not in stream.getvalue()
    assert "hunter2" not in stream.getvalue()
    assert rows(stream)[0]["dropped"] == ["prompt"]
    assert rows(stream)[0]["key"] == "***"


def test_below_the_level_nothing_is_written(stream: io.StringIO) -> None:
    log_event("x", "debug")
    assert stream.getvalue() == ""


BAD = {"Cc", "Zl", "Zp", "Cs"}
BIDI = set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


@given(
    st.text(st.characters(), max_size=30)
    | st.text(st.sampled_from(sorted(BIDI) + list("\x00\n\r\x1b\x7f\x85\x9b\u2028\u2029\ud800")))
)
def test_whatever_comes_is_one_line_that_reads_back(text: str) -> None:
    stream = io.StringIO()
    Log(stream).write("x", "info", {"model": text, "notices": [text], "param": {text: 1}})
    line = stream.getvalue()
    assert line.endswith("}\n")
    body = line[:-1]
    assert not [char for char in body if unicodedata.category(char) in BAD or char in BIDI]
    body.encode()
    # Python's JSON joins the halves of a surrogate pair that stood apart: compare as UTF-16 does.
    assert json.loads(body)["model"].encode("utf-16-le", "surrogatepass") == text.encode("utf-16-le", "surrogatepass")


def test_tags_and_long_texts(stream: io.StringIO) -> None:
    assert escape("\U000e0041") == "\\udb40\\udc41"
    log_event("x", model="m" * 100_000)
    assert len(stream.getvalue()) < 3000


def test_an_exception_says_where_but_not_what(stream: io.StringIO) -> None:
    secret = "sk-hunter2"

    def deep(value: str) -> None:
        raise ValueError(f"bad key {value}")

    try:
        deep(secret)
    except ValueError as error:
        log_exception("bug", error, request_id="r1")
    [row] = rows(stream)
    assert "hunter2" not in stream.getvalue()
    assert (row["error_type"], row["request_id"], row["level"]) == ("ValueError", "r1", "error")
    assert row["frames"][-1].startswith("tests/ops/test_ops_logs.py:")
    assert row["frames"][-1].endswith(" deep")


def test_our_own_errors_and_the_systems_have_fixed_words(stream: io.StringIO) -> None:
    log_exception("a", ClawError("overloaded"))
    log_exception("b", OSError(24, "with /a/path in it"))
    log_exception("c", ExceptionGroup("said by a client", [ValueError("x"), ExceptionGroup("y", [KeyError("z")])]))
    one, two, three = rows(stream)
    assert (one["error"], one["error_message"]) == ("overloaded", "The gateway is overloaded.")
    assert two["error_message"] == "EMFILE: Too many open files"
    assert three["error_message"] == "KeyError, ValueError"
    assert "client" not in json.dumps(three)


def test_a_flood_is_rationed_by_cause_and_counted() -> None:
    now = [0.0]
    stream = io.StringIO()
    log = Log(stream, ration=Ration(10, 1, clock=lambda: now[0]))
    for _ in range(100_000):
        now[0] += 0.001
        log.write("request.closed", "info", {"outcome": "refused.auth"})
    log.write("request.closed", "info", {"outcome": "timeout.stall"})
    written = rows(stream)
    refused = [row for row in written if row["outcome"] == "refused.auth"]
    assert 105 <= len(refused) <= 111
    assert written[-1]["outcome"] == "timeout.stall"
    log.say_suppressed()
    said = sum(row.get("suppressed", 0) for row in rows(stream))
    assert said == log.suppressed == 100_000 - len(refused)


def test_good_requests_are_all_written() -> None:
    stream = io.StringIO()
    log = Log(stream, ration=Ration(1, 0))
    for _ in range(500):
        log.write("request.closed", "info", {"outcome": "complete"})
    assert len(rows(stream)) == 500


def test_causes_are_bounded() -> None:
    ration = Ration(1, 0, most_causes=10)
    for number in range(1000):
        ration.allow(f"cause {number}")
    assert len(ration.forget()) <= 11


def test_other_libraries_are_bridged_and_rationed(stream: io.StringIO) -> None:
    for _ in range(50):
        try:
            raise OSError(24, "too many")
        except OSError:
            logging.getLogger("trio.serve_listeners").error("accept returned %s", "EMFILE\n\x1b[31m", exc_info=True)
    logging.getLogger("other").info("not at this level")
    written = rows(stream)
    assert len(written) == 3
    assert written[0]["logger"] == "trio.serve_listeners"
    assert written[0]["message"] == "accept returned EMFILE\n\x1b[31m"
    assert written[0]["error_type"] == "OSError"
    assert "\x1b" not in stream.getvalue()


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    log = Log(Gone())
    log.write("x", "error", {})
    assert log.suppressed == 1
