"""What a provider does, and what the client sees: each row of FAULTS, on HTTP and on the WebSocket, over real sockets.

Each case is named by its row. With one route and with two it is checked what the client is told (status, slug, clock, limit,
setting), how often the provider was asked and how it saw the answer end, what the ledger has, and what the gateway remembers of
the provider (failures that count, its credential). The rows that are no one answer's are in `test_fault_edges`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from clawproxy.scripted import parse
from clawproxy.upstream import answer
from tests.e2e.faultworld import DOORS, LIMIT, Door, Seen, world

pytestmark = pytest.mark.timed

SPENT = r'body "{\"error\": {\"code\": \"insufficient_quota\", \"message\": \"You exceeded your current quota.\"}}"'
LINE = r'raw "data: {\"choices\": [{\"index\": 0, \"delta\": {\"content\": \"'


@attrs.frozen
class Row:
    name: str
    script: str
    """What the provider does with every request."""
    slug: str
    status: int = 502
    asked: int = 1
    """How often, where there is no other route."""
    text: str = ""
    """What was released before."""
    elsewhere: bool = True
    """The next route, where there is one, is asked; the client gets its answer and no error."""
    counts: bool = True
    """As a failure against the place's breaker."""
    credential: str = ""
    """What becomes of it after one of these."""
    clock: str = ""
    retry_after: float | None = None
    ends: str = "closed_by_peer"
    """How the provider saw its answer end; empty where that is a matter of moments."""
    stream: bool | None = None
    """Both where None."""
    unknown: bool = False
    """Whether it did what it was asked for: the ledger says `ambiguous` (B-07)."""

    @property
    def booked(self) -> str:
        """The ledger's word for it."""
        return "ambiguous" if self.unknown else self.slug

    @property
    def small(self) -> bool:
        """A status with a body of which nothing is left to be sent."""
        return self.script.startswith(("status", "redirect")) and "size" not in self.script


FIRST, STALL = "timeout.first_token", "timeout.stall"
CUT, MALFORMED, SERVER = "provider_error.cut", "provider_error.malformed", "provider_error.server"
BUSY, LIMITED, AUTH = "provider_error.overloaded", "provider_error.rate_limited", "provider_error.auth"

ROWS = [
    Row("hangs before headers", "stall", FIRST, 504, clock="first_token"),
    Row("hangs after headers before content", "head; stall", FIRST, 504, clock="first_token"),
    Row("hangs after its opening event", "begin; stall", FIRST, 504, clock="first_token", stream=True),
    Row("hangs while it sends comments", "comment hm; comment hm; stall", FIRST, 504, clock="first_token", stream=True),
    Row("one byte at a time before content", "drip 1 every 20ms; say one", FIRST, 504, clock="first_token"),
    Row("stalls mid-stream", "say one; stall", STALL, 200, text="one", clock="stall"),
    Row("stalls, with comments", "say one; comment x; pause 100ms; comment y; stall", STALL, 200, text="one", clock="stall"),
    Row("one byte a second for ever", "say one; drip 1 every 20ms; tokens 9", STALL, 200, text="one", clock="stall"),
    Row("resets before its answer", "reset", CUT, ends="cut_by_script", unknown=True),
    Row("closes before its answer", "cut", CUT, ends="cut_by_script", unknown=True),
    Row("cuts within its head", "cut after 20; say one", CUT, ends="cut_by_script", unknown=True),
    Row("cuts after its head", "head; cut", CUT, ends="cut_by_script"),
    Row("truncates a whole answer", "cut after 200; say one two three", CUT, ends="cut_by_script", stream=False),
    Row("resets mid-stream", "say one; reset", CUT, 200, text="one", ends="cut_by_script"),
    Row("truncates mid-stream", "say one; cut", CUT, 200, text="one", ends="cut_by_script"),
    Row("ends the body before the answer's end", "say one; end bare", CUT, 200, text="one", ends="finished"),
    Row("200, then an error as the first event", "error code overloaded Busy", BUSY, 503, stream=True, ends="finished"),
    Row("200, then an error of the server", "error Broken", SERVER, stream=True, ends="finished"),
    Row("200, its opening event, then an error", "begin; error Broken", SERVER, stream=True, ends="finished"),
    Row("an error in the middle", "say one; error Broken", SERVER, 200, text="one", ends="finished"),
    Row("429 with seconds", "status 429 retry-after 3", LIMITED, 429, counts=False, credential="cooling", retry_after=3),
    Row("429 absurd", "status 429 retry-after 99999999", LIMITED, 429, counts=False, credential="cooling", retry_after=600),
    Row("429 with a date gone by", 'status 429 retry-after "Thu, 01 Jan 2015 00:00:00 GMT"', LIMITED, 429, counts=False,
        credential="cooling", retry_after=1),
    Row("429 without", "status 429", LIMITED, 429, counts=False, credential="cooling", retry_after=1),
    Row("429 for spend", f"status 429 {SPENT}", "provider_error.quota", 503, counts=False, credential="spent"),
    Row("402 for spend", f"status 402 {SPENT}", "provider_error.quota", 503, counts=False, credential="spent"),
    Row("500", "status 500", SERVER, asked=3),
    Row("502", "status 502", SERVER, asked=3),
    Row("503", "status 503", BUSY, 503, asked=3),
    Row("503 with a Retry-After", "status 503 retry-after 30", BUSY, 503, retry_after=30),
    Row("529", "status 529", BUSY, 503, asked=3),
    Row("401 on our key", "status 401", AUTH, counts=False, credential="refused 1"),
    Row("403 on our key", "status 403", AUTH, counts=False, credential="refused 1"),
    Row("404 for the model", "status 404", "provider_error.not_found", counts=False),
    Row("400", "status 400", "provider_error.rejected", 400, counts=False, elsewhere=False),
    Row("400 with a 100 MB body", "status 400 size 100MiB", "provider_error.rejected", 400, counts=False, elsewhere=False),
    Row("400, dripped", "drip 50 every 9ms; status 400 size 1MiB", "provider_error.rejected", 400, counts=False, elsewhere=False),
    Row("a redirect", "redirect http://127.0.0.1:1/elsewhere", "provider_error.redirect", counts=False),
    Row("a broken event first", "bad json", MALFORMED, stream=True),
    Row("a whole answer that breaks off", r'status 200 body "{\"choices\": [{\"index\""', CUT, stream=False, ends="finished"),
    Row("a whole answer that is none", "status 200 body nonsense", MALFORMED, stream=False, ends="finished"),
    Row("a broken event in the middle", "say one; bad json", MALFORMED, 200, text="one"),
    Row("no HTTP at all", r'raw head "SSH-2.0-OpenSSH_9.6\r\n\r\n"', MALFORMED, ends=""),
    Row("invalid UTF-8", LINE + r'\xff\xfe\"}}]}\n\n"; stall', MALFORMED, stream=True),
    Row("half a surrogate in bytes", "say one; " + LINE + r'\xed\xa0\x80\"}}]}\n\n"; stall', MALFORMED, 200, text="one"),
]  # fmt: skip


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 seconds for an error's body are too long for a test."""
    monkeypatch.setattr(answer, "ERROR_BODY_SECONDS", LIMIT)


