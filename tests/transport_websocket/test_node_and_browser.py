"""The protocol page's sample client, unchanged, in Node and in Chromium."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define

from clawproxy.config.schema import Config, ServerConfig

from .kit import FakeService, gateway, until

SAMPLE = (Path(__file__).parent / "sample_client.js").read_text()
SAW = "Hello,wörld😀|400 Invalid prompt format|1000 clean"

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


async def run(*command: str, limit: float = 60.0, env: dict[str, str] | None = None) -> bytes:
    """Standard output of a program, which is ended with everything it started."""
    process = await trio.lowlevel.open_process(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, env=env
    )
    out = b""
    try:
        with trio.fail_after(limit):
            assert process.stdout is not None
            while data := await process.stdout.receive_some(65536):
                out += data
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        with trio.move_on_after(5, shield=True):
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()
    return out


@pytest.mark.node
@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
async def test_the_sample_client_in_node() -> None:
    assert NODE is not None
    async with gateway() as gw:
        script = f"{SAMPLE}\nsample('ws://127.0.0.1:{gw.port}/websocket', 'good', (text) => console.log(text));"
        flags = await websocket_flags(NODE)
        out = await run(NODE, *flags, "-e", script)
        assert out.decode().strip() == SAW
        bearer = base64.urlsafe_b64encode(b"good").rstrip(b"=").decode()
        script = (
            f"const s = new WebSocket('ws://127.0.0.1:{gw.port}/websocket', ['claw.v1', 'bearer.{bearer}']);"
            "s.onmessage = (e) => { console.log(s.protocol, JSON.parse(e.data).type); s.close(); };"
        )
        assert (await run(NODE, *flags, "-e", script)).decode().split() == ["claw.v1", "auth_ok"]


async def websocket_flags(node: str) -> list[str]:
    """What this Node.js needs to have a WebSocket; skips the test where it has none (before 20.10)."""
    for flags in ([], ["--experimental-websocket"]):
        if b"function" in await run(node, *flags, "-p", "typeof WebSocket"):
            return flags
    pytest.skip("this Node.js has no WebSocket client")


@define(eq=False)
class Page:
    """An HTML page on a port of its own, and what its script reported by POST."""

    origin: str
    body: str
    """Served to anybody who asks; may be set once the origin is known."""
    report: str | None = None


@asynccontextmanager
async def page(body: str) -> AsyncIterator[Page]:
    """Serve one page to anybody who asks."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\nconnection: close\r\ncontent-length: "

    async def handler(stream: trio.SocketStream) -> None:
        try:
            asked = b""
            while more := await stream.receive_some(65536):
                asked += more
                if not asked.startswith(b"POST") or asked.endswith(b"|END"):
                    break
            if asked.startswith(b"POST"):
                here.report = asked.partition(b"\r\n\r\n")[2].decode().removesuffix("|END")
            data = here.body.encode()
            await stream.send_all(head + str(len(data)).encode() + b"\r\n\r\n" + data)
            await stream.send_eof()
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        here = Page(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", body)
        await nursery.start(trio.serve_listeners, handler, listeners)
        yield here
        nursery.cancel_scope.cancel()


async def browse(url: str, profile: Path) -> None:
    """Chromium with that page, until it is cancelled. Its socket needs a folder with a short name, and would stay there."""
    assert CHROMIUM is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = ("--disable-component-update", "--disable-sync", "--remote-debugging-port=0", f"--user-data-dir={profile}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        await run(CHROMIUM, *flags.split(), *more, url, env={**os.environ, "TMPDIR": folder})


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("allowed", [True, False])
async def test_the_sample_client_in_a_browser(allowed: bool, tmp_path: Path) -> None:
    """W-20: a page of an origin that is not listed gets nothing."""
    service = FakeService()
    async with gateway(service) as gw:
        report = "(text) => fetch('/', { method: 'POST', body: text + '|END' })"
        script = f"{SAMPLE}\nsample('ws://127.0.0.1:{gw.port}/websocket', 'good', {report});"
        html = f"<!doctype html><meta charset=utf-8><body><script>{script}</script>"
        async with page(html) as here, trio.open_nursery() as nursery:
            if allowed:
                service.config = Config(server=ServerConfig(origins=(here.origin,)))
            nursery.start_soon(browse, f"{here.origin}/", tmp_path)
            await until(lambda: here.report is not None, 60)
            nursery.cancel_scope.cancel()
    if allowed:
        assert here.report == SAW
    else:
        assert here.report == "|1006"
        assert service.authenticated == []
