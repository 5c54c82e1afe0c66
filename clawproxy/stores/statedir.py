"""The state directory: made private, guarded by one lock.

Rule 1: one writer. The guard is flock on `lock`, which the kernel releases however the process dies; never a pid file.
Rule 2: directories made here are 0700 and files 0600, whatever the umask. A directory that was there keeps its mode: it is the
        operator's.
"""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from clawproxy.errors import ConfigError

DIR_MODE, FILE_MODE = 0o700, 0o600


def make_private_dir(path: Path) -> None:
    """Raises ConfigError naming the directory where it can not be made or written."""
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            try:
                folder.mkdir(mode=DIR_MODE)
            except FileExistsError:
                pass  # another process was first
        usable = path.is_dir() and os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise ConfigError([f"server.state_dir: {path} can not be made ({error.strerror}). Name another directory."]) from error
    if not usable:
        raise ConfigError([f"server.state_dir: {path} is not a directory this user can write. Name another directory."])


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a file that is 0600 if it is made now."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)


def safe_name(instance: str) -> str:
    """An instance's name as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", instance)[:64] or "instance"


class Lock:
    """The exclusive right to write a state directory. Held until `release` or the end of the process."""

    def __init__(self, state_dir: Path) -> None:
        """Raises ConfigError naming the directory where another process holds it."""
        path = state_dir / "lock"
        try:
            self._fd = open_private(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise ConfigError([f"server.state_dir: {path} can not be opened ({error.strerror})."]) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise ConfigError(
                [f"server.state_dir: {state_dir} is in use by another clawproxy. Stop it, or give this one its own state_dir."]
            ) from error

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
