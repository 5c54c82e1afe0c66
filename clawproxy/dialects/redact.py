"""What may be repeated of a provider's words: printable, short, and without anything that looks like a secret.

Rule: better one word too few. A message that lost its request id still says what was wrong; one that shows a key does harm.
"""

from __future__ import annotations

import re

LONGEST = 500
_READ = 4096  # the patterns see no more than this, so their cost is bounded
MASK = "***"

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), by)
    for pattern, by in (
        (r"-----BEGIN[^-]*-----.*?(?:-----END[^-]*-----|$)", MASK),
        (r"([a-z][a-z0-9+.-]{1,20}://)[^\s/@\"'<>]*@", rf"\1{MASK}@"),  # user:password@ in a URL
        (r"([a-z][a-z0-9+.-]{1,20}://[^\s?#\"'<>]*)[?#][^\s\"'<>]*", rf"\1?{MASK}"),  # a URL's query string and fragment
        (r"\b(bearer|basic|digest|negotiate)\s+[^\s\"',;]+", rf"\1 {MASK}"),
        (r"\b((?:x-)?(?:goog-)?(?:api|access|secret|private)[-_ ]?(?:key|token)|token|secret|password|passwd|pwd|authorization"
         r"|credential|signature|cookie)s?(\"?'?\s*(?:[:=]|provided:)\s*\"?'?)[^\s\"',;]{6,}", rf"\1\2{MASK}"),
        # Keys by their prefixes; `*` too, since providers repeat them half masked (`sk-ab***yz`).
        (r"\b(?:sk|pk|rk|gsk|xai|pplx|nvapi|hf|r8|gh[oprsu]|github_pat|glpat|xox[abeprs]|key|org|proj|acct)"
         r"[-_][A-Za-z0-9_*.-]{3,}", MASK),
        (r"\b(?:AKIA|ASIA|AIza|ya29)[A-Za-z0-9_*.-]{4,}", MASK),
        (r"\beyJ[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)*", MASK),  # a JWT
        # Anything long with both letters and digits that has no space: a key nobody told us the prefix of.
        (r"(?<![A-Za-z0-9_+/=-])(?=[A-Za-z_+/=-]*[0-9])(?=[0-9_+/=-]*[A-Za-z])[A-Za-z0-9_+/=-]{24,}", MASK),
    )
)  # fmt: skip


def redact(text: str) -> str:
    """`text` (its first 4 KiB) on one line, without control or invisible characters, secrets replaced by `***`."""
    # Invisible characters go without a trace: in the middle of a key they would hide it from the patterns.
    text = "".join([c if c.isprintable() else " " if c.isspace() else "" for c in text[:_READ]])
    for pattern, by in _PATTERNS:
        text = pattern.sub(by, text)
    return text


def words(value: object, longest: int = LONGEST) -> str | None:
    """A provider's message, fit to be shown; None where there is none.

    The cut comes last: cutting first could leave half a key that no pattern knows.
    """
    if not isinstance(value, str):
        return None
    text = " ".join(redact(value).split())
    if not text:
        return None
    return text if len(text) <= longest else text[: longest - 3] + "..."
