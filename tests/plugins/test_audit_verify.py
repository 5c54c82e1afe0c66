"""What is done to an audit log, and what `verify` and `clawproxy audit` say of it (L-03, L-04, L-05, L-06)."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import trio
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import clawproxy_audit as audit
from clawproxy.cli.audit import command
from clawproxy.config import Config
from clawproxy.config.schema import Duration, Size
from clawproxy.context import App
from clawproxy.events import Outcome
from clawproxy.ops import logs
from clawproxy.stores.memory import MemoryStore
from clawproxy.testing.factories import make_exchange
from clawproxy_audit import anchors as anchors_module
from clawproxy_audit import writer
from clawproxy_audit.anchors import Anchors, from_log, said
from clawproxy_audit.chain import Chain, key_of, mac_of, read_row
from clawproxy_audit.settings import AuditSettings
from clawproxy_audit.verify import Report, verify

PEPPER = bytes(range(32))
KEY = key_of(PEPPER)
Lines = list[bytes]
DONE = Outcome("complete", finish="stop")


def checked(state_dir: Path, key: bytes = KEY, log: list[str] | None = None) -> Report:
    [report] = verify(state_dir / "audit", Anchors(state_dir / "anchors", key), key, from_log(log or []))
    return report


def written(state_dir: Path, rows: int, *, anchored: int = 0) -> Path:
    """A chain of so many rows, of which the first `anchored` are vouched for."""
    chain = Chain(state_dir / "audit", "gw", KEY)
    for number in range(1, rows + 1):
        chain.append([b'{"request_id":"r%d","outcome":"complete"}' % number])
        if number == anchored:
            Anchors(state_dir / "anchors", KEY).write("gw", "anchor", chain.seq, chain.prev)
    chain.close()
    return chain.path


def change(path: Path, damage: Callable[[Lines], Lines]) -> None:
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))


def forged(lines: Lines, key: bytes, begin: int) -> Lines:
    """All rows from the place `begin` on written anew, with other words, under `key`."""
    folder_rows = [msgspec.json.decode(line) for line in lines]
    out = lines[:begin]
    prev = folder_rows[begin - 1]["mac"] if begin else "0" * 64
    for row in folder_rows[begin:]:
        body = {name: value for name, value in row.items() if name not in ("seq", "prev", "mac")} | {"outcome": "cancelled"}
        covered = b'{"seq":%d,"prev":"%b",%b' % (row["seq"], prev.encode(), msgspec.json.encode(body)[1:-1])
        prev = mac_of(key, covered)
        out.append(covered + b',"mac":"%b"}\n' % prev.encode())
    return out


WRONG_KEY = key_of(b"somebody else's")
DAMAGES: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "delete first": (lambda rows: rows[1:], "gw.jsonl, line 1: the chain begins with row 2; row 1 is missing."),
    "delete first three": (lambda rows: rows[3:], "gw.jsonl, line 1: the chain begins with row 4; rows 1 to 3 are missing."),
    "delete middle": (lambda rows: rows[:4] + rows[5:], "gw.jsonl, line 5: row 5 is missing before row 6."),
    "delete last": (lambda rows: rows[:-1], "gw.jsonl: row 10 is missing at the end: an anchor names row 10."),
    "truncate": (lambda rows: rows[:6], "gw.jsonl: rows 7 to 10 are missing at the end: an anchor names row 10."),
    "all gone": (lambda rows: [], "gw.jsonl: rows 1 to 10 are missing at the end: an anchor names row 10."),
    "swap": (lambda rows: [*rows[:2], rows[3], rows[2], *rows[4:]], "gw.jsonl, line 3: row 3 is missing before row 4."),
    "duplicate": (lambda rows: [*rows[:3], rows[2], *rows[3:]], "gw.jsonl, line 4: row 3 stands here a second time."),
    "duplicate far": (lambda rows: [*rows, rows[2]], "gw.jsonl, line 11: row 3 stands here a second time."),
    "put in": (lambda rows: [*rows[:3], b'{"hello":1}\n', *rows[3:]], "gw.jsonl, line 4: this is no row"),
    "change": (
        lambda rows: [*rows[:6], rows[6].replace(b"complete", b"cOmplete"), *rows[7:]],
        "gw.jsonl, line 7: row 7 was changed, or not written with this key.",
    ),
    "change last": (
        lambda rows: [*rows[:9], rows[9].replace(b"complete", b"cOmplete")],
        "gw.jsonl, line 10: row 10 was changed, or not written with this key.",
    ),
    "rewrite the tail without the key": (
        lambda rows: forged(rows, WRONG_KEY, 7),
        "gw.jsonl, line 8: row 8 was changed, or not written with this key.",
    ),
    "rewrite the tail with the key": (
        lambda rows: forged(rows, KEY, 7),
        "gw.jsonl, line 10: row 10 is not the one that an anchor names; the rows up to it were rewritten.",
    ),
    "torn in the middle of another": (
        lambda rows: [*rows[:4], rows[4][:50] + rows[5], *rows[6:]],
        "gw.jsonl, line 5: this is no row (row 5 should be here); it was changed or put in.",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_was_done_is_named(tmp_path: Path, name: str) -> None:
    """L-03."""
    damage, sentence = DAMAGES[name]
    path = written(tmp_path, 10, anchored=10)
    assert checked(tmp_path).intact
    assert checked(tmp_path).tail == 0
    change(path, damage)
    report = checked(tmp_path)
    assert not report.intact
    assert report.findings[0].startswith(sentence), report.findings


def test_after_the_last_anchor_it_is_a_tail(tmp_path: Path) -> None:
    """L-04. Only what no anchor vouches for can be cut unseen: and how much that is, is said."""
    path = written(tmp_path, 10, anchored=6)
    assert (checked(tmp_path).intact, checked(tmp_path).tail) == (True, 4)
    change(path, lambda rows: rows[:-2])
    assert (checked(tmp_path).intact, checked(tmp_path).tail) == (True, 2)
    change(path, lambda rows: forged(rows, KEY, 7))
    assert (checked(tmp_path).intact, checked(tmp_path).tail) == (True, 2)
    change(path, lambda rows: rows[:5])
    assert checked(tmp_path).findings == ["gw.jsonl: row 6 is missing at the end: an anchor names row 6."]


def test_an_anchor_in_a_log_vouches_too(tmp_path: Path) -> None:
    path = written(tmp_path, 10)
    row = read_row(path.read_bytes().splitlines()[8])
    assert row is not None
    log = ["{}", json.dumps({"event": "log", "message": said("gw", 9, row[3])})]
    assert (checked(tmp_path, log=log).intact, checked(tmp_path, log=log).tail) == (True, 1)
    change(path, lambda rows: forged(rows, KEY, 3))
    [sentence] = checked(tmp_path, log=log).findings
    assert "row 9 is not the one that an anchor in the log names" in sentence
    path.unlink()
    assert "rows 1 to 9 are missing" in checked(tmp_path, log=log).findings[0]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_flipped_bit_of_any_row_is_found(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flip")
    path = written(folder, 5, anchored=5)
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    report = checked(folder)
    assert not report.intact
    row = path.read_bytes()[:at].count(b"\n") + 1
    assert f"line {row}" in report.findings[0] or f"row {row}" in report.findings[0] or "missing" in report.findings[0]


@pytest.mark.parametrize("damage", [lambda text: text.replace("10", "11", 1), lambda text: text[:40], lambda text: "nonsense\n"])
def test_anchors_themselves_are_under_the_key(tmp_path: Path, damage: Callable[[str], str]) -> None:
    written(tmp_path, 10, anchored=10)
    path = tmp_path / "anchors" / "gw"
    path.write_text(damage(path.read_text()))
    assert "are not under the key, or damaged" in checked(tmp_path).findings[0]


def test_another_key_opens_nothing(tmp_path: Path) -> None:
    written(tmp_path, 40, anchored=40)
    report = checked(tmp_path, key=WRONG_KEY)
    assert "statements are not under the key" in report.findings[0]
    assert len(report.findings) == 20
    assert report.unsaid == 21


def test_a_torn_last_line_is_no_damage(tmp_path: Path) -> None:
    path = written(tmp_path, 3, anchored=3)
    with path.open("ab") as file:
        file.write(b'{"seq":4,"prev":"00')
    report = checked(tmp_path)
    assert (report.intact, report.torn, report.rows) == (True, 19, 3)


async def run(state_dir: Path, rows: int, own: AuditSettings, instance: str = "gw") -> None:
    app = App(Config(), MemoryStore(), instance, state_dir, pepper=PEPPER)
    async with audit.lifespan(app):
        for _ in range(rows):
            closing = audit.exchange_closed(make_exchange(instance=instance), DONE, audit.Audit(own))
            assert closing is not None
            await closing


async def test_what_retention_removes_is_not_missing(tmp_path: Path) -> None:
    """Of the writer's own, and of writers that are gone; but what somebody else removes is."""
    own = AuditSettings(max_bytes=Size(4096), keep=2)
    await run(tmp_path, 30, own, "old")
    await run(tmp_path, 100, own)
    reports = {each.chain: each for each in verify(tmp_path / "audit", Anchors(tmp_path / "anchors", KEY), KEY)}
    assert {name: each.findings for name, each in reports.items()} == {"gw": [], "old": []}
    assert reports["gw"].first > 1
    assert (reports["gw"].last, reports["gw"].tail) == (100, 0)
    oldest = min((tmp_path / "audit").glob("gw.0*"))
    oldest.unlink()
    reports = {each.chain: each for each in verify(tmp_path / "audit", Anchors(tmp_path / "anchors", KEY), KEY)}
    assert "the chain begins with row" in reports["gw"].findings[0]


