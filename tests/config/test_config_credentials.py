"""Several credentials for a provider, and a sentence for its clients: what is wrong with them is said with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawproxy.config import SecretRef
from clawproxy.config.load import load
from clawproxy.config.secretrefs import references
from tests.config.test_config_load import SETTINGS, problems

BASE = 'base_url = "https://one.example/v1"\n'
KEYS: dict[str, tuple[str, list[str]]] = {
    "twice": (
        'api_key = "env:A"\napi_keys = ["env:B", "env:A", "env:B"]\n',
        [
            "claw.toml:4: providers.a.api_keys[1]: is the same as providers.a.api_key; name each credential once",
            "claw.toml:4: providers.a.api_keys[2]: is the same as providers.a.api_keys[0]; name each credential once",
        ],
    ),
    "not a list": (
        'api_keys = "env:A"\n',
        ["claw.toml:3: providers.a.api_keys: is a string; write an array, like [...]"],
    ),
    "not a secret": (
        'api_keys = [1, ""]\n',
        [
            'claw.toml:3: providers.a.api_keys[0]: is an integer; write a reference, like "env:NAME" or "file:PATH"',
            'claw.toml:3: providers.a.api_keys[1]: is empty; write a reference, like "env:NAME" or "file:PATH", or leave the '
            "key out",
        ],
    ),
    "too many": (
        "api_keys = [" + ", ".join(f'"env:K{n}"' for n in range(65)) + "]\n",
        ["claw.toml:3: providers.a.api_keys: come to 65 credentials; 64 are the most"],
    ),
}


@pytest.mark.parametrize("name", KEYS)
def test_broken(name: str, tmp_path: Path) -> None:
    text, expected = KEYS[name]
    assert problems(tmp_path, f"[providers.a]\n{BASE}{text}") == expected


def test_scripted_providers_have_none(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, '[providers.a]\ndialect = "scripted"\napi_keys = ["env:A"]\n')
    assert "api_keys: has no meaning for a scripted provider" in problem


@pytest.mark.parametrize("said", ["", " ", "a\\nb", "x" * 501])
def test_a_sentence_for_clients_is_one(said: str, tmp_path: Path) -> None:
    text = f'[providers.a]\n{BASE}[models.m]\nroutes = [{{ provider = "a", model = "m" }}]\nunavailable = "{said}"\n'
    [problem] = problems(tmp_path, text)
    assert problem == "claw.toml:5: models.m.unavailable: is no sentence for a client; write 1 to 500 printable characters"


def test_they_count_from_api_key_and_are_all_resolved(tmp_path: Path) -> None:
    (tmp_path / "claw.toml").write_text(f'[providers.a]\n{BASE}api_keys = ["env:B", "literal"]\napi_key = "env:A"\n')
    loaded = load(tmp_path / "claw.toml", settings=SETTINGS, environ={})
    refs = (SecretRef("env", "A"), SecretRef("env", "B"), SecretRef("", "literal"))
    assert loaded.config.providers["a"].credentials == refs
    assert [path for path, _ in references(loaded.config)] == [
        ("providers", "a", "api_key"),
        ("providers", "a", "api_keys", 0),
        ("providers", "a", "api_keys", 1),
    ]
    [warning] = loaded.warnings
    assert "providers.a.api_keys[1]: is a secret in the file itself" in warning
