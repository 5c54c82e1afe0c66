"""`python -m benchmarks.micro`: microseconds of single parts, without sockets; where a part must not grow, by size.

Each figure is the best of several short repetitions on one core: noise only ever adds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import trio
from rich import box
from rich.console import Console
from rich.table import Table

import clawproxy_sanitize
from benchmarks import machine
from benchmarks.metering import metering
from clawproxy.config import PoolConfig
from clawproxy.dialects import CLIENT, PROVIDER, claw, claw_frames
from clawproxy.events import Batch, Event, Outcome, Text
from clawproxy.hookspecs import Observe, Transform
from clawproxy.messages import Usage
from clawproxy.pipeline.relay import Relay
from clawproxy.stores.base import LedgerClose, LedgerOpen
from clawproxy.stores.sqlite import SqliteStore
from clawproxy.testing.factories import make_attempt, make_exchange, make_head, make_request, make_route
from clawproxy.upstream.pool import Pool
from clawproxy_audit.rows import audit_row
from clawproxy_sanitize import SanitizeSettings
from clawproxy_sanitize.stream import Answer

BODY = (
    b'{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":'
    b'"Say hello to the world and tell me what you can do for me today."}],"temperature":0.7,"max_tokens":256,"stream":true}'
)
CHUNK = (
    b'data: {"id":"chatcmpl-9f3a7c21b8","object":"chat.completion.chunk","created":1763712000,"model":"gpt-4o-mini",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":" tok%d"},"logprobs":null,'
    b'"finish_reason":null}]}\n\n'
)
END = (
    b'data: {"id":"chatcmpl-9f3a7c21b8","object":"chat.completion.chunk","created":1763712000,"model":"gpt-4o-mini",'
    b'"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    b'data: {"id":"chatcmpl-9f3a7c21b8","object":"chat.completion.chunk","created":1763712000,"model":"gpt-4o-mini",'
    b'"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":50,"total_tokens":62}}\n\ndata: [DONE]\n\n'
)
TOKENS = [CHUNK % number for number in range(50)]
WHOLE = (
    b'{"id":"chatcmpl-9f3a7c21b8","object":"chat.completion","created":1763712000,"model":"gpt-4o-mini","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Hello! How can I help you today?","refusal":null},"logprobs":null,'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":9,"total_tokens":21}}'
)
LIMITS = {"json_depth": 64, "messages": 100_000}
HEAD = make_head()

REPEATS = 5
Figures = Iterator[tuple[str, float]]


def timed(work: Callable[[], object], seconds: float, units: int = 1) -> float:
    """Microseconds of one of the `units` that a call does; the best of REPEATS that together take about `seconds`."""
    work()
    count, best = 1, float("inf")
    while True:  # how many calls fill one repetition
        began = time.perf_counter()
        for _ in range(count):
            work()
        took = time.perf_counter() - began
        if took > seconds / REPEATS / 2:
            break
        count *= 4 if took < seconds / REPEATS / 8 else 2
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(count):
            work()
        best = min(best, time.perf_counter() - began)
    return best / count / units * 1e6


def timed_async(work: Callable[[], Awaitable[object]], seconds: float, units: int = 1) -> float:
    """The same for what is called with `await`, inside the running event loop, of a coroutine that does not wait."""

    def step() -> None:
        coroutine = work().__await__()
        try:
            while True:
                next(coroutine)
                raise RuntimeError("it waited")
        except StopIteration:
            pass

    return timed(step, seconds, units)


def dialects(seconds: float) -> Figures:
    client, provider, route = CLIENT["openai_chat"], PROVIDER["openai_chat"], make_route()
    request = client.decode_request(BODY, LIMITS, HEAD)
    whole_request = client.decode_request(BODY.replace(b"true", b"false"), LIMITS, HEAD)
    frame = b'{"type":"llm_request","id":"r1","model":"gpt-4o-mini","prompt":"Say hello.","parameters":{"max_tokens":256}}'
    yield "openai: decode request", timed(lambda: client.decode_request(BODY, LIMITS, HEAD), seconds)
    yield "openai: encode request", timed(lambda: provider.encode_request(request, route), seconds)

    def decode_stream(reads: Sequence[bytes]) -> None:
        decoder = provider.decoder(request)
        for read in reads:
            batch = decoder.feed(read)
            if batch is not None:
                _ = batch.events
        assert decoder.done

    yield "openai: decode stream, a read a token (per token)", timed(lambda: decode_stream([*TOKENS, END]), seconds, 50)
    yield "openai: decode stream, one read (per token)", timed(lambda: decode_stream([b"".join(TOKENS) + END]), seconds, 50)

    def decode_whole() -> None:
        decoder = provider.decoder(whole_request)
        decoder.feed(WHOLE)
        decoder.close()

    yield "openai: decode whole answer", timed(decode_whole, seconds)

    def batches(reads: Sequence[bytes]) -> list[Batch]:
        decoder = provider.decoder(request)
        return [batch for batch in map(decoder.feed, reads) if batch is not None]

    exchange, done, usage = make_exchange(route=route), Outcome("complete", finish="stop"), Usage(12, 50)
    made = batches([*TOKENS, END])
    text_only = [Batch([Text(f" tok{number}")]) for number in range(50)]

    def encode_stream(parts: Sequence[Batch]) -> None:
        encoder = client.answer(exchange, request)
        for batch in parts:
            encoder.encode(batch)
        encoder.finish(done, usage)

    yield "openai: pass stream on (per token)", timed(lambda: encode_stream(made), seconds, 50)
    yield "openai: encode stream anew (per token)", timed(lambda: encode_stream(text_only), seconds, 50)
    yield (
        "claw: decode request (and its JSON, by the standard library)",
        timed(lambda: claw.decode_request(json.loads(frame)), seconds),
    )

    def encode_frames(parts: Sequence[Batch]) -> None:
        answer = claw_frames.Answer("r1", exchange.request_id)
        for batch in parts:
            answer.content(batch)

    yield "claw: encode frames, a token each (per token)", timed(lambda: encode_frames(text_only), seconds, 50)
    merged = batches([b"".join(TOKENS) + END])
    yield "claw: encode frames, merged (per token)", timed(lambda: encode_frames(merged), seconds, 50)


def relay(seconds: float) -> Figures:
    batch = Batch([Text(" tok")])

    def observe() -> Observe:
        return Observe(lambda seen: None)

    def transform() -> Transform:
        def same(events: Sequence[Event]) -> Sequence[Event]:
            return events

        return Transform(same, streams="per_batch")

    for count in (0, 1, 3, 6):
        taps = [(f"tap{number}", observe() if number % 2 else transform()) for number in range(count)]
        running = Relay(taps, lambda plugin, what, detail: None)
        yield f"relay: {count} taps (per batch)", timed(partial(running.take, batch), seconds)


class Idle:
    """A pooled connection without a socket."""

    created = idle_since = 0.0

    def __init__(self) -> None:
        self.created = self.idle_since = trio.current_time()

    def quiet(self) -> bool:
        return True

    def close(self) -> None: ...


def pool(seconds: float) -> Figures:
    """Acquire and release beside N connections in the pool, half of them at work: must be flat."""
    for count in (1, 10, 100, 1000):
        kept: Pool[Idle] = Pool("bench", PoolConfig(max=4096, idle=3600.0, lifetime=3600.0))  # type: ignore[arg-type]

        async def cycle(kept: Pool[Idle] = kept) -> None:
            connection = await kept.acquire("key", lambda: None)
            kept.release(connection)

        for number in range(count):
            kept.reserve()
            if number % 2 == 0:
                kept.release(Idle())
        yield f"pool: acquire and release, {count} connections", timed_async(cycle, seconds)


def plugins(seconds: float) -> Figures:
    state = clawproxy_sanitize.compiled(SanitizeSettings())
    scanner = state.output
    assert scanner is not None
    exchange, request = make_exchange(), make_request("Say hello to the world and tell me what you can do for me today.")
    long = make_request("The quick brown fox reads the long document and sums it up. " * 68)
    yield "sanitize: a prompt of 64 B", timed_async(lambda: clawproxy_sanitize.prepare_request(exchange, request, state), seconds)
    yield "sanitize: a prompt of 4 KiB", timed_async(lambda: clawproxy_sanitize.prepare_request(exchange, long, state), seconds)
    for kind, file in (("prose", "docs/plugins.md"), ("code", "clawproxy/server.py")):
        text = make_request(((Path(__file__).parent.parent / file).read_text() * 2)[:10_000])
        call = partial(clawproxy_sanitize.prepare_request, exchange, text, state)
        yield f"sanitize: a prompt of 10 kB of {kind}", timed_async(call, seconds)
    parts = [[Text(f" tok{number}")] for number in range(50)]

    def answer(reads: Sequence[Sequence[Event]]) -> None:
        transform = Answer(scanner, Counter(), lambda counts: None)
        for events in reads:
            transform.change(events)
        transform.end()

    yield "sanitize: an answer, a read a token (per token)", timed(lambda: answer(parts), seconds, 50)
    together: list[Event] = [event for part in parts for event in part]
    yield "sanitize: an answer, one read (per token)", timed(lambda: answer([together]), seconds, 50)
    closed = make_exchange(
        route=make_route(), usage=Usage(12, 50), attempts=[make_attempt(outcome="complete", status=200, sent=True)]
    )
    done = Outcome("complete", finish="stop")
    yield "audit: make a row", timed(lambda: audit_row(closed, done), seconds)


async def ledger(seconds: float) -> Sequence[tuple[str, float]]:
    with tempfile.TemporaryDirectory(prefix="clawproxy-micro-") as folder:
        store = SqliteStore.open(Path(folder), "bench")
        opened = 0

        async def open_and_close() -> None:
            nonlocal opened
            opened += 1
            row = LedgerOpen(
                f"a{opened}", f"r{opened}", 1, "first", 1.0, "bench", 1, "key", None, None, None, "m", "p", "m", 100, 256
            )
            await store.open_row(row)
            await store.close_row(LedgerClose(row.id, 2.0, "complete", True, 12, 50, source="measured"))

        journal = timed_async(open_and_close, seconds)
        await store.flush()
        opened, first = 0, opened
        for _ in range(2000):
            opened += 1
            ident = f"a{first + opened}"
            await store.open_row(
                LedgerOpen(ident, ident, 1, "first", 1.0, "bench", 1, "key", None, None, None, "m", "p", "m", 100, 256)
            )
            await store.close_row(LedgerClose(ident, 2.0, "complete", True, 12, 50, source="measured"))
        began = time.perf_counter()
        await store.flush()
        folded = (time.perf_counter() - began) / 2000 * 1e6
        await store.aclose()
    return [("ledger: open and close a row (journal)", journal), ("ledger: fold a row into SQLite, of 2,000", folded)]


GROUPS: dict[str, Callable[[float], Figures | Awaitable[Sequence[tuple[str, float]]]]] = {
    "dialects": dialects, "relay": relay, "pool": pool, "plugins": plugins, "ledger": ledger, "meter": metering,
}  # fmt: skip


async def measure(names: Sequence[str], seconds: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in names:
        figures = GROUPS[name](seconds)
        for title, value in figures if isinstance(figures, Iterator) else await figures:
            found[title] = value
            sys.stderr.write(".")
            sys.stderr.flush()
    sys.stderr.write("\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro", description=__doc__.partition("\n")[0])
    parser.add_argument("groups", nargs="*", help=f"which of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each figure")
    parser.add_argument("--json", type=Path, help="write them here, too")
    given = parser.parse_args()
    for name in given.groups:
        if name not in GROUPS:
            parser.error(f"there is no group {name}; there are {', '.join(GROUPS)}")
    machine.pin_self()
    found = trio.run(measure, given.groups or list(GROUPS), given.seconds)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("us", justify="right")
    for title, value in found.items():
        table.add_row(title, f"{value:.2f}")
    Console().print(table)
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": machine.fingerprint(), "us": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