async def test_rows_older_than_they_are_kept_for_go(tmp_path: Path) -> None:
    await run(tmp_path, 20, AuditSettings(max_bytes=Size(4096), keep=100))
    for path in (tmp_path / "audit").glob("gw.0*"):
        os.utime(path, (1, 1))
    own = AuditSettings(max_bytes=Size(4096), keep=100, retain=Duration(86400.0))
    await run(tmp_path, 20, own)
    report = checked(tmp_path)
    assert report.intact, report.findings
    assert report.first > 10
    assert report.last == 40


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the gateway's log has, rationed as it is."""
    lines, bridge = io.StringIO(), logs.Bridge()
    monkeypatch.setattr(logs, "LOG", logs.Log(lines))
    monkeypatch.setattr(logging.getLogger("clawproxy.audit"), "level", logging.INFO)
    logging.getLogger().addHandler(bridge)
    yield lines
    logging.getLogger().removeHandler(bridge)


async def test_no_anchor_is_left_out_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: io.StringIO) -> None:
    """However many there are: who cuts off the end, and the anchors, is found out by the last one alone."""
    monkeypatch.setattr(writer, "ANCHOR_ROWS", 1)
    monkeypatch.setattr(writer, "WRITE_EVERY", 0.001)
    path = tmp_path / "anchors" / "gw"
    async with trio.open_nursery() as nursery:
        app = App(Config(), MemoryStore(), "gw", tmp_path, pepper=PEPPER, nursery=nursery, log=logs.log_event)
        async with audit.lifespan(app):
            for number in range(1, 9):
                closing = audit.exchange_closed(make_exchange(instance="gw"), DONE, audit.Audit(AuditSettings()))
                assert closing is not None
                await closing
                with trio.fail_after(5):
                    while not path.exists() or path.read_bytes().count(b"\n") < number:
                        await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    assert {int(seq) for seq in re.findall(r"audit anchor gw (\d+)", logged.getvalue())} == set(range(1, 9))
    path.unlink()
    change(tmp_path / "audit" / "gw.jsonl", lambda rows: rows[:-1])
    assert checked(tmp_path).intact
    assert not checked(tmp_path, log=logged.getvalue().splitlines()).intact


