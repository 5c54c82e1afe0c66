"""A scripted upstream without sockets: it stands where `clawproxy.upstream` stands and answers with events.

For what a provider does on the wire (bytes, resets, half a chunk) use the scripted provider, `clawproxy scripted`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType

import trio
from attrs import field, frozen

from clawproxy.config import ProviderConfig
from clawproxy.dialects.base import OutboundRequest, ProviderDecoder
from clawproxy.errors import ProviderFault
from clawproxy.events import Batch, Begin, End, Event, Failed, Finish, Text, UsageReport
from clawproxy.messages import ChatRequest, Route, Usage
from clawproxy.upstream.base import Phases


@frozen
class Pause:
    """Seconds of silence."""

    seconds: float


@frozen
class Fail:
    """The provider fails here: before any content another route may take over, after it the answer ends with the error.

    `slug` is one of the `provider_error.*` rows.
    """

    slug: str = "provider_error.server"
    details: Mapping[str, object] = field(factory=dict)


Step = str | Event | Pause | Fail


class ScriptedUpstream:
    """An `Upstream` that says what it was told to say.

    Attributes:
        requests: the requests that reached it, as the pipeline left them.
        open_streams: how many are open now; zero at rest.
    """

    def __init__(self) -> None:
        self.requests: list[ChatRequest] = []
        self.routes: list[Route] = []
        self.open_streams = 0
        self._scripts: deque[Sequence[Step]] = deque()

    def will_say(self, *steps: Step) -> None:
        """Queue one answer: strings are text events, `Pause` waits, `Fail` fails. Finish and usage are added if not given."""
        self._scripts.append(steps)

    def will_fail(self, slug: str = "provider_error.server", **details: object) -> None:
        self._scripts.append((Fail(slug, details),))

    # --- the Upstream interface ----------------------------------------------------------------------------------------------

    def dialect(self, provider: str) -> _NoDialect:
        return _NoDialect()

    def open(self, route: Route, request: ChatRequest, outbound: OutboundRequest, phases: Phases, fair_key: str) -> _Opening:
        script = self._scripts.popleft() if self._scripts else ("ok",)
        return _Opening(self, script, route, request, phases)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _NoDialect:
    name = "scripted"
    auth_header = "authorization"

    def configured(self, provider: ProviderConfig) -> _NoDialect:
        return self

    def encode_request(self, request: ChatRequest, route: Route) -> OutboundRequest:
        return OutboundRequest("/", b"", stream=request.stream)

    def decoder(self, request: ChatRequest) -> ProviderDecoder:
        raise AssertionError("the scripted upstream answers with events")

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderFault:
        raise AssertionError("the scripted upstream fails by itself")


class _Opening:
    def __init__(
        self, upstream: ScriptedUpstream, script: Sequence[Step], route: Route, request: ChatRequest, phases: Phases
    ) -> None:
        self.upstream = upstream
        self.script = script
        self.route = route
        self.request = request
        self.phases = phases
        self.stream: _Stream | None = None

    async def __aenter__(self) -> _Stream:
        self.phases.enter("connect")
        await trio.lowlevel.checkpoint()
        self.phases.enter("first_token")
        self.phases.sent = True
        self.upstream.requests.append(self.request)
        self.upstream.routes.append(self.route)
        self.stream = _Stream(self.upstream, self.script, self.request)
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.stream.close()
            raise
        return self.stream

    async def __aexit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self.stream is not None:
            self.stream.close()


class _Stream:
    status = 200

    def __init__(self, upstream: ScriptedUpstream, script: Sequence[Step], request: ChatRequest) -> None:
        self.upstream = upstream
        upstream.open_streams += 1
        self.closed = False
        self.steps: deque[Step] = deque([Begin(model=request.model), *script])
        said = [step for step in script if isinstance(step, str | Text)]
        if not any(isinstance(step, Finish) for step in script):
            self.steps.append(Finish("stop", "stop"))
        if not any(isinstance(step, UsageReport) for step in script):
            words = sum(len(message.text().split()) for message in request.messages)
            self.steps.append(UsageReport(Usage(input_tokens=words, output_tokens=len(said))))
        self.steps.append(End())

    async def receive(self) -> Batch | None:
        await trio.lowlevel.checkpoint()
        while self.steps:
            step = self.steps.popleft()
            if isinstance(step, Pause):
                await trio.sleep(step.seconds)
            elif isinstance(step, Fail):
                details = {"provider": "scripted", **step.details}
                return Batch([Failed(ProviderFault(step.slug, None, **details))])
            else:
                return Batch([Text(step) if isinstance(step, str) else step])
        return None

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.upstream.open_streams -= 1
