"""The rest of an answer whose client has left, read on for what its provider says it comes to (`on_cancel = "drain"`).

For providers that bill the whole answer though nobody hears it: closing their connection saves nothing, and the figure comes
last.

Rule 1: it belongs to the service nursery, for the request's task has to end. The plugins' contexts were left in that task;
        whoever closes books (`Rest.then`) is called here, once, however the reading ends.
Rule 2: bounded by time and bytes of content, by its place in the provider's pool, and by the service: cancelled, it ends at once,
        and the books are closed by what came.
Rule 3: a stream that has come to its end gives its connection back; any other is closed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from clawproxy.context import Attempt, Rest
from clawproxy.errors import ClawError
from clawproxy.events import Batch, End, Failed, Reasoning, Refused, Text, ToolCallDelta, UsageReport

if TYPE_CHECKING:
    from clawproxy.config import ProviderConfig
    from clawproxy.context import App
    from clawproxy.upstream.base import KeptStream

LEFT = frozenset({"client_gone", "cancelled", "timeout.write"})
"""What the client did: it left, cancelled, or does not read. Whatever else ends an attempt is no reason to hear the rest."""
SETTLING = 5.0
"""Seconds for the books, shielded."""


def is_wanted(provider: ProviderConfig | None, cause: ClawError | None) -> bool:
    """Whether an attempt that ends for this cause is read on."""
    return provider is not None and provider.on_cancel == "drain" and cause is not None and cause.slug in LEFT


def begin(app: App, attempt: Attempt, rest: Rest, stream: KeptStream, provider: ProviderConfig) -> None:
    """Once the plugins' contexts are left. Without a service, or anybody who wants to know, the stream is closed."""
    if app.nursery is None or not rest.waiting:
        stream.leave(False)
        return
    app.nursery.start_soon(_drain, app, attempt, rest, stream, provider)


async def _drain(app: App, attempt: Attempt, rest: Rest, stream: KeptStream, provider: ProviderConfig) -> None:
    try:
        with trio.move_on_after(provider.drain_time):
            while not rest.whole and rest.size <= provider.drain_bytes:
                batch = await stream.receive()
                if batch is None:
                    rest.whole = True
                elif _look(attempt, rest, batch):
                    break
    except ClawError:
        pass  # it broke off: what came until then counts
    except Exception as error:  # a defect: one answer's books are estimated, the service goes on
        app.log("drain.failed", "error", error=type(error).__name__, provider=attempt.route.provider)
    finally:
        stream.leave(rest.whole)
        attempt.closed_at = time.time()
        app.count("clawproxy_drained_total", provider=attempt.route.provider, result="ok" if rest.whole else "failed")
        with trio.move_on_after(SETTLING, shield=True):
            for settle in rest.waiting:
                try:
                    await settle()  # noqa: ASYNC102
                except Exception as error:  # one plugin's: the others' books are closed, the service goes on
                    app.log("drain.failed", "error", error=type(error).__name__, provider=attempt.route.provider)


def _look(attempt: Attempt, rest: Rest, batch: Batch) -> bool:
    """Note what the books need of a batch; whether the provider failed."""
    for event in batch.events:
        if isinstance(event, Text | Reasoning | Refused):
            rest.size += _bytes(event.text)
        elif isinstance(event, ToolCallDelta):
            rest.size += _bytes(event.arguments) + _bytes(event.name or "")
        elif isinstance(event, UsageReport):
            attempt.usage = event.usage
        elif isinstance(event, End):
            rest.whole = True
        elif isinstance(event, Failed):
            return True
    return False


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
