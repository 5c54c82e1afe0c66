"""A-02: of a hundred keys nothing is kept that could be used. A process of its own, and all it leaves on disk."""

from __future__ import annotations

import base64
import sqlite3
from pathlib import Path

import trio

from clawproxy.scripted import ScriptedProvider

from .process import served, settings
from .test_admin_keys import at

ADMIN = "operator-0123456789abcdef-0123456789"
MANY = 100


async def test_a02_no_key_is_found_in_what_is_kept(tmp_path: Path) -> None:
    """A-02: database, WAL, backup, journal, audit, logs."""
    provider = ScriptedProvider()
    secrets: list[str] = []
    environ = {"TEST_PROVIDER_KEY": "sk-provider-0123456789", "TEST_CLIENT_KEY": "sk-bench-0123456789abcdef", "TEST_ADMIN": ADMIN}
    async with trio.open_nursery() as nursery:
        url = await nursery.start(provider.serve, "127.0.0.1", 0)
        config = settings(tmp_path, url, extra='admin_token = "env:TEST_ADMIN"\n')
        async with served(tmp_path, config, **environ) as running:
            admin = str(running.ready["admin"])
            for number in range(MANY):
                reply = await at(admin, "POST", "/admin/keys", ADMIN, {"name": f"key-{number}"})
                secrets.append(reply.json()["key"])
            for number in range(5):
                reply = await at(admin, "POST", f"/admin/keys/key-{number}/rotate", ADMIN, {"overlap": "1h"})
                secrets.append(reply.json()["key"])
            body = {"model": "gpt-4-turbo", "messages": [{"role": "user", "content": "hi"}]}
            for secret in secrets[:10]:
                assert (await at(running.url, "POST", "/v1/chat/completions", secret, body)).status == 200
                assert (await at(running.url, "POST", "/v1/chat/completions", secret[:-1] + "!", body)).status in (401, 429)
            await at(admin, "DELETE", "/admin/keys/key-7", ADMIN)
            assert (tmp_path / "state" / "clawproxy.db-wal").stat().st_size > 0
            live = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
            await running.stop()
        nursery.cancel_scope.cancel()
    source, copy = sqlite3.connect(tmp_path / "state" / "clawproxy.db"), sqlite3.connect(tmp_path / "backup.db")
    source.backup(copy)
    assert copy.execute("SELECT count(*) FROM keys").fetchone() == (MANY + 5,)
    source.close()
    copy.close()
    files = [*live.values(), *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())]
    assert len(set(secrets)) == MANY + 5
    kept = b"\0".join(files)
    for secret in [*secrets, ADMIN]:
        body_of_it = secret.removeprefix("claw_")[6:]  # the first six are shown to people
        forms = (body_of_it.encode(), body_of_it.encode().hex().encode(), base64.b64encode(secret.encode())[4:-4])
        assert not [form for form in forms if form in kept]
        assert not any(body_of_it[at_ : at_ + 12].encode() in kept for at_ in range(0, len(body_of_it) - 12, 6))
    assert secrets[0].removeprefix("claw_")[:6].encode() in kept, "the search finds what is there"
