"""Lines and segments: what is written reads back, what is damaged does not, what is cut short is taken back."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from clawproxy.stores.base import LedgerClose, LedgerOpen
from clawproxy.stores.journal import Segment, number_of, segment_name
from clawproxy.stores.records import close_line, close_record, open_line, open_record, read_line, read_lines

from .conftest import make_close, make_open

texts = st.text(max_size=20)
openings = st.builds(make_open, id=texts, key=texts, user=st.none() | texts, model=texts, opened=st.floats(0, 1e12))
closings = st.builds(make_close, texts, outcome=texts, sent=st.booleans(), cost_nano=st.none() | st.integers(0, 2**53))


@given(openings, closings)
def test_a_line_reads_back(opened: LedgerOpen, closed: LedgerClose) -> None:
    for line, kind, record in ((open_line(opened), "o", opened), (close_line(closed), "c", closed)):
        assert line.count(b"\n") == 1
        read = read_line(line[:-1])
        assert read is not None
        assert read[0] == kind
        assert type(record)(*read[1]) == record


odd_texts = texts | st.text(st.characters(), max_size=3) | st.just("x" * 5000)
odd_numbers = st.integers(-3, 5) | st.integers() | st.just(2**40 + 1)
odd_times = st.floats()
odd_openings = st.builds(
    make_open, id=odd_texts, model=odd_texts, team=st.none() | odd_texts, opened=odd_times, number=odd_numbers,
    reserved_input=odd_numbers, reserved_output=st.none() | odd_numbers, reserved_nano=st.none() | odd_numbers,
)  # fmt: skip
odd_closings = st.builds(
    make_close, odd_texts, closed=odd_times, outcome=odd_texts, input_tokens=st.none() | odd_numbers,
    cached_tokens=st.none() | odd_numbers, cost_nano=st.none() | odd_numbers,
)  # fmt: skip


@given(odd_openings, odd_closings)
def test_what_is_kept_in_memory_is_what_the_line_says(opened: LedgerOpen, closed: LedgerClose) -> None:
    """The fold takes the one or the other: they must not differ."""
    for kept, line in (open_record(opened), close_record(closed)):
        read = read_line(line[:-1])
        assert read is not None
        assert read[1] == astuple(kept)


@given(openings, st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_or_shortened_line_does_not(opened: LedgerOpen, at: int, flip: int) -> None:
    line = open_line(opened)[:-1]
    at %= len(line)
    assert read_line(line[:at]) is None
    damaged = bytearray(line)
    damaged[at] ^= flip
    read = read_line(bytes(damaged))
    assert read is None or damaged[:8].lower() == line[:8]  # a checksum may be written in capitals


@given(st.binary(max_size=50))
def test_rubbish_is_no_record(data: bytes) -> None:
    records, broken = read_lines(data.split(b"\n"))
    assert records == []
    assert broken == len([line for line in data.split(b"\n") if line])


def test_a_line_of_an_older_version_is_padded() -> None:
    from zlib import crc32

    body = b'c["id",5.0,"complete",true,1,2]'
    read = read_line(b"%08x%b" % (crc32(body), body))
    assert read is not None
    values = ("id", 5.0, "complete", True, 1, 2)
    assert read[1] == values + (None,) * (len(LedgerClose.__struct_fields__) - len(values))
    for body in (b"c[]", b"c[1,2]", b"c[[],2]", b'x["id"]', b"c{}", b"c"):
        assert read_line(b"%08x%b" % (crc32(body), body)) is None


def test_names() -> None:
    assert segment_name(7, "host/../x y") == "000000000007.host____x_y.journal"
    assert segment_name(7, "") == "000000000007.instance.journal"
    assert number_of("000000000007.a.journal") == 7
    assert number_of("notes.journal") is None


def test_a_segment_is_never_begun_twice(tmp_path: Path) -> None:
    Segment(tmp_path / "1.a.journal").close()
    with pytest.raises(FileExistsError):
        Segment(tmp_path / "1.a.journal")


def test_after_a_line_cut_short_for_good_the_next_begins_on_its_own(tmp_path: Path) -> None:
    """A full pipe writes short, and can not be truncated: the worst a disk can do."""
    segment = Segment(tmp_path / "1.a.journal")
    reader, pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    room = fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    real, segment._fd = segment._fd, pipe
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        segment.append(b"x" * (room + 1000) + b"\n")
    assert segment.size == len(os.read(reader, room)) == room
    for line in (b"second\n", b"third\n"):
        segment.append(line)
    assert os.read(reader, room) == b"\nsecond\nthird\n"
    assert segment.size == room + len(b"\nsecond\nthird\n")
    segment._fd = real
    segment.close()
    os.close(reader)
    os.close(pipe)
