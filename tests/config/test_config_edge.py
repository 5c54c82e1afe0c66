"""What `check --edge` says a configuration relaxes: nothing by default, and each thing by its key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clawproxy.config import Config
from clawproxy.config.edge import relaxed
from clawproxy.config.load import load
from clawproxy.pipeline import installed
from clawproxy_sanitize.settings import SanitizeSettings

SAFE = """
[server]
listen = "127.0.0.1:0"
state_dir = "state"
[providers.s]
dialect = "scripted"
[models.m]
routes = [{ provider = "s", model = "x" }]
[keys.k]
secret = "env:K"
models = ["m"]
expires = 2099-01-01T00:00:00Z
"""


def said(tmp_path: Path, text: str) -> dict[str, str]:
    """Sentences by key."""
    path = tmp_path / "c.toml"
    path.write_text(text)
    return {
        ".".join(map(str, key)): sentence
        for key, sentence in relaxed(load(path, settings={"sanitize": SanitizeSettings}, known_plugins=installed()).config)
    }


def test_without_a_configuration_nothing_is_relaxed() -> None:
    assert relaxed(Config()) == []


def test_a_careful_one_relaxes_nothing(tmp_path: Path) -> None:
    assert said(tmp_path, SAFE) == {}


@pytest.mark.parametrize(
    ("change", "key", "sentence"),
    [
        (("127.0.0.1:0", "0.0.0.0:8642"), "server.listen", "without TLS"),
        (("127.0.0.1:0", "0.0.0.0:8642"), "server.hosts", "any Host header"),
        (("127.0.0.1:0", "0.0.0.0:8642"), "limits.connections_per_address", "one address"),
        (("state_dir", 'admin = "0.0.0.0:1"\nstate_dir'), "server.admin", "need no credential"),
        (("state_dir", 'origins = ["https://a.example"]\nstate_dir'), "server.origins", "https://a.example"),
        (("[providers.s]", '[limits]\nbody = "1GiB"\n[providers.s]'), "limits.body", "is 1073741824"),
        (("[providers.s]", '[deadlines]\nhead = "off"\n[providers.s]'), "deadlines.head", "for ever"),
        (('dialect = "scripted"', 'base_url = "http://llm.example/v1"'), "providers.s.base_url", "in the clear"),
        (('dialect = "scripted"', 'base_url = "https://llm.example/v1"\napi_key = "sk-1"'), "providers.s.api_key", "env:"),
        (("env:K", "a-literal-key-0123456789"), "keys.k.secret", "env:"),
        (("expires = 2099-01-01T00:00:00Z", ""), "keys.k.expires", "never expires"),
        (("expires = 2099", "may_assert = true\nexpires = 2099"), "keys.k.may_assert", "budgets"),
        (("[keys.k]", '[plugins.sanitize]\ninput = "flag"\n[keys.k]'), "plugins.sanitize.input", "reach providers"),
        (
            ("[keys.k]", '[plugins.sanitize.invisible]\ninput = "off"\n[keys.k]'),
            "plugins.sanitize.invisible.input",
            "nobody sees",
        ),
        (
            ("[keys.k]", '[plugins.sanitize.classifier]\nurl = "https://c.example"\non_error = "allow"\n[keys.k]'),
            "plugins.sanitize.classifier.on_error",
            "pass unseen",
        ),
        (("[keys.k]", '[pipeline]\norder = ["auth", "sanitize", "router", "meter"]\n[keys.k]'), "pipeline.order", "`audit`"),
    ],
)
def test_each_thing_is_named(tmp_path: Path, change: tuple[str, str], key: str, sentence: str) -> None:
    assert change[0] in SAFE
    assert sentence in said(tmp_path, SAFE.replace(*change))[key]


def test_the_command_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(SAFE.replace("expires = 2099-01-01T00:00:00Z", ""))
    command = [sys.executable, "-m", "clawproxy", "check", "--edge", "--config", str(tmp_path / "c.toml")]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"K": "k" * 20, "PATH": "", **_path()}
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[1:] == ["edge: 1 thing relaxed", f"  {tmp_path / 'c.toml'}:9: keys.k.expires: never expires"]


def _path() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path)}
