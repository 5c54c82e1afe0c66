"""`clawproxy serve` as its users run it: a process, a configuration file, a ready file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

CLI = [sys.executable, "-m", "clawproxy"]


@attrs.define
class Served:
    process: trio.Process
    ready: dict[str, Any]
    stdout: Path
    stderr: Path

    @property
    def url(self) -> str:
        return str(self.ready["listen"][0])

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stderr.read_text().splitlines()]

    async def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        with trio.fail_after(15):
            return await self.process.wait()


@asynccontextmanager
async def served(folder: Path, config: str, **environ: str) -> AsyncIterator[Served]:
    """Serve `config` (TOML) from `folder`; killed on the way out if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clawproxy.toml").write_text(config)
    ready, stdout, stderr = folder / "ready.json", folder / "stdout", folder / "stderr"
    ready.unlink(missing_ok=True)
    command = [*CLI, "serve", "--config", str(folder / "clawproxy.toml"), "--ready-file", str(ready)]
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = await trio.lowlevel.open_process(
            command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env={**os.environ, **environ}
        )
    try:
        with trio.fail_after(20):
            while not ready.exists():
                assert process.returncode is None, f"serve ended: {stderr.read_text()}"
                await trio.sleep(0.01)
        yield Served(process, json.loads(ready.read_text()), stdout, stderr)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.move_on_after(5, shield=True):
            await process.wait()


def settings(folder: Path, base_url: str, *, extra: str = "") -> str:
    """A configuration as DESIGN has it: an OpenAI-compatible provider, a model, a key, secrets from the environment."""
    return f"""
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
state_dir = "{folder}/state"
{extra}
[providers.openai]
dialect  = "openai_chat"
base_url = "{base_url}"
api_key  = "env:TEST_PROVIDER_KEY"

[models."gpt-4-turbo"]
strategy = "priority"
routes   = [{{ provider = "openai", model = "gpt-4-turbo-upstream" }}]

[keys.bench]
secret = "env:TEST_CLIENT_KEY"
models = ["*"]
"""
