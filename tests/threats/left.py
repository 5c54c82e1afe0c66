"""What the whole suite left on the disk, searched for the keys its gateways used: state directories, logs, output of processes.

Rule: configuration files hold what a test wrote into them; everything else is the gateway's, and no key is in it.
"""

from __future__ import annotations

from pathlib import Path

from tests.e2e.harness import KEY, PROVIDER_KEY

WIDTH = 12
SECRETS = {"the client key": KEY, "the provider's key": PROVIDER_KEY}


def found_in(base: Path) -> list[str]:
    """One sentence a file, for files of `state` folders below `base` and for what processes said."""
    windows = {name: [text.encode()[at : at + WIDTH] for at in range(len(text) - WIDTH + 1)] for name, text in SECRETS.items()}
    found = []
    for path in base.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.name == "first-key":
            continue
        if "state" in path.parts or path.name in ("stdout", "stderr"):
            data = path.read_bytes()
            found += [f"{name} is in {path}" for name, pieces in windows.items() if any(piece in data for piece in pieces)]
    return found
