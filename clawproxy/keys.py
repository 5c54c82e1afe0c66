"""Client keys: how they are made, recognised and stored.

Rule 1: a key leaves this module as a `Secret`; what is stored of it is `digest` and `display_prefix`, never the key.
Rule 2: a digest is HMAC-SHA256 under the pepper, so that a stolen database alone can neither be used as a credential nor be
        searched for guessed keys.
Rule 3: the fixed grammar (`claw_`, 32 characters, a check character) is for keys made here; operators may use any other text.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import string
import zlib
from pathlib import Path

from clawproxy.errors import ConfigError
from clawproxy.secrets import Secret

SCHEME = "claw_"
BODY = 32
"""Random base62 characters in a key: 190 bits."""
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
PEPPER_BYTES = 32
_BASE62 = frozenset(ALPHABET)


def generate() -> Secret:
    """A new client key."""
    body = "".join(secrets.choice(ALPHABET) for _ in range(BODY))
    return Secret(SCHEME + body + _check(body))


def looks_generated(token: str) -> bool:
    """Whether `token` has the grammar of `generate`, check character included: a mistyped key is told from a wrong one."""
    body, check = token[len(SCHEME) : -1], token[-1:]
    if not token.startswith(SCHEME) or len(body) != BODY or not _BASE62.issuperset(body):
        return False
    return hmac.compare_digest(check.encode(), _check(body).encode())


def digest(pepper: bytes, token: str) -> bytes:
    """What stands for `token` wherever it is kept: 32 bytes.

    Raises ValueError without a pepper: an unkeyed digest must not be stored by accident.
    """
    if not pepper:
        raise ValueError("a digest needs a pepper")
    return hmac.digest(pepper, token.encode("utf-8", "surrogatepass"), hashlib.sha256)


def display_prefix(token: str) -> str:
    """Six characters for people to tell keys apart by: those after `claw_`, else the first six."""
    body = token.removeprefix(SCHEME)
    return body[:6]


def load_or_create_pepper(state_dir: Path) -> bytes:
    """The pepper in `state_dir/pepper` (hex, mode 0600), made on first use.

    Two processes that start at once agree: the file appears whole, by `link`, and who comes second reads the first one's.
    Raises ConfigError where the file is readable by others or damaged, and OSError where it can not be written.
    """
    path = state_dir / "pepper"
    if not path.exists():
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _publish(path, secrets.token_hex(PEPPER_BYTES) + "\n")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError([f"{path}: others can read the pepper; run `chmod 600` on it."])
    try:
        pepper = bytes.fromhex(path.read_text("ascii").strip())
    except ValueError:
        pepper = b""
    if len(pepper) < PEPPER_BYTES:
        raise ConfigError([f"{path}: not a pepper ({PEPPER_BYTES} bytes in hex); restore it, or all stored keys stop working."])
    return pepper


def _publish(path: Path, text: str) -> None:
    draft = path.with_name(f".pepper.{os.getpid()}.{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its pepper is the one
            os.link(draft, path)
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check(body: str) -> str:
    return ALPHABET[zlib.crc32(body.encode()) % len(ALPHABET)]
