"""Values with units, as text and back: durations, sizes, listen addresses.

Rule 1: a bare number is no duration (of what?); a bare integer is a size in bytes.
Rule 2: every refusal is a `ValueError` whose text says what is wrong and, after a semicolon, what would be right.
Rule 3: `parse_x(render_x(value)) == value`.
"""

from __future__ import annotations

import ipaddress
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from attrs import frozen

from clawproxy.clocks import Rate

_DURATION_UNITS: dict[str, int | Fraction] = {
    "d": 86400,
    "h": 3600,
    "m": 60,
    "s": 1,
    "ms": Fraction(1, 1000),
    "us": Fraction(1, 1_000_000),
}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|us|d|h|m|s)")
_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)")
_PRICE = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,6}))?")
_DOLLARS = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,9}))?")
_FACTOR = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,6}))?")
_LONGEST = 100 * 365 * 86400
_LARGEST = 2**50
_RATE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?tokens?/s(?: +over +(\S+))?")
_OFF = ("off", "inf")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")


def parse_duration(value: object) -> float:
    """Seconds of `"5s"`, `"250ms"`, `"1h30m"`; `math.inf` of `"off"` and `"inf"`.

    Raises:
        ValueError: with what is wrong and what would be right.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f'{kind_of(value)} is no duration; write it as a string, like "5s", "250ms", "1h30m" or "off"')
    if not isinstance(value, str):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f'{value} is a number without a unit; write "off" where there is no limit')
        raise ValueError(f'{value} has no unit; write "{value}s" if seconds are meant')
    text = value.strip()
    if text.lower() in _OFF:
        return math.inf
    if text.startswith("-"):
        raise ValueError(f'"{shown(text)}" is negative; write a duration from "0s" up, or "off"')
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise ValueError(f'"{shown(text)}" has no unit; write "{shown(text)}s" if seconds are meant')
    total, place, last = Fraction(0), 0, ""
    order = list(_DURATION_UNITS)
    while place < len(text):
        part = _DURATION_PART.match(text, place)
        if part is None or (last and order.index(part[2]) <= order.index(last)):
            raise ValueError(f'"{shown(text)}" is no duration; write it like "5s", "250ms", "1h30m" or "off"')
        total += Fraction(part[1]) * _DURATION_UNITS[part[2]]
        place, last = part.end(), part[2]
    if not text:
        raise ValueError('"" is no duration; write it like "5s", "250ms", "1h30m" or "off"')
    if total > _LONGEST:
        raise ValueError(f'"{shown(text)}" is longer than a hundred years; write "off" where there is no limit')
    return float(total)


def render_duration(seconds: float) -> str:
    """`"1h30m"` of 5400.0, `"250ms"` of 0.25, `"off"` of `math.inf`; below a microsecond, a fraction of a second."""
    if seconds == math.inf:
        return "off"
    exact = Fraction(repr(float(seconds)))
    if exact == 0:
        return "0s"
    parts = []
    for unit, worth in _DURATION_UNITS.items():
        whole = exact // worth
        if whole:
            parts.append(f"{whole}{unit}")
            exact -= whole * worth
    if exact:  # less than a microsecond is left: say it all in seconds, as Python would
        return f"{Decimal(repr(float(seconds))):f}s"
    return "".join(parts)


def parse_rate(value: object) -> float:
    """A `clocks.Rate` of `"5 tokens/s over 30s"`, or of `"5 tokens/s"`, whose window is 30 s; `math.inf` of `"off"`.

    Raises:
        ValueError: with what is wrong and what would be right.
    """
    right = 'write it like "5 tokens/s over 30s", or "off"'
    if not isinstance(value, str):
        raise ValueError(f"{kind_of(value)} is no rate; {right}")
    text = value.strip()
    if text.lower() in _OFF:
        return math.inf
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f'"{shown(text)}" is no rate; {right}')
    window = parse_duration(match[2] or "30s")
    if not float(match[1]) or not 0 < window < math.inf:
        raise ValueError(f'"{shown(text)}" asks for nothing; {right}')
    return Rate(window, float(match[1]))


def render_rate(rate: float) -> str:
    """`"5 tokens/s over 30s"` of such a `Rate`."""
    return f"{rate.tokens:g} tokens/s over {render_duration(float(rate))}" if isinstance(rate, Rate) else render_duration(rate)


def parse_size(value: object) -> int:
    """Bytes of `"16KiB"`, `"1MiB"`, `"2MB"` or a plain integer.

    Raises:
        ValueError: with what is wrong and what would be right.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f'{kind_of(value)} is no size; write it like "16KiB", "1MiB", or as a plain number of bytes')
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{value} is negative; write a number of bytes from 0 up")
        size = value
    else:
        text = value.strip()
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError(f'"{shown(text)}" is no size; write it like "16KiB", "1MiB", or as a plain number of bytes')
        unit = next((known for known in _SIZE_UNITS if known.lower() == match[2].lower()), None)
        if unit is None:
            guess = {"k": "KiB", "m": "MiB", "g": "GiB"}.get(match[2][:1].lower(), "KiB, MiB or GiB")
            raise ValueError(f'"{shown(text)}" has an unknown unit; write {guess}')
        exact = Fraction(match[1]) * _SIZE_UNITS[unit]
        if exact.denominator != 1:
            raise ValueError(f'"{shown(text)}" is no whole number of bytes; write a smaller unit, like "{int(exact)}"')
        size = int(exact)
    if size > _LARGEST:
        raise ValueError("that is more than a pebibyte; write a smaller size")
    return size


