"""Which audit files have something due, and who may change them: the writer's own, and those of writers that are gone.

Rule: a file that another process holds (flock) is that process's to cut.

All functions block. They raise OSError.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from clawproxy_audit.chain import Chain
from clawproxy_audit.retention import Cutting, Terms
from clawproxy_audit.settings import AuditSettings


class Cleaner:
    """Of one chain's writer, under one generation's settings."""

    def __init__(self, chain: Chain, settings: AuditSettings) -> None:
        self.settings = settings
        self.terms = Terms.of(settings)
        self._chain = chain
        self._due: dict[int, float] = {}
        """By inode: when something in the file is due. A file that is being written may have rows that are not looked at yet:
        none of those is due before `shortest` is over."""

    def files(self) -> list[Path]:
        """Those to be looked at."""
        for left in self._chain.folder.glob(f"*.jsonl.{self._chain.name}.new"):  # by a crash
            left.unlink(missing_ok=True)
        now, found, known = time.time(), [], {}
        for path in sorted(self._chain.folder.glob("*.jsonl")):
            try:
                inode = path.stat().st_ino
            except FileNotFoundError:
                continue
            known[inode] = self._due.get(inode, 0.0)
            if known[inode] <= now:
                found.append(path)
        self._due = known
        return found

    def begin(self, path: Path) -> Cutting | None:
        """None where nothing is due in it, or it is another's."""
        own = path == self._chain.path
        if not own and not _is_free(path):
            return None
        now = time.time()
        beside = path.with_name(f"{path.name}.{self._chain.name}.new")
        try:
            cutting = Cutting.begin(path, beside, self._chain.key, self.terms, now)
        except FileNotFoundError:
            return None
        self._due[cutting.inode] = min(cutting.due, now + self.terms.shortest)
        return cutting if cutting.cut else None

    def finish(self, cutting: Cutting) -> None:
        """While nothing is appended. What became of the file meanwhile is looked at again the next time."""
        due = self._due.pop(cutting.inode, 0.0)
        try:
            if cutting.path != self._chain.path:
                done = _is_free(cutting.path) and cutting.finish()
            else:
                done = self._chain.replace(cutting.beside, cutting.inode, cutting.size)
            if done:
                self._due[os.stat(cutting.path).st_ino] = due
        finally:
            cutting.drop()


def _is_free(path: Path) -> bool:
    """Whether nobody writes it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
