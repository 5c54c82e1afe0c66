"""What commands write for terminals, spreadsheets and others on the machine, where names come from clients."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner

from clawproxy.cli import audit, serve
from clawproxy.cli.common import no_formula
from clawproxy.cli.usagetable import standings
from clawproxy.ops.standings import BudgetStanding
from clawproxy.server import Listening


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "\uff1d1", "\uff0b1", "\uff0d1", "\uff20x"])
def test_a_cell_is_no_formula(text: str) -> None:
    assert no_formula(text) == f"'{text}"
    assert no_formula(f"a{text}") == f"a{text}"


def test_no_line_about_budgets_moves_a_cursor() -> None:
    scope = "user:\x1b[2J\u202e"
    standing = BudgetStanding("b", scope, "requests", "day", False, 1, 2, 0, 1, None, "1 a day", "block")
    for shown in (standing, attrs.evolve(standing, name=scope)):
        lines = standings([shown], 100)
        assert any("overrun by 1" in line for line in lines)
        assert not any("\x1b" in line or "\u202e" in line for line in lines)


@pytest.mark.parametrize("words", [["show"], ["show", "r-1"]])
def test_no_name_passes_for_a_row(words: list[str], tmp_path: Path) -> None:
    """What a client calls its model is one field of one line."""
    (tmp_path / "audit").mkdir()
    row = {
        "time": "2026-01-01T00:00:00Z",
        "outcome": "refused.auth",
        "request_id": "r-1",
        "key": "k",
        "model": "m\noutcome  complete\t",
    }
    (tmp_path / "audit" / "gw.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "clawproxy.toml").write_text(f'[server]\nstate_dir = "{tmp_path}"\n')
    shown = CliRunner().invoke(audit.command, [*words, "--config", str(tmp_path / "clawproxy.toml")]).stdout
    assert "m·outcome  complete·" in shown
    assert not any(line.startswith("outcome  complete") for line in shown.splitlines())


def test_the_ready_file_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder may be one where others write, too."""
    monkeypatch.setattr(serve, "settle", lambda: None)
    monkeypatch.setattr(os, "getpid", lambda: 7)
    victim, ready = tmp_path / "victim", tmp_path / "ready"
    victim.write_text("kept")
    (tmp_path / ".ready.7").symlink_to(victim)
    serve.announce(ready, Listening(["http://127.0.0.1:1"], None, 7))
    assert victim.read_text() == "kept"
    assert json.loads(ready.read_text())["pid"] == 7
