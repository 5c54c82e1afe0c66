"""Links and images in answers that would carry data away: to a host that is not allowed, with data in their address.

Rule 1: an address counts where a page would make a link or an image of it: Markdown's `](...)` and `]: ...`, HTML's `src` and
        `href`. A bare address in a sentence does not.
Rule 2: data is what looks like it: user information, a value of the query or a fragment of `VALUE` characters, a segment of the
        path of `SEGMENT`, a label of the host of `LABEL`, a placeholder.
Rule 3: a relative address leads nowhere else. Addresses without a host do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from clawproxy_sanitize.catalogue import Shape
from clawproxy_sanitize.restore import SHAPE

VALUE = 16
SEGMENT = 48
LABEL = 32

_LEAD = r"(?:\]\(\s{0,4}<?|\]:\s{0,4}<?|\b(?i:src|href)\s{0,4}=\s{0,4}\\?[\"']?)"


def link(hosts: tuple[str, ...], which: Literal["data", "all"]) -> Shape:
    """Args:
    hosts: those allowed; a name stands for those under it too.
    which: whether only addresses with data in them count, or all that lead to other hosts.
    """
    return Shape(
        "link", _LEAD + r"(?i:https?:)?//[^\s()<>\"'`\\]+", _LEAD, _foreign(frozenset(host.lower() for host in hosts), which)
    )


def _foreign(hosts: frozenset[str], which: str) -> Callable[[bytes], int]:
    def accepts(found: bytes) -> int:
        text = found.decode("utf-8", "replace")
        try:
            parts = urlsplit(text)
            host = (parts.hostname or "").rstrip(".")
        except ValueError:
            return len(found)  # no browser's address, or one that another reads otherwise
        if "\\" not in text and any(host == allowed or host.endswith(f".{allowed}") for allowed in hosts):
            return 0
        return len(found) if which == "all" or _carries(text) else 0

    return accepts


def _carries(text: str) -> bool:
    parts = urlsplit(text)
    if parts.username is not None or SHAPE.search(text) is not None:
        return True
    values = [value for pair in parse_qsl(parts.query, keep_blank_values=True) for value in pair]
    if any(len(value) >= VALUE for value in (*values, parts.fragment)):
        return True
    if any(len(segment) >= SEGMENT for segment in parts.path.split("/")):
        return True
    return any(len(label) >= LABEL for label in (parts.hostname or "").split("."))
