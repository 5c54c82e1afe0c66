"""What a real client runs on: a gateway as its users start it, the scripted provider behind it, and no other place to go.

    async with stage(tmp_path, dialect="openai_chat", model="gpt") as on:
        on.provider.always("Hello from the script.")
        ran = await on.run([...], environ={...})
    [row] = on.rows

Rule 1: a client gets a home and a working folder of its own, and none of this process's environment.
Rule 2: whatever leaves the loopback interface goes through `HTTPS_PROXY` to `Outside`, which refuses it and remembers where it
        wanted to go. A client whose own switches are set as docs/clients.md says asks for nothing there.
Rule 3: whatever a client started dies with its turn. Its processes are found by their home, since a process group does not hold
        them: OpenClaw's worker begins a session of its own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from clawproxy.scripted import ScriptedProvider
from tests.e2e.http_client import fetch
from tests.e2e.process import Served, served

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / "build" / "clients"
KEY = "sk-client-0123456789abcdefghijklmnop"
PROVIDER_KEY = "sk-canary-4f1d0c8a9b7e6f5d4c3b2a1908172635"
SECONDS = 150.0
"""For one run of a client: OpenClaw takes ten where the machine is idle."""


def program(client: str, name: str) -> str:
    """The path of an installed client's program; without it the test is skipped."""
    path = INSTALLED / client / "node_modules" / ".bin" / name
    if not path.exists():
        pytest.skip(f"{client} is not installed: `make test-clients` does that")
    return str(path)


def documented(language: str, url: str) -> list[str]:
    """The blocks of docs/clients.md in `language`, with the gateway at `url`."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / "clients.md").read_text(), re.MULTILINE | re.DOTALL)
    return [block.replace("http://127.0.0.1:8642", url) for block in blocks]


@attrs.frozen
class Ran:
    code: int
    stdout: str
    stderr: str

    def document(self) -> Any:
        """The JSON that the client printed."""
        return json.loads(self.stdout)

    def documents(self) -> list[Any]:
        """The same, where it printed one a line."""
        return [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]


Running = tuple[trio.Process, Path, Path]
"""A client, its stdout and its stderr."""


@attrs.define
class Outside:
    """A proxy that lets nothing through."""

    url: str = ""
    asked: list[str] = attrs.field(factory=list)
    """The request lines: `CONNECT host:443 HTTP/1.1`."""

    async def serve(self, *, task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        await trio.serve_listeners(self._refuse, listeners, task_status=task_status)

    async def _refuse(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError), trio.move_on_after(5):
            async with stream:
                head = await stream.receive_some(65536)
                if head:
                    self.asked.append(head.split(b"\r\n")[0].decode("latin-1"))
                    await stream.send_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


@attrs.define
class Stage:
    """One gateway and its surroundings; `rows` and `log` are there once it was left."""

    folder: Path
    provider: ScriptedProvider
    outside: Outside
    gateway: Served
    rows: list[dict[str, Any]] = attrs.field(factory=list)
    """The audit log, in the order in which exchanges ended."""
    log: list[dict[str, Any]] = attrs.field(factory=list)
    runs: int = 0

    @property
    def url(self) -> str:
        return self.gateway.url

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    async def run(self, command: Sequence[str], environ: Mapping[str, str] = {}, *, seconds: float = SECONDS) -> Ran:
        """Run a client to its end in `work`. Raises trio.TooSlowError; it is killed then."""
        async with self._running(command, environ) as (process, stdout, stderr):
            with trio.fail_after(seconds):
                code = await process.wait()
        return Ran(code, stdout.read_text(), stderr.read_text())

    async def hang_up(self, command: Sequence[str], environ: Mapping[str, str] = {}, *, seconds: float = SECONDS) -> float:
        """Kill a client in the middle of an answer (the script has to `stall`); how many seconds later the provider knew."""
        async with self._running(command, environ) as _:
            with trio.fail_after(seconds):
                while not any(entry.events_sent for entry in self.provider.log.entries):
                    await trio.sleep(0.005)
            self._kill()
            began = trio.current_time()
            with trio.fail_after(5):
                await self.provider.log.wait_for(lambda log: not log.in_progress)
            return trio.current_time() - began

    @asynccontextmanager
    async def _running(self, command: Sequence[str], environ: Mapping[str, str]) -> AsyncIterator[Running]:
        self.runs += 1
        stdout, stderr = self.folder / f"stdout-{self.runs}", self.folder / f"stderr-{self.runs}"
        node = INSTALLED / "node" / "node_modules" / ".bin"
        surroundings = {
            "PATH": f"{node}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "TMPDIR": str(self.folder / "tmp"),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "HTTP_PROXY": self.outside.url,
            "HTTPS_PROXY": self.outside.url,
        }
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.work,
                env={**surroundings, **environ},
            )
        try:
            yield process, stdout, stderr
        finally:
            self._kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    def _kill(self) -> None:
        mark = f"HOME={self.home}".encode()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # gone by now, or another user's
                if mark in environ.read_bytes().split(b"\0"):
                    os.kill(int(environ.parent.name), signal.SIGKILL)

    async def metric(self, name: str) -> float:
        """What the gateway's metric of this name says now, whatever its labels."""
        authority = self.gateway.ready["admin"].removeprefix("http://")
        host, _, port = authority.rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            page = await fetch(stream, "GET", "/metrics", headers={"host": authority})
        assert page.status == 200
        lines = [line.split() for line in page.body.decode().splitlines()]
        return sum(float(value) for series, value, *_ in lines if series.partition("{")[0] == name)

    def asked(self) -> list[dict[str, Any]]:
        """The bodies that the provider got, in order."""
        return [entry.body for entry in self.provider.log.entries if isinstance(entry.body, dict)]

    def fields(self, number: int = -1) -> dict[str, str]:
        """The head fields of one request that the provider got."""
        return {name.lower(): value for name, value in self.provider.log.entries[number].headers}