async def test_where_it_is_is_anchored_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: io.StringIO) -> None:
    monkeypatch.setattr(writer, "ANCHOR_ROWS", 5)
    monkeypatch.setattr(writer, "WRITE_EVERY", 0.001)
    async with trio.open_nursery() as nursery:
        app = App(Config(), MemoryStore(), "gw", tmp_path, pepper=PEPPER, nursery=nursery, log=logs.log_event)
        async with audit.lifespan(app):
            for _ in range(7):
                closing = audit.exchange_closed(make_exchange(instance="gw"), DONE, audit.Audit(AuditSettings()))
                assert closing is not None
                await closing
            with trio.fail_after(3):
                while not (tmp_path / "anchors" / "gw").exists():
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert checked(tmp_path).tail == 0
    assert checked(tmp_path, log=logged.getvalue().splitlines()).intact
    assert "audit anchor gw 7 " in logged.getvalue()


def test_the_statements_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors_module, "MOST", 20)
    anchors = Anchors(tmp_path, KEY)
    anchors.write("gw", "pruned", 1, "a" * 64)
    for seq in range(200):
        anchors.write("gw", "anchor", seq, "b" * 64)
    good, bad = anchors.read("gw")
    assert bad == 0
    assert len(good) < 40
    assert (good[0].kind, good[-1].seq) == ("pruned", 199)


