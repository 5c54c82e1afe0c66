"""The short way of a good exchange says and counts exactly what the long one does."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.context import Attribution, Exchange, Timing
from clawproxy.errors import ClawError
from clawproxy.events import Outcome
from clawproxy.messages import Usage
from clawproxy.ops import books, logs
from clawproxy.ops.books import EVENT, book, count, count_in_full, declare, fields, short_line
from clawproxy.ops.logs import FIELDS, Log, Ration
from clawproxy.ops.metrics import Metrics
from clawproxy.secrets import Secret
from clawproxy.testing.factories import make_attempt, make_exchange, make_principal, make_route

ODD = '\x00\n\r\x1b\x7f\x85\x9b\u2028\u202e\u200b\ufeff\U000e0041\ud800"\\<é日'
words = st.text(st.characters() | st.sampled_from(ODD), max_size=12) | st.sampled_from(["", "mock", "gpt-4o", "m" * 2500])
maybe = st.none() | words
seconds = st.none() | st.floats(0, 1e6)
figures = (
    st.none() | st.integers(0, 1 << 40) | st.sampled_from([True, 1.23456789, "1", 1 << 63, (1 << 64) - 1, 1 << 65, -(1 << 63)])
)
timings = st.builds(Timing, seconds, seconds, seconds, seconds, seconds, seconds)
routes = st.builds(make_route, provider=words, model=words, reason=words, strategy=words)
tokens = st.none() | st.integers(0, 99)
usages = st.builds(Usage, figures, figures, figures, source=st.sampled_from(["measured", "estimated"]))


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    route = draw(st.none() | routes)
    exchange = make_exchange(
        request_id=draw(words), client_request_id=draw(maybe), surface=draw(words), peer=draw(words),
        principal=make_principal(key=draw(words), team=draw(maybe)), user=draw(maybe), app=draw(maybe),
        requested_model=draw(words), stream=draw(st.booleans()), route=route, usage=draw(st.none() | usages),
        attribution=draw(st.none() | st.builds(Attribution, maybe, maybe, maybe, maybe)), timing=draw(timings),
        attempts=[make_attempt(route=route)] if route else [],
    )  # fmt: skip
    for code in draw(st.lists(words, max_size=3)):
        exchange.notice(code, "said")
    return exchange


def parsed(line: str) -> list[tuple[str, Any]]:
    """Names and values in their order, the time left out."""
    return [pair for pair in json.loads(line, object_pairs_hook=list) if pair[0] != "ts"]


@given(exchanges(), st.sampled_from(["complete", "truncated"]))
def test_the_short_line_is_the_long_one(exchange: Exchange, label: str) -> None:
    stream = io.StringIO()
    log = Log(stream, instance='i"\u2028', generation=3)
    outcome = Outcome(label)
    short = short_line(exchange, outcome, log)
    log.write(EVENT, "info", fields(exchange, outcome))
    if short is not None:
        text = short.decode()
        assert parsed(text) == parsed(stream.getvalue())
        assert text.endswith("}\n")
        assert not set(text[:-1]) & set("\x00\n\r\x1b\x7f\x85\x9b\u2028\u202e\u200b\ufeff\U000e0041")


def test_the_short_way_is_taken() -> None:
    exchange = make_exchange(route=make_route(), usage=Usage(1, 2), timing=Timing(0.0, 0.1, 0.0, 0.2, 0.3, 0.5), user="日本")
    assert short_line(exchange, Outcome("complete"), Log()) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"user": Secret("sk-1")},
        {"peer": "\ud800"},
        {"user": "u" * 2100},
        {"usage": Usage(1 << 63)},
        {"usage": Usage(None, None, True)},
    ],
)
def test_what_is_odd_takes_the_long_way(changes: dict[str, Any]) -> None:
    assert short_line(make_exchange(**changes), Outcome("complete"), Log()) is None


def test_too_many_notices_take_the_long_way() -> None:
    exchange = make_exchange()
    for _ in range(65):
        exchange.notice("n", "said")
    assert short_line(exchange, Outcome("complete"), Log()) is None


def test_every_field_may_be_said() -> None:
    said = fields(make_exchange(timing=Timing(1, 1, 1, 1, 1, 1)), Outcome("internal", ClawError("internal")))
    assert set(said) <= FIELDS | {"generation"}
    ours = {"ts", "level", "event", "instance", "generation"}
    assert set(books._Line.__struct_fields__) - ours <= FIELDS


surfaces = st.sampled_from(["claw", "openai_chat", "evil"])
providers = st.sampled_from(["one", "two", "evil"])


@st.composite
def closings(draw: st.DrawFn) -> tuple[Exchange, Outcome]:
    route = make_route(provider=draw(providers))
    attempt = make_attempt(
        route=route,
        outcome=draw(st.sampled_from(["complete", "truncated", None])),
        reason=draw(st.sampled_from(["first", "odd"])),
    )
    exchange = make_exchange(
        surface=draw(surfaces), timing=draw(timings), attempts=[attempt] * draw(st.sampled_from([0, 1, 1, 1, 2])),
        route=draw(st.sampled_from([route, route, None, make_route(provider="two")])),
        usage=draw(st.none() | st.builds(Usage, tokens, tokens, tokens)),
    )  # fmt: skip
    error = draw(st.sampled_from([None, None, ClawError("internal")]))
    return exchange, Outcome("internal" if error else "complete", error)


def metrics() -> Metrics:
    made = Metrics()
    declare(made)
    made.allow("provider", ["one", "two"])
    return made


@given(st.lists(st.tuples(closings(), st.integers(1, 3)), max_size=8))
def test_it_counts_the_same(done: list[tuple[tuple[Exchange, Outcome], int]]) -> None:
    quick, full = metrics(), metrics()
    for (exchange, outcome), times in done:
        for _ in range(times):
            count(exchange, outcome, quick)
            count_in_full(exchange, outcome, full)
    assert quick.expose() == full.expose()
    assert {kind[2] for kind in quick.plans} <= {"one", "two"}


def test_no_client_and_no_plugin_makes_plans() -> None:
    made = metrics()
    for number in range(100):
        route = make_route(provider=f"p{number}")
        attempt = make_attempt(route=route, outcome="complete")
        timing = Timing(total=1.0, first_token=0.1)
        count(make_exchange(route=route, attempts=[attempt], usage=Usage(1, 1), timing=timing), Outcome("complete"), made)
    assert not made.plans
    assert len(made._seen) < 20


def test_book_writes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(logs.LOG, "stream", stream)
    monkeypatch.setattr(logs.LOG, "level", 20)
    monkeypatch.setattr(logs.LOG, "ration", Ration(50, 5))
    made = metrics()
    exchange = make_exchange(route=make_route(), usage=Usage(1, 2), timing=Timing(total=0.5))
    for outcome in (Outcome("complete"), Outcome("timeout.stall", ClawError("timeout.stall"))):
        book(exchange, outcome, made)
    good, bad = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (good["outcome"], good["input_tokens"], good["total_ms"], good["status"]) == ("complete", 1, 500.0, 200)
    assert (bad["error"], bad["status"], bad["fault"]) == ("timeout.stall", 504, "provider")
    monkeypatch.setattr(logs.LOG, "level", 30)
    book(exchange, Outcome("complete"), made)
    assert len(stream.getvalue().splitlines()) == 2
    assert made.total("clawproxy_requests_total") == 3
