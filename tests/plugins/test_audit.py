"""The audit log on real files: what a row holds, what it never holds, the chain, rotation, trouble."""

from __future__ import annotations

import hmac
import json
import os
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pluggy
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import clawproxy_audit as audit
from clawproxy import hookspecs
from clawproxy.config import Config
from clawproxy.config.schema import Size
from clawproxy.context import App, Exchange, Timing
from clawproxy.errors import ClawError, ConfigError
from clawproxy.events import Outcome
from clawproxy.messages import Usage
from clawproxy.secrets import Secret
from clawproxy.stores.memory import MemoryStore
from clawproxy.testing.factories import make_attempt, make_exchange, make_principal, make_route
from clawproxy_audit import chain, writer
from clawproxy_audit.anchors import Anchors
from clawproxy_audit.rows import to_line
from clawproxy_audit.verify import verify

DONE = Outcome("complete", finish="stop")
SETTINGS = audit.AuditSettings()
PEPPER = b"p" * 32
KEY = chain.key_of(PEPPER)


def make_app(state_dir: Path | None, nursery: trio.Nursery | None = None, instance: str = "test") -> App:
    return App(Config(), MemoryStore(), instance, state_dir, nursery=nursery, pepper=PEPPER)


def files(state_dir: Path) -> list[Path]:
    return sorted((state_dir / "audit").iterdir(), key=lambda path: (path.name.count(".") < 2, path.name))


def rows_of(state_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in files(state_dir) for line in path.read_bytes().split(b"\n")[:-1]]


def verified(state_dir: Path) -> int:
    """The number of rows of a chain that was never pruned; an assertion where it is broken."""
    prev, number = chain.FIRST, 0
    for path in files(state_dir):
        for line in path.read_bytes().split(b"\n")[:-1]:
            number += 1
            row = json.loads(line)
            assert (row["seq"], row["prev"]) == (number, prev)
            prev = row["mac"]
            assert hmac.new(KEY, line[: line.rindex(b',"mac"')], "sha256").hexdigest() == prev
    assert [each.findings for each in verify(state_dir / "audit", Anchors(state_dir / "anchors", KEY), KEY)] == [[]]
    return number


async def close(exchange: Exchange, outcome: Outcome = DONE, settings: audit.AuditSettings = SETTINGS) -> None:
    closing = audit.exchange_closed(exchange, outcome, audit.Audit(settings))
    if closing is not None:
        await closing


async def test_a_row_says_who_what_and_how_it_ended(tmp_path: Path) -> None:
    exchange = make_exchange(
        principal=make_principal(key="bench", user="u", team="t"), app="asserted", peer="10.0.0.9", generation=4,
        surface="claw", requested_model="gpt", route=make_route(provider="openai", model="gpt-4o"), cost_nano=12,
        usage=Usage(3, 4, cached_tokens=1, source="estimated"), timing=Timing(total=0.5, upstream=0.4), stream=True,
        attempts=[
            make_attempt(outcome="provider_error.server", status=500, sent=True),
            make_attempt(number=2, reason="failover", outcome="complete", status=200, sent=True),
        ],
    )  # fmt: skip
    exchange.notice("prompt_truncated", "We cut it.", dropped=3)
    async with audit.lifespan(make_app(tmp_path)):
        await close(exchange, Outcome("timeout.stall", ClawError("timeout.stall")))
    [row] = rows_of(tmp_path)
    assert row.pop("time").endswith("+00:00")
    assert len(row.pop("mac")) == 64
    assert row == {
        "seq": 1, "prev": "0" * 64, "request_id": exchange.request_id, "instance": "test", "generation": 4, "surface": "claw",
        "peer": "10.0.0.9", "client_request_id": None, "session_id": None, "attribution": None, "key": "bench", "user": "u",
        "team": "t",
        "app": "asserted", "model": "gpt", "stream": True, "route": {"provider": "openai", "model": "gpt-4o"},
        "attempts": [
            {"number": 1, "reason": "first", "provider": "test", "model": "test-model", "outcome": "provider_error.server",
             "sent": True, "status": 500},
            {"number": 2, "reason": "failover", "provider": "test", "model": "test-model", "outcome": "complete",
             "sent": True, "status": 200},
        ],
        "outcome": "timeout.stall", "finish": None, "error": "timeout.stall",
        "usage": {"input_tokens": 3, "output_tokens": 4, "cached_tokens": 1, "reasoning_tokens": None, "source": "estimated"},
        "cost_nano": 12, "timing_ms": {"upstream": 400.0, "gateway": 100.0, "total": 500.0}, "notices": ["prompt_truncated"],
        "operation": "chat",
    }  # fmt: skip


async def test_no_content_and_no_secret_is_written(tmp_path: Path) -> None:
    canary = "sk-canary-5f1d7c9a3b"
    exchange = make_exchange(state={"prompt": canary, "key": Secret(canary)}, usage=Usage(1, 1, raw={"echo": canary}))
    exchange.notice("redacted", canary, found=canary)
    exchange.attempts.append(make_attempt(error=ClawError("provider_error.rejected", canary)))
    async with audit.lifespan(make_app(tmp_path)):
        await close(exchange, Outcome("provider_error.rejected", ClawError("provider_error.rejected", canary, param=canary)))
    assert len(rows_of(tmp_path)) == 1
    assert canary[:12].encode() not in b"".join(path.read_bytes() for path in files(tmp_path))


