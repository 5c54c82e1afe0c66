"""The protocol page's sample client, unchanged, in Node and in Chromium."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from clawproxy.config.schema import Config, ServerConfig

from .kit import FakeService, gateway

SAMPLE = (Path(__file__).parent / "sample_client.js").read_text()
SAW = "Hello,wörld😀|400 Invalid prompt format|1000 clean"

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


async def run(*command: str, limit: float = 30.0) -> bytes:
    """Standard output of a program, which is ended with everything it started."""
    process = await trio.lowlevel.open_process(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
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
        flags = ["--experimental-websocket"] if not await _has_websocket(NODE) else []
        out = await run(NODE, *flags, "-e", script)
        assert out.decode().strip() == SAW
        bearer = base64.urlsafe_b64encode(b"good").rstrip(b"=").decode()
        script = (
            f"const s = new WebSocket('ws://127.0.0.1:{gw.port}/websocket', ['claw.v1', 'bearer.{bearer}']);"
            "s.onmessage = (e) => { console.log(s.protocol, JSON.parse(e.data).type); s.close(); };"
        )
        assert (await run(NODE, *flags, "-e", script)).decode().split() == ["claw.v1", "auth_ok"]


async def _has_websocket(node: str) -> bool:
    return b"function" in await run(node, "-p", "typeof WebSocket")


@asynccontextmanager
async def page(body: str) -> AsyncIterator[str]:
    """Serve one HTML page to anybody who asks; gives its origin."""
    data = body.encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/html; charset=utf-8\r\nconnection: close\r\ncontent-length: "
    answer = head + str(len(data)).encode() + b"\r\n\r\n"

    async def handler(stream: trio.SocketStream) -> None:
        try:
            await stream.receive_some(65536)
            await stream.send_all(answer + data)
            await stream.send_eof()
            while await stream.receive_some(65536):
                pass
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("allowed", [True, False])
async def test_the_sample_client_in_a_browser(allowed: bool, tmp_path: Path) -> None:
    """W-20: a page of an origin that is not listed gets nothing."""
    assert CHROMIUM is not None
    service = FakeService()
    async with gateway(service) as gw:
        show = "(text) => { document.body.innerText = text; }"
        script = f"{SAMPLE}\nsample('ws://127.0.0.1:{gw.port}/websocket', 'good', {show});"
        async with page(f"<!doctype html><meta charset=utf-8><body>waiting<script>{script}</script>") as origin:
            if allowed:
                service.config = Config(server=ServerConfig(origins=(origin,)))
            out = await run(
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000", "--dump-dom", f"{origin}/",
                limit=60,
            )  # fmt: skip
        text = out.decode()
        assert (SAW in text) == allowed, text
        if not allowed:
            assert "|1006" in text
            assert service.authenticated == []
