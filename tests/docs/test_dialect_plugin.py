"""examples/dialect_plugin: its own test passes, installed from another folder; the gateway serves it to every kind of client."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import trio
from trio_websocket import open_websocket_url

from clawproxy.config import PipelineConfig, ProviderConfig, SecretRef
from tests.e2e.harness import KEY, gateway
from tests.e2e.http_client import Reply, fetch

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "dialect_plugin"


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = None
    if path is not None:
        here = os.pathsep.join(map(str, (path, ROOT, ROOT / "plugins")))
        environment = {"PYTHONPATH": here, "PATH": str(Path(sys.executable).parent), "ACME_KEY": "k" * 30}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=cwd, env=environment)


def test_it_works_from_another_folder(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for path in EXAMPLE.glob("*.*"):
        (source / path.name).write_text(path.read_text())
    installed = run("-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", target, source, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    tested = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_acme.py", cwd=source, path=target)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    # The page's configuration, with the plugin and without it.
    page = (ROOT / "docs" / "plugins.md").read_text().partition("## Adding a dialect")[2]
    found = re.search(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    (tmp_path / "claw.toml").write_text(f'[server]\nstate_dir = "{tmp_path}/state"\n{found[1]}')
    check = ("-m", "clawproxy", "check", "--config", tmp_path / "claw.toml")
    checked = run(*check, cwd=tmp_path, path=target)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    without = run(*check, cwd=tmp_path, path=tmp_path)
    assert without.returncode == 2
    assert '"acme" is no known dialect' in without.stdout + without.stderr


def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clawproxy_acme", EXAMPLE / "clawproxy_acme.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


async def test_all_clients_get_its_answers(tmp_path: Path) -> None:
    heads: list[bytes] = []

    async def acme(stream: trio.SocketStream) -> None:
        """A provider of that format, which answers one request a connection."""
        heard = b""
        while not heard.endswith(b"}"):
            heard += await stream.receive_some(65536)
        heads.append(heard)
        lines = (b'{"token":"Hel"}\n', b'{"token":"lo"}\n', b'{"done":true,"why":"limit","tokens":{"in":3,"out":2}}\n')
        await stream.send_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/x-ndjson\r\n\r\n")
        for line in lines:
            await stream.send_all(line[:4])
            await stream.send_all(line[4:])
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/api"
        nursery.start_soon(trio.serve_listeners, acme, listeners)
        providers = {"press": ProviderConfig(dialect="acme", base_url=url, api_key=SecretRef("", "k" * 30))}
        order = PipelineConfig(order=(*PipelineConfig().order, "acme"))
        async with gateway(tmp_path, providers=providers, models={}, plugins={"acme": module()}, pipeline=order) as running:

            async def ask(**fields: object) -> Reply:
                body = {"model": "press/a1", "messages": [{"role": "user", "content": "hi"}], **fields}
                headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
                async with await running.connect() as connection:
                    with trio.fail_after(5):
                        data = json.dumps(body).encode()
                        return await fetch(connection, "POST", "/v1/chat/completions", headers=headers, body=data)

            whole = (await ask()).json()
            assert whole["choices"][0]["message"]["content"] == "Hello"
            assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            streamed = await ask(stream=True, max_tokens=5)
            assert streamed.text() == "Hello"
            assert list(streamed.events())[-1] == "[DONE]"
            async with open_websocket_url(running.websocket, extra_headers=[(b"authorization", f"Bearer {KEY}".encode())]) as ws:
                await ws.get_message()
                await ws.send_message(json.dumps({"type": "llm_request", "model": "press/a1", "prompt": "hi"}))
                frames: list[dict[str, Any]] = []
                while not frames or frames[-1]["type"] not in ("llm_response_end", "error"):
                    frames.append(json.loads(await ws.get_message()))
            assert (frames[-1]["finish_reason"], frames[-1]["usage"]["source"]) == ("length", "measured")
            refused = await ask(n=2)
            assert (refused.status, refused.json()["error"]["param"]) == (400, "n")
            reply = await ask(temperature=0.5)
            assert (reply.status, reply.json()["error"]["param"]) == (400, "temperature")
        nursery.cancel_scope.cancel()
    assert len(heads) == 3
    assert heads[1].startswith(b"POST /api/generate HTTP/1.1\r\n")
    assert b"x-api-key: kkk" in heads[1]
    assert json.loads(heads[1].partition(b"\r\n\r\n")[2]) == {"model": "a1", "prompt": "user: hi", "limit": 5}
