"""One row of the catalogue against one gateway, over a raw socket: what every row asks for besides its own answer.

`closed(running)` is around a row's bytes. Afterwards the gateway serves a normal request on a new connection, the provider saw as
many calls as the row says (none, mostly), and descriptors and tasks are where they were.
"""

from __future__ import annotations

import base64
import gc
import json
import re
import sys
import time
import types
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import attrs
import trio

from clawproxy.alarms import Alarms
from clawproxy.scripted import ScriptedProvider
from tests.e2e.harness import KEY, Running, descriptors
from tests.e2e.http_client import chat

SAID = {"role": "user", "content": "script: say fine"}
_STATUS = re.compile(rb"(?:^|\r\n)HTTP/1\.1 (\d{3}) ([^\r]*)\r\n")
_LINES = re.compile("\r\n|\r|\n")


@attrs.frozen
class Raw:
    """Everything one connection said."""

    data: bytes

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status, _ in _STATUS.findall(self.data)]

    @property
    def status(self) -> int:
        """The only answer's."""
        [status] = self.statuses
        return status

    @property
    def phrase(self) -> str:
        return str(_STATUS.findall(self.data)[0][1].decode())

    @property
    def head(self) -> str:
        return self.data.partition(b"\r\n\r\n")[0].decode("latin-1")

    @property
    def body(self) -> bytes:
        head, _, body = self.data.partition(b"\r\n\r\n")
        return _unchunked(body) if b"transfer-encoding: chunked" in head.lower() else body

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json()["error"]["code"])

    def events(self) -> list[str]:
        """The data of each event, by the standard's own rules for lines: not by what Python thinks one is."""
        events: list[str] = []
        lines: list[str] = []
        for line in _LINES.split(self.body.decode()):
            if line.startswith("data:"):
                lines.append(line[5:].removeprefix(" "))
            elif not line and lines:
                events.append("\n".join(lines))
                lines = []
        return events


def _unchunked(body: bytes) -> bytes:
    out = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        out += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return out


def document(**changes: Any) -> dict[str, Any]:
    """A chat completion's request."""
    return {"model": "test-model", "messages": [SAID], **changes}


def post(
    body: bytes | Mapping[str, Any],
    path: str = "/v1/chat/completions",
    *,
    headers: Mapping[str, str] | None = None,
    extra: bytes = b"",
) -> bytes:
    """A whole request that asks for the connection's end. A header of None is left out; `extra`: whole lines, as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "gw.test", "Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "Connection": "close"}
    given = {name.lower() for name in headers or ()}
    fields = {**{name: value for name, value in fields.items() if name.lower() not in given}, **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"POST {path} HTTP/1.1\r\n{lines}Content-Length: {len(data)}\r\n".encode() + extra + b"\r\n" + data


def get(path: str, headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\n{headers}\r\n".encode()


async def say(address: tuple[str, int], data: bytes, *, seconds: float = 10.0) -> Raw:
    """Send these bytes and read to the connection's end. Raises trio.TooSlowError where it does not come."""
    with trio.fail_after(seconds):
        async with await trio.open_tcp_stream(*address) as stream:
            received = b""
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                pass  # refused before the end: the answer is there all the same
            try:
                while chunk := await stream.receive_some(65536):
                    received += chunk
            except trio.BrokenResourceError:
                pass
            return Raw(received)


@asynccontextmanager
async def closed(running: Running, calls: int = 0) -> AsyncIterator[None]:
    """`calls`: how many the provider may see."""
    await _well(running)
    asked, held, tasks = running.provider.log.requests, descriptors(), trio.lowlevel.current_statistics().tasks_living
    yield
    await _at_rest(running)
    assert running.provider.log.requests - asked == calls, "calls of the provider"
    await _well(running)
    idle = 2 * sum(pool.idle for pool in running.server.reloader.statistics().values())  # both ends are here
    with trio.fail_after(5):
        while descriptors() > held + idle or trio.lowlevel.current_statistics().tasks_living > tasks + idle:
            await trio.sleep(0.01)
    assert not running.provider.log.malformed


@attrs.define(eq=False)
class Step(trio.abc.Instrument):
    """The longest that a task of the gateway's held the others up, in seconds of this thread's own time: a busy machine's wait is
    none of it."""

    seconds: float = 0.0
    _begun: float = attrs.field(factory=time.thread_time)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._begun = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.startswith("clawproxy.server"):
            self.seconds = max(self.seconds, time.thread_time() - self._begun)


@contextmanager
def longest_step() -> Iterator[Step]:
    step = Step()
    trio.lowlevel.add_instrument(step)
    try:
        yield step
    finally:
        trio.lowlevel.remove_instrument(step)


_NO_TABLES = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.CodeType, types.FrameType)


def entries(running: Running) -> int:
    """How many entries all tables have that the gateway holds: its own, its plugins', and those of their modules. What it keeps
    of each request, label or name, is one at least; how memory was had from the system does not show. Alarms are left out: those
    of requests that are over go when their time comes."""
    modules = [module for name, module in tuple(sys.modules.items()) if name.partition(".")[0].startswith("clawproxy")]
    count, seen = 0, set[int]()
    todo: list[object] = [running.server, *(vars(module) for module in modules if "scripted" not in module.__name__)]
    while todo:
        each = todo.pop()
        if (
            id(each) in seen
            or isinstance(each, (*_NO_TABLES, ScriptedProvider, Alarms))
            or type(each).__module__.startswith("trio")
        ):
            continue
        seen.add(id(each))
        if isinstance(each, dict | list | set | deque):
            count += len(each)
        todo += gc.get_referents(each)
    return count


async def _well(running: Running) -> None:
    running.forget_trouble()
    async with await running.connect() as connection:
        reply = await chat(connection, "script: say fine", key=KEY)
    assert reply.status == 200
    await _at_rest(running)


async def _at_rest(running: Running) -> None:
    with trio.fail_after(5):
        await running.at_rest()


def shapes(secret: str) -> dict[str, bytes]:
    """A secret and every window of 12 characters of it, by how they are written: what a sweep looks for.

    Hex and escapes go by the byte. Base64 does not: there a window is looked for in the three ways it may lie."""
    raw = secret.encode()
    found: dict[str, bytes] = {}
    for at in range(max(1, len(raw) - 11)):
        window = raw[at : at + 12]
        found[f"plain {at}"] = window
        found[f"hex {at}"] = window.hex().encode()
        found[f"HEX {at}"] = window.hex().upper().encode()
        found[f"url {at}"] = "".join(f"%{byte:02X}" for byte in window).encode()
        found[f"url lower {at}"] = "".join(f"%{byte:02x}" for byte in window).encode()
        found[f"json {at}"] = "".join(f"\\u{byte:04x}" for byte in window).encode()
        for shift in range(3):
            for name, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
                text = encode(b"\0" * shift + window).rstrip(b"=")
                found[f"{name} {at} {shift}"] = text[(0, 2, 3)[shift] : -1]  # its ends depend on what stands beside it
    return found


def leaks(data: bytes, secrets: Mapping[str, str]) -> list[str]:
    """Which secrets `data` shows, and how. Each by the name it has in `secrets`."""
    found: list[str] = []
    for name, secret in secrets.items():
        for how, shape in shapes(secret).items():
            place = data.find(shape)
            if place >= 0:
                found.append(f"{name} ({how}) in ...{data[max(0, place - 60) : place].decode(errors='replace')!r}")
                break
    return found
