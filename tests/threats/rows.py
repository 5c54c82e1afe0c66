"""The rows of the threat catalogue: id and what it is about, one a line. Each has a test that bears the id (`test_rows.py`).

A test bears an id in its name (`test_j01_...` is J-01), or in its docstring or its module's ("J-01", "I-01 to I-08").
"""

from __future__ import annotations

from collections.abc import Mapping

ROWS: Mapping[str, str] = {
    "I-01": "a model's name in the path of an upstream URL",
    "I-02": "a client's metadata in a header",
    "I-03": "a client's headers passed on to the provider",
    "I-04": "a response split by the provider's reason phrase",
    "I-05": "a provider's headers passed on to the client",
    "I-06": "a provider's redirect followed",
    "I-07": "events injected by what a model says",
    "I-08": "bytes that are no UTF-8 after JSON was written again",
    "J-01": "JSON nested too deep",
    "J-02": "an integer of thousands of digits",
    "J-03": "a limit that is no count",
    "J-04": "a key that comes twice, judged by one value and sent with the other",
    "J-05": "half a surrogate pair",
    "J-06": "what some parsers take for JSON",
    "J-07": "bytes that are no UTF-8, NUL in a key",
    "J-08": "too many keys, elements, messages",
    "J-09": "a content type that is not JSON's",
    "J-10": "a very long text",
    "SS-01": "body fields and headers that would steer the gateway's own connection",
    "SS-02": "URLs of pictures, fetched by the gateway",
    "SS-03": "a name that resolves to another address the second time",
    "SS-04": "a redirect to the inside",
    "SS-05": "keys fetched from where a token says",
    "K-01": "a provider that repeats the key",
    "K-02": "exceptions, their chains and locals",
    "K-03": "a key in a URL",
    "K-04": "a key in a label",
    "K-05": "an error body of a hundred megabytes",
    "K-06": "a plugin that logs what it is given",
    "K-07": "the log's level turned to debug while running",
    "K-08": "core dumps",
    "M-01": "labels made by strangers",
    "M-02": "figures for everybody",
    "L-01": "control characters in a line of the log",
    "L-02": "a log flooded by mistakes",
    "L-03": "an audit row changed, removed, moved, added",
    "L-04": "the tail of the audit cut off",
    "L-05": "a kill between a row and its chain",
    "L-06": "two writers of one chain",
    "PL-01": "a hook that raises",
    "PL-02": "a hook that raises what is no Exception",
    "PL-03": "a hook that blocks the loop",
    "PL-04": "a hook that hangs",
    "PL-05": "a coroutine that nobody awaits",
    "PL-06": "a hook that changes, or returns, what it must not",
    "PL-07": "scopes and tasks that outlive a hook",
    "PL-08": "hostile code as a plugin",
    "R-01": "a reload with a file that is broken",
    "R-02": "a hundred reloads under load",
    "R-03": "a price that goes with a reload",
    "R-04": "state derived from the configuration before",
    "R-05": "a client of a provider that is gone",
    "R-06": "a model or tenant removed while its streams run",
    "S-09": "a picture of twenty megabytes",
}

THEIRS: Mapping[str, tuple[str, ...]] = {
    "keys": (*(f"A-{number:02}" for number in range(1, 20)), *(f"W-{number:02}" for number in range(20, 30)), "W-33"),
    "money": tuple(f"B-{number:02}" for number in range(1, 14)),
}
EXPECTED = frozenset(ROWS) | {row for rows in THEIRS.values() for row in rows}
