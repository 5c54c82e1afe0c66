"""The short way of `Reader` for plain frames gives what wsproto gives, whatever arrives and however it is cut."""

from __future__ import annotations

import os
from itertools import chain, cycle

from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawproxy.transport.websocket.frames import Inbound, Reader

from .kit import frame

LIMIT = 300


class Careful(Reader):
    """Everything by wsproto."""

    def _plain(self) -> bytes | None:
        return None


def read(reader: Reader, pieces: list[bytes], lazily: bool) -> list[Inbound | bool]:
    """What comes out, and after each piece whether a message is under way."""
    seen: list[Inbound | bool] = []
    for index, piece in enumerate(pieces):
        if index == 5:
            reader.raise_limit(LIMIT * 300)
        reader.feed(piece)
        if lazily and index % 2:  # as while a credential is checked
            continue
        while (event := reader.next()) is not None:
            seen.append(event)
        seen.append(reader.assembling)
    while (event := reader.next()) is not None:
        seen.append(event)
    return [*seen, reader.assembling, reader.ended]


MASKS = st.binary(min_size=4, max_size=4)
TEXTS = st.text(max_size=20).map(str.encode)
SIZED = st.sampled_from([125, 126, LIMIT, LIMIT + 1, 65_535, 65_536]).map(lambda size: b"x" * size)
PLAIN = st.builds(lambda payload, mask: [frame(1, payload, mask=mask)], TEXTS | TEXTS | SIZED, MASKS)
ANY = st.builds(
    lambda opcode, payload, fin, mask, rsv: [frame(opcode, payload, fin=fin, mask=mask, rsv=rsv)],
    st.sampled_from([0, 1, 1, 2, 3, 8, 9, 9, 10, 15]),
    TEXTS | st.binary(max_size=8) | SIZED,
    st.booleans(),
    MASKS | MASKS | st.none(),
    st.sampled_from([0, 0, 0, 0x10, 0x40]),
)
SPLIT = st.builds(  # a message in two frames, with something between them
    lambda a, b, between, mask: [frame(1, a, fin=False, mask=mask), *between, frame(0, b, mask=mask)],
    TEXTS,
    TEXTS,
    st.just(list[bytes]()) | st.just([frame(9, b"?")]) | PLAIN,
    MASKS,
)
ODD = st.sampled_from([b"\x81\xfe\0\x05\0\0\0\0hello", b"\x81\xff" + bytes(7) + b"\x05\0\0\0\0hello", b"\x81\xfe", b"\x81"])
SMUGGLED = st.sampled_from([frame(9, frame(1, b"a")), b"\x89\x82" + frame(1), frame(2, frame(1, b"a")), frame(1, frame(1, b"a"))])
"""The rest of each, cut behind its header or within, looks like a plain frame."""
FRAMES = st.lists(
    PLAIN | PLAIN | SPLIT | SPLIT | ANY | (ODD | SMUGGLED | st.binary(max_size=12)).map(lambda data: [data]), max_size=6
)
CUTS = st.lists(st.integers(0, 9) | st.none(), min_size=1, max_size=8)
"""After how many bytes of each frame a read ends; None: it brings the next frame, too."""


@settings(max_examples=500, deadline=None)
@given(FRAMES, CUTS, st.booleans())
@example([[frame(1, "\u00e9".encode()[:1])], [frame(1, b"x")]], [0], False)
@example([[frame(1, b"x" * LIMIT + b"y")]], [0], False)
@example([[frame(9)], [frame(1, b"a")], [frame(1, b"b")]], [0, 3, 1], False)
@example([[frame(9)], [frame(9, frame(1, b"a"))]], [0, 6], False)
@example([[frame(9)], [b"\x89\x82" + frame(1)]], [0, 2], False)
@example([[frame(1, b"a", fin=False)], [frame(1, b"b")]], [0], False)
def test_the_short_way_gives_what_wsproto_gives(frames: list[list[bytes]], cuts: list[int | None], lazily: bool) -> None:
    pieces = [b""]
    for data, cut in zip(chain.from_iterable(frames), cycle(cuts)):
        if cut is None:
            pieces[-1] += data
        else:
            pieces += [data[:cut], data[cut:]]
    pieces = [piece for piece in pieces if piece]
    assert read(Reader(LIMIT), pieces, lazily) == read(Careful(LIMIT), pieces, lazily)


def test_plain_frames_never_reach_wsproto() -> None:
    reader = Reader(70_000)
    messages = [b"", b"{}", "\u00e9\U0001f600".encode(), b"x" * 125, b"x" * 126, b"x" * 65535]
    reader.feed(b"".join(frame(1, text, mask=os.urandom(4)) for text in messages))
    assert [reader.next() for _ in messages] == messages
    assert reader.next() is None
    assert reader._connection is None


def test_they_take_the_short_way_again_behind_one_that_could_not() -> None:
    reader = Reader(70_000)
    for piece in (frame(9), frame(1, b"a", fin=False) + frame(0, b"b"), frame(1, b"x" * 66_000)):
        reader.feed(piece)
        assert reader.next() is not None
        assert reader.next() is None
        assert reader._events is None
