"""The machine: what it is, which core is whose, and what a process has used of it. Linux only."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")


def cores() -> tuple[int, int]:
    """The core of what is measured and the core of all else; the same one where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[1 % len(usable)]


def fingerprint() -> dict[str, Any]:
    """What two runs must have in common to be compared: `id` is a hash of the rest."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * PAGE / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "host": hashlib.sha256(_machine_id().encode()).hexdigest()[:12],
    }
    return facts | {"id": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            return Path(path).read_text().strip() or platform.node()
        except OSError:
            continue
    return platform.node()


def load_average() -> float:
    """Runnable processes over the last minute: above 0.5 before a run, somebody else is using the machine."""
    return os.getloadavg()[0]


def family(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(after_name[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += parents.get(found[-1], [])
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants, user and system, all threads.

    Each process has a clock of its own (clock_getcpuclockid(3)), which counts nanoseconds where /proc/PID/stat counts hundredths.
    """
    total = 0.0
    for member in family(pid):
        try:
            total += time.clock_gettime((~member << 3) | 2)
        except OSError:
            continue
    return total


def waited_seconds(pid: int) -> float:
    """How long a process and its descendants could have run but had to wait for a core: what others took from them."""
    total = 0
    for member in family(pid):
        for thread in Path(f"/proc/{member}/task").glob("*/schedstat"):
            try:
                total += int(thread.read_text().split()[1])
            except (OSError, IndexError):
                continue
    return total / 1e9


def rss_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; pages they share count for each."""
    total = 0
    for member in family(pid):
        try:
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1]) * PAGE
        except OSError:
            continue
    return total


def pin_self() -> None:
    """Run this process on the core of what is measured."""
    os.sched_setaffinity(0, {cores()[0]})
