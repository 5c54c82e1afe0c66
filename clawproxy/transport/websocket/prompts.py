"""A prompt that its client streams: `llm_request` with `prompt_stream`, then `llm_prompt_chunk` until one is `final`.

Rule 1: the exchange begins when the prompt is whole, since policy needs all of it; what is wrong with it is then the exchange's
        error, so that it is told, logged and counted like any other. What can be known at once (a parameter, the size) does not
        wait for the rest.
Rule 2: two clocks run meanwhile: `body` from one piece to the next, and `total` from the request's first message on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from clawproxy.clocks import Deadlines, expired
from clawproxy.dialects import claw
from clawproxy.dialects.claw_parts import content, flag
from clawproxy.dialects.claw_pieces import Pieces
from clawproxy.errors import ClawError
from clawproxy.messages import ChatRequest


class StreamedPrompt:
    """One request's prompt.

    Attributes:
        began: Trio time of its first message.
        model: the model it is for, as far as that can be known.
    """

    __slots__ = ("_done", "_failure", "_frame", "_heard", "_pieces", "began", "model")

    def __init__(self, frame: Mapping[str, Any], limit: int, max_messages: int) -> None:
        """Args: frame: the `llm_request`. limit: bytes that all of it may hold."""
        self._frame = frame
        self._pieces = Pieces(limit)
        self._failure: ClawError | None = None
        self._done = trio.Event()
        self.began = self._heard = trio.current_time()
        self.model = str(frame.get("model"))
        try:
            claw.decode_request(frame, max_messages, "?")
            if frame.get("prompt") is not None:
                self._pieces.add(content(frame["prompt"], "prompt"))
        except ClawError as error:
            self._fail(error)

    def add(self, frame: Mapping[str, Any]) -> None:
        """An `llm_prompt_chunk`. What is wrong with it is wrong with the whole request."""
        self._heard = trio.current_time()
        try:
            if "content" in frame or "final" not in frame:
                self._pieces.add(content(frame.get("content"), "content"))
            if flag(frame.get("final", False), "final"):
                self._done.set()
        except ClawError as error:
            self._fail(error)

    @property
    def whole(self) -> bool:
        """Nothing more is taken: it is final, or something was wrong."""
        return self._done.is_set()

    @property
    def final(self) -> bool:
        """The client has said all of it."""
        return self.whole and self._failure is None

    async def wait(self, deadlines: Deadlines) -> None:
        """Until it is whole, or one of the `deadlines` says that it will not be."""
        ends = self.began + deadlines.total
        while not self._done.is_set():
            with trio.CancelScope(deadline=self._due(deadlines, ends)):
                await self._done.wait()
            now = trio.current_time()
            if self._done.is_set() or now < self._due(deadlines, ends):
                continue
            late = now >= ends
            error = expired("total", deadlines.total, fault="client") if late else expired("body", deadlines.body)
            waited = "Last held by the client, which" if late else "The client"
            error.message += f" {waited} had not ended its prompt: a `llm_prompt_chunk` was missing."
            self._fail(error)

    def _due(self, deadlines: Deadlines, ends: float) -> float:
        return min(self._heard + deadlines.body, ends)

    def decode(self, max_messages: int) -> ChatRequest:
        """The request, once: nothing of it is kept here. Raises ClawError."""
        frame, pieces = self._frame, self._pieces
        self._frame, self._pieces = {}, Pieces(0)
        if self._failure is not None:
            raise self._failure
        return claw.decode_request(frame, max_messages, pieces.content())

    def _fail(self, error: ClawError) -> None:
        self._failure = error
        self._done.set()
