"""The log: JSON lines on stderr, one object a line, whatever a client or a provider sent.

Rule 1: fields come from an allow-list (`FIELDS`); one that is not on it stays out and is named under `dropped`.
Rule 2: nothing that could end a line, move a cursor or reorder text gets through unescaped (THREATS.md L-01).
Rule 3: the lines of one cause are rationed (L-02); how many were left out stands in the next line of that cause, or in a
        `log.suppressed` line. Good requests are never rationed.
Rule 4: an exception is its type, fixed words and the places it came through: no values, no locals.
Rule 5: while `Log.run` runs, lines are written in batches (`sink`); warnings and errors at once; else each as it comes.
"""

from __future__ import annotations

import datetime
import errno
import json
import logging
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import trio
from attrs import define, field

from clawproxy.errors import ClawError
from clawproxy.ops.sink import EVERY, Sink

_FIELD_NAMES = """
request_id client_request_id client agent_id client_session_id project_id session_id surface key user team app peer
model provider provider_model strategy reason route
attempt attempts outcome error fault status provider_status clock limit_ms setting param policy plugin hook finish
input_tokens output_tokens cached_tokens reasoning_tokens usage_source cost_nano budget action
queue_ms policy_ms connect_ms first_token_ms upstream_ms gateway_ms total_ms duration_ms lag_ms budget_ms
stream notices bytes count listen admin path config version worker signal close_code message logger cause suppressed
error_type error_message frames problems warnings limit in_flight connections method head deadline_ms detail
route_reason timing_ms step quiet_ms
state credential rest_ms alert
"""
FIELDS: frozenset[str] = frozenset(_FIELD_NAMES.split())
"""Every field a line may have beside ts, level, event, instance and generation."""

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
MOST_TEXT = 2048
"""Characters one value may have."""
_LAST_LINES = 1.0
"""Seconds a reader that stopped reading has, at the end."""
MOST_ITEMS = 64
"""Items one list may have."""
FINE = frozenset({"complete", "truncated"})
"""Outcomes that are never rationed."""
_UNSAFE = re.compile(
    "[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def escape(text: str) -> str:
    """`text` as the inside of a JSON string, with every control, line and direction character escaped; the rest as it is."""
    return _UNSAFE.sub(_unicode_escape, json.dumps(text, ensure_ascii=False)[1:-1])


def printable(line: bytes) -> bytes:
    """A line of UTF-8 JSON with those characters escaped. Nearly every one is ASCII: one look."""
    if line.isascii() and b"\x7f" not in line:
        return line
    return _UNSAFE.sub(_unicode_escape, line.decode()).encode()


def _unicode_escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _json(value: Any, depth: int = 3) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 63 else f'"{value:#x}"'
    if isinstance(value, float):
        return repr(round(value, 6)) if math.isfinite(value) else f'"{value}"'
    if isinstance(value, (list, tuple, set, frozenset)) and depth:
        return "[" + ",".join(_json(item, depth - 1) for item in list(value)[:MOST_ITEMS]) + "]"
    if isinstance(value, Mapping) and depth:
        inner = (f'"{escape(str(name)[:64])}":{_json(item, depth - 1)}' for name, item in list(value.items())[:64])
        return "{" + ",".join(inner) + "}"
    text = value if isinstance(value, str) else str(value)  # a Secret says ***
    if len(text) > MOST_TEXT:
        text = text[:MOST_TEXT] + "..."
    return f'"{escape(text)}"'


def describe(error: BaseException) -> dict[str, Any]:
    """`error_type`, `error_message` (fixed words only) and `frames` of an exception, the deepest last."""
    fields: dict[str, Any] = {"error_type": type(error).__qualname__}
    if isinstance(error, ClawError):
        fields["error_message"] = error.message
        fields["error"] = error.slug
    elif isinstance(error, OSError) and error.errno is not None:
        fields["error_message"] = f"{errno.errorcode.get(error.errno, error.errno)}: {os.strerror(error.errno)}"
    elif isinstance(error, BaseExceptionGroup):
        fields["error_message"] = ", ".join(sorted({type(leaf).__qualname__ for leaf in _leaves(error)})[:8])
    frames = traceback.extract_tb(error.__traceback__)[-24:]
    if isinstance(error, BaseExceptionGroup):
        deepest = max(_leaves(error), key=lambda leaf: len(traceback.extract_tb(leaf.__traceback__)), default=None)
        if deepest is not None:
            frames = traceback.extract_tb(deepest.__traceback__)[-24:]
    fields["frames"] = [f"{_module(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        fields["cause"] = type(cause).__qualname__
    return fields


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for child in group.exceptions:
        found += _leaves(child) if isinstance(child, BaseExceptionGroup) else [child]
    return found


def _module(filename: str) -> str:
    """The file from its package on: where the gateway is installed is nobody's business."""
    parts = filename.replace("\\", "/").rsplit("/", 3)
    return "/".join(parts[-3:]) if len(parts) > 3 else filename


@define
class Ration:
    """Lines by cause: the first `burst` at once, then `rate` a second; the rest are counted."""

    burst: float
    rate: float
    clock: Callable[[], float] = time.monotonic
    most_causes: int = 1024
    _causes: dict[str, list[float]] = field(factory=dict)
    """Cause to [lines left, when that was, lines left out since]."""

    def allow(self, cause: str) -> int | None:
        """None: leave this line out. Else how many were left out since the last one that was let through."""
        now = self.clock()
        state = self._causes.get(cause)
        if state is None:
            if len(self._causes) >= self.most_causes:
                cause = "other"
            state = self._causes.setdefault(cause, [self.burst, now, 0])
        left = min(self.burst, state[0] + (now - state[1]) * self.rate)
        state[1] = now
        if left < 1:
            state[0] = left
            state[2] += 1
            return None
        suppressed, state[0], state[2] = int(state[2]), left - 1, 0
        return suppressed

    def forget(self) -> dict[str, int]:
        """What was left out and not yet said, by cause; said now."""
        waiting = {cause: int(state[2]) for cause, state in self._causes.items() if state[2]}
        for cause in waiting:
            self._causes[cause][2] = 0
        return waiting


@define(eq=False)
class Log:
    """Where the lines go. One for each process; tests make their own."""

    stream: TextIO | None = None
    """None: whatever `sys.stderr` is at the time."""
    level: int = 20
    instance: str = ""
    generation: int = 0
    ration: Ration = field(factory=lambda: Ration(50, 5))
    foreign: Ration = field(factory=lambda: Ration(3, 0.1))
    """For other libraries' loggers: Trio alone complains ten times a second when descriptors run out (TRIO.md P-08)."""
    suppressed: int = 0
    """Lines left out so far, for the metric."""
    _said: float = field(factory=time.monotonic)
    _sink: Sink | None = None
    """While `run` runs."""
    _wake: trio.Event = field(factory=trio.Event)
    _token: trio.lowlevel.TrioToken | None = None
    _second: int = 0
    _stamp: str = ""

    def write(self, event: str, level: str, fields: Mapping[str, Any]) -> None:
        number = LEVELS[level]
        if number < self.level:
            return
        cause = _cause(event, number, fields)
        missing = 0
        if cause is not None:
            allowed = self.ration.allow(cause)
            if allowed is None:
                self.suppressed += 1
                return
            missing = allowed
        self.line(event, level, fields, missing)
        self._say_now_and_then()

    def put_line(self, line: bytes) -> None:
        """`write` for a line that was made elsewhere as `line` makes it, and is neither rationed nor urgent."""
        self.put(line)
        self._say_now_and_then()

    def _say_now_and_then(self) -> None:
        if self.suppressed and self.ration.clock() - self._said > 10.0:
            self.say_suppressed()

    def line(self, event: str, level: str, fields: Mapping[str, Any], missing: int = 0) -> None:
        parts = [f'{{"ts":"{self.now()}","level":"{level}","event":"{escape(event)}","instance":"{escape(self.instance)}"']
        parts.append(f'"generation":{int(fields.get("generation") or self.generation)}')
        dropped = []
        for name, value in fields.items():
            if value is None or name == "generation":
                continue
            if name in FIELDS:
                parts.append(f'"{name}":{_json(value)}')
            else:
                dropped.append(name)
        if missing:
            parts.append(f'"suppressed":{missing}')
        if dropped:
            parts.append(f'"dropped":{_json(dropped)}')
        self.put(f"{','.join(parts)}}}\n".encode(), urgent=LEVELS[level] >= LEVELS["warning"])

    def now(self) -> str:
        """The time, as a line says it: UTC, in milliseconds. The date is made once a second (2.3 -> 0.4 us)."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = datetime.datetime.fromtimestamp(second, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        return f"{self._stamp}{int((now - second) * 1000):03d}Z"

    def put(self, line: bytes, *, urgent: bool = False) -> None:
        """Write a whole line that is safe (rule 2), now or with the next batch."""
        sink = self._sink
        if sink is not None:
            sink.put(line)
            if urgent:  # perhaps from another thread (`Bridge`), which may not touch the event
                sink.flush()
                if sink.waiting and self._token is not None:
                    self._token.run_sync_soon(self._look)
            elif len(sink.waiting) == 1:
                self._wake.set()
            return
        stream = sys.stderr if self.stream is None else self.stream
        try:
            stream.write(line.decode())
            stream.flush()
        except (OSError, ValueError):
            self.suppressed += 1  # nobody reads the log any more: the requests go on

    async def run(self) -> None:
        """Write in batches, until cancelled: beside the service. Returns at once where the stream is no UTF-8 file."""
        stream = sys.stderr if self.stream is None else self.stream
        try:
            stream.flush()
            sink = Sink(stream.fileno()) if (stream.encoding or "").lower().replace("-", "") == "utf8" else None
        except (OSError, ValueError):
            sink = None
        if sink is None or self._sink is not None:
            return
        self._sink, self._wake, self._token = sink, trio.Event(), trio.lowlevel.current_trio_token()
        try:
            while True:
                await self._wake.wait()
                await trio.sleep(EVERY)
                self._wake = trio.Event()
                sink.flush()
                if sink.waiting:
                    self._wake.set()
                elif sink.lost:
                    self._say_lost(sink)
        finally:
            self._sink = None
            sink.flush(_LAST_LINES)
            sink.lost += len(sink.waiting)
            self._say_lost(sink)

    def _look(self) -> None:
        self._wake.set()

    def _say_lost(self, sink: Sink) -> None:
        lost, sink.lost = sink.lost, 0
        self.suppressed += lost
        if lost:
            self.line("log.suppressed", "warning", {"cause": "log.blocked", "suppressed": lost})

    def say_suppressed(self) -> None:
        """Say what was left out of causes that have been silent since. Also called once at the end."""
        self._said = self.ration.clock()
        for cause, count in {**self.ration.forget(), **self.foreign.forget()}.items():
            self.line("log.suppressed", "warning", {"cause": cause, "suppressed": count})


def _cause(event: str, level: int, fields: Mapping[str, Any]) -> str | None:
    """What a line is rationed by; None where it is not: information about what went well."""
    outcome = fields.get("outcome")
    if level >= LEVELS["warning"] or (outcome is not None and outcome not in FINE) or "cause" in fields:
        kind = fields.get("error") or outcome or fields.get("cause") or fields.get("error_type") or ""
        return f"{event} {kind}".strip()
    return None


LOG = Log()


def log_event(name: str, level: str = "info", **fields: Any) -> None:
    """One line. `name` is the event, `fields` from `FIELDS`; None values stay out."""
    LOG.write(name, level, fields)


def log_exception(name: str, error: BaseException, level: str = "error", **fields: Any) -> None:
    """One line about an exception nobody expected."""
    LOG.write(name, level, {**fields, **describe(error)})


def set_instance(instance: str, generation: int = 0) -> None:
    """What every line says about who writes it; `generation` where the line does not say its own."""
    LOG.instance, LOG.generation = instance, generation


def set_level(level: str) -> None:
    """What is logged from now on, ours and others'."""
    LOG.level = LEVELS[level]
    logging.getLogger().setLevel(max(LEVELS[level], LEVELS["warning"]))


class Bridge(logging.Handler):
    """Other libraries' records, in our lines."""

    def emit(self, record: logging.LogRecord) -> None:
        missing = LOG.foreign.allow(f"{record.name} {record.msg}"[:200])
        if missing is None:
            LOG.suppressed += 1
            return
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[1] is not None:
            fields |= describe(record.exc_info[1])
        try:
            fields["message"] = record.getMessage()
        except Exception:
            fields["message"] = str(record.msg)
        level = next((name for name in reversed(list(LEVELS)) if record.levelno >= LEVELS[name]), "debug")
        LOG.line("log", level, fields, missing)


def setup(level: str = "info", *, instance: str = "", generation: int = 0, stream: TextIO | None = None) -> Log:
    """Set the process's log up: `LOG`, and the standard library's root logger into it. Other libraries' debug lines stay out."""
    LOG.instance, LOG.generation, LOG.stream = instance, generation, stream
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, Bridge)]
    root.addHandler(Bridge())
    set_level(level)
    logging.captureWarnings(True)
    return LOG
