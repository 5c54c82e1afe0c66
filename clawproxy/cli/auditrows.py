"""The audit log as commands read it: rows as dicts, with the gateway up or down.

Rule: a line that is no whole row (torn by a crash, still being written, changed by somebody) is passed over; `clawproxy audit
      verify` is who judges.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from clawproxy.config.units import parse_duration
from clawproxy.errors import ConfigError

LONGEST = 1 << 20
"""Bytes of a line; a row has a hundredth of it."""
Row = dict[str, Any]


class _Place(msgspec.Struct):
    provider: str
    model: str


class _Attempt(_Place):
    reason: str
    outcome: str | None


class _Weighed(_Place):
    why: str
    score: float | None


class _Hit(msgspec.Struct):
    rule: str
    action: str
    shadow: bool


class _Shape(msgspec.Struct):
    """Of a row, what commands rely on."""

    request_id: str
    attempts: list[_Attempt] = []
    considered: list[_Weighed] = []
    rules: list[_Hit] = []
    residency: list[str] = []
    notices: list[str] = []


def files(state_dir: Path) -> list[Path]:
    """Oldest first."""
    found = [(file.stat().st_mtime_ns, file) for file in (state_dir / "audit").glob("*.jsonl")]
    return [file for _, file in sorted(found)]


def rows(state_dir: Path, since: float | None = None) -> Iterator[Row]:
    """Every row written at or after a Unix time. Raises OSError."""
    for file in files(state_dir):
        if since is None or file.stat().st_mtime >= since:
            for line in _lines(file):
                row = _row(line)
                if row is not None and (since is None or (written_at(row) or 0.0) >= since):
                    yield row


def row_of(state_dir: Path, request_id: str) -> Row | None:
    """The row of one request. Raises OSError."""
    sought = f'"{request_id}"'.encode()
    for file in reversed(files(state_dir)):
        for line in _lines(file):
            if sought in line:
                row = _row(line)
                if row is not None and row["request_id"] == request_id:
                    return row
    return None


def written_at(row: Row) -> float | None:
    """Unix time at which it was written."""
    try:
        return datetime.datetime.fromisoformat(str(row.get("time"))).timestamp()
    except ValueError:
        return None


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as reader:
        while line := reader.readline(LONGEST):
            yield line


def _row(line: bytes) -> Row | None:
    try:
        row: Row = msgspec.json.decode(line)
        msgspec.convert(row, _Shape)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return row


def parse_since(text: str | None) -> float | None:
    """Unix time of `"24h"` (ago) or of a date and time with its offset. Raises ConfigError."""
    if text is None:
        return None
    try:
        if not re.match(r"[0-9]{4}-", text):
            return time.time() - parse_duration(text)
        moment = datetime.datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError(f'"{text}" has no offset from UTC; write it like 2027-01-31T00:00:00Z')
    except ValueError as error:
        raise ConfigError([f"--since: {error}"]) from None
    return moment.timestamp()