def check_told(row: Row, door: Door, seen: Seen) -> None:
    assert (seen.status, seen.slug, seen.text) == (row.status, row.slug, row.text)
    if row.clock:
        setting = f"providers.bad.deadlines.{row.clock}"
        assert setting in seen.message, "it names its setting"
        if door == "websocket":
            assert (seen.clock, seen.limit_ms, seen.setting) == (row.clock, round(LIMIT * 1000), setting)
    if row.retry_after is not None:
        assert seen.retry_after is not None
        assert max(1.0, row.retry_after - 10) <= seen.retry_after <= row.retry_after
    if row.slug == LIMITED:
        assert seen.retry_after is not None, "a 429 says when to come back"


def cases() -> Iterator[tuple[Row, Door, bool]]:
    for row in ROWS:
        if row.stream is not False:
            yield from ((row, door, True) for door in DOORS)
        if row.stream is False:
            yield from ((row, door, False) for door in DOORS)
        elif row.stream is None and not row.text and (not row.clock or row is ROWS[0]):
            yield row, "http", False


CASES = list(cases())


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("row", "door", "stream"), CASES, ids=[f"{row.name}-{door}{'' if stream else '-whole'}" for row, door, stream in CASES]
)
async def test_row(tmp_path: Path, row: Row, door: Door, stream: bool) -> None:
    async with world(tmp_path, short=bool(row.clock)) as it:
        it.bad.default = parse(row.script)

        # The only route: the client is told.
        check_told(row, door, await it.ask(door, stream=stream))
        entries = await it.entries()
        rows = await it.rows()
        assert len(entries) == len(rows) == row.asked
        for entry, booked in zip(entries, rows, strict=True):
            assert booked.closed is not None
            assert entry.request_id == booked.opened.id, "the provider and the ledger know it by the same id"
            assert (booked.closed.outcome, booked.closed.sent) == (row.booked, True)
            if row.ends and row.name != "a redirect":
                assert entry.state == ("finished" if row.small else row.ends)
            assert entry.bytes_sent < 16 * 2**20, "it is not read to its end"
        if row.text:
            assert rows[-1].closed is not None
            assert rows[-1].closed.source == "estimated"
            assert (rows[-1].closed.output_tokens or 0) >= 1, "what was said is booked"
        assert it.fails_in_a_row() == (row.asked if row.counts else 0)
        assert it.credential() == row.credential
        assert it.good.log.requests == 0

        # With another one, until something was released.
        it.running.forget_trouble()
        seen = await it.ask(door, "both", stream=stream)
        if row.elsewhere and not row.text:
            assert (seen.status, seen.slug, seen.text, seen.route) == (200, "", "from the good one", "good")
            assert "fallback" in seen.notices, "it is told of another route"
        else:
            check_told(row, door, seen)
            assert it.good.log.requests == 0, "never silently asked again"
        outcomes = [(each.opened.provider, each.closed.outcome) for each in (await it.rows())[row.asked :] if each.closed]
        expected = [("bad", row.booked), ("good", "complete")] if row.elsewhere and not row.text else [("bad", row.booked)]
        assert outcomes == expected
        assert len(await it.entries()) == row.asked + 1
        assert it.good.log.requests == len(expected) - 1
        assert not it.bad.log.malformed


async def test_each_row_fails_where_the_provider_is_well(tmp_path: Path) -> None:
    """The table can fail: a provider that answers is none of its rows."""
    async with world(tmp_path) as it:
        for door in DOORS:
            seen = await it.ask(door)
            assert (seen.status, seen.slug, seen.route) == (200, "", "bad")
            with pytest.raises(AssertionError):
                check_told(ROWS[0], door, seen)
        assert (it.fails_in_a_row(), it.credential()) == (0, "")
        with trio.fail_after(3):
            assert [entry.state for entry in await it.entries()] == ["finished"] * 2
