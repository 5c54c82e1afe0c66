"""The official JavaScript SDKs against a running gateway, as their users run them: `node SCRIPT.mjs URL KEY`.

They are installed once, by the lock file, into `build/clients_js` of this checkout.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from clawproxy.dialects import PATHS
from clawproxy.scripted.openai_embeddings import vector
from tests.e2e.harness import KEY, NOTHING_RESTS, Running, gateway

HERE = Path(__file__).parent
FOLDER = HERE.parent.parent / "build" / "clients_js"
NODE, NPM = shutil.which("node"), shutil.which("npm")
OLDEST = 20
"""The major version of Node.js in which the SDKs were seen to work; they ask for 22."""

pytestmark = [
    pytest.mark.node,
    pytest.mark.slow,
    pytest.mark.skipif(NODE is None or NPM is None, reason="Node.js and npm are not both installed"),
]


@functools.cache
def why_not() -> str | None:
    """Install the SDKs, once; why that can not be done, or None."""
    assert NODE is not None
    assert NPM is not None
    version = subprocess.run([NODE, "--version"], capture_output=True, text=True).stdout
    if int(version.strip().lstrip("v").partition(".")[0] or 0) < OLDEST:
        return f"Node.js is older than {OLDEST} ({version.strip()})"
    lock = (HERE / "package-lock.json").read_bytes()
    mark, wanted = FOLDER / "node_modules" / ".installed", hashlib.sha256(lock).hexdigest()
    if not mark.exists() or mark.read_text() != wanted:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, FOLDER / name)
        try:
            made = subprocess.run(
                [NPM, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
                cwd=FOLDER,
                capture_output=True,
                text=True,
                timeout=120,
            )
        except subprocess.TimeoutExpired:
            return "npm could not install the SDKs within two minutes"
        if made.returncode != 0:
            return f"npm could not install the SDKs: {made.stderr.strip().splitlines()[-1:]}"
        mark.write_text(wanted)
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, FOLDER / script.name)  # Node.js looks for packages beside a script
    return None


async def run(script: str, running: Running, base: str) -> dict[str, Any]:
    """What the script printed."""
    reason = await trio.to_thread.run_sync(why_not)
    if reason is not None:
        pytest.skip(reason)
    command = [str(NODE), str(FOLDER / script), running.url + base, KEY]
    environment = {"PATH": os.environ["PATH"], "HOME": str(FOLDER)}  # no key, no proxy of whoever runs the tests
    with trio.fail_after(60):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


async def test_openai(tmp_path: Path) -> None:
    async with gateway(tmp_path, sections=NOTHING_RESTS) as running:
        got = await run("openai.mjs", running, "/v1")
        with trio.fail_after(5):
            await running.provider.log.wait_for(lambda log: log.counts["closed_by_peer"] >= 1)
            await running.at_rest()
    assert (got["whole"]["text"], got["whole"]["finish"]) == ("Hello world", "stop")
    assert got["whole"]["usage"]["completion_tokens"] == 2
    assert got["whole"]["route"]
    assert got["whole"]["id"]
    for name in ("streamed", "streamed_plain"):
        assert (got[name]["text"], got[name]["reasoning"], got[name]["finish"]) == ("café \U0001f600 done", "so", "stop")
    assert (got["streamed"]["empty"], got["streamed"]["usage"]["completion_tokens"]) == (1, 4)
    assert (got["streamed_plain"]["empty"], got["streamed_plain"]["usage"]) == (0, None), "nobody asked for that chunk"
    assert got["tools"]["called"] == [[1, 2]]
    assert got["tools"]["roles"][:3] == ["user", "assistant", "tool"]
    errors = got["errors"]
    assert (errors["key"]["name"], errors["key"]["code"]) == ("AuthenticationError", "invalid_api_key")
    assert (errors["model"]["name"], errors["model"]["code"]) == ("NotFoundError", "model_not_found")
    assert (errors["request"]["name"], errors["request"]["param"]) == ("BadRequestError", "messages")
    assert (errors["limit"]["name"], errors["limit"]["retry"]) == ("RateLimitError", "7")
    assert errors["middle"]["name"] == "APIError"
    assert errors["middle"]["code"] == "provider_error.server"
    assert got["left"] is True
    assert got["embeddings"]["packed"] == [vector("one two", 4), vector("three", 4)]
    assert got["embeddings"]["plain"] == [vector([1, 2]), vector([3])]
    assert got["embeddings"]["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert got["models"] == ["test-model"]


@pytest.mark.skipif("/v1/messages" not in PATHS, reason="this gateway does not serve /v1/messages")
async def test_anthropic(tmp_path: Path) -> None:
    async with gateway(tmp_path, sections=NOTHING_RESTS) as running:
        got = await run("anthropic.mjs", running, "")
    assert (got["whole"]["text"], got["whole"]["stop"]) == ("Hello world", "end_turn")
    assert got["whole"]["usage"]["output"] == 2
    assert got["whole"]["route"]
    assert (got["streamed"]["text"], got["streamed"]["stop"]) == ("café \U0001f600 done", "end_turn")
    assert got["streamed"]["pieces"] >= 3, "tokens come as they are made"
    assert got["tools"] == {"name": "add", "input": {"a": 1}, "stop": "tool_use"}
    assert got["errors"]["key"] == {"name": "AuthenticationError", "status": 401, "type": "authentication_error"}
    assert got["errors"]["model"] == {"name": "NotFoundError", "status": 404, "type": "not_found_error"}
    assert got["errors"]["limit"] == {"name": "RateLimitError", "status": 429, "type": "rate_limit_error"}
    assert got["errors"]["middle"]["name"] == "APIError"