def test_what_a_crash_left_of_shortening_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, 30, anchored=30)
    anchors = Anchors(tmp_path / "anchors", KEY)
    (tmp_path / "anchors" / "gw.new").write_bytes((tmp_path / "anchors" / "gw").read_bytes()[:90])
    assert checked(tmp_path).findings == []
    monkeypatch.setattr(anchors_module, "MOST", 2)
    mac = msgspec.json.decode(path.read_bytes().splitlines()[-1])["mac"]
    for _ in range(8):
        anchors.write("gw", "anchor", 30, mac)
    assert checked(tmp_path).findings == []
    assert [(each.name, each.stat().st_mode & 0o777) for each in (tmp_path / "anchors").iterdir()] == [("gw", 0o600)]


def test_no_statement_is_lost_between_two_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever cleans up writes `pruned` into others' files, just then being shortened."""
    anchors = Anchors(tmp_path, KEY)
    monkeypatch.setattr(anchors_module, "MOST", 2)
    for seq in range(3):
        anchors.write("gw", "anchor", seq, "b" * 64)
    other = threading.Thread(target=anchors.write, args=("gw", "pruned", 7, "c" * 64))
    replace = os.replace

    def slowly(one: Path, two: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        other.start()
        other.join(0.05)
        replace(one, two)

    monkeypatch.setattr(os, "replace", slowly)
    anchors.write("gw", "anchor", 3, "b" * 64)
    other.join()
    assert ("pruned", 7) in [(each.kind, each.seq) for each in anchors.read("gw")[0]]


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clawproxy", "audit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def a_state(tmp_path: Path) -> Path:
    """Rows as a gateway writes them, and a configuration that names the folder."""
    (tmp_path / "pepper.txt").write_text(PEPPER.hex())
    config = tmp_path / "clawproxy.toml"
    config.write_text(f'[server]\nstate_dir = "{tmp_path}"\npepper = "file:pepper.txt"\n')
    app = App(Config(), MemoryStore(), "gw", tmp_path, pepper=PEPPER.hex().encode())
    async with audit.lifespan(app):
        for number in range(5):
            exchange = make_exchange(instance="gw", request_id=f"r-{number}", requested_model="m\x1b[2J", user=f"=u{number}")
            closing = audit.exchange_closed(exchange, Outcome("cancelled") if number == 3 else DONE, audit.Audit(AuditSettings()))
            assert closing is not None
            await closing
    return config


async def test_the_command_verifies(tmp_path: Path) -> None:
    config = await a_state(tmp_path)
    good = cli("verify", "--config", str(config))
    assert (good.returncode, good.stdout, good.stderr) == (0, "gw: 5 rows (1 to 5), intact\n", "")
    change(tmp_path / "audit" / "gw.jsonl", lambda rows: rows[:4])
    bad = cli("verify", "--config", str(config))
    assert bad.returncode == 1
    assert bad.stdout == "gw: 4 rows (1 to 4), BROKEN\n  gw.jsonl: row 5 is missing at the end: an anchor names row 5.\n"
    said_so = json.loads(cli("verify", "--config", str(config), "--json").stdout)
    assert (said_so["intact"], said_so["chains"][0]["last"]) == (False, 4)
    config.write_text(f'[server]\nstate_dir = "{tmp_path}"\n')
    misuse = cli("verify", "--config", str(config))
    assert (misuse.returncode, misuse.stderr.count("\n")) == (2, 1)
    assert "restore it" in misuse.stderr


async def test_the_command_shows_and_exports(tmp_path: Path) -> None:
    config = await a_state(tmp_path)
    table = cli("show", "--config", str(config), "--last", "2").stdout
    assert [line.split()[-1] for line in table.splitlines()] == ["request_id", "r-3", "r-4"]
    assert "\x1b" not in table
    one = cli("show", "r-3", "--config", str(config)).stdout
    assert "outcome            cancelled" in one
    assert cli("show", "r-9", "--config", str(config)).returncode == 2
    rows = [json.loads(line) for line in cli("export", "--config", str(config), "--outcome", "complete").stdout.splitlines()]
    assert [row["request_id"] for row in rows] == ["r-0", "r-1", "r-2", "r-4"]
    head, *lines = cli("export", "--config", str(config), "--format", "csv", "--since", "1h").stdout.splitlines()
    assert {"seq", "usage.input_tokens", "rules", "roles", "tags"} <= set(head.split(",")), "whatever the first row has"
    assert len(lines) == 5
    assert "'=u0" in lines[0], "a spreadsheet must not take it for a formula"
    assert cli("export", "--config", str(config), "--since", "yesterday").returncode == 2


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"[" * 100_000,
        b'{"time":"0001-01-01T00:00:00+14:00","outcome":"x","request_id":"r"}',
        b'{"time":"2026-01-01T00:00:00Z","outcome":"x","request_id":"r","usage":"many"}',
        b'{"time":"2026-01-01T00:00:00Z","outcome":5,"request_id":[],"route":{}}',
        b'{"time":5,"outcome":"x","request_id":"r"}',
        b"\xff\x00",
    ],
)
def test_who_looks_into_a_log_that_was_damaged_is_told_of_the_rest(
    line: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "clawproxy.toml"
    config.write_text(f'[server]\nstate_dir = "{tmp_path}"\n')
    (tmp_path / "audit").mkdir()
    good = b'{"time":"2026-01-01T00:00:00Z","outcome":"complete","request_id":"r-1","route":{"provider":"p","model":"m"}}'
    (tmp_path / "audit" / "gw.jsonl").write_bytes(b"\n".join((line, good, b"")))
    for words in (["show"], ["export"], ["export", "--format", "csv"]):
        result = CliRunner().invoke(command, [*words, "--config", str(config)])
        assert (result.exit_code, result.exception) == (0, None)
        assert "r-1" in result.stdout


@pytest.mark.slow
def test_many_rows_verify_fast(tmp_path: Path) -> None:
    """100,000 rows of the usual size; a million take ten times as long (CLAW_ROWS)."""
    rows = int(os.environ.get("CLAW_ROWS", "100000"))
    chain = Chain(tmp_path / "audit", "gw", KEY)
    row = b'{"request_id":"%b","outcome":"complete"}' % (b"x" * 700)
    for _ in range(rows // 1000):
        chain.append([row] * 1000)
    chain.close()
    began = time.process_time()
    report = checked(tmp_path)
    spent = time.process_time() - began
    assert (report.intact, report.rows) == (True, rows)
    assert spent < rows / 1e6 * 10 * 2, f"{spent:.2f} s of CPU"  # twice the aim: this machine may be busy
