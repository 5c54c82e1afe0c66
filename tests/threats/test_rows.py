"""Every row of the catalogue has a test that bears its id."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.threats.rows import EXPECTED, ROWS, THEIRS

TESTS = Path(__file__).parents[1]
_NAME = re.compile(r"(?:^|_)(ss|pl|[a-z])(\d\d)(?=_|$)")
_RANGE = re.compile(r"\b(SS|PL|[A-Z])-(\d\d) to (?:\1-)?(\d\d)\b")
_ID = re.compile(r"\b(SS|PL|[A-Z])-(\d\d)\b")


def borne(path: Path) -> Iterator[str]:
    """The ids its tests bear. What a module's docstring names counts where it is one id: a list of ids is no test of each."""
    module = ast.parse(path.read_text())
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield from (f"{letters.upper()}-{number}" for letters, number in _NAME.findall(node.name))
            said = ast.get_docstring(node) or ""
            yield from (f"{letters}-{number}" for letters, number in _ID.findall(said))
            for letters, first, last in _RANGE.findall(said):
                yield from (f"{letters}-{number:02}" for number in range(int(first), int(last) + 1))
            for decorator in node.decorator_list:  # a parameter's id: pytest.param(..., id="A-10 exp past")
                yield from (f"{letters}-{number}" for letters, number in _ID.findall(ast.unparse(decorator)))


def test_every_row_has_a_test_that_bears_its_id() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(TESTS.rglob("test_*.py")):
        if path != Path(__file__):
            for row in borne(path):
                found[row].add(path.name)
    missing = sorted(EXPECTED - set(found))
    assert not missing, "\n".join(f"{row}: {ROWS.get(row, 'see rows.THEIRS')}" for row in missing)


def test_the_list_is_whole() -> None:
    """Ids run without gaps within a table, so that one that was forgotten is seen; and nobody's rows are in two places."""
    tables: dict[str, list[int]] = defaultdict(list)
    for row in ROWS:
        letters, _, number = row.partition("-")
        tables[letters].append(int(number))
    assert {letters: numbers for letters, numbers in tables.items() if numbers != list(range(1, len(numbers) + 1))} == {"S": [9]}
    assert {letters: len(numbers) for letters, numbers in tables.items()} == {
        "I": 8, "J": 10, "SS": 5, "K": 8, "M": 2, "L": 6, "PL": 8, "R": 6, "S": 1,
    }  # fmt: skip
    theirs = [row for rows in THEIRS.values() for row in rows]
    assert len(theirs) == len(set(theirs)) == len(set(theirs) - set(ROWS))
    assert all(ROWS.values())


def test_a_row_without_a_test_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "test_x.py"
    file.write_text(
        'def test_j01_a():\n    """K-02 and I-03 to I-05."""\n\n\ndef helper_j02_b():\n    """K-04"""\n\n\n'
        "async def test_pl07() -> None: ...\n"
    )
    assert set(borne(file)) == {"J-01", "K-02", "I-03", "I-04", "I-05", "PL-07"}
