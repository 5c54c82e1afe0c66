"""Broken configurations, and exactly what the operator reads about each."""
# ruff: noqa: E501 -- the sentences stand whole

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pytest
import trustme
from attrs import field, frozen, validators

from clawproxy.config import Duration, Size
from clawproxy.config.load import Loaded, load
from clawproxy.config.schema import Config, SecretRef
from clawproxy.errors import ConfigError


@frozen
class NoSettings:
    """A plugin's class without a key."""


@frozen
class SanitizeLike:
    """The kinds of values a plugin's settings may have."""

    mode: Literal["mask", "block"] = "mask"
    hold: Duration = Duration(1.0)  # noqa: RUF009
    window: Size = Size(1024)  # noqa: RUF009
    words: tuple[str, ...] = ()
    most: int = field(default=3, validator=validators.ge(1))


PLUGINS = ("audit", "auth", "sanitize", "truncate", "router", "meter")
SETTINGS: dict[str, type] = {**dict.fromkeys(PLUGINS, NoSettings), "sanitize": SanitizeLike}

NOTHING: Mapping[str, str] = {}


def loaded(folder: Path, text: str, environ: Mapping[str, str] = NOTHING) -> Loaded:
    file = folder / "claw.toml"
    file.write_text(text)
    return load(file, settings=SETTINGS, environ=environ)


def problems(folder: Path, text: str, environ: Mapping[str, str] = NOTHING) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text, environ)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


