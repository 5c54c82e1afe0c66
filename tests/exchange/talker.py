"""A client that may say more while it is answered, for tests without a socket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from clawproxy.context import new_id
from clawproxy.events import Batch, Text, ToolCallDelta
from clawproxy.lifetime import Lifetime
from clawproxy.messages import ChatRequest, Message
from clawproxy.service import Call
from clawproxy.steering import Steering
from clawproxy.testing import Answer, Claw
from clawproxy.testing.factories import make_principal, make_request
from clawproxy.testing.harness import RecordingClient

NOTHING_RESTS = {"router": {"breaker": {"enabled": False}, "ejection": {"enabled": False}, "credentials": {"enabled": False}}}
"""Settings for tests that fail on purpose again and again, and want the same route asked each time."""


class Heard(NamedTuple):
    text: str
    calls: Sequence[int]


class Talker(RecordingClient):
    """Appends `says[TEXT]` as soon as all it has heard ends in `TEXT` (and came `after` an event of that type); "" is before
    anything."""

    def __init__(
        self, says: dict[str, str] | None = None, *, after: type = Text, limit: int = 10_000, reads_for: float = 0.0
    ) -> None:
        super().__init__(reads_for)
        self.lifetime = Lifetime()
        self.steering = Steering(self.lifetime, self.heard, limit)
        self.says = dict(says or {})
        self.after = after
        self.on_append: Callable[[], None] = lambda: None
        self._told = 0

    def append(self, text: str, size: int = 1) -> None:
        self.steering.append(Message("user", text), size)

    def heard(self) -> Heard:
        new = self.answer.events[self._told :]
        self._told = len(self.answer.events)
        text = "".join(event.text for event in new if isinstance(event, Text))
        return Heard(text, [event.index for event in new if isinstance(event, ToolCallDelta)])

    async def send(self, batch: Batch) -> None:
        await super().send(batch)
        if any(type(event) is self.after for event in batch.events):
            self._say(self.answer.text)

    def _say(self, after: str) -> None:
        for heard, said in tuple(self.says.items()):
            if after.endswith(heard) if heard else not after:
                del self.says[heard]
                self.append(said)
                self.on_append()

    async def ask(self, gateway: Claw, prompt: str = "Hi", **changes: object) -> Answer:
        request = make_request(prompt, **{"stream": True, **changes})

        def decode() -> ChatRequest:
            self._say("")
            return request

        call = Call(
            request_id=new_id(),
            surface=request.dialect,
            principal=make_principal(),
            decode=decode,
            lifetime=self.lifetime,
            steering=self.steering,
        )
        self.answer.outcome = await gateway.gateway.handle(call, self)
        return self.answer


def turns(request: ChatRequest) -> list[tuple[str, str]]:
    return [(message.role, message.text()) for message in request.messages]


async def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("it did not happen")
