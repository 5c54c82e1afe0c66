"""Credentials that a program, Vault or AWS Secrets Manager has: `command:`, `vault:PATH#FIELD`, `aws:NAME#FIELD`.

Rule 1: a command is started without a shell, has no input, and is killed with its time, and all it started with it: most of
        these programs are scripts around others. Neither its arguments nor what it writes ever stand in a log or an error.
Rule 2: what was had is a credential for a header: visible ASCII on one line, nothing else.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import trio

from clawproxy.config import SecretRef
from clawproxy.config.checks_credentials import command_words
from clawproxy.secrets import Secret
from clawproxy.upstream.renewal import Obtained, Unobtainable

SECONDS: Final = 10.0
"""That a command may take."""
MOST: Final = 64 * 1024
"""Bytes it may write."""
CREDENTIAL: Final = re.compile(r"[\x21-\x7e]{1,32768}")


def obtaining(ref: SecretRef) -> Callable[[], Awaitable[Obtained]] | None:
    """What fetches this credential; None for one that is read at once, where it stands."""
    if ref.scheme == "command":
        return lambda: from_command(ref.value)
    if ref.scheme in ("vault", "aws"):
        from clawproxy.upstream import managers

        reader = managers.from_vault if ref.scheme == "vault" else managers.from_aws
        return lambda: reader(ref.value)
    return None


async def from_command(value: str) -> Obtained:
    """Raises Unobtainable."""
    written = b""
    try:
        with trio.fail_after(SECONDS):
            process = await trio.lowlevel.open_process(
                command_words(value),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            ended = False
            try:
                while process.stdout is not None and (data := await process.stdout.receive_some(MOST)):
                    written += data
                    if len(written) > MOST:
                        raise Unobtainable("the command writes more than 64 KiB")
                status = await process.wait()
                ended = True
            finally:
                if not ended:
                    _kill(process)
                    with trio.move_on_after(2, shield=True):
                        await process.wait()
                if process.stdout is not None:
                    with trio.move_on_after(1, shield=True):
                        await process.stdout.aclose()
    except trio.TooSlowError:
        raise Unobtainable(f"the command did not end within {SECONDS:g} s") from None
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or "it is no command line"
        raise Unobtainable(f"the command can not be run ({why.lower()})") from None
    if status:
        raise Unobtainable(f"the command ended with status {status}")
    return Obtained(credential(written))


def _kill(process: trio.Process) -> None:
    """With its group, which it leads; that may live on where it is gone itself."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def credential(written: bytes | str) -> Secret:
    """Raises Unobtainable."""
    try:
        text = (written if isinstance(written, str) else written.decode("ascii")).strip()
    except UnicodeDecodeError:
        text = ""
    if CREDENTIAL.fullmatch(text) is None:
        raise Unobtainable("what came is empty, or holds characters no header may carry")
    return Secret(text)


def field_of(said: Any, field: str) -> Secret:
    """The credential under `field` of a JSON object. Raises Unobtainable."""
    value = said.get(field) if isinstance(said, dict) else None
    if not isinstance(value, str):
        raise Unobtainable("what came has no such field", final=True)
    return credential(value)


def decoded(body: bytes | str) -> Any:
    """Raises Unobtainable."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        raise Unobtainable("what came is not JSON") from None
