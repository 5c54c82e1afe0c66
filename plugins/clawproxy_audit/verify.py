"""Whether audit files are as they were written: every row by its MAC, every chain by its links, its end by its anchors.

Rule 1: a finding names the file, the line and the row, and says what was done to it. After a broken row the check goes on from
        what that row says of itself, so that one change is few findings, the first of them the cause.
Rule 2: a last line without its end was torn by a crash, and rows after the last anchor could have been cut: both are said,
        neither is damage.
Rule 3: files may grow and be put aside while they are read.

All functions block. They raise OSError.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from attrs import define, field

from clawproxy_audit.anchors import Anchor, Anchors
from clawproxy_audit.chain import FIRST, mac_of, read_row
from clawproxy_audit.retention import is_cut

MOST_FINDINGS: Final = 20
"""Of one chain; the others are counted."""
_FILE: Final = re.compile(r"([A-Za-z0-9_-]{1,64})(?:\.(\d+))?\.jsonl")
_TRIES: Final = 5


@define(eq=False)
class Report:
    """One chain's."""

    chain: str
    rows: int = 0
    first: int = 0
    last: int = 0
    """Numbers of its rows."""
    anchored: int = 0
    """The last row that an anchor vouches for."""
    torn: int = 0
    """Bytes of a last line that a crash tore."""
    findings: list[str] = field(factory=list)
    unsaid: int = 0
    """Findings beyond `MOST_FINDINGS`."""
    cut: int = 0
    """Rows of which retention cut something."""

    @property
    def intact(self) -> bool:
        return not self.findings

    @property
    def tail(self) -> int:
        """Rows that no anchor vouches for yet."""
        return max(0, self.last - max(self.anchored, self.first - 1)) if self.rows else 0

    def found(self, sentence: str) -> None:
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(sentence)
        else:
            self.unsaid += 1


def verify(folder: Path, anchors: Anchors, key: bytes, elsewhere: Iterable[Anchor] = ()) -> list[Report]:
    """A report for each chain in the audit folder, and for each that only its anchors know of.

    Args:
        elsewhere: anchors that were kept by others, in a log.
    """
    others: dict[str, list[Anchor]] = {}
    for anchor in elsewhere:
        others.setdefault(anchor.chain, []).append(anchor)
    chains = chains_in(folder)
    names = sorted({*chains, *anchors.chains(), *others})
    return [_Check(name, key, anchors, others.get(name, ())).run(folder) for name in names]


def chains_in(folder: Path) -> Mapping[str, Sequence[Path]]:
    """Each chain's files, oldest first."""
    found: dict[str, list[tuple[float, Path]]] = {}
    try:
        paths = list(folder.iterdir())
    except FileNotFoundError:
        return {}
    for path in paths:
        match = _FILE.fullmatch(path.name)
        if match is not None:
            found.setdefault(match[1], []).append((int(match[2]) if match[2] else float("inf"), path))
    return {name: [path for _, path in sorted(files)] for name, files in found.items()}


def opened(folder: Path, chain: str) -> list[tuple[Path, BinaryIO]]:
    """A chain's files, open, as they were at one moment: none was put aside meanwhile."""
    for _ in range(_TRIES):
        before = chains_in(folder).get(chain, ())
        files: list[tuple[Path, BinaryIO]] = []
        try:
            files.extend((path, path.open("rb")) for path in before)
            if chains_in(folder).get(chain, ()) == before:
                return files
        except FileNotFoundError:
            pass
        for _, file in files:
            file.close()
    raise OSError(f"the files of {chain} in {folder} change all the time")


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """As `file` has them, LF included."""
    yield from file


class _Check:
    def __init__(self, chain: str, key: bytes, anchors: Anchors, elsewhere: Iterable[Anchor]) -> None:
        self.report = Report(chain)
        self._key = key
        statements, self._bad = anchors.read(chain)
        self._vouched: dict[int, list[tuple[str, str]]] = {}
        self._pruned: dict[int, str] = {}
        for each in (*statements, *elsewhere):
            if each.kind == "pruned":
                self._pruned[each.seq] = each.mac
            else:
                place = "an anchor" if each.sig else "an anchor in the log"
                self._vouched.setdefault(each.seq, []).append((each.mac, place))
        self._seen: dict[str, int] = {}
        """The last few MACs, to tell a copy from something made up."""

    def run(self, folder: Path) -> Report:
        report = self.report
        if self._bad:
            report.found(f"anchors/{report.chain}: {self._bad} statements are not under the key, or damaged.")
        expected, prev = 0, ""
        files = opened(folder, report.chain)
        try:
            for number, (path, file) in enumerate(files, 1):
                for at, line in enumerate(lines_of(file), 1):
                    where = f"{path.name}, line {at}"
                    if not line.endswith(b"\n"):
                        if number == len(files):
                            report.torn = len(line)
                        else:
                            report.found(f"{where}: the row was cut off in the middle.")
                        continue
                    expected, prev = self._row(line[:-1], where, expected, prev)
        finally:
            for _, file in files:
                file.close()
        self._end()
        return report

    def _row(self, line: bytes, where: str, expected: int, prev: str) -> tuple[int, str]:
        """The number that the next row must have, and the MAC it must name."""
        report = self.report
        report.rows += 1
        row = read_row(line)
        if row is None:
            report.found(f"{where}: this is no row (row {expected or 1} should be here); it was changed or put in.")
            return (expected + 1 if expected else 0), ""
        seq, names, covered, mac = row
        whole = hmac.compare_digest(mac, mac_of(self._key, covered))
        if not whole and is_cut(self._key, covered, mac):
            whole = True
            report.cut += 1
        if not whole:
            report.found(f"{where}: row {seq} was changed, or not written with this key.")
        elif not expected:
            self._begins(seq, names, where)
        elif seq != expected or (prev and names != prev):
            self._out_of_order(seq, expected, mac, where)
        if not report.first:
            report.first = seq
        report.last = max(report.last, seq)
        for vouched, place in self._vouched.get(seq, ()):
            if vouched != mac:
                report.found(f"{where}: row {seq} is not the one that {place} names; the rows up to it were rewritten.")
                break
        self._seen[mac] = seq
        if len(self._seen) > 1024:
            del self._seen[next(iter(self._seen))]
        return seq + 1, mac

    def _begins(self, seq: int, names: str, where: str) -> None:
        if seq == 1 and names == FIRST:
            return
        if self._pruned.get(seq - 1) != names:
            self.report.found(f"{where}: the chain begins with row {seq}; {_rows(1, seq - 1)} missing.")

    def _out_of_order(self, seq: int, expected: int, mac: str, where: str) -> None:
        if mac in self._seen:
            self.report.found(f"{where}: row {seq} stands here a second time.")
        elif seq > expected:
            self.report.found(f"{where}: {_rows(expected, seq - 1)} missing before row {seq}.")
        elif seq < expected:
            self.report.found(f"{where}: row {seq} is out of its place (row {expected} should be here).")
        else:
            self.report.found(f"{where}: row {seq} does not follow the row before it; one of them is of another chain.")

    def _end(self) -> None:
        report = self.report
        last = max(self._vouched, default=0)
        gone = max(self._pruned, default=0)
        report.anchored = max((seq for seq in self._vouched if seq <= report.last), default=0)
        if last > max(report.last, gone):
            begin = max(report.last, gone) + 1
            report.found(f"{report.chain}.jsonl: {_rows(begin, last)} missing at the end: an anchor names row {last}.")


def _rows(first: int, last: int) -> str:
    return f"row {first} is" if first == last else f"rows {first} to {last} are"
