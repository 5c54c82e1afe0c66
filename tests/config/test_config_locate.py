from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawproxy.config.locate import dotted, line_of, lines, quoted

TEXT = '''\
# a comment with [brackets] and "quotes
top = 1
[server]  # [not.a.table]
listen = [
  "127.0.0.1:1",  # one
  "[::1]:2",
]
"odd key".'in ner' = { a = 1, b = { c = [ {d = 2}, 3 ] } }
text = """
[fake]
key = "no" \\"""
"""
raw = \'\'\'
[also.fake]\'\'\'
[providers."gpt-4.1"]
base_url = 'x#y'
[[routes]]
provider = "a"
[[routes]]
provider = "b"
  [routes.deep]
  when = 2027-01-01 00:00:00Z # date
[a.b.c]
k = 1
[a]
k = -0x1F
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("server",), 3),
        (("server", "listen"), 4),
        (("server", "listen", 1), 6),
        (("server", "odd key", "in ner", "b", "c", 0, "d"), 8),
        (("server", "text"), 9),
        (("server", "raw"), 13),
        (("providers", "gpt-4.1", "base_url"), 16),
        (("routes", 0, "provider"), 18),
        (("routes", 1, "provider"), 20),
        (("routes", 1, "deep", "when"), 22),
        (("a",), 25),
        (("a", "k"), 26),
    ],
)
def test_lines(path: tuple[str | int, ...], line: int) -> None:
    assert lines(TEXT)[path] == line


def test_a_missing_key_has_the_line_of_its_table() -> None:
    assert line_of(lines(TEXT), ("routes", 1, "model")) == 19


def test_windows_line_ends_count_once() -> None:
    assert lines("a = 1\r\n\r\nb = 2\r\n")[("b",)] == 3


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in items:
        found |= paths(inner, (*path, step))
    return found


names = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(["a", "b-c", "d.e", '"', "#", "[x]"])
leaves = st.integers(-9, 9) | st.booleans() | names | st.floats(-1, 1)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8)
documents = st.dictionaries(names, values, max_size=4)


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {inline(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[ # ]\n" + "".join(f"{inline(item)}, # ,\n" for item in value) + "]"
    if isinstance(value, float):
        return f"{value:.6f}"
    return json.dumps(value) if isinstance(value, (str, bool, int)) else str(value)


def tables(document: dict[str, Any], prefix: str = "") -> str:
    text = "".join(f"{json.dumps(name)} = {inline(value)}\n" for name, value in document.items() if not isinstance(value, dict))
    for name, value in document.items():
        if isinstance(value, dict):
            here = f"{prefix}.{json.dumps(name)}" if prefix else json.dumps(name)
            text += f"[ {here} ]\n\n{tables(value, here)}"
    return text


@given(documents)
def test_every_path_tomllib_sees_is_found(document: dict[str, Any]) -> None:
    text = tables(document).replace("\\ud", "\\\\ud").replace("\x7f", "?")
    read = tomllib.loads(text)
    assert paths(read) == set(lines(text))


@given(names)
def test_quoted_names_can_be_read_again(name: str) -> None:
    assert tomllib.loads(f"{quoted(name)} = 1") == {name: 1}


def test_dotted() -> None:
    assert dotted(("models", "gpt-4.1", "routes", 0, "provider")) == 'models."gpt-4.1".routes[0].provider'