async def test_a_hostile_text_makes_one_printable_row(tmp_path: Path) -> None:
    nasty = 'a\r\n{"seq":9}\x1b[2J\x00\x7f\x85\x9b31m\u2028\u2029\u202e\u2066\ufeff\u200bb\U000e0041é日'
    exchange = make_exchange(
        requested_model=nasty, user=nasty, peer=nasty, client_request_id=nasty, principal=make_principal(team="\ud800")
    )
    async with audit.lifespan(make_app(tmp_path)):
        await close(exchange)
        await close(make_exchange(requested_model="m" * 1_000_000))
    rows = rows_of(tmp_path)
    assert len(rows) == verified(tmp_path) == 2
    assert rows[0]["model"] == rows[0]["user"] == rows[0]["peer"] == nasty.replace("\ud800", "?")
    assert rows[0]["team"] == "?"
    assert rows[1]["model"] == "m" * 256
    text = files(tmp_path)[0].read_text("utf-8")
    assert all(character.isprintable() for line in text.split("\n") for character in line)


@given(st.dictionaries(st.text(), st.text() | st.integers(-(2**53), 2**53) | st.none()))
def test_any_line_is_printable_and_comes_back(row: dict[str, Any]) -> None:
    line = to_line(row)
    assert json.loads(line) == row
    hidden = [c for c in line.decode() if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029\u202e\u2066"]
    assert hidden == []


async def test_rows_are_written_soon_by_the_service(tmp_path: Path) -> None:
    assert writer.WRITE_EVERY < 0.25
    async with trio.open_nursery() as nursery, audit.lifespan(make_app(tmp_path, nursery)):
        for _ in range(3):
            await close(make_exchange())
        assert rows_of(tmp_path) == []
        with trio.fail_after(5):
            for _ in range(500):
                if len(rows_of(tmp_path)) == 3:
                    break
                await trio.sleep(0.01)
        assert verified(tmp_path) == 3


async def test_the_end_writes_what_waits(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        context = audit.lifespan(make_app(tmp_path, nursery))
        await context.__aenter__()
        await close(make_exchange())
        nursery.cancel_scope.cancel()
        await context.__aexit__(None, None, None)
    assert verified(tmp_path) == 1


async def test_the_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    for _ in range(3):
        async with audit.lifespan(make_app(tmp_path)):
            await close(make_exchange())
            await close(make_exchange())
    assert verified(tmp_path) == 6


@pytest.mark.parametrize("keep", [1, 100, 2_000_000])
async def test_a_torn_last_row_is_removed(tmp_path: Path, keep: int, caplog: pytest.LogCaptureFixture) -> None:
    async with audit.lifespan(make_app(tmp_path)):
        await close(make_exchange())
        await close(make_exchange())
    [path] = files(tmp_path)
    with path.open("ab") as file:
        file.write(b'{"seq":3,"prev":"' + b"x" * keep)
    async with audit.lifespan(make_app(tmp_path)):
        await close(make_exchange())
    assert verified(tmp_path) == 3
    assert "never finished" in caplog.text


async def test_a_file_that_is_only_a_torn_row(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "test.jsonl").write_bytes(b'{"seq":1,')
    async with audit.lifespan(make_app(tmp_path)):
        await close(make_exchange())
    assert verified(tmp_path) == 1


async def test_rotation_keeps_the_chain_and_restarts_go_on_from_it(tmp_path: Path) -> None:
    settings = audit.AuditSettings(max_bytes=Size(4096), keep=100)
    for _ in range(4):
        async with audit.lifespan(make_app(tmp_path)):
            for _ in range(15):
                await close(make_exchange(), settings=settings)
    assert verified(tmp_path) == 60
    assert len(files(tmp_path)) > 5
    assert [path.name for path in files(tmp_path)][-2:] == [f"test.{len(files(tmp_path)) - 1:06d}.jsonl", "test.jsonl"]
    assert all(path.stat().st_size < 8192 for path in files(tmp_path))


async def test_a_restart_right_after_a_rotation(tmp_path: Path) -> None:
    settings = audit.AuditSettings(max_bytes=Size(4096), keep=5)
    number = 0
    async with audit.lifespan(make_app(tmp_path)):
        while len(list((tmp_path / "audit").iterdir())) < 2:
            await close(make_exchange(), settings=settings)
            number += 1
    assert (tmp_path / "audit" / "test.jsonl").stat().st_size == 0
    async with audit.lifespan(make_app(tmp_path)):
        await close(make_exchange())
    assert verified(tmp_path) == number + 1


async def test_the_oldest_go(tmp_path: Path) -> None:
    settings = audit.AuditSettings(max_bytes=Size(4096), keep=2)
    async with audit.lifespan(make_app(tmp_path)):
        for _ in range(100):
            await close(make_exchange(), settings=settings)
    assert len(files(tmp_path)) == 3
    rows = rows_of(tmp_path)
    assert [row["seq"] for row in rows] == list(range(rows[0]["seq"], 101))


async def test_files_of_writers_that_are_gone_are_bounded_too(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    for number in range(30):
        (folder / f"old-{number}.jsonl").write_bytes(b"x" * 4000)
        os.utime(folder / f"old-{number}.jsonl", (number, number))
    settings = audit.AuditSettings(max_bytes=Size(4096), keep=2)
    async with audit.lifespan(make_app(tmp_path)), audit.lifespan(make_app(tmp_path, instance="idle")):
        os.utime(folder / "idle.jsonl", (1, 1))  # the oldest by its looks, but somebody writes it
        for _ in range(20):
            await close(make_exchange(), settings=settings)
    assert (folder / "idle.jsonl").exists()
    assert not (folder / "old-0.jsonl").exists()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * 4096


async def test_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with audit.lifespan(make_app(tmp_path / "state")):
            await close(make_exchange())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "state" / "audit").stat().st_mode) == 0o700
    assert stat.S_IMODE(files(tmp_path / "state")[0].stat().st_mode) == 0o600


async def test_one_chain_has_one_writer(tmp_path: Path) -> None:
    """L-06."""
    async with audit.lifespan(make_app(tmp_path)):
        with pytest.raises(ConfigError, match="another process"):
            await audit.lifespan(make_app(tmp_path)).__aenter__()
        async with audit.lifespan(make_app(tmp_path, instance="other")):
            await close(make_exchange(instance="other"))
            await close(make_exchange(instance="test"))
    assert [row["instance"] for row in rows_of(tmp_path)] == ["other", "test"]


async def test_a_log_that_can_not_be_opened_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file where the directory should be")
    with pytest.raises(ConfigError, match="can not be opened"):
        await audit.lifespan(make_app(tmp_path)).__aenter__()


async def test_without_a_state_dir_it_only_counts() -> None:
    app = make_app(None)
    counts: Counter[str] = Counter()
    app.count = lambda name: counts.update([name])
    async with audit.lifespan(app):
        await close(make_exchange())
    assert counts == {"clawproxy_audit_rows_total": 1}
    await close(make_exchange())  # and outside of a gateway it does nothing


async def test_a_full_disk_stops_nobody_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(writer, "MOST_ROWS", 3)
    context = audit.lifespan(make_app(tmp_path))
    assert isinstance(context, writer.Writer)
    async with context:
        await close(make_exchange())
        open_chain = context._chain
        assert open_chain is not None
        real, open_chain._fd = open_chain._fd, os.open("/dev/full", os.O_WRONLY)
        for _ in range(5):
            await close(make_exchange())
        os.close(open_chain._fd)
        open_chain._fd = real
        assert verified(tmp_path) == 1
        await context._write()
        await close(make_exchange())
    assert verified(tmp_path) == 5
    assert caplog.text.count("can not be written") == 1
    assert "can be written again" in caplog.text
    assert "2 audit rows were dropped" in caplog.text


async def write_until_killed(state_dir: Path) -> None:
    writer.WRITE_EVERY = 0.001
    settings = audit.AuditSettings(max_bytes=Size(4096), keep=10_000)
    async with trio.open_nursery() as nursery, audit.lifespan(make_app(state_dir, nursery)):
        os.write(1, b"up\n")
        while True:
            await close(make_exchange(), settings=settings)
            await trio.sleep(0.0005)


@pytest.mark.slow
def test_kill_9_leaves_a_chain_that_verifies(tmp_path: Path) -> None:
    """L-05."""
    script = (
        "import sys, trio, importlib.util as u; from pathlib import Path; "
        "s = u.spec_from_file_location('t', sys.argv[1]); t = u.module_from_spec(s); s.loader.exec_module(t); "
        "trio.run(t.write_until_killed, Path(sys.argv[2]))"
    )
    seen = 0
    for cycle in range(int(os.environ.get("CLAW_CYCLES", "8"))):
        command = [sys.executable, "-c", script, __file__, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}) as child:
            assert child.stdout is not None
            assert child.stdout.read(3) == b"up\n"
            time.sleep(0.02 + cycle % 8 * 0.01)
            child.kill()
        now = verified(tmp_path)
        assert now > seen
        seen = now


def test_its_hooks_are_the_systems() -> None:
    manager = pluggy.PluginManager("clawproxy")
    manager.add_hookspecs(hookspecs)
    manager.register(audit)
    manager.check_pending()
    assert {caller.name for caller in manager.get_hookcallers(audit) or []} == {
        "configure",
        "exchange_closed",
        "lifespan",
        "open_attempt",
        "prepare_request",
        "register",
        "tap_response",
    }


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="max_bytes"):
        audit.AuditSettings(max_bytes=Size(10))
    with pytest.raises(ValueError, match="keep"):
        audit.AuditSettings(keep=-1)
