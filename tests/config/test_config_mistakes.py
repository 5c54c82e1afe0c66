"""Mistakes as an operator makes them, said by `clawproxy check` with file, line, key and what would be right."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import click
import pytest
import trustme
from click.testing import CliRunner

from clawproxy import cli
from clawproxy.config.certificates import validity_of_file
from clawproxy.errors import ConfigError

GOOD = """\
[server]
state_dir = "state"
[providers.a]
base_url = "https://a.example/v1"
api_key = "env:A_KEY"
[keys.bench]
secret = "env:BENCH_KEY"
"""
NEXT = GOOD.count("\n") + 1
ISSUER = '[plugins.auth.issuers.corp]\nissuer = "https://i.example"\naudiences = ["gw"]\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_KEY", "a" * 30)
    monkeypatch.setenv("BENCH_KEY", "b" * 30)
    return tmp_path


def said(text: str, *words: str) -> list[str]:
    """What `check` says to a file, line by line; without what is good about it."""
    Path("claw.toml").write_text(text)
    result = CliRunner().invoke(cli.clawproxy, [*(words or ("check",)), "--config", "claw.toml"])
    if isinstance(result.exception, ConfigError):
        return result.exception.problems
    assert isinstance(result.exception, SystemExit | None), result.exception
    return [line for line in result.output.splitlines() if "claw.toml: good" not in line]


@pytest.mark.parametrize(
    ("added", "line", "sentence"),
    [
        ('[plugins.audit]\ncontent = "full"\n', 0, "plugins.audit.content_key: is required to keep content; set it"),
        (
            '[plugins.audit]\ncontent = "full"\ncontent_key = "env:NOT_SET"\n',
            2,
            "plugins.audit.content_key: env:NOT_SET is not set; set the variable, or name another",
        ),
        (
            '[plugins.auth.introspection]\nurl = "https://i.example"\nclient_id = "a"\nclient_secret = "env:NOT_SET"\n',
            3,
            "plugins.auth.introspection.client_secret: env:NOT_SET is not set",
        ),
        (ISSUER + 'ca_file = "gone.pem"\n', 3, "plugins.auth.issuers.corp.ca_file: "),
        (ISSUER + 'jwks = "file:gone.json"\n', 3, "plugins.auth.issuers.corp.jwks: "),
        (ISSUER + 'algorithms = ["HS256"]\n', 0, "plugins.auth.issuers.corp: is refused: algorithms: 'HS256' can not be used"),
        (
            '[budgets.b]\nscope = "global"\nlimit = "5 requests"\nwindow = "daily"\n',
            3,
            'budgets.b.window: "daily" is not known; did you',
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_mistake_has_one_line_with_its_place(added: str, line: int, sentence: str) -> None:
    [problem] = said(GOOD + added)
    assert problem.startswith(f"claw.toml:{NEXT + line}: {sentence}")
    assert ";" in problem


@pytest.mark.parametrize("text", ["$A_KEY", "${A_KEY}", "env:$A_KEY", "env:${A_KEY}"])
@pytest.mark.usefixtures("folder")
def test_a_shells_variable_is_no_secret(text: str) -> None:
    """Taken for one it is sent to the provider, who refuses it, and nobody knows why."""
    [problem] = said(GOOD.replace("env:A_KEY", text))
    assert problem == (
        "claw.toml:5: providers.a.api_key: is written like a variable in a shell, and those are not put in here; "
        'write "env:NAME", without $'
    )


def test_files_of_an_issuer_are_named_from_where_the_configuration_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "keys.json").write_text("{}")
    (folder / "ca.pem").write_text("")
    (folder / "claw.toml").write_text(GOOD + ISSUER + 'jwks = "file:keys.json"\nca_file = "ca.pem"\n')
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    result = CliRunner().invoke(cli.clawproxy, ["check", "--config", "../claw.toml"])
    assert (result.exit_code, result.exception) == (0, None)


@pytest.mark.parametrize(
    ("begins", "ends", "sentence"),
    [(-9, -3, "expired on"), (3, 9, "is not valid before"), (-9, 9, None), (-9, 20_000, None)],
)
def test_a_certificate_that_nobody_will_accept_is_warned_of(folder: Path, begins: int, ends: int, sentence: str | None) -> None:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    dates = [now + datetime.timedelta(days=days) for days in (begins, ends)]
    made = trustme.CA().issue_cert("gw.test", not_before=dates[0], not_after=dates[1])
    made.private_key_pem.write_to_path("k.pem")
    (folder / "c.pem").write_bytes(b"Bag Attributes: x\n" + b"".join(blob.bytes() for blob in made.cert_chain_pems))
    assert validity_of_file(folder / "c.pem") == (dates[0].timestamp(), dates[1].timestamp())
    warnings = said(GOOD + '[server.tls]\ncertificate = "c.pem"\nkey = "k.pem"\n')
    if sentence is None:
        assert warnings == []
    else:
        [warning] = warnings
        assert warning.startswith(f"warning: claw.toml:{NEXT + 1}: server.tls.certificate: {sentence} ")


@pytest.mark.parametrize("data", ["", "x", "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----", "\0" * 99])
def test_what_is_no_certificate_has_no_dates(folder: Path, data: str) -> None:
    (folder / "c.pem").write_text(data)
    assert validity_of_file(folder / "c.pem") is None
    assert validity_of_file(folder / "gone.pem") is None


def test_what_serve_finds_has_its_place_too(folder: Path) -> None:
    text = GOOD.replace('"state"', '"file"').replace("[server]", '[server]\nlisten = "127.0.0.1:0"\nadmin = ""')
    (folder / "file").write_text("")
    [problem] = said(text, "serve")
    assert problem.startswith("claw.toml:4: server.state_dir: ")


@pytest.mark.parametrize(
    ("asked", "sentences"),
    [
        ('surface = "openai"', ['case[0].request.surface: "openai" is not known; did you mean `openai_chat`?']),
        ("roles = 5", ["case[0].request.roles: is an integer; write a string, or an array of them"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_case_that_tests_nothing_is_refused(asked: str, sentences: list[str]) -> None:
    Path("cases.toml").write_text(f'[[case]]\nrequest = {{ model = "m", {asked} }}\nexpect = {{ route = "a/m" }}\n')
    assert said(GOOD, "policy", "test", "cases.toml") == [f"cases.toml:2: {sentence}" for sentence in sentences]


@pytest.mark.usefixtures("folder")
def test_a_table_that_is_left_out_for_its_mistakes_is_not_missed() -> None:
    text = '[[case]]\nrequest = { modle = "m" }\nexpect = { route = "a/m" }\n'
    Path("cases.toml").write_text(text)
    assert said(GOOD, "policy", "test", "cases.toml") == [
        "cases.toml:2: case[0].request.model: is missing; add `model = ...` here",
        "cases.toml:2: case[0].request.modle: is not a key here; did you mean `model`?",
    ]


def helps(command: click.Command, words: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    text = CliRunner().invoke(cli.clawproxy, [*words, "--help"], terminal_width=80).output
    found = [(" ".join(words), text)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            found += helps(inner, (*words, name))
    return found


def test_every_help_fits_80_columns_and_is_whole() -> None:
    pages = helps(cli.clawproxy)
    assert len(pages) > 20
    for name, text in pages:
        assert max(map(len, text.splitlines())) <= 80, name
        assert not re.search(r"\w\.\.\.$|…", text, re.MULTILINE), name
        for option in re.findall(r"^  (--\S+(?: [A-Z]+)?)\s*$(?!\n {3})", text, re.MULTILINE):
            raise AssertionError(f"{name}: {option} is not explained")
