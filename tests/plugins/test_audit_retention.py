"""What is kept of a team's rows, and for how long: text goes, the chain stays, and nobody but retention can cut it so."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import clawproxy_audit as audit
from clawproxy.cli.audit import command
from clawproxy.config import Config, Duration
from clawproxy.context import App
from clawproxy.errors import ConfigError
from clawproxy.events import Outcome
from clawproxy.messages import Principal
from clawproxy.secrets import Secret
from clawproxy.stores.memory import MemoryStore
from clawproxy.testing.factories import make_exchange
from clawproxy_audit import retention, writer
from clawproxy_audit.anchors import Anchors
from clawproxy_audit.chain import Chain, key_of, read_row
from clawproxy_audit.cleaner import Cleaner
from clawproxy_audit.content import Box
from clawproxy_audit.settings import AuditSettings, AuditTeam
from clawproxy_audit.verify import Report, verify

PEPPER = bytes(range(32))
KEY = key_of(PEPPER)
BOX = Box(Secret("a content key of more than sixteen"))
DAY = 86400.0
NOW = 1_800_000_000.0
OWN = AuditSettings(
    retain_content=Duration(30 * DAY),
    teams={"clinic": AuditTeam(Duration(10 * DAY), Duration(DAY)), "law": AuditTeam(Duration(20 * DAY))},
)
DONE = Outcome("complete", finish="stop")


def row(number: int, team: str | None, days: float, *, content: bool = True) -> bytes:
    """Written so many days before `NOW`."""
    at = datetime.fromtimestamp(NOW - days * DAY, UTC).isoformat(timespec="milliseconds")
    body = json.dumps(
        {"time": at, "request_id": f"r{number}", "key": f"key of {team}", "team": team, "outcome": "complete"},
        separators=(",", ":"),
    ).encode()
    if not content:
        return body
    return b'%b,"content":%b}' % (body[:-1], BOX.seal(f"r{number}", {"prompt": [], "answer": "x"}))


def chain_of(folder: Path, rows: list[bytes], name: str = "gw") -> Chain:
    chain = Chain(folder / "audit", name, KEY)
    chain.append(rows)
    return chain


def clean(chain: Chain, own: AuditSettings = OWN, cleaner: Cleaner | None = None) -> Cleaner:
    cleaner = cleaner or Cleaner(chain, own)
    for path in cleaner.files():
        cutting = cleaner.begin(path)
        if cutting is not None:
            cleaner.finish(cutting)
    return cleaner


def checked(folder: Path) -> Report:
    [report] = verify(folder / "audit", Anchors(folder / "anchors", KEY), KEY)
    return report


def left(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def kind_of(there: dict[str, Any]) -> str:
    return "removed" if "removed" in there else "no content" if "content_removed" in there else "whole"


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clawproxy_audit.cleaner.time.time", lambda: NOW)


def test_what_is_due_goes_and_the_chain_verifies(tmp_path: Path) -> None:
    rows = [
        row(1, "clinic", 11), row(2, "clinic", 5), row(3, "clinic", 0.5), row(4, "law", 21), row(5, "law", 19),
        row(6, None, 31), row(7, None, 29), row(8, "other", 400, content=False), row(9, "clinic", 10.01, content=False),
    ]  # fmt: skip
    chain = chain_of(tmp_path, rows)
    before = chain.path.read_bytes().splitlines()
    clean(chain)
    after = chain.path.read_bytes().splitlines()
    kinds = [kind_of(each) for each in left(chain.path)]
    assert kinds == ["removed", "no content", "whole", "removed", "whole", "no content", "whole", "whole", "removed"]
    for old, new, kind in zip(before, after, kinds, strict=True):
        if kind == "whole":
            assert new == old
        elif kind == "removed":
            assert set(json.loads(new)) == {"seq", "prev", "time", "removed", "cut", "mac"}
        else:
            there, was = json.loads(new), json.loads(old)
            assert set(was) - set(there) == {"content"}
            assert set(there) - set(was) == {"content_removed", "cut"}
    report = checked(tmp_path)
    assert (report.intact, report.rows, report.last, report.cut) == (True, 9, 9, 5), report.findings
    chain.append([row(10, "clinic", 0)])  # it goes on in the file that took the other's place
    chain.close()
    report = checked(tmp_path)
    assert (report.intact, report.last) == (True, 10)
    assert list((tmp_path / "audit").iterdir()) == [chain.path]
    assert chain.path.stat().st_mode & 0o777 == 0o600


def test_what_was_cut_is_cut_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = chain_of(tmp_path, [row(number, "clinic", 2) for number in range(3)])
    clean(chain)
    assert ["content_removed" in each for each in left(chain.path)] == [True] * 3
    monkeypatch.setattr("clawproxy_audit.cleaner.time.time", lambda: NOW + 9 * DAY)
    clean(chain)
    assert ["removed" in each for each in left(chain.path)] == [True] * 3
    assert checked(tmp_path).intact
    same = chain.path.stat().st_ino
    clean(chain)
    assert chain.path.stat().st_ino == same, "nothing is written where nothing is due"
    chain.close()


Lines = list[bytes]
BY_OTHERS: dict[str, Callable[[Lines], Lines]] = {
    "a whole row, cut without the key": lambda rows: [*rows[:2], uncut(rows[2]), *rows[3:]],
    "a cut row, changed": lambda rows: [rows[0].replace(b'"time":"2', b'"time":"3'), *rows[1:]],
    "a cut row with another's MAC": lambda rows: [rows[0][:-68] + rows[1][-68:], *rows[1:]],
    "a cut row, in another's place": lambda rows: [rows[1], rows[0], *rows[2:]],
    "a cut row deleted": lambda rows: [rows[0], *rows[2:]],
    "a cut row twice": lambda rows: [rows[0], *rows],
}


def uncut(line: bytes) -> bytes:
    found = read_row(line[:-1])
    assert found is not None
    return retention.cut_to(b"no key", line[: line.index(b',"time"')] + b',"removed":"retention"', found[3]) + b"\n"


@pytest.mark.parametrize("name", BY_OTHERS)
def test_l03_nobody_else_cuts_a_row(tmp_path: Path, name: str) -> None:
    """L-03 and L-04, among rows of which retention removed some."""
    chain = chain_of(tmp_path, [row(1, "clinic", 11), row(2, "clinic", 12), row(3, None, 1), row(4, "law", 1)])
    Anchors(tmp_path / "anchors", KEY).write("gw", "anchor", chain.seq, chain.prev)
    clean(chain)
    chain.close()
    assert checked(tmp_path).intact
    chain.path.write_bytes(b"".join(BY_OTHERS[name](chain.path.read_bytes().splitlines(keepends=True))))
    assert not checked(tmp_path).intact


TEAMS = st.sampled_from(["clinic", "law", "other", None])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["clinic", "law", "other", None]), st.floats(0, 40), st.booleans()), min_size=1, max_size=12
    ),
    st.lists(st.floats(0, 40), max_size=3),
)
def test_whatever_is_cut_when_the_chain_is_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str | None, float, bool]], later: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("chain")
    chain = chain_of(folder, [row(number, team, days, content=kept) for number, (team, days, kept) in enumerate(rows)])
    terms = retention.Terms.of(OWN)
    at = NOW
    for step in (0.0, *sorted(later)):
        at = NOW + step * DAY
        cutting = retention.Cutting.begin(chain.path, folder / "beside", KEY, terms, at)
        if cutting.cut:
            assert chain.replace(cutting.beside, cutting.inode, cutting.size)
        assert checked(folder).intact
    for (team, days, kept), there in zip(rows, left(chain.path), strict=True):
        age = (at - NOW) / DAY + days
        rows_kept, content_kept = {"clinic": (10, 1), "law": (20, 30)}.get(team or "", (1e9, 30))
        assert ("removed" in there) == (age >= rows_kept) or abs(age - rows_kept) < 1e-6
        if "removed" not in there and kept:
            assert ("content" in there) == (age < content_kept) or abs(age - content_kept) < 1e-6
    chain.close()


@pytest.mark.parametrize("due", ["first", "last"])
def test_a_file_is_never_in_memory(tmp_path: Path, due: str) -> None:
    kept = [row(number, "law", 0) for number in range(6000)]
    chain = chain_of(tmp_path, [row(1, "clinic", 11), *kept] if due == "first" else [*kept, row(1, "clinic", 11)])
    size = chain.path.stat().st_size
    assert size > 2_000_000
    tracemalloc.start()
    try:
        cutting = retention.Cutting.begin(chain.path, tmp_path / "beside", KEY, retention.Terms.of(OWN), NOW)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert cutting.cut == 1
    assert peak < size / 10
    assert chain.replace(cutting.beside, cutting.inode, cutting.size)
    chain.close()
    report = checked(tmp_path)
    assert (report.intact, report.rows, report.cut) == (True, 6001, 1), report.findings


def test_a_disk_that_fills_up_keeps_no_half_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = chain_of(tmp_path, [row(1, "clinic", 11), row(2, None, 1)])
    before = chain.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("clawproxy_audit.retention.os.fsync", full)
        with pytest.raises(OSError, match="space"):
            clean(chain)
    assert [path.name for path in (tmp_path / "audit").iterdir()] == ["gw.jsonl"]
    assert chain.path.read_bytes() == before
    clean(chain)
    chain.close()
    assert ["removed" in each for each in left(chain.path)] == [True, False]
    assert checked(tmp_path).intact


def test_other_files_are_cut_unless_somebody_holds_them(tmp_path: Path) -> None:
    old = chain_of(tmp_path, [row(1, "clinic", 11)], "old")
    aside = old.path.with_name("old.000001.jsonl")
    os.rename(old.path, aside)
    os.utime(aside, (5, 5))
    old.close()
    held = chain_of(tmp_path, [row(1, "clinic", 11)], "held")
    chain = chain_of(tmp_path, [row(1, "other", 1)])
    (tmp_path / "audit" / "gw.000009.jsonl.gw.new").write_bytes(b"left by a crash")
    cleaner = clean(chain)
    assert "removed" in left(aside)[0]
    assert aside.stat().st_mtime == 5, "by which the oldest are told"
    assert "removed" not in left(held.path)[0]
    assert not list((tmp_path / "audit").glob("*.new"))
    reports = {each.chain: each for each in verify(tmp_path / "audit", Anchors(tmp_path / "anchors", KEY), KEY)}
    assert all(each.intact for each in reports.values())
    assert aside not in cleaner.files(), "nothing in it will be due"
    held.close()
    chain.close()


def test_a_file_that_changed_meanwhile_is_left(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, [row(1, "clinic", 11)])
    cleaner = Cleaner(chain, OWN)
    cutting = cleaner.begin(chain.path)
    assert cutting is not None
    chain.append([row(2, None, 0)])  # appended while it was read: taken along
    cleaner.finish(cutting)
    assert ["removed" in each for each in left(chain.path)] == [True, False]
    chain.append([row(3, "clinic", 11)])
    cutting = Cleaner(chain, OWN).begin(chain.path)
    assert cutting is not None
    chain.rotate(500, 10, 1e9, lambda *_: None)  # put aside while it was read
    cleaner.finish(cutting)
    assert [len(left(path)) for path in sorted((tmp_path / "audit").iterdir())] == [3, 0]
    clean(chain)
    assert ["removed" in each for each in left(chain.folder / "gw.000001.jsonl")] == [True, False, True]
    chain.append([row(4, "law", 0)])
    chain.close()
    assert checked(tmp_path).intact


async def test_the_service_does_it_while_rows_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(retention, "LEAST_PAUSE", 0.01)
    monkeypatch.setattr(writer, "WRITE_EVERY", 0.001)
    own = AuditSettings(teams={"clinic": AuditTeam(Duration(0.05))})
    async with trio.open_nursery() as nursery:
        app = App(Config(), MemoryStore(), "gw", tmp_path, pepper=PEPPER, nursery=nursery)
        state = audit.configure(own, app)
        async with audit.lifespan(app):
            path = tmp_path / "audit" / "gw.jsonl"
            with trio.fail_after(10):
                rounds = 0
                while rounds < 40 or sum("removed" in each for each in left(path)) < rounds:
                    if rounds < 40:
                        for team in ("clinic", "law"):
                            exchange = make_exchange(instance="gw", principal=Principal("k", team=team))
                            closing = audit.exchange_closed(exchange, DONE, state)
                            assert closing is not None
                            await closing
                        rounds += 1
                    await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    rows = left(path)
    assert [each["seq"] for each in rows] == list(range(1, 81))
    assert sum(each.get("team") == "law" for each in rows) == 40
    assert not any(each.get("team") == "clinic" for each in rows)
    report = checked(tmp_path)
    assert (report.intact, report.cut, report.tail) == (True, 40, 0), report.findings


async def test_it_begins_without_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    chain = chain_of(tmp_path, [row(1, "clinic", (NOW - time.time()) / DAY + 11)])
    chain.close()
    async with trio.open_nursery() as nursery:
        app = App(Config(), MemoryStore(), "gw", tmp_path, pepper=PEPPER, nursery=nursery)
        audit.configure(OWN, app)
        async with audit.lifespan(app):
            with trio.fail_after(5):
                while "removed" not in left(chain.path)[0]:
                    await trio.sleep(0.005)
        nursery.cancel_scope.cancel()


async def test_a_defect_in_cutting_stops_no_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(retention, "LEAST_PAUSE", 0.01)
    monkeypatch.setattr(writer, "WRITE_EVERY", 0.001)
    begun = 0
    whole = retention.Cutting.begin

    def begin(*args: Any) -> retention.Cutting:
        nonlocal begun
        begun += 1
        if begun <= 2:
            raise ZeroDivisionError
        return whole(*args)

    monkeypatch.setattr(retention.Cutting, "begin", begin)
    async with trio.open_nursery() as nursery:
        app = App(Config(), MemoryStore(), "gw", tmp_path, pepper=PEPPER, nursery=nursery)
        state = audit.configure(AuditSettings(teams={"clinic": AuditTeam(Duration(0.02))}), app)
        async with audit.lifespan(app):
            path = tmp_path / "audit" / "gw.jsonl"
            closing = audit.exchange_closed(make_exchange(instance="gw", principal=Principal("k", team="clinic")), DONE, state)
            assert closing is not None
            await closing
            with trio.fail_after(10):
                while not any("removed" in each for each in left(path)):
                    await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    assert checked(tmp_path).intact


def test_a_team_is_not_kept_longer_than_its_files() -> None:
    app = App(Config(), MemoryStore(), "gw", None)
    own = AuditSettings(retain=Duration(DAY), teams={"clinic": AuditTeam(Duration(2 * DAY))})
    with pytest.raises(ConfigError, match=r"plugins\.audit\.teams\.clinic\.retain: is longer than plugins\.audit\.retain"):
        audit.configure(own, app)
    for wrong in (
        AuditTeam,
        lambda retain: AuditTeam(retain_content=retain),
        lambda retain: AuditSettings(retain_content=retain),
    ):
        with pytest.raises(ValueError, match="retain"):
            wrong(Duration(0.0))


def test_the_commands_say_what_is_gone(tmp_path: Path) -> None:
    state = tmp_path / "state"
    chain = chain_of(state, [row(1, "clinic", 11), row(2, "clinic", 5), row(3, None, 1)])
    clean(chain)
    chain.close()
    config = tmp_path / "c.toml"
    config.write_text(f'[server]\nstate_dir = "{state}"\n')
    (state / "pepper").write_text(PEPPER.hex())
    (state / "pepper").chmod(0o600)

    def cli(*words: str) -> Result:
        return CliRunner().invoke(command, [*words, "--config", str(config)])

    shown = cli("verify")
    assert "of 2 of them retention has removed" in shown.stdout, shown.output
    exported = cli("export")
    assert [json.loads(line)["request_id"] for line in exported.stdout.splitlines()] == ["r2", "r3"]
    assert exported.stderr == ""


def test_the_lock_goes_along(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, [row(1, "clinic", 11)])
    clean(chain)
    with chain.path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    chain.close()
