"""Writes docs/timeouts.md: `python -m tests.docs.timeouts`. A test keeps it in step with the clocks and the table of errors."""

from __future__ import annotations

from pathlib import Path

from clawproxy.clocks import CLOCK_SLUGS, CLOCKS, Deadlines
from clawproxy.config.checks import MODEL_CLOCKS, NOT_YET, PROVIDER_CLOCKS
from clawproxy.config.units import render_duration
from clawproxy.errors import KINDS

PAGE = Path(__file__).parent.parent.parent / "docs" / "timeouts.md"

RUNS = {
    "head": "accept (TLS handshake included) to the whole request head",
    "auth": "WebSocket open to authenticated",
    "body": "head to whole body; one slower than 1 KiB/s after 5 s is cut. Also between two pieces of a streamed prompt",
    "queue": "admitted to sent: a place in the pool, concurrency, throttle",
    "connect": "DNS, TCP and TLS to a provider",
    "first_token": "request sent to first content",
    "stall": "between events with content; keep-alives do not reset it",
    "rate": 'from the first content: fewer tokens a second than this in a whole window; written `"5 tokens/s over 30s"`',
    "total": "all of it: attempts, queues and hooks take slices of it, so retries never multiply a timeout",
    "write": "one write to a client that does not read, measured in bytes accepted; also the wait for its credit",
    "idle": "HTTP: between requests",
    "idle_ws": "WebSocket: no application frame either way",
    "grace": "client gone to cancel, where `on_disconnect` is `grace`",
    "session": "a session without use",
    "drain": "SIGTERM to exit",
    "keepalive_sse": "a comment on a quiet SSE stream, so that no load balancer drops it",
    "keepalive_ws": "a ping on a WebSocket; two misses close",
    "stall_reasoning": "`stall`, where the model was asked to reason or began by it. Unless it is set, twice `stall`",
}
OWN_SLUGS = {"session": "session.expired", "drain": "shutting_down", "grace": "client_gone"}

IN_STREAM = frozenset({"first_token", "stall", "stall_reasoning", "rate", "total"})
"""Those that may run out once the 200 is out."""
AT_FAULT = {"total": "whoever held it last", "idle": "-", "idle_ws": "-"}

BEGINNING = """\
# Timeouts

Every clock there is, by name. All come from one value per request (`clawproxy/clocks.py`); no other place holds a time limit of a
request. When one runs out, the error the client gets, the log line and the metric name the clock, its limit, the setting that
holds it and whose fault it is:

```json
{"type":"error","code":504,"error":"timeout.stall","clock":"stall","limit_ms":60000,"setting":"deadlines.stall", ...}
```

Set them under `[deadlines]`. The column *own* says which can also be set for one provider (`[providers.NAME.deadlines]`) or
one model (`[models.NAME.deadlines]`, which wins); the error then names that setting. A client may only shorten `total`, with
`deadline_ms` on the WebSocket or the header `x-claw-deadline-ms`: then `setting` is `deadline_ms` and the fault its own.

| clock | default | own | runs | HTTP | once a stream began | WebSocket | at fault |
|---|---|---|---|---|---|---|---|
"""

END = """
*HTTP* is the status, with the dialect's own error body. *Once a stream began* it is the dialect's error event and a clean end
of the body, without `[DONE]` or `message_stop`. On the Claw *WebSocket* it is an `error` frame with the same fields; where a
close code stands, the connection ends with it.

`connect` also says in the log how far it got (`step`: `dns`, `tcp`, `tls`). `total` names who held it last: a plugin, a
queue, the provider, or the client that did not read.

## The rate clock

```toml
[deadlines]
rate = "off"                                # the default

[models.quick.deadlines]
rate = "5 tokens/s over 30s"

[models.quick]
routes = [{ provider = "openai", model = "gpt-4o-mini" }]

[providers.openai]
base_url = "https://api.openai.com/v1"
```

A provider that does answer, but slower than this in a whole window, is cut with `timeout.rate`. Windows follow one another
from the first content on, and stand still while the client is written to, so a slow reader is never its provider's fault.
Whole content events count, reasoning included: each is one token, or one for every four characters where it holds more.
Bytes, comments and keep-alives count for nothing.

## Models that reason

`stall_reasoning` takes the place of `stall` where the request asks for reasoning (`reasoning_effort` other than `none`, a
thinking budget), or the answer began with some. Unless it is set it is twice `stall`. A provider's or a model's own `stall`
is meant for both, unless its `stall_reasoning` stands beside it.

## Which one to change

`clawproxy doctor` reads the log and says it, with the key and a value: [doctor.md](doctor.md). In short:

- **`timeout.first_token` from a reasoning model**: it thinks before it speaks. Raise `first_token` for that model alone.
- **`timeout.stall`**: the provider went quiet in the middle of an answer. Only events with content count, so a provider that
  drips keep-alives, or a byte a second, is still found out. Raise it for models that pause to think.
- **`timeout.total`**: the whole request, attempts included. If it is shorter than `first_token`, `total` always ends first:
  `clawproxy check` warns of such contradictions.
- **`timeout.queue`**: no place became free. It is the gateway's own limit: raise `pool.max` or `limits.in_flight`, or run
  more instances.
- **`timeout.write`**: the client does not read. Raising it holds the provider open for a client that is not listening.
- **A load balancer in front** must have an idle limit above `keepalive_sse` and `keepalive_ws`, one on the whole request above
  `total`, and `idle` must be above the time for which it reuses a connection: `clawproxy doctor --behind NAME`.

## While a provider thinks

Clients get keep-alives from the moment a request is understood until its answer ends: while it waits for a place, in the hooks,
for a connection, between two attempts, and while the provider thinks. On SSE it is a comment, or the dialect's own `ping` event,
every `keepalive_sse`; on a WebSocket a ping every `keepalive_ws`, and two without any sign of life close it. There is none for
answers without `stream`, on the Gemini surface and on Ollama's, which have no place for one.

The first SSE keep-alive commits the status 200, so a later failure is an error event; another route may still take over until
there is content.

## Not in this version

`grace` and `session`: setting them to anything but their defaults is refused at load.

Clock jumps change no deadline: all clocks are monotonic.
"""


def timeouts_page() -> str:
    defaults = Deadlines()
    return BEGINNING + "".join(_row(clock, getattr(defaults, clock)) for clock in CLOCKS) + END


def _row(clock: str, default: float) -> str:
    slug = OWN_SLUGS.get(clock) or CLOCK_SLUGS.get(clock, "")
    kind = KINDS.get(slug)
    http = streamed = websocket = fault = "-"
    if kind is not None:
        http = "closes" if clock == "idle" else f"{kind.status} `{slug}`"
        streamed = f"event `{slug}`" if clock in IN_STREAM else "cut" if clock == "write" else "-"
        close = f", close {kind.close}" if kind.close else ""
        websocket = "-" if clock in ("head", "idle") else f"`{slug}`{close}"
        if clock in ("auth", "idle_ws"):
            http = "-"
        fault = AT_FAULT.get(clock, kind.fault)
    if clock == "keepalive_ws":
        websocket, fault = "closes", "client"
    own = "provider, model" if clock in PROVIDER_CLOCKS else "model" if clock in MODEL_CLOCKS else ""
    runs = RUNS[clock] + (" (not in this version)" if clock in NOT_YET else "")
    shown = "twice `stall`" if clock == "stall_reasoning" else render_duration(default)
    return f"| `{clock}` | {shown} | {own} | {runs} | {http} | {streamed} | {websocket} | {fault} |\n"


if __name__ == "__main__":
    PAGE.write_text(timeouts_page())
