"""Characters nobody sees: they hide instructions from a reader, and words from a pattern.

Rule 1: tags (U+E0000 block) and overrides of direction go wherever they stand; zero-width marks go after an ASCII
        character, where no script needs them, and stay elsewhere: emoji, Persian, Thai and Indic text are made of them. A
        variation selector stays where it selects: one after its character, of the supplement only after an ideograph.
Rule 2: what counts as "before" is the last character that stayed. So it is the same, however the text is cut.

The three flags made of tags (England, Scotland, Wales) lose them.
"""

from __future__ import annotations

import re
from typing import Final

_ZERO: Final = "\u00ad\u034f\u061c\u180b-\u180e\u200b-\u200f\u2060-\u2065\ufeff"
_ALWAYS: Final = "\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f"
_SELECTORS: Final = "\ufe00-\ufe0f"
_ODD: Final = "\ufe00-\ufe0e"
_SUPPLEMENT: Final = "\U000e0100-\U000e01ef"

# Compiled when first used: it takes some milliseconds, and most text is ASCII.
_RUNS: Final = f"[{_ZERO}{_ALWAYS}{_SELECTORS}{_SUPPLEMENT}]+"
_PLAIN: Final = f"(?<=[ -~])[{_ZERO}](?![{_ZERO}{_ALWAYS}{_SELECTORS}{_SUPPLEMENT}])"
"""The most common, and all there is in a flood."""
_IS_ZERO: Final = f"[{_ZERO}]"
_IS_SELECTOR: Final = f"[{_SELECTORS}]"
_IS_SUPPLEMENT: Final = f"[{_SUPPLEMENT}]"
_ASCII: Final = r"[ -~]"
_KEY: Final = r"[0-9#*]"
"""What a keycap emoji is made of: `1`, U+FE0F, U+20E3."""
_IDEOGRAPH: Final = "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"


def _re2(chars: str) -> str:
    return re.sub(r"[^-]", lambda match: rf"\x{{{ord(match[0]):x}}}", chars)


GATE: Final = "|".join(
    (
        f"[{_re2(_ALWAYS)}{_re2(_SUPPLEMENT)}]",
        f"[ -~{_re2(_SELECTORS)}{_re2(_SUPPLEMENT)}][{_re2(_ZERO)}]",
        rf"[ -\"$-)+-/:-~{_re2(_SELECTORS)}][{_re2(_SELECTORS)}]",
        f"[0-9#*][{_re2(_ODD)}]",
    )
)
"""RE2 syntax: text without a match of it stays as it is."""


def stripped(text: str, before: str = "") -> tuple[str, int]:
    """The text without them, and how many went.

    Args:
        before: the character before the text, where there is one.
    """
    text, gone = re.subn(_PLAIN, "", text)
    out: list[str] = []
    place = 0
    for run in re.finditer(_RUNS, text):
        out.append(text[place : run.start()])
        last = text[run.start() - 1] if run.start() else before
        for char in run[0]:
            if _goes(char, last):
                gone += 1
            else:
                out.append(char)
                last = char
        place = run.end()
    if not out:
        return text, gone
    out.append(text[place:])
    return "".join(out), gone


def _goes(char: str, last: str) -> bool:
    if re.match(_IS_ZERO, char):
        return re.match(_ASCII, last) is not None
    if re.match(_IS_SELECTOR, char):
        if re.match(_KEY, last) and char == "\ufe0f":
            return False
        return (
            re.match(_ASCII, last) is not None
            or re.match(_IS_SELECTOR, last) is not None
            or re.match(_IS_SUPPLEMENT, last) is not None
        )
    if re.match(_IS_SUPPLEMENT, char):
        return re.match(_IDEOGRAPH, last) is None
    return True