def render_size(size: int) -> str:
    """`"16KiB"` of 16384; the largest binary unit that is exact, else plain bytes."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return str(size)


def parse_price(value: object) -> int:
    """Micro-dollars per million tokens of `"0.15"`, dollars per million tokens.

    Raises:
        ValueError: with what is wrong and what would be right.
    """
    return _decimal(value, _PRICE, 6, "price", "dollars per million tokens", "0.15")


def parse_dollars(value: object) -> int:
    """Nano-dollars of `"0.005"`, dollars.

    Raises:
        ValueError: with what is wrong and what would be right.
    """
    return _decimal(value, _DOLLARS, 9, "price of a request", "dollars", "0.005")


def parse_factor(value: object) -> int:
    """Millionths of `"0.5"`.

    Raises:
        ValueError: with what is wrong and what would be right.
    """
    return _decimal(value, _FACTOR, 6, "factor", "a decimal", "0.5")


def _decimal(value: object, form: re.Pattern[str], places: int, what: str, right: str, like: str) -> int:
    """Of a decimal in a string, so many of its places, as an integer."""
    if not isinstance(value, str):
        raise ValueError(f'{kind_of(value)} is no {what}; write {right} as a string, like "{like}"')
    match = form.fullmatch(value.strip())
    if match is None:
        count = {6: "six", 9: "nine"}[places]
        raise ValueError(f'"{shown(value)}" is no {what}; write {right}, like "{like}", to {count} decimals at most')
    return int(match[1] + (match[2] or "").ljust(places, "0"))


def render_price(price: int) -> str:
    """`"0.15"` of 150000; at least two decimals."""
    whole, rest = divmod(price, 1_000_000)
    decimals = f"{rest:06}".rstrip("0").ljust(2, "0")
    return f"{whole}.{decimals}"


@frozen(slots=True)
class Address:
    """Where to listen: `host` and `port`, or `path` of a Unix socket."""

    kind: Literal["tcp", "unix"]
    host: str = ""
    """Without the brackets of IPv6."""
    port: int = 0
    """0: any free one."""
    path: str = ""

    @property
    def wildcard(self) -> bool:
        """Reachable from other machines on every interface."""
        try:
            return self.kind == "tcp" and ipaddress.ip_address(self.host.partition("%")[0]).is_unspecified
        except ValueError:
            return False

    @property
    def loopback(self) -> bool:
        """Reachable from this machine only."""
        if self.kind == "unix" or self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address in `127.0.0.1:8642`, `[::1]:8642`, `localhost:0` or `unix:/run/claw.sock`.

    Raises:
        ValueError: with what is wrong and what would be right.
    """
    seen = f'"{shown(text)}"'
    if text.startswith("unix:"):
        path = text[5:]
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f'{seen} names no socket; write an absolute path, like "unix:/run/clawproxy.sock"')
        if len(path.encode()) > 107:  # sun_path of sockaddr_un, less the final NUL
            raise ValueError(f"{seen} is too long for a Unix socket; its path may have 107 bytes")
        return Address("unix", path=path)
    if "://" in text:
        raise ValueError(f'{seen} is a URL; write "{shown(text.partition("://")[2].rstrip("/"))}"')
    host, colon, port = text.rpartition(":")
    if not colon and re.fullmatch("[0-9]+", text):
        raise ValueError(f'{seen} names no address; write "127.0.0.1:{text}", or "0.0.0.0:{text}" for every interface')
    if not colon or text.endswith("]"):
        raise ValueError(f'{seen} has no port; write "{shown(text)}:8642"')
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{seen} has no valid port; write a number from 0 (any free one) to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f'{seen} has no valid IPv6 address; write it like "[::1]:{port}"') from None
        return Address("tcp", host, int(port))
    if ":" in host:
        raise ValueError(f'{seen} is ambiguous; write IPv6 in brackets: "[{shown(host)}]:{port}"')
    if host in ("", "*"):
        raise ValueError(f'{seen} names no address; write "127.0.0.1:{port}", or "0.0.0.0:{port}" for every interface')
    if re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(f'{seen} has no valid IPv4 address; write it like "127.0.0.1:{port}"') from None
    elif not _HOST_NAME.fullmatch(host):
        raise ValueError(f'{seen} has no valid host; write it like "127.0.0.1:{port}"')
    return Address("tcp", host, int(port))


def kind_of(value: object) -> str:
    """What TOML calls the kind of a value, with its article: `a string`."""
    names: tuple[tuple[type, str], ...] = (
        (bool, "a boolean"),
        (str, "a string"),
        (int, "an integer"),
        (float, "a float"),
        (dict, "a table"),
        (list, "an array"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "a date or time")


def shown(text: str, most: int = 80) -> str:
    """Text of the operator's, fit for one line of a terminal: escaped, at most so many characters."""
    text = text if len(text) <= most else text[: most - 3] + "..."
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
