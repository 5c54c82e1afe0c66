"""`python -m benchmarks.calls`: how many Python and C functions one request calls, by file. It counts, so no noise can touch it.

The gateway runs in this process under a profile hook, so its time means nothing here; use it to see what a change saved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import trio

from benchmarks import parts
from clawproxy.cli.common import load_config
from clawproxy.ops import logs
from clawproxy.server import run

REQUESTS = 200
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("http", {}), "stream": ("http", {"stream": True}), "websocket": ("ws", {}),
}  # fmt: skip
ROOT = str(parts.HERE.parent) + "/"


class Calls:
    """A profile hook: counts calls of the thread it was set in, while `on`."""

    def __init__(self) -> None:
        self.on = False
        self.python: Counter[tuple[str, str]] = Counter()
        self.c = 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if self.on and event == "call":
            self.python[frame.f_code.co_filename, frame.f_code.co_name] += 1
        elif self.on and event == "c_call":
            self.c += 1


def shortened(path: str) -> str:
    return path.removeprefix(ROOT).rpartition("site-packages/")[2].rpartition("lib/python3")[2]


async def count(calls: Calls, config: Any, port: int, top: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    up = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(run, config, ready=lambda listening: up.set(), signals=False))
        await up.wait()
        target = parts.Target("clawproxy", port)
        for kind, (protocol, options) in KINDS.items():
            put = partial(parts.put_load, target, protocol, connections=1, **options)
            await trio.to_thread.run_sync(partial(put, requests=50))
            calls.python.clear()
            calls.c, calls.on = 0, True
            await trio.to_thread.run_sync(partial(put, requests=REQUESTS))
            calls.on = False
            files: Counter[str] = Counter()
            functions: Counter[str] = Counter()
            for (path, name), times in calls.python.items():
                files[shortened(path)] += times
                functions[f"{shortened(path)}:{name}"] += times
            found[kind] = {
                "python": sum(files.values()) / REQUESTS,
                "c": calls.c / REQUESTS,
                "files": {name: times / REQUESTS for name, times in files.most_common(top)},
                "functions": {name: times / REQUESTS for name, times in functions.most_common(top)},
            }
        nursery.cancel_scope.cancel()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__.partition("\n")[0])
    parser.add_argument("--top", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ["BENCH_KEY"] = parts.KEY
    calls = Calls()
    try:
        parts.compile_tools()
        with parts.provider() as helper, tempfile.TemporaryDirectory(prefix="clawproxy-calls-") as folder:
            port, file = parts.free_port(), Path(folder, "clawproxy.toml")
            file.write_text(parts.GATEWAY.format(port=port, state=Path(folder, "state"), upstream=helper.port))
            loaded, _ = load_config(file)
            with Path(os.devnull).open("w") as nowhere:
                stderr, sys.stderr = sys.stderr, nowhere
                try:
                    logs.setup(loaded.config.log.level)
                    sys.setprofile(calls)
                    found = trio.run(count, calls, loaded.config, port, given.top)
                finally:
                    sys.setprofile(None)
                    sys.stderr = stderr
    except parts.BenchError as failure:
        sys.exit(f"benchmarks: {failure}")
    for kind, numbers in found.items():
        print(f"\n{kind}: {numbers['python']:.0f} Python and {numbers['c']:.0f} C functions called for each request")
        for title in ("files", "functions"):
            for name, times in numbers[title].items():
                print(f"  {times:7.1f}  {name}")
            print()
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