@asynccontextmanager
async def stage(folder: Path, *, dialect: str = "openai_chat", model: str, path: str = "/v1") -> AsyncIterator[Stage]:
    """
    Args:
        dialect: what the gateway speaks with the provider.
        model: what clients may ask for.
        path: the provider's, as its vendor's `base_url` has one.
    """
    for name in ("home", "work", "tmp", "gateway"):
        (folder / name).mkdir()
    outside, provider = Outside(), ScriptedProvider("say Not what was scripted.")
    async with trio.open_nursery() as nursery:
        await nursery.start(outside.serve)
        await nursery.start(provider.serve)
        config = f"""
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
state_dir = "{folder}/gateway/state"

[providers.scripted]
dialect = "{dialect}"
base_url = "{provider.url}{path}"
api_key = "env:TEST_PROVIDER_KEY"

[models."{model}"]
routes = [{{ provider = "scripted", model = "scripted-1", context_tokens = 100000, max_output_tokens = 8192 }}]
price = {{ input = "2.50", output = "10.00", cached_input = "0.25" }}

[keys.agent]
secret = "env:TEST_CLIENT_KEY"
models = ["*"]
"""
        async with served(folder / "gateway", config, TEST_PROVIDER_KEY=PROVIDER_KEY, TEST_CLIENT_KEY=KEY) as gateway:
            on = Stage(folder, provider, outside, gateway)
            yield on
            code = await gateway.stop()
            on.log = gateway.log()
        for file in sorted((folder / "gateway" / "state" / "audit").glob("*.jsonl")):
            on.rows += [json.loads(line) for line in file.read_text().splitlines()]
        assert code == 0
        assert not [line for line in on.log if line["level"] == "error"]
        assert [line["request_id"] for line in on.log if line["event"] == "exchange.closed"] == [r["request_id"] for r in on.rows]
        nursery.cancel_scope.cancel()


def check_hung_up(on: Stage, surface: str) -> None:
    """What the gateway has to have recorded of a client that left: one exchange, ended by it."""
    [row] = on.rows
    assert (row["surface"], row["outcome"], row["error"]) == (surface, "client_gone", "client_gone")


def check_row(row: dict[str, Any], surface: str, model: str, *, finish: str = "stop") -> None:
    """One exchange as the gateway has to have recorded it: asked on this surface, complete, its tokens measured."""
    assert (row["surface"], row["outcome"], row["finish"], row["error"]) == (surface, "complete", finish, None)
    assert (row["key"], row["model"], row["stream"]) == ("agent", model, True)
    assert row["route"] == {"provider": "scripted", "model": "scripted-1"}
    assert [attempt["outcome"] for attempt in row["attempts"]] == ["complete"]
    usage = row["usage"]
    assert usage["source"] == "measured"
    assert usage["input_tokens"] > 0
    assert usage["output_tokens"] > 0
    fresh = usage["input_tokens"] - (usage["cached_tokens"] or 0)
    assert row["cost_nano"] == fresh * 2500 + (usage["cached_tokens"] or 0) * 250 + usage["output_tokens"] * 10_000
