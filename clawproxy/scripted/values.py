r"""The words a step is written with: durations, sizes, texts. Reading and rendering of each stand side by side.

Rule: `read(render(value)) == value`, exactly, for every value a step can hold.
"""

from __future__ import annotations

import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(us|ms|s|m|h)")
_DIVISOR = {"us": 1_000_000.0, "ms": 1000.0, "s": 1.0}
_FACTOR = {"m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"(\d+)(B|KiB|MiB)?")
_UNIT = {"MiB": 1024 * 1024, "KiB": 1024, "B": 1}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_PLAIN = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", ";": ";", '"': '"', "#": "#"}
_SPELLED = {"\n": r"\n", "\r": r"\r", "\t": r"\t", "\\": r"\\"}
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\\\\\ud800-\udfff]")


def read_duration(text: str) -> float:
    """Seconds of `200ms`, `1.5s`, `2m`. Raises ValueError with what would be right."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"`{shown(text)}` is not a duration: write a number and a unit, such as 200ms, 1.5s or 2m")
    number, unit = float(match[1]), match[2]
    return number / _DIVISOR[unit] if unit in _DIVISOR else number * _FACTOR[unit]


def render_duration(seconds: float) -> str:
    millis = f"{seconds * 1000:g}"
    if seconds < 1 and "e" not in millis and float(millis) / 1000 == seconds:
        return f"{millis}ms"
    whole = f"{seconds:g}"
    return f"{whole}s" if float(whole) == seconds else f"{seconds!r}s"


def read_size(text: str) -> int:
    """Bytes of `500`, `64KiB`, `100MiB`. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"`{shown(text)}` is not a size: write a number of bytes, or 64KiB, or 10MiB")
    return int(match[1]) * _UNIT[match[2] or "B"]


def render_size(size: int) -> str:
    for unit in ("MiB", "KiB"):
        if size and size % _UNIT[unit] == 0:
            return f"{size // _UNIT[unit]}{unit}"
    return str(size)


def read_count(text: str) -> int:
    """A whole number, `12` or `-3`. Raises ValueError."""
    if re.fullmatch(r"-?[0-9]{1,18}", text) is None:
        raise ValueError(f"`{shown(text)}` is not a whole number")
    return int(text)


def unescape(raw: str) -> str:
    r"""The text of an escaped one: `\n \r \t \\ \; \" \# \xNN \uNNNN \UNNNNNNNN`. Raises ValueError."""
    return _ESCAPE.sub(lambda match: _character(match[1]), raw) if "\\" in raw else raw


def unescape_bytes(raw: str) -> bytes:
    r"""As `unescape`, but `\xNN` is one byte, whatever stands around it; everything else is UTF-8. Raises ValueError."""
    pieces: list[bytes] = []
    at = 0
    for match in _ESCAPE.finditer(raw):
        pieces.append(raw[at : match.start()].encode())
        code = match[1]
        is_byte = len(code) == 3 and code[0] == "x"
        pieces.append(bytes([int(code[1:], 16)]) if is_byte else _character(code).encode("utf-8", "surrogatepass"))
        at = match.end()
    return b"".join([*pieces, raw[at:].encode()])


def _character(code: str) -> str:
    if code in _PLAIN:
        return _PLAIN[code]
    if len(code) > 1:
        try:
            return chr(int(code[1:], 16))
        except (ValueError, OverflowError):
            pass
    raise ValueError(rf"`\{shown(code)}` is not an escape: there are \n \r \t \\ \; \" \# \xNN \uNNNN \UNNNNNNNN")


def render_text(text: str, *, quoted: bool = False) -> str:
    """A text as a step holds it: bare where that is safe, else in quotes."""
    escaped = _UNPRINTABLE.sub(_spelled, text)
    if quoted or not text or text[0] in ' \t"' or text[-1] in " \t":
        return '"' + escaped.replace('"', r"\"") + '"'
    return escaped.replace(";", r"\;")


def render_bytes(data: bytes) -> str:
    return '"' + "".join(_spelled_byte(byte) for byte in data) + '"'


def _spelled(match: re.Match[str]) -> str:
    character = match[0]
    if character in _SPELLED:
        return _SPELLED[character]
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


def _spelled_byte(byte: int) -> str:
    character = chr(byte)
    if character in _SPELLED:
        return _SPELLED[character]
    if character == '"':
        return r"\""
    return character if 32 <= byte < 127 else f"\\x{byte:02x}"


def shown(text: str) -> str:
    """What someone wrote, short and printable, for an error message."""
    short = text if len(text) <= 40 else f"{text[:40]}..."
    return short.encode("unicode_escape").decode("ascii")
