"""What both canary sweeps are made in: a gateway with a provider of every dialect, and a plugin that fails with what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import trio

from tests.e2e.websocket_client import masked
from tests.matrix.expected import BASE

ORDER = '[pipeline]\norder = ["audit", "auth", "clumsy", "sanitize", "truncate", "router", "meter"]\n'
ONCE = "".join(f"[plugins.router.{name}]\nenabled = false\n" for name in ("breaker", "credentials"))
ONCE += "[plugins.router.retries]\nmost = 0\n"
"""Each question is one call, and the next one is not spared for how it ended."""


def installed(folder: Path, source: str) -> Path:
    """The module `clumsy`, with its entry point: what PYTHONPATH is to name."""
    place = folder / "site"
    info = place / "clumsy-1.dist-info"
    info.mkdir(parents=True)
    (place / "clumsy.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clumsy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[clawproxy]\nclumsy = clumsy:plugin\n")
    return place


def every_dialect(url: str, secret: str) -> str:
    """Sections of a provider for each dialect, under its name, and of a model `via-NAME`. `secret`: what they are asked with."""
    base = url.removesuffix("/v1")
    return "".join(
        f'[providers.{name}]\ndialect = "{name}"\nbase_url = "{base}{path}"\napi_key = "{secret}"\n'
        f'[models.via-{name}]\nroutes = [{{ provider = "{name}", model = "scripted-1" }}]\n'
        for name, path in BASE.items()
    )


async def over_websocket(address: tuple[str, int], path: str, token: str, *frames: object) -> bytes:
    """What is said on a WebSocket, up to the end of an answer or an error. `frames`: documents, or bytes as they are."""
    head = f"GET {path} HTTP/1.1\r\nHost: gw\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    head += f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nAuthorization: Bearer {token}\r\n\r\n"
    data = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in frames]
    received = b""
    async with await trio.open_tcp_stream(*address) as stream:
        await stream.send_all(head.encode() + b"".join(map(masked, data)))
        with trio.move_on_after(1.5):
            while b"_end" not in received and b'"error"' not in received and b"response.completed" not in received:
                chunk = await stream.receive_some(65536)
                if not chunk:
                    break
                received += chunk
    return received
