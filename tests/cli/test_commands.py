"""Commands as an operator runs them: real processes, their exit codes, and what they say. Never a traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
state_dir = "state"
[providers.s]
dialect = "scripted"
script = "reply"
[models.demo]
routes = [{ provider = "s", model = "demo" }]
[keys.bench]
secret = "env:BENCH_KEY"
"""
KEY = "bench-0123456789abcdef"


def environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}", "PATH": os.environ["PATH"], "HOME": str(folder), "BENCH_KEY": KEY, **more}


def clawproxy(folder: Path, *words: str, said: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clawproxy", *words],
        cwd=folder,
        env=environment(folder, more),
        input=said,
        stdin=subprocess.DEVNULL if said is None else None,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clawproxy.toml").write_text(CONFIG)
    return tmp_path


@contextmanager
def serving(folder: Path, *words: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A gateway, and what its ready file says. It is stopped with SIGTERM."""
    ready = folder / "ready.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "clawproxy", "serve", "--ready-file", str(ready), *words],
        cwd=folder,
        env=environment(folder, more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 30
        while not ready.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        if not ready.exists():
            process.kill()
            raise AssertionError(process.communicate())
        row = json.loads(ready.read_text())
        yield process, {"listen": row["listen"][0], "admin": row["admin"], "pid": str(row["pid"])}
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def test_help_and_version_import_little(tmp_path: Path) -> None:
    shown = clawproxy(tmp_path, "--help")
    assert shown.returncode == 0
    assert [name for name in ("serve", "demo", "chat", "check", "keys", "scripted") if f"  {name} " not in shown.stdout] == []
    assert clawproxy(tmp_path, "--version").stdout.startswith("clawproxy, version ")
    code = "import sys, clawproxy.cli; sys.exit(any(name in sys.modules for name in ('trio', 'rich', 'cattrs')))"
    assert subprocess.run([sys.executable, "-c", code], env=environment(tmp_path, {})).returncode == 0


def test_check(folder: Path) -> None:
    good = clawproxy(folder, "check")
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout == (
        "clawproxy.toml: good. 1 provider, 1 model, 1 static key; plugins in order: audit, auth, sanitize, truncate, router, "
        "meter.\n"
    )


def test_check_says_everything_and_exits_2(folder: Path) -> None:
    (folder / "bad.toml").write_text(
        '[server]\nlisen = "x"\n[models.m]\nroutes = [{provider = "s", model = "m"}]\n[plugins.sanitize]\nx = 1\n'
    )
    bad = clawproxy(folder, "check", "--config", "bad.toml")
    assert (bad.returncode, bad.stdout) == (2, "")
    lines = bad.stderr.splitlines()
    assert lines[:2] == [
        "bad.toml:2: server.lisen: is not a key here; did you mean `listen`?",
        'bad.toml:4: models.m.routes[0].provider: "s" is not in [providers]; add it under [providers]',
    ]
    assert lines[2].startswith("bad.toml:6: plugins.sanitize.x: is not a key here; ")
    assert len(lines) == 3


def test_an_unset_secret_matters_to_check_and_serve_but_not_to_keys(folder: Path) -> None:
    for words in (("check",), ("serve",)):
        done = clawproxy(folder, *words, BENCH_KEY="")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "clawproxy.toml:12: keys.bench.secret: env:BENCH_KEY is empty; put the secret there\n"
    assert clawproxy(folder, "keys", "list", BENCH_KEY="").returncode == 0


def test_check_asks_the_plugins_too(folder: Path) -> None:
    with (folder / "clawproxy.toml").open("a") as file:
        file.write('[plugins.sanitize]\npatterns = { "x" = "(" }\n')
    for command in ("check", "serve"):
        done = clawproxy(folder, command)
        assert (done.returncode, done.stdout) == (2, "")
        [line] = done.stderr.splitlines()
        assert line.startswith("clawproxy.toml:14: plugins.sanitize.patterns.x: ")


def test_warnings_do_not_fail(folder: Path) -> None:
    done = clawproxy(folder, "check", BENCH_KEY="short")
    assert done.returncode == 0
    assert done.stderr == (
        "warning: clawproxy.toml:12: keys.bench.secret: has fewer than 20 characters and can be guessed; use "
        "`clawproxy keys create`\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("serve", "--config", "none.toml"), 2, "none.toml: there is no such file; --config must name a configuration file"),
        (("serve", "--config", "."), 2, ".: can not be read (Is a directory); name a file that this user may read"),
        (("serve", "--ready-file", "no/where"), 2, "--ready-file no/where: its folder can not be written"),
        (("keys", "revoke", "nobody"), 2, "NAME: there is no key `nobody` in the store; `clawproxy keys list` names them"),
        (
            ("keys", "revoke", "bench"),
            2,
            "NAME: there is no key `bench` in the store; it is in the configuration; remove it there",
        ),
        (("keys", "create", "a b"), 2, "NAME: 'a b' is no name for a key; use letters"),
        (("keys", "create", "x", "--expires", "5"), 2, '--expires: "5" has no unit; write "5s" if seconds are meant'),
        (
            ("keys", "create", "x", "--expires", "2001-01-01T00:00:00Z"),
            2,
            '--expires: "2001-01-01T00:00:00Z" is not in the future',
        ),
        (("scripted", "--script", "fly"), 2, "--script: "),
        (("scripted", "--port", "99999"), 2, "Usage: "),
        (("chat", "hello", "--url", "ws://127.0.0.1:9/websocket"), 1, "clawproxy: nobody answers at 127.0.0.1:9"),
        (
            ("chat", "hello", "--model", "m", "--url", "ws://127.0.0.1:9/websocket"),
            1,
            "clawproxy: nobody speaks WebSocket at ws://127",
        ),
        (("chat", "hello", "--url", "gopher://x"), 2, "Usage: "),
        (("frobnicate",), 2, "Usage: "),
    ],
)
def test_mistakes_are_one_sentence(folder: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = clawproxy(folder, *words)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_port_in_use(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = clawproxy(folder, "serve", CLAWPROXY_LISTEN=address)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"CLAWPROXY_LISTEN: server.listen: {address}: the address is in use; ")


def test_a_state_directory_that_can_not_be_made(folder: Path) -> None:
    (folder / "file").write_text("")
    done = clawproxy(folder, "keys", "list", CLAWPROXY_STATE_DIR=str(folder / "file/state"))
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert "file" in done.stderr


def test_serve_says_one_line_and_drains(folder: Path) -> None:
    with serving(folder) as (process, where):
        assert where["pid"] == str(process.pid)
        with urllib.request.urlopen(where["admin"] + "/readyz") as answer:
            assert json.load(answer) == {"ready": True, "reasons": []}
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert out == f"clawproxy listening on {where['listen']}\n"
    assert process.returncode == 0
    rows = [json.loads(line) for line in err.splitlines()]
    assert [row["event"] for row in rows][:1] == ["server.listening"]
    assert all(row["instance"] and {"ts", "level", "generation"} <= set(row) for row in rows)
    assert not (folder / "ready.json").exists()


def test_ctrl_c_is_quiet(folder: Path) -> None:
    with serving(folder) as (process, _):
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode in (0, 130)
    assert "Traceback" not in err
    assert all(line.startswith("{") for line in err.splitlines())


def test_keys_from_birth_to_end(folder: Path) -> None:
    made = clawproxy(folder, "keys", "create", "app", "--user", "ann", "--model", "demo", "--expires", "30d")
    assert made.returncode == 0
    key = made.stdout.strip()
    assert key.startswith("claw_")
    again = clawproxy(folder, "keys", "create", "app")
    assert again.returncode == 2
    assert again.stderr == "NAME: there is a key `app` already; revoke it first, or choose another name\n"
    with serving(folder) as (_, where):
        url = where["listen"].replace("http", "ws")
        answer = clawproxy(folder, "chat", "Say hello.", "--url", url, CLAWPROXY_KEY=key)
        assert (answer.returncode, answer.stderr) == (0, "")
        assert answer.stdout.startswith("Hello!")
        rows = json.loads(clawproxy(folder, "keys", "list", "--json").stdout)
        assert [(row["name"], row["state"], row["from"], row["user"]) for row in rows] == [
            ("app", "good", "store", "ann"),
            ("bench", "good", "configuration", None),
        ]
        assert key not in json.dumps(rows)
        assert clawproxy(folder, "keys", "revoke", "app").stdout == "Key `app` revoked.\n"
        refused = clawproxy(folder, "chat", "Say hello.", "--url", url, CLAWPROXY_KEY=key)
        until = time.monotonic() + 15  # 5 s are promised (test_admin_keys); each look takes one
        while refused.returncode == 0 and time.monotonic() < until:
            refused = clawproxy(folder, "chat", "Say hello.", "--url", url, CLAWPROXY_KEY=key)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == "clawproxy: the gateway says: The credential has expired or was revoked.\n"
    table = clawproxy(folder, "keys", "list").stdout
    assert "revoked" in table
    assert key.removeprefix("claw_")[6:] not in table


def test_chat(folder: Path) -> None:
    with serving(folder) as (_, where):
        url = where["listen"].replace("http", "ws") + "/websocket"
        by_argument = clawproxy(folder, "chat", "One two three", "--url", url, "--model", "demo", "--key", KEY)
        assert (by_argument.returncode, by_argument.stderr) == (0, "")
        assert '"One two three"' in by_argument.stdout
        by_stdin = clawproxy(folder, "chat", "--url", where["listen"], "--key", KEY, said="four five")
        assert (by_stdin.returncode, by_stdin.stderr) == (0, "")
        assert '"four five"' in by_stdin.stdout
        evil = clawproxy(folder, "chat", 'script: say "a\\u001b[31mb\\u202ec"', "--url", url, "--key", KEY)
        assert evil.stdout == "a·[31mb·c\n"
        wrong_key = clawproxy(folder, "chat", "x", "--url", url, "--key", "nope", "--model", "demo")
        assert (wrong_key.returncode, wrong_key.stdout) == (1, "")
        assert wrong_key.stderr.startswith("clawproxy: ")
        wrong_model = clawproxy(folder, "chat", "x", "--url", url, "--key", KEY, "--model", "nope")
        assert (wrong_model.returncode, wrong_model.stdout) == (1, "")
        assert wrong_model.stderr.endswith("(model_not_found)\n")


def test_ctrl_c_cancels_an_answer(folder: Path) -> None:
    with serving(folder) as (_, where):
        url = where["listen"].replace("http", "ws") + "/websocket"
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "clawproxy",
                "chat",
                'script: say "begun"; pause 60s; say "never"',
                "--url",
                url,
                "--key",
                KEY,
            ],
            cwd=folder,
            env=environment(folder, {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.read(5) == "begun"
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert time.monotonic() - started < 5
    assert (process.returncode, out, err) == (130, "\n", "cancelled\n")


def test_no_configuration_at_all(tmp_path: Path) -> None:
    """Loopback, providers from the environment, and a first key that is written, not logged, and works."""
    free = {"CLAWPROXY_LISTEN": "127.0.0.1:0", "CLAWPROXY_ADMIN": "127.0.0.1:0"}
    with serving(tmp_path, OPENAI_API_KEY="sk-x", **free) as (process, where):
        path = tmp_path / ".local/state/clawproxy/first-key"
        key = path.read_text().strip()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        request = urllib.request.Request(where["listen"] + "/v1/models", headers={"authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["object"] == "list"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert key not in out + err
    path.unlink()
    with serving(tmp_path, OPENAI_API_KEY="sk-x", **free):
        assert not path.exists()  # once is once


def test_nothing_kept_and_nobody_watching_needs_a_key(tmp_path: Path) -> None:
    free = {"CLAWPROXY_LISTEN": "127.0.0.1:0", "CLAWPROXY_ADMIN": "127.0.0.1:0"}
    refused = clawproxy(tmp_path, "serve", "--ephemeral", **free)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("CLAWPROXY_KEY: is not set, and with --ephemeral nobody would know")
    with serving(tmp_path, "--ephemeral", CLAWPROXY_KEY=KEY, **free) as (_, where):
        request = urllib.request.Request(where["listen"] + "/v1/models", headers={"authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
    assert list(tmp_path.iterdir()) == []


def test_demo(tmp_path: Path) -> None:
    done = clawproxy(tmp_path, "demo", "--once", "--prompt", "Good \x1b[31mmorning")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Hello! You said") == 2
    assert done.stdout.count("outcome    complete") == 2
    assert done.stdout.count("scripted/demo-model") == 2
    assert "tokens in" in done.stdout
    assert "clawproxy serve" in done.stdout
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_demo_stays_up_until_ctrl_c(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "clawproxy", "demo"],
        cwd=tmp_path,
        env=environment(tmp_path, {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    command = next(line for line in process.stdout if "--url" in line)
    words = command.split()
    chat = clawproxy(tmp_path, *words[2:], said="Still there?")
    assert chat.returncode == 0
    assert "Still there?" in chat.stdout
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


def test_scripted(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "clawproxy", "scripted", "--script", 'say "hi there"'],
        cwd=tmp_path,
        env=environment(tmp_path, {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    base = process.stdout.readline().split()[-1]
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
    url = base.removesuffix("/v1") + "/v1/chat/completions"
    with urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"})) as answer:
        assert "hi there" in json.load(answer)["choices"][0]["message"]["content"]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")


def test_a_reader_who_leaves_is_no_defect(folder: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m clawproxy check | true",
        shell=True,
        cwd=folder,
        env=environment(folder, {}),
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
