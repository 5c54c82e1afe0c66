"""A scripted provider in a process of its own, for tests that kill a gateway: it writes the id of each request to a file before
it answers. `python -m tests.e2e.killed_provider LOG`: prints its base URL and serves."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import trio

from clawproxy.scripted import ConnectionEntry, Entry, ScriptedProvider
from clawproxy.scripted.log import ProviderLog


class LogOnDisk(ProviderLog):
    """Says what it received where no crash reaches it."""

    fd: int

    def received(
        self, row: ConnectionEntry, method: str, target: str, headers: Sequence[tuple[str, str]], body: bytes, key: str | None
    ) -> Entry:
        entry = super().received(row, method, target, headers, body, key)
        os.write(self.fd, f"{entry.header('x-request-id')}\n".encode())
        return entry


async def serve(path: str) -> None:
    async with trio.open_nursery() as nursery:
        provider = ScriptedProvider("pace 1ms; tokens 12; end")
        provider.log = LogOnDisk()
        provider.log.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        url = await nursery.start(provider.serve, "127.0.0.1", 0)
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    trio.run(serve, sys.argv[1])