GOOD_PROVIDER = '[providers.a]\nbase_url = "http://127.0.0.1:9/v1"\n'
BROKEN: dict[str, tuple[str, list[str]]] = {
    "an unknown key": (
        '[server]\nlisen = "127.0.0.1:1"\n',
        ["claw.toml:2: server.lisen: is not a key here; did you mean `listen`?"],
    ),
    "a key in the wrong section": (
        '[server]\ndrain = "5s"\n',
        ["claw.toml:2: server.drain: is not a key here; move it under [deadlines]"],
    ),
    "a key outside of any section": (
        'listen = "127.0.0.1:1"\n',
        ["claw.toml:1: listen: stands outside of any section; move it under [server]"],
    ),
    "an unknown section": ("[provider.a]\n", ["claw.toml:1: provider: is not a section; did you mean `providers`?"]),
    "a section that is none": ("server = 1\n", ["claw.toml:1: server: is an integer; write a table, [server]"]),
    "wrong types, quietly convertible": (
        '[server]\nworkers = "1"\n[keys.k]\nsecret = "env:K"\nmay_assert = "no"\nmodels = "abc"\n',
        [
            "claw.toml:2: server.workers: is a string; write a whole number without quotes, like 2",
            "claw.toml:5: keys.k.may_assert: is a string; write true or false, without quotes",
            "claw.toml:6: keys.k.models: is a string; write an array, like [...]",
        ],
    ),
    "a duration without its unit": (
        "[deadlines]\nstall = 60\nconnect = -1.5\n",
        [
            'claw.toml:2: deadlines.stall: 60 has no unit; write "60s" if seconds are meant',
            'claw.toml:3: deadlines.connect: -1.5 has no unit; write "-1.5s" if seconds are meant',
        ],
    ),
    "clocks": (
        GOOD_PROVIDER + '[providers.a.deadlines]\nhead = "1s"\nstal = "5s"\n[deadlines]\nrate = "9s"\nconnect = "0s"\n',
        [
            "claw.toml:4: providers.a.deadlines.head: can not be set here; set it under [deadlines] (here: `queue`, `connect`, "
            "`first_token`, `stall`, `stall_reasoning`, `rate`)",
            "claw.toml:5: providers.a.deadlines.stal: is no clock; did you mean `stall`?",
            'claw.toml:7: deadlines.rate: "9s" is no rate; write it like "5 tokens/s over 30s", or "off"',
            'claw.toml:8: deadlines.connect: "0s" leaves no time at all; write a longer time, or "off" for no limit',
        ],
    ),
    "a size in an unknown unit": (
        '[limits]\nbody = "32 megs"\nconnections = -1\njson_depth = 0\n',
        [
            'claw.toml:2: limits.body: "32 megs" has an unknown unit; write MiB',
            "claw.toml:3: limits.connections: -1 is negative; write 0 for its default or no limit, or a number above",
            "claw.toml:4: limits.json_depth: 0 would refuse everything; write a larger value",
        ],
    ),
    "routes": (
        GOOD_PROVIDER
        + '[models."gpt-4.1"]\nroutes = [\n  { provider = "b", model = "m" },\n  { provider = "a" },\n]\n[models.y]\nroutes = []\n'
        "[models.z]\n",
        [
            'claw.toml:5: models."gpt-4.1".routes[0].provider: "b" is not in [providers]; known are `a`',
            'claw.toml:6: models."gpt-4.1".routes[1].model: is missing; add `model = ...` here',
            'claw.toml:9: models.y.routes: is empty; add one, like { provider = "openai", model = "gpt-4o-mini" }',
            "claw.toml:10: models.z.routes: is missing; add `routes = ...` here",
        ],
    ),
    "a strategy that is not known": (
        GOOD_PROVIDER
        + '[models.x]\nstrategy = "weighted"\nroutes = [{provider = "a", model = "m"}]\n[models.y]\nstrategy = "priorty"\n'
        'routes = [{provider = "a", model = "m"}]\n',
        [
            'claw.toml:7: models.y.strategy: "priorty" is no known strategy; did you mean `priority`?',
        ],
    ),
    "dialects": (
        '[providers.a]\ndialect = "gemeni"\nbase_url = "https://x.example"\n[providers.b]\ndialect = "openai-chat"\nbase_url = '
        '"https://x.example"\n[providers.c]\ndialect = "scripted"\nbase_url = "http://x.example"\n[providers.d]\nscript = "x"\n',
        [
            'claw.toml:2: providers.a.dialect: "gemeni" is no known dialect; did you mean `gemini`?',
            'claw.toml:5: providers.b.dialect: "openai-chat" is no known dialect; did you mean `openai_chat`?',
            "claw.toml:9: providers.c.base_url: has no meaning for a scripted provider, which runs in this process; remove it",
            'claw.toml:10: providers.d.base_url: is missing; add it, like base_url = "https://api.openai.com/v1"',
            'claw.toml:11: providers.d.script: is only for dialect = "scripted"; remove it',
        ],
    ),
    "base URLs": (
        "".join(
            f'[providers.{name}]\nbase_url = "{url}"\n'
            for name, url in {
                "a": "https://me:hunter2@x.example/v1",
                "b": "https://x.example/v1?key=1",
                "c": "ftp://x.example",
                "d": "x.example/v1",
                "e": "https://x.example/v1/chat/completions",
                "f": "https://x.example/ v1",
                "g": "https://x.example:99999",
            }.items()
        ),
        [
            "claw.toml:2: providers.a.base_url: holds credentials; take them out and use api_key",
            'claw.toml:4: providers.b.base_url: "https://x.example/v1" goes on with a query or a fragment; end it with the path, '
            "and use api_key for a key",
            'claw.toml:6: providers.c.base_url: "ftp://x.example" is no http or https URL; write it like "https://api.openai.com/v1"',
            'claw.toml:8: providers.d.base_url: "x.example/v1" is no http or https URL; write it like "https://api.openai.com/v1"',
            'claw.toml:10: providers.e.base_url: "https://x.example/v1/chat/completions" names an endpoint; write "https://x.example/v1"',
            'claw.toml:12: providers.f.base_url: "https://x.example/ v1" has characters that a URL can not have; write it in plain '
            "ASCII, percent-encoded",
            'claw.toml:14: providers.g.base_url: is no valid URL; write it like "https://api.openai.com/v1"',
        ],
    ),
    "headers": (
        GOOD_PROVIDER + '[providers.a.headers]\n"x y" = "1"\nAuthorization = "Bearer 1"\nHost = "h"\nx-a = "a\\r\\nb"\n',
        [
            'claw.toml:4: providers.a.headers."x y": is no header name (RFC 9110 5.1); use letters, digits and `-`',
            "claw.toml:5: providers.a.headers.Authorization: is a credential; use api_key, so that it is kept secret",
            "claw.toml:6: providers.a.headers.Host: is set by the gateway itself; remove it",
            "claw.toml:7: providers.a.headers.x-a: has a value no header can have; use printable ASCII without white space around it",
        ],
    ),
    "budgets": (
        '[budgets.daily]\nscope = "key:bench"\nlimit = "5 requests"\n[budgets.b]\n',
        [
            'claw.toml:1: budgets.daily.window: is missing; add window = "minute", "hour", "day", "month" or "total"',
            "claw.toml:4: budgets.b.limit: is missing; add `limit = ...` here",
            "claw.toml:4: budgets.b.scope: is missing; add `scope = ...` here",
        ],
    ),
    "what is read on, and can not be": (
        '[providers.a]\nbase_url = "http://127.0.0.1:9/v1"\ndrain_time = "5s"\n'
        '[providers.b]\ndialect = "openai_responses"\nbase_url = "http://127.0.0.1:9/v1"\nwebsocket = true\non_cancel = "drain"\n'
        '[providers.c]\nbase_url = "http://127.0.0.1:9/v1"\non_cancel = "drain"\ndrain_time = "1h"\ndrain_bytes = 0\n',
        [
            'claw.toml:3: providers.a.drain_time: has no meaning without on_cancel = "drain"; write that too, or remove it',
            'claw.toml:8: providers.b.on_cancel: "drain" can not be had with websocket = true: an answer there is ended by a message; '
            "remove one of the two",
            'claw.toml:12: providers.c.drain_time: must be above "0s" and at most "10m"',
            'claw.toml:13: providers.c.drain_bytes: must be at least 1; for none at all write on_cancel = "cancel"',
        ],
    ),
    "workers": (
        "[server]\nworkers = 4\n",
        [
            "claw.toml:2: server.workers: more than one worker is not available in this version; write 1, and run more instances to "
            "use more cores"
        ],
    ),
    "addresses": (
        '[server]\nlisten = ["127.0.0.1:8643", "localhost", "[::1]:1"]\nhosts = ["http://x"]\norigins = ["*"]\ntrusted_proxies = ["x"]\n',
        [
            # Nobody wrote the address it clashes with: the section stands for its default.
            "claw.toml:1: server.admin: 127.0.0.1:8643 is taken by server.listen; give it a port of its own, or 0 for any free one",
            'claw.toml:2: server.listen[1]: "localhost" has no port; write "localhost:8642"',
            'claw.toml:3: server.hosts[0]: "http://x" is no host; write a name as it stands in a Host header',
            'claw.toml:4: server.origins[0]: "*" is no origin; write each as "https://app.example", without a path or *',
            "claw.toml:5: server.trusted_proxies: forwarded addresses are not read by this version; leave it out",
        ],
    ),
    "certificates": (
        '[server.tls]\ncertificate = "no.pem"\nkey = "."\n',
        [
            "claw.toml:2: server.tls.certificate: no.pem can not be read (No such file or directory); name a PEM file that "
            "this user may read",
            "claw.toml:3: server.tls.key: FOLDER can not be read (Is a directory); name a PEM file that this user may read",
        ],
    ),
    "keys": (
        '[keys."a b"]\nsecret = "env:K"\n[keys.b]\nsecret = ""\n[keys.c]\nsecret = 12345\nexpires = 2027-01-01\nmodels = ["a*b"]\n',
        [
            'claw.toml:1: keys."a b": is no name for a key; use letters, digits, `_`, `.`, `@` and `-`, at most 64',
            'claw.toml:4: keys.b.secret: is empty; write a reference, like "env:NAME" or "file:PATH", or leave the key out',
            'claw.toml:6: keys.c.secret: is an integer; write a reference, like "env:NAME" or "file:PATH"',
            "claw.toml:7: keys.c.expires: is a date without a time; write a date and time with its offset, like 2027-01-31T00:00:00Z",
            'claw.toml:8: keys.c.models[0]: "a*b" is no pattern; write a model\'s name, "prefix*" or "*"',
        ],
    ),
    "the pipeline": (
        '[pipeline]\norder = ["aduit", "meter", "meter", 5]\n[plugins.sanitise]\n',
        [
            'claw.toml:2: pipeline.order[0]: "aduit" is no installed plugin; did you mean `audit`?',
            'claw.toml:2: pipeline.order[2]: "meter" stands there twice; name each plugin once',
            "claw.toml:2: pipeline.order[3]: is an integer; write a string in quotes",
            "claw.toml:3: plugins.sanitise: is no installed plugin; did you mean `sanitize`?",
        ],
    ),
    "nobody to let anybody in": (
        '[pipeline]\norder = ["router"]\n',
        ["claw.toml:2: pipeline.order: has no `auth`: nobody could get in; add it, early in the list"],
    ),
    "a plugin's settings": (
        '[plugins.sanitize]\nmode = "maks"\nhold = "5"\nwindow = "1x"\nwords = [1]\nmots = 2\n',
        [
            'claw.toml:2: plugins.sanitize.mode: "maks" is not known; did you mean `mask`?',
            'claw.toml:3: plugins.sanitize.hold: "5" has no unit; write "5s" if seconds are meant',
            'claw.toml:4: plugins.sanitize.window: "1x" has an unknown unit; write KiB, MiB or GiB',
            "claw.toml:5: plugins.sanitize.words[0]: is an integer; write a string in quotes",
            "claw.toml:6: plugins.sanitize.mots: is not a key here; did you mean `most`?",
        ],
    ),
    "a plugin's own validator": (
        "[plugins.sanitize]\nmost = 0\n",
        ["claw.toml:1: plugins.sanitize: is refused: 'most' must be >= 1: 0"],
    ),
    "the log": ('[log]\nlevel = "warn"\n', ['claw.toml:2: log.level: "warn" is not known; write debug, info, warning or error']),
    "TOML: an unclosed string": (
        '[server]\nlisten = "127\n',
        ["claw.toml:2:14: is not valid TOML 1.0: Illegal character '\\\\n'; see https://toml.io"],
    ),
    "TOML: a key twice": (
        "[server]\nworkers = 1\nworkers = 1\n",
        ["claw.toml:3:12: is not valid TOML 1.0: Cannot overwrite a value; see https://toml.io"],
    ),
    "TOML: the end is missing": ("a = [1,\n", ["claw.toml:2:1: is not valid TOML 1.0: Invalid value; see https://toml.io"]),
    "TOML: a nesting bomb": ("a = " + "[" * 100_000, ["claw.toml:1:1: brackets are nested too deeply; use tables"]),
    "a byte order mark": ("\ufeffa = 1", ["claw.toml:1:1: begins with a byte order mark; save the file as UTF-8 without one"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str, tmp_path: Path) -> None:
    text, expected = BROKEN[name]
    assert [problem.replace(str(tmp_path), "FOLDER") for problem in problems(tmp_path, text)] == expected


def test_b13_no_two_processes_share_what_is_counted(tmp_path: Path) -> None:
    """Without a shared store there is none that could fail over and lose its last writes: several workers, of which each would give
    the whole limit, are refused. (Two processes on one state_dir: `tests/stores/test_sqlite.py`.)"""
    budget = '[budgets.all]\nscope = "global"\nlimit = "9 tokens"\nwindow = "day"\n'
    assert any("more than one worker" in problem for problem in problems(tmp_path, f"[server]\nworkers = 2\n{budget}"))
    loaded(tmp_path, f"[server]\nworkers = 1\n{budget}")


def test_every_mistake_of_a_file_at_once(tmp_path: Path) -> None:
    """All sections broken together give what each gives alone (less where two want the same table)."""
    names = ["wrong types, quietly convertible", "a strategy that is not known", "budgets", "a plugin's settings", "the log"]
    together = problems(tmp_path, "".join(BROKEN[name][0] for name in names))
    alone = [problem.split(": ", 1)[1] for name in names for problem in BROKEN[name][1]]
    assert sorted(problem.split(": ", 1)[1] for problem in together) == sorted(alone)


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "claw.toml").write_bytes(b'[server]\nlisten = "\xff"\n')
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "claw.toml", settings=SETTINGS, environ={})
    assert caught.value.problems == [f"{tmp_path}/claw.toml:2:11: byte 0xff is not UTF-8; save it as UTF-8"]


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "big.toml").write_bytes(b"#" * (5 << 20))
    for name, sentence in (
        ("none.toml", "can not be read (No such file or directory); name a file that this user may read"),
        (".", "can not be read (Is a directory); name a file that this user may read"),
        ("big.toml", "is larger than 4 MiB; this is hardly a configuration"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / name, settings=SETTINGS, environ={})
        assert caught.value.problems == [f"{tmp_path / name}: {sentence}"]


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    result = loaded(tmp_path, "")
    default = Config()
    assert result.warnings == []
    assert result.config.limits == default.limits
    assert result.config.deadlines == default.deadlines
    assert result.config.path == tmp_path / "claw.toml"
    assert result.config.server.state_dir == Path("~/.local/state/clawproxy").expanduser()
    assert set(result.settings) == set(SETTINGS)


def test_values_arrive(tmp_path: Path) -> None:
    result = loaded(
        tmp_path,
        """
[server]
listen = ["127.0.0.1:1", "[::1]:0"]
admin = ""
state_dir = "state"
[providers.a]
base_url = "https://x.example/v1"
api_key = "file:keys/a"
headers = { x-team = "core" }
deadlines = { stall = "2m" }
pool = { max = 5, idle = "1m" }
[models.m]
routes = [{ provider = "a", model = "n", context_tokens = 8192 }]
[keys.k]
secret = "env:K"
expires = 2100-01-01T00:00:00Z
[deadlines]
total = "off"
[limits]
body = "1MiB"
[plugins.sanitize]
mode = "block"
window = "2KiB"
""",
    )
    config = result.config
    assert config.server.listen == ("127.0.0.1:1", "[::1]:0")
    assert config.server.admin is None
    assert config.server.state_dir == tmp_path / "state"
    provider = config.providers["a"]
    assert provider.api_key == SecretRef("file", str(tmp_path / "keys/a"))
    assert (provider.headers, provider.deadlines, provider.pool.max, provider.pool.idle) == (
        {"x-team": "core"},
        {"stall": 120.0},
        5,
        60.0,
    )
    assert config.models["m"].routes[0].context_tokens == 8192
    assert config.keys["k"].expires == 4102444800.0
    assert config.deadlines.total == float("inf")
    assert config.limits.body == 1 << 20
    assert result.settings["sanitize"].mode == "block"
    assert config.plugins["sanitize"] == {"mode": "block", "window": "2KiB"}
    assert result.warnings == []


def test_warnings(tmp_path: Path) -> None:
    result = loaded(
        tmp_path,
        """[server]
listen = "0.0.0.0:8642"
admin = "10.0.0.1:8643"
[providers.a]
base_url = "http://api.x.example/v1"
api_key = "sk-123456"
[models.m]
routes = [{ provider = "a", model = "n" }]
deadlines = { total = "1s" }
[keys.k]
secret = "bench"
models = ["n"]
expires = 2020-01-01T00:00:00Z
[deadlines]
stall = "5s"
[pipeline]
order = ["auth", "router"]
[plugins.sanitize]
""",
    )
    assert [warning.replace(f"{tmp_path}/", "") for warning in result.warnings] == [
        "claw.toml:2: server.listen: 0.0.0.0:8642 is every interface, and keys travel in the clear; set server.tls, or use a loopback "
        "address",
        "claw.toml:3: server.admin: 10.0.0.1:8643 is open to other machines, and /metrics needs no credential; use a loopback address",
        "claw.toml:5: providers.a.base_url: is http: the provider's key travels in the clear; write https",
        'claw.toml:6: providers.a.api_key: is a secret in the file itself; write "env:NAME" or "file:PATH"',
        "claw.toml:9: models.m.deadlines.total: total (1s) is shorter than first_token (2m): `total` always ends first; raise total "
        "or lower first_token",
        "claw.toml:9: models.m.deadlines.total: total (1s) is shorter than connect (5s): `total` always ends first; raise total or "
        "lower connect",
        "claw.toml:9: models.m.deadlines.total: total (1s) is shorter than queue (10s): `total` always ends first; raise total or "
        "lower queue",
        "claw.toml:9: models.m.deadlines.total: total (1s) is shorter than stall (5s): `total` always ends first; raise total or "
        "lower stall",
        'claw.toml:11: keys.k.secret: is a secret in the file itself; write "env:NAME" or "file:PATH"',
        'claw.toml:12: keys.k.models[0]: "n" fits none of [models]; known are `m`',
        "claw.toml:13: keys.k.expires: is in the past: this key is refused; remove the key, or set a later date",
        "claw.toml:15: deadlines.stall: stall (5s) is shorter than keepalive_sse (15s): a stream would be cut before its first "
        "keep-alive; raise stall or lower keepalive_sse",
        "claw.toml:18: plugins.sanitize: is not in pipeline.order, so it does nothing; add it there, or remove this section",
    ]


def test_a_certificate_and_its_key(tmp_path: Path) -> None:
    authority = trustme.CA()
    one, two = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    one.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    one.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    two.private_key_pem.write_to_path(str(tmp_path / "other.pem"))
    (tmp_path / "text.pem").write_text("hello")
    assert loaded(tmp_path, '[server.tls]\ncertificate = "cert.pem"\nkey = "key.pem"\n').config.server.tls is not None
    for key in ("other.pem", "text.pem"):
        [problem] = problems(tmp_path, f'[server.tls]\ncertificate = "cert.pem"\nkey = "{key}"\n')
        assert problem.startswith("claw.toml:1: server.tls: certificate and key can not be used together (")


def test_dialects_and_plugins_of_others(tmp_path: Path) -> None:
    file = tmp_path / "claw.toml"
    file.write_text(
        '[providers.a]\ndialect = "acme"\nbase_url = "https://x.example"\n[pipeline]\norder = ["auth", "extra"]\n[plugins.extra]\n'
    )
    result = load(file, settings=SETTINGS, known_dialects=["acme"], known_plugins=["extra"], environ={})
    assert result.config.providers["a"].dialect == "acme"
    file.write_text("[plugins.extra]\nx = 1\n")
    with pytest.raises(ConfigError) as caught:
        load(file, settings=SETTINGS, known_plugins=["extra"], environ={})
    assert caught.value.problems == [f"{file}:1: plugins.extra: takes no settings; remove this section"]
