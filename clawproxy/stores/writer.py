"""The writing end of the journal: openings at once, closings with the next opening, or some milliseconds later.

Rule 1: when `open` returns, the opening survives `kill -9`, and with it every closing of before. Then a request may be sent.
Rule 2: a closing waits for company, `CLOSINGS_WITHIN` at most: half the writes of a busy gateway. A crash in between leaves its
        attempt open, and the next start settles it as it settles all of them, at what was reserved.
Rule 3: while the journal can not be written, or is not folded, nothing new is admitted. Closings wait, `MOST_CLOSINGS` at most.
"""

from __future__ import annotations

import logging
from pathlib import Path

import trio

from clawproxy.errors import ClawError
from clawproxy.stores.books import Booked
from clawproxy.stores.database import Fresh
from clawproxy.stores.journal import Segment, segment_name

log = logging.getLogger("clawproxy.store")

SEGMENT_BYTES = 16 * 1024 * 1024
"""A segment longer than this is followed by a new one."""
UNFOLDED_BYTES = 64 * 1024 * 1024
"""Beyond this much unfolded journal nothing new is admitted: it bounds the disk, and the time the next start takes."""
FRESH_LINES = 8192
"""Lines kept in memory between two folds; beyond some more than that the fold reads the journal."""
CLOSINGS_WITHIN = 0.01
"""Seconds."""
MOST_CLOSINGS = 10_000
_AGAIN_AFTER = 0.25
"""Seconds until closings that could not be written are tried again."""


class Writer:
    """Synchronous, but for `keep_closing`.

    Attributes:
        segment: None before the first one and after the last.
        folded: bytes of the segment that are folded, as the folder says.
        behind: bytes of earlier segments that are not.
        sick: set while the database can not be written.
        lost: closings that there was no room for, until somebody says so.
        dirty: set when there is something to fold.
    """

    def __init__(self, folder: Path, instance: str) -> None:
        self._folder = folder
        self._instance = instance
        self.segment: Segment | None = None
        self.folded = self.behind = self.lost = 0
        self.sick = False
        self.dirty = trio.Event()
        self._fresh: list[Booked] = []
        """What was appended to the segment from byte `_fresh_from` on, `_fresh_bytes` in all."""
        self._fresh_from = self._fresh_bytes = 0
        self._closings: list[Booked] = []
        self._lines: list[bytes] = []
        """Of the closings."""
        self._waiting = trio.Event()
        self._failed = False
        """The last write failed."""

    @property
    def closings(self) -> int:
        """How many wait."""
        return len(self._lines)

    # --- lines ---------------------------------------------------------------------------------------------------------------

    def open(self, kept: Booked, line: bytes) -> None:
        """Write what admits something, and all that waits. Raises ClawError("store_unavailable"): then nothing may be sent."""
        segment = self.segment
        if segment is None or self.sick or segment.size - self.folded + self.behind > UNFOLDED_BYTES:
            raise ClawError("store_unavailable")
        if self._lines:
            line = b"".join((*self._lines, line))
        try:
            segment.append(line)
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.error("the journal can not be written (%s): new requests are refused until it can", error)
            raise ClawError("store_unavailable") from error
        if self._failed:
            self._failed = False
            log.warning("the journal can be written again")
        fresh = self._fresh
        if not fresh:  # the first since the last fold
            self.dirty.set()
        if len(fresh) < FRESH_LINES:
            if self._lines:
                fresh += self._closings
            fresh.append(kept)
            self._fresh_bytes += len(line)
        if self._lines:
            self._closings.clear()
            self._lines.clear()

    def close(self, kept: Booked, line: bytes) -> None:
        """Write it before long. Raises nothing."""
        self._closings.append(kept)
        self._lines.append(line)
        if len(self._lines) == 1:
            self._waiting.set()
        elif len(self._lines) > MOST_CLOSINGS:
            del self._closings[0], self._lines[0]
            self.lost += 1

    def write_closings(self) -> bool:
        """Whether all of them are written now."""
        if self._lines and not self._write(len(self._lines)):
            while self._lines and self._write(1):  # as many as there is room for
                pass
        return not self._lines

    def _write(self, count: int) -> bool:
        segment = self.segment
        if segment is None:
            return False
        data = b"".join(self._lines[:count])
        try:
            segment.append(data)
        except OSError:
            return False
        if not self._fresh:
            self.dirty.set()
        if len(self._fresh) < FRESH_LINES:
            self._fresh += self._closings[:count]
            self._fresh_bytes += len(data)
        del self._closings[:count], self._lines[:count]
        return True

    async def keep_closing(self) -> None:
        """Runs until cancelled."""
        while True:
            await self._waiting.wait()
            await trio.sleep(CLOSINGS_WITHIN)
            self._waiting = trio.Event()
            if not self.write_closings():
                await trio.sleep(_AGAIN_AFTER)
                self._waiting.set()

    # --- segments ------------------------------------------------------------------------------------------------------------

    def begin(self, number: int) -> None:
        """The next segment. Raises OSError; then the one before goes on."""
        new = Segment(self._folder / segment_name(number, self._instance))
        if self.segment is not None:
            self.behind += self.segment.size - self.folded
            self.segment.close()
        self.segment, self.folded = new, 0
        self._fresh, self._fresh_from, self._fresh_bytes = [], 0, 0

    def take(self) -> Fresh | None:
        """What is to be folded, up to here; None where nothing can be. Called at the beginning of each fold."""
        segment = self.segment
        if segment is not None and segment.size > SEGMENT_BYTES and not self.sick:
            try:
                self.begin(int(segment.path.name.partition(".")[0]) + 1)
            except OSError as error:
                log.error("no new journal segment can be made: %s", error)
            segment = self.segment
        if segment is None:
            return None
        known = self._fresh_bytes == segment.size - self._fresh_from  # else there is more in the file than we know of
        fresh = Fresh(segment.path.name, self._fresh_from, segment.size, self._fresh if known else None)
        self._fresh, self._fresh_from, self._fresh_bytes = [], segment.size, 0
        return fresh

    def end(self) -> None:
        """No more is written."""
        segment, self.segment = self.segment, None
        if segment is not None:
            segment.close()
