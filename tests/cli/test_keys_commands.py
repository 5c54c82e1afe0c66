"""`clawproxy keys`: create, rotate, show, list and revoke, in this process; `test_commands` has them from the outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from clawproxy.cli.keys import command

CONFIG = """
[server]
state_dir = "state"
[providers.s]
dialect = "scripted"
[models.demo]
routes = [{ provider = "s", model = "demo" }]
[roles.user]
models = ["demo"]
[keys.bench]
secret = "env:BENCH_KEY"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "clawproxy.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLAWPROXY_CONFIG", raising=False)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(command, words)


def said(*words: str) -> Any:
    result = run(*words)
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def wrong(*words: str) -> str:
    result = run(*words)
    assert result.exit_code != 0
    return str(result.exception)


def test_a_rotation_is_shown_once_and_both_are_listed() -> None:
    made = said("create", "app", "--user", "ann", "--role", "user", "--tag", "x", "--json")
    assert made["key"].startswith("claw_")
    assert (made["roles"], made["begins"]) == (["user"], made["key"][5:11])
    turned = run("rotate", "app")
    fresh = turned.stdout.strip()
    assert fresh.startswith("claw_")
    assert fresh != made["key"]
    assert "the old one works until" in turned.stderr
    rows = [row for row in said("list", "--json") if row["name"] == "app"]
    assert [(row["begins"], row["state"], row["expires"] is None) for row in rows] == [
        (made["begins"], "good", False),
        (fresh[5:11], "good", True),
    ]
    for row in rows:
        assert (row["user"], row["roles"], row["tags"]) == ("ann", ["user"], ["x"])
    shown = run("show", "app").stdout
    assert shown.count("begins") == 2
    assert fresh not in shown
    assert said("show", "app", "--json") == rows
    at_once = said("rotate", "app", "--overlap", "0s", "--expires", "30d", "--json")
    states = [(row["begins"], row["state"]) for row in said("show", "app", "--json")]
    assert states == [(made["begins"], "expired"), (fresh[5:11], "expired"), (at_once["begins"], "good")]
    assert at_once["expires"] is not None
    assert run("revoke", "app").exit_code == 0
    assert wrong("rotate", "app").startswith("NAME: there is no key `app` in the store")


def test_what_can_not_be_done() -> None:
    run("create", "app")
    for words, problem in {
        ("rotate", "nobody"): "NAME: there is no key `nobody` in the store; `clawproxy keys list` names them",
        ("rotate", "bench"): "NAME: there is no key `bench` in the store; it is in the configuration; change it there",
        ("show", "nobody"): "NAME: there is no key `nobody` in the store; `clawproxy keys list` names them",
        ("rotate", "app", "--overlap", "5"): '--overlap: "5" has no unit; write "5s" if seconds are meant',
        ("rotate", "app", "--overlap", "91d"): '--overlap: "91d" is too long; 90d are the most',
        ("create", "new", "--role", "usr"): '--role: "usr" is not in [roles] of clawproxy.toml',
    }.items():
        assert wrong(*words) == problem
    assert said("show", "bench", "--json")[0]["from"] == "configuration"


def test_models_that_nothing_fits() -> None:
    assert '--model: "d*o" is no pattern; write a model' in wrong("create", "x", "--model", "d*o")
    made = run("create", "x", "--model", "demmo", "--model", "de*")
    assert made.exit_code == 0
    assert made.stderr.splitlines()[0] == 'warning: --model: "demmo" fits none of [models] of clawproxy.toml'
    assert "de*" not in made.stderr


def test_a_name_that_an_issuers_requests_are_booked_under(folder: Path) -> None:
    issuer = '[plugins.auth.issuers.corp]\nissuer = "https://issuer.example"\naudiences = ["gw"]\n'
    (folder / "clawproxy.toml").write_text(CONFIG + issuer)
    assert "NAME: requests of plugins.auth.issuers.corp are booked under `corp`; choose another name" in wrong("create", "corp")
