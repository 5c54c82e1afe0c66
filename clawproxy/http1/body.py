"""One request's body, from raw bytes to content: the framing check and the engine side by side, without I/O."""

from __future__ import annotations

from clawproxy.errors import ClawError
from clawproxy.http1.chunked import ChunkCheck
from clawproxy.http1.engine import Engine, EngineRefused
from clawproxy.http1.head import Head


class BodyReader:
    """Fed raw bytes; knows where the body ends, and refuses where the engine thinks otherwise."""

    __slots__ = ("_check", "_engine", "_left", "_pieces", "done", "received", "rest")

    def __init__(self, head: Head, engine: Engine, limit: int) -> None:
        """Args: limit: the most content bytes. Raises ClawError("body_too_large") for a stated length above it."""
        self._engine = engine
        self._left = head.content_length or 0
        if self._left > limit:
            raise ClawError("body_too_large")
        self._check = ChunkCheck(limit) if head.chunked else None
        self._pieces: list[bytes] = []
        self.received = 0
        """Content bytes so far."""
        self.rest = b""
        """What came after the body."""
        self.done = not self._left and not head.chunked

    def feed(self, data: bytes) -> bool:
        """Whether the body is whole now; then `rest` holds what came after it. Raises ClawError: bad_body, body_too_large."""
        if self.done:
            self.rest += data
            return True
        if self._check is None:
            used = min(self._left, len(data))
            self._left -= used
            ended, size = not self._left, self.received + used
        else:
            used = self._check.feed(data)
            ended, size = self._check.done, self._check.size
        try:
            piece = self._engine.body(self._for_engine(data, used))
        except EngineRefused as error:
            raise ClawError("bad_body") from error
        self._pieces.append(piece)
        self.received += len(piece)
        if self.received != size or self._engine.complete != ended:
            raise ClawError("bad_body")
        if ended:
            self.done = True
            self.rest = data[used:]
        return ended

    def _for_engine(self, data: bytes, used: int) -> bytes:
        if self._check is None or self._check.for_engine == len(data):
            return data if used == len(data) else data[:used]
        return data[: self._check.for_engine] + (b"\r\n" if self._check.done else b"")

    def content(self) -> bytes:
        pieces = self._pieces
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
