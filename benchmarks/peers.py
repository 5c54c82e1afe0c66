"""`python -m benchmarks.peers`: other gateways beside this one, in one run: LiteLLM, Portkey, and a hand-written FastAPI one.

Each is installed into a folder of its own below benchmarks/build/peers, from its registry, by its name; nothing else is touched.
Each runs one worker on the core of what is measured, with its logging turned down and nothing kept: no database, no budgets, no
audit. A peer that can not be installed, does not start, or gives wrong answers is left out, with a note that says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import machine, parts, run
from benchmarks.parts import BenchError, Target

FOLDER = parts.BUILD / "peers"
INSTALL_SECONDS = 900

LITELLM = """\
model_list:
  - model_name: gpt-4o-mini
    litellm_params:
      model: openai/gpt-4o-mini
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: sk-none
general_settings:
  master_key: {key}
litellm_settings:
  telemetry: false
  num_retries: 0
"""


@dataclass(frozen=True)
class Peer:
    """Attributes:
    install: puts it into its folder.
    start: runs it before the provider on a port; a context manager of its Target.
    websocket: it speaks the Claw WebSocket, and not HTTP.
    """

    name: str
    install: Callable[[], None]
    start: Callable[[int], contextlib.AbstractContextManager[Target]]
    websocket: bool = False


def _do(command: Sequence[object], what: str) -> None:
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{what}: {error}") from error
    if done.returncode:
        raise BenchError(f"{what} failed:\n{(done.stderr or done.stdout).strip()[-800:]}")


def _python_peer(name: str, packages: Sequence[str]) -> None:
    folder = FOLDER / name
    if (folder / "installed").exists():
        return
    run.say(f"installing {' '.join(packages)}")
    _do([sys.executable, "-m", "venv", folder], f"a virtual environment for {name}")
    _do([folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *packages], f"installing {name}")
    (folder / "installed").touch()


def _install_portkey() -> None:
    folder = FOLDER / "portkey"
    if (folder / "installed").exists():
        return
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise BenchError("Node.js is not installed (Debian: apt-get install nodejs npm)")
    run.say("installing @portkey-ai/gateway")
    folder.mkdir(parents=True, exist_ok=True)
    _do(["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "@portkey-ai/gateway"], "installing portkey")
    (folder / "installed").touch()


@contextlib.contextmanager
def _running(
    name: str, command: Sequence[object], port: int, env: dict[str, str], headers: Sequence[str] = (), cwd: Path | None = None
) -> Iterator[Target]:
    began = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as log,
        parts.process(command, machine.cores()[0], env=env, out=log, log=log, cwd=cwd) as running,
    ):
        try:
            parts.wait_for_port(port, running, 90.0)
            target = Target(name, port, running.pid, start_seconds=time.monotonic() - began, headers=tuple(headers))
            _first_answer(target)
        except BenchError as failure:
            log.seek(0)
            raise BenchError(f"{failure}\n{log.read()[-800:]}") from failure
        yield target


def _first_answer(target: Target) -> None:
    """Listening is not yet serving: some import half of themselves at the first request."""
    for last in (False, False, False, False, True):
        try:
            parts.put_load(target, "ws" if target.name == "fastapi" else "http", requests=1)
            return
        except BenchError:
            if last:
                raise
            time.sleep(1.0)


@contextlib.contextmanager
def litellm(upstream: int) -> Iterator[Target]:
    port = parts.free_port()
    with tempfile.TemporaryDirectory(prefix="clawproxy-bench-") as folder:
        config = Path(folder, "config.yaml")
        config.write_text(LITELLM.format(upstream=upstream, key=parts.KEY))
        command = [FOLDER / "litellm/bin/litellm", "--config", config, "--host", "127.0.0.1", "--port", port, "--num_workers", 1]
        # its price list would be fetched from the network at the start
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": parts.KEY}
        with _running("litellm", command, port, env, cwd=Path(folder)) as target:
            yield target


@contextlib.contextmanager
def portkey(upstream: int) -> Iterator[Target]:
    port = parts.free_port()
    command = ["node", FOLDER / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js", f"--port={port}", "--headless"]
    host = f"http://127.0.0.1:{upstream}/v1"
    headers = ("x-portkey-provider: openai", f"x-portkey-custom-host: {host}")
    env = {"NODE_ENV": "production", "TRUSTED_CUSTOM_HOSTS": "127.0.0.1,localhost"}
    with _running("portkey", command, port, env, headers) as target:
        yield target


@contextlib.contextmanager
def fastapi(upstream: int) -> Iterator[Target]:
    port = parts.free_port()
    command = [FOLDER / "fastapi/bin/python", parts.HERE / "peers_fastapi.py", port]
    env = {"UPSTREAM": f"http://127.0.0.1:{upstream}/v1", "BENCH_KEY": parts.KEY}
    with _running("fastapi", command, port, env) as target:
        yield target


PEERS = (
    Peer("portkey", _install_portkey, portkey),
    Peer("litellm", partial(_python_peer, "litellm", ["litellm[proxy]"]), litellm),
    Peer("fastapi", partial(_python_peer, "fastapi", ["fastapi", "uvicorn[standard]", "openai"]), fastapi, websocket=True),
)


def version(name: str) -> str:
    """Of an installed peer, as its package says."""
    if name == "portkey":
        package = FOLDER / "portkey/node_modules/@portkey-ai/gateway/package.json"
        return str(json.loads(package.read_text())["version"])
    asked = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
    done = subprocess.run([FOLDER / name / "bin/python", "-c", asked], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def usable(names: Sequence[str]) -> tuple[list[Peer], list[str]]:
    """Those that are installed now, start, and answer rightly; and why the others are left out."""
    fit: list[Peer] = []
    notes: list[str] = []
    parts.compile_tools()
    with parts.provider() as helper:
        for peer in PEERS:
            if peer.name not in names:
                continue
            try:
                peer.install()
                run.say(f"starting {peer.name}")
                with peer.start(helper.port) as target:
                    assert target.pid is not None
                    notes.append(
                        f"{peer.name} {version(peer.name)}: {target.start_seconds:.1f} s to listening, "
                        f"{machine.rss_bytes(target.pid) / 1e6:.0f} MB "
                        "resident after its first answer"
                    )
                fit.append(peer)
            except (BenchError, OSError) as failure:
                notes.append(f"{peer.name} is left out: {failure}")
    return fit, notes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", choices=[peer.name for peer in PEERS], default=[peer.name for peer in PEERS])
    parser.add_argument("--plan", choices=list(run.PLANS), default="quick")
    parser.add_argument("--out", type=Path, default=parts.BUILD / "results-peers")
    given = parser.parse_args()
    try:
        fit, notes = usable(given.only)

        def started(websocket: bool) -> dict[str, Callable[[int], contextlib.AbstractContextManager[Target]]]:
            return {peer.name: peer.start for peer in fit if peer.websocket is websocket}

        result = run.run(run.PLANS[given.plan], started(False), started(True))
        result["notes"] += notes
        run.publish(result, given.out)
    except (BenchError, OSError) as failure:
        sys.exit(f"benchmarks: {failure}")


if __name__ == "__main__":
    main()
