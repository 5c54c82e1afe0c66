"""What takes part in a run: the provider, the gateway, nginx, the load. Each is a process of its own on its own core.

Rule 1: everything listens on loopback only, on ports the kernel gave, and is ended when its `with` block is.
Rule 2: nothing is kept: state lives in a temporary folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks import machine

HERE = Path(__file__).parent
BUILD = HERE / "build"
KEY = "sk-bench-0123456789abcdef"
MODEL = "gpt-4o-mini"


class BenchError(Exception):
    """A run that can not go on; the message is for the person who started it."""


@dataclass
class Target:
    """Something load can be put on.

    Attributes:
        pid: of its main process; None where its CPU time is not of interest.
    """

    name: str
    port: int
    pid: int | None = None
    key: str = KEY
    headers: tuple[str, ...] = ()
    """`name: value`, on each HTTP request."""
    start_seconds: float = 0.0
    """From the start of the process to its listening."""
    state: Path | None = None
    asked: int = 0
    """Requests put on it so far."""
    disturbed: bool = False
    """A load was broken off, so `asked` is not known exactly."""


def compile_tools(build: Path = BUILD) -> None:
    """Make `provider` and `load` in `build`, unless they are newer than their sources."""
    compiler = next((name for name in (os.environ.get("CC"), "gcc", "cc") if name and shutil.which(name)), None)
    build.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in (*HERE.glob("*.c"), *HERE.glob("*.h")))
    for name in ("provider", "load"):
        made = build / name
        if made.exists() and made.stat().st_mtime > newest:
            continue
        if compiler is None:
            raise BenchError(
                "no C compiler: the provider and the load generator are C. Install gcc (Debian: apt-get install gcc libc6-dev)."
            )
        done = subprocess.run([compiler, "-O3", "-o", made, HERE / f"{name}.c"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{compiler} could not compile {name}.c:\n{done.stderr}")


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(
    arguments: Sequence[object],
    core: int,
    *,
    env: Mapping[str, str] | None = None,
    out: IO[Any] | int = subprocess.DEVNULL,
    log: IO[Any] | int = subprocess.DEVNULL,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A process pinned to `core` from its first instruction; ended (SIGTERM, then SIGKILL after 10 s) with the block."""
    started = subprocess.Popen(
        [str(argument) for argument in arguments],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=log,
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        yield started
    finally:
        members = machine.family(started.pid)
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, 9)
            started.wait()


def wait_for_port(port: int, of: subprocess.Popen[str], seconds: float = 30.0) -> None:
    """Until something listens on `port`. Raises BenchError when `of` ends first or `seconds` pass."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        if of.poll() is not None:
            raise BenchError(f"{of.args!r} ended with {of.returncode} before it listened")
        time.sleep(0.005)
    raise BenchError(f"{of.args!r} did not listen within {seconds:g} s")


@contextlib.contextmanager
def provider(tokens: int = 50, build: Path = BUILD) -> Iterator[Target]:
    """The provider, on the core of all else."""
    port = free_port()
    with process([build / "provider", port, tokens], machine.cores()[1]) as running:
        wait_for_port(port, running)
        yield Target("provider", port, running.pid)


GATEWAY = """\
# Everything else is as it comes: the default pipeline, the ledger and the audit log.
[server]
listen    = ["127.0.0.1:{port}"]
admin     = ""
state_dir = "{state}"
[providers.bench]
base_url = "http://127.0.0.1:{upstream}/v1"
api_key  = "env:BENCH_KEY"
[keys.bench]
secret = "env:BENCH_KEY"
[limits]
connections = 15000
"""


@contextlib.contextmanager
def gateway(upstream: int, extra: str = "") -> Iterator[Target]:
    """`clawproxy serve` before the provider on port `upstream`, on the core of what is measured; `extra`: more configuration."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="clawproxy-bench-") as folder:
        state, file, log = Path(folder, "state"), Path(folder, "clawproxy.toml"), Path(folder, "log")
        file.write_text(GATEWAY.format(port=port, state=state, upstream=upstream) + extra)
        began = time.monotonic()
        with (
            log.open("w") as errors,
            process(
                [sys.executable, "-m", "clawproxy", "serve", "--config", file],
                machine.cores()[0],
                env={"BENCH_KEY": KEY},
                out=subprocess.PIPE,
                log=errors,
            ) as running,
        ):
            assert running.stdout is not None
            line = running.stdout.readline()
            if "listening" not in line:
                raise BenchError(f"clawproxy did not start:\n{log.read_text()[-2000:]}")
            try:
                yield Target("clawproxy", port, running.pid, start_seconds=time.monotonic() - began, state=state)
            except BenchError as failure:
                if running.poll() is None:
                    raise
                said = f"clawproxy ended with status {running.returncode} under load. Its log ends with:"
                raise BenchError(f"{failure}\n{said}\n{log.read_text()[-2000:]}") from failure


NGINX = """\
daemon off;
worker_processes 1;
error_log {folder}/error.log;
pid {folder}/pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 10000000;
  upstream provider {{ server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://provider;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def nginx_path() -> str | None:
    return shutil.which("nginx") or next(
        (path for path in ("/usr/sbin/nginx", "/usr/local/sbin/nginx") if Path(path).exists()), None
    )


@contextlib.contextmanager
def nginx(upstream: int) -> Iterator[Target]:
    """nginx as a plain proxy: no key, no policy, no ledger, nothing read. Raises BenchError where it is not installed."""
    program = nginx_path()
    if program is None:
        raise BenchError("nginx is not installed (Debian: apt-get install nginx-light)")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="clawproxy-bench-") as folder:
        file = Path(folder, "nginx.conf")
        file.write_text(NGINX.format(port=port, upstream=upstream, folder=folder))
        began = time.monotonic()
        with process([program, "-p", folder, "-c", file, "-e", f"{folder}/error.log"], machine.cores()[0]) as running:
            wait_for_port(port, running)
            yield Target("nginx", port, running.pid, start_seconds=time.monotonic() - began)


@contextlib.contextmanager
def trial(upstream: int) -> Iterator[Target]:
    """The least a Trio gateway can be (`benchmarks.trial`)."""
    port, began = free_port(), time.monotonic()
    with process([sys.executable, "-m", "benchmarks.trial", port, upstream, KEY], machine.cores()[0]) as running:
        wait_for_port(port, running)
        yield Target("trial", port, running.pid, start_seconds=time.monotonic() - began)


def load_command(target: Target, protocol: str, build: Path = BUILD, **options: object) -> list[str]:
    """`load`'s arguments: `connections=32` is `--connections 32`, `stream=True` is `--stream`."""
    command = [str(build / "load"), protocol, "--port", str(target.port), "--key", target.key]
    for header in target.headers if protocol == "http" else ():
        command += ["--header", header]
    options.setdefault("model", MODEL)
    for name, value in options.items():
        if value is True:
            command.append(f"--{name}")
        elif value is not None and value is not False:
            command += [f"--{name}", str(value)]
    return command


def pin_to_second_core() -> None:
    os.sched_setaffinity(0, {machine.cores()[1]})


def put_load(target: Target, protocol: str = "http", build: Path = BUILD, **options: object) -> dict[str, Any]:
    """Put load on `target` from the core of all else; what `load` printed. Raises BenchError when an answer was wrong."""
    command = load_command(target, protocol, build, **options)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=900, preexec_fn=pin_to_second_core
    )
    if done.returncode:
        raise BenchError(f"{target.name}: wrong answers under `{' '.join(command[1:])}`:\n{done.stderr.strip()[-1500:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    target.asked += result["started"]
    return result
