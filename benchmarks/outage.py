"""A provider dies under load, and comes back: what clients notice of it. `python -m benchmarks.outage`.

Two scripted providers and the gateway, each a process of its own; requests at a fixed rate, whether or not answers come (an open
loop). One provider is killed (SIGKILL), started again, and at last both are killed. It prints, and holds against `LIMITS`:

    errors        requests of clients that failed while one of two providers was dead
    p99           of all answers once the breaker is open, against what it was before
    back          seconds from the provider's return until it serves again
    refused       how long the answer 503 takes where nobody is left, and whether each has a Retry-After

Rule: exit 1 where a limit is passed, unless `--no-limits` (a machine with other work on it).
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import define, field, frozen

from benchmarks.machine import load_average

KEY = "sk-outage-0123456789abcdefghijklmnop"
LIMITS = {"errors": 0, "p99_ratio": 2.0, "back_s": 15.0, "refused_ms": 50.0}
SETTLED = 0.5
"""Seconds after the death within which the breaker is open at any rate worth measuring."""
SCRIPT = "pause 5ms; say hello"
BACK = 20
"""Answers in a row that make a return."""
CONFIG = """
[server]
listen = "127.0.0.1:0"
admin = ""
state_dir = "{folder}/state"
[providers.a]
base_url = "http://127.0.0.1:{a}/v1"
[providers.b]
base_url = "http://127.0.0.1:{b}/v1"
[models.m]
routes = [{{ provider = "a", model = "m" }}, {{ provider = "b", model = "m" }}]
[keys.outage]
secret = "{key}"
[log]
level = "error"
"""


@frozen
class Answered:
    began: float
    seconds: float
    status: int
    route: str
    """The provider; empty where there was none."""
    retry_after: bool


@define
class Providers:
    """The two processes, each on a port that stays its own."""

    ports: dict[str, int]
    running: dict[str, subprocess.Popen[bytes]] = field(factory=dict)

    def start(self, name: str) -> None:
        command = [
            sys.executable,
            "-m",
            "clawproxy.scripted",
            "--port",
            str(self.ports[name]),
            "--script",
            SCRIPT,
        ]
        self.running[name] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def up(self, name: str) -> None:
        with trio.fail_after(20):
            while True:
                try:
                    await (await trio.open_tcp_stream("127.0.0.1", self.ports[name])).aclose()
                    return
                except OSError:
                    await trio.sleep(0.01)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()


@define
class Load:
    """Requests at `rate` a second; connections are kept and used again."""

    port: int
    rate: float
    seen: list[Answered] = field(factory=list)
    idle: list[trio.SocketStream] = field(factory=list)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            due = trio.current_time()
            while True:
                nursery.start_soon(self.one)
                due += 1.0 / self.rate
                await trio.sleep_until(due)

    async def one(self) -> None:
        began = trio.current_time()
        status, route, retry_after = 0, "", False
        stream: trio.SocketStream | None = None
        try:
            stream = self.idle.pop() if self.idle else await trio.open_tcp_stream("127.0.0.1", self.port)
            status, route, retry_after = await asked(stream)
        except (OSError, trio.BrokenResourceError, ValueError):
            pass  # status 0: an error like any other
        finally:
            if stream is not None:
                if status:
                    self.idle.append(stream)
                else:
                    stream.socket.close()
        self.seen.append(Answered(began, trio.current_time() - began, status, route, retry_after))

    async def until(self, ready: Callable[[], bool], limit: float) -> float | None:
        """Seconds it took; None where it did not come to that."""
        began = trio.current_time()
        with trio.move_on_after(limit):
            while not ready():
                await trio.sleep(0.01)
            return trio.current_time() - began
        return None

    def between(self, start: float, end: float) -> list[Answered]:
        return [each for each in self.seen if start <= each.began < end]


async def asked(stream: trio.SocketStream) -> tuple[int, str, bool]:
    """One request and its whole answer: status, provider, whether there is a Retry-After. Raises ValueError for half of one."""
    body = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    await stream.send_all(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    data = b""
    while b"\r\n\r\n" not in data:
        data += await _more(stream)
    first, _, rest = data.partition(b"\r\n\r\n")
    status, *lines = first.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    missing = int(headers["content-length"]) - len(rest)
    while missing > 0:
        missing -= len(await _more(stream))
    return int(status.split()[1]), headers.get("x-claw-route", "").partition("/")[0], "retry-after" in headers


async def _more(stream: trio.SocketStream) -> bytes:
    data = bytes(await stream.receive_some(65536))
    if not data:
        raise ValueError("the gateway closed the connection")
    return data


def quantile(answers: Sequence[Answered], share: float) -> float:
    """Milliseconds."""
    figures = sorted(each.seconds for each in answers)
    return figures[min(len(figures) - 1, int(share * len(figures)))] * 1000 if figures else 0.0


async def measured(providers: Providers, load: Load, normal: float, dead: float) -> dict[str, Any]:
    """The three acts: one dies, it comes back, both die."""
    await load.until(lambda: len(load.seen) >= 3 * load.rate * 0.5, 30)  # connections are made, code is warm
    start = trio.current_time()
    await trio.sleep(normal)
    died = trio.current_time()
    providers.kill("a")
    await trio.sleep(dead)
    providers.start("a")
    await providers.up("a")
    returned = trio.current_time()
    back = await load.until(lambda: [each.route for each in load.seen[-BACK:]] == ["a"] * BACK, LIMITS["back_s"] * 2)
    end = trio.current_time()
    await trio.sleep(SETTLED)  # what began before `end` is answered before nobody is left to answer it
    for name in ("a", "b"):
        providers.kill(name)
    gone = trio.current_time()
    await load.until(lambda: [each.status for each in load.seen[-BACK:]] == [503] * BACK, 15)
    await trio.sleep(min(1.0, dead))
    usual, without = load.between(start, died), load.between(died + SETTLED, returned)
    refused = [each for each in load.between(gone + SETTLED, trio.current_time()) if each.status == 503]
    failed = [each.status for each in load.between(start, end) if each.status != 200]
    return {
        "rate": load.rate,
        "load_average": round(load_average(), 2),
        "requests": len(load.between(start, end)),
        "errors": len(failed),
        "statuses": sorted(set(failed)),
        "p50_ms": round(quantile(usual, 0.5), 2),
        "p99_ms": round(quantile(usual, 0.99), 2),
        "p99_dead_ms": round(quantile(without, 0.99), 2),
        "p99_ratio": round(quantile(without, 0.99) / max(quantile(usual, 0.99), 0.001), 2),
        "slowest_at_the_death_ms": round(quantile(load.between(died - 0.05, died + SETTLED), 1.0), 2),
        "back_s": None if back is None else round(back, 2),
        "refused": len(refused),
        "refused_ms": round(quantile(refused, 0.99), 2),
        "without_retry_after": sum(not each.retry_after for each in refused),
    }


def passed(found: dict[str, Any]) -> list[str]:
    """What is beyond its limit, a sentence each."""
    beyond = [
        f"{name} is {found[name]}, above {most}" for name, most in LIMITS.items() if found[name] is None or found[name] > most
    ]
    if found["without_retry_after"] or not found["refused"]:
        beyond.append(f"{found['without_retry_after']} of {found['refused']} refusals have no Retry-After")
    return beyond


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def run(rate: float, normal: float, dead: float) -> dict[str, Any]:
    providers = Providers({"a": free_port(), "b": free_port()})
    with tempfile.TemporaryDirectory() as folder:
        file, ready = Path(folder) / "clawproxy.toml", Path(folder) / "ready.json"
        file.write_text(CONFIG.format(folder=folder, key=KEY, **providers.ports))
        command = [sys.executable, "-m", "clawproxy", "serve", "--config", str(file), "--ready-file", str(ready)]
        gateway = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for name in providers.ports:
                providers.start(name)
                await providers.up(name)
            with trio.fail_after(30):
                while not ready.exists():
                    await trio.sleep(0.01)
            load = Load(int(json.loads(ready.read_text())["listen"][0].rpartition(":")[2]), rate)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load.run)
                found = await measured(providers, load, normal, dead)
                nursery.cancel_scope.cancel()
            for stream in load.idle:
                stream.socket.close()
            return found
        finally:
            for name in tuple(providers.running):
                providers.kill(name)
            gateway.terminate()
            try:
                gateway.wait(10)
            except subprocess.TimeoutExpired:
                gateway.kill()
                gateway.wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.outage", description="A provider dies under load, and comes back."
    )
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second (200)")
    parser.add_argument("--normal", type=float, default=10.0, help="seconds before the provider dies (10)")
    parser.add_argument("--dead", type=float, default=15.0, help="seconds it stays dead (15)")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--no-limits", action="store_true", help="exit 0 whatever the figures are")
    options = parser.parse_args(argv)
    began = time.monotonic()
    found = trio.run(run, options.rate, options.normal, options.dead)
    for name, value in found.items():
        print(f"{name:<24} {value}")
    print(f"{'took_s':<24} {time.monotonic() - began:.1f}")
    if options.json:
        options.json.write_text(json.dumps(found))
    beyond = passed(found)
    for sentence in beyond:
        print(f"beyond its limit: {sentence}", file=sys.stderr)
    return 1 if beyond and not options.no_limits else 0


if __name__ == "__main__":
    sys.exit(main())
