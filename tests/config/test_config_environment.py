from __future__ import annotations

from pathlib import Path

import pytest
from attrs import frozen

from clawproxy.config.environment import find_config, ollama_base, providers_found
from clawproxy.config.load import load
from clawproxy.config.schema import SecretRef
from clawproxy.config.secretrefs import resolve_secret
from clawproxy.errors import ConfigError


@frozen
class SanitizeLike:
    mode: str = "mask"
    most: int = 3


@frozen
class NoSettings:
    pass


SETTINGS: dict[str, type] = {
    **dict.fromkeys(("audit", "auth", "sanitize", "truncate", "router", "meter"), NoSettings),
    "sanitize": SanitizeLike,
}


def test_no_config_at_all_is_valid() -> None:
    result = load(None, settings=SETTINGS, environ={"OPENAI_API_KEY": "sk-1", "GROQ_API_KEY": " ", "OLLAMA_HOST": "box:1234"})
    assert result.config.server.listen == ("127.0.0.1:8642",)
    assert {name: provider.base_url for name, provider in result.config.providers.items()} == {
        "openai": "https://api.openai.com/v1",
        "ollama": "http://box:1234",
    }
    assert result.config.providers["openai"].api_key == SecretRef("env", "OPENAI_API_KEY")
    assert result.config.providers["ollama"].api_key is None
    assert result.config.providers["ollama"].dialect == "ollama"
    assert result.warnings == []


def test_nothing_found_is_a_warning() -> None:
    [warning] = load(None, settings=SETTINGS, environ={}).warnings
    assert warning.startswith("environment: no provider was found; set one of OPENAI_API_KEY, ANTHROPIC_API_KEY,")


def test_every_variable_gives_a_provider() -> None:
    names = ["OPENAI", "ANTHROPIC", "GEMINI", "XROUTE", "GROQ", "MISTRAL", "DEEPSEEK", "OPENROUTER"]
    found = providers_found({f"{name}_API_KEY": "k" for name in names})
    assert sorted(found) == sorted(name.lower() for name in names)
    load(None, settings=SETTINGS, environ={f"{name}_API_KEY": "k" for name in names})


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("http://box", "http://box:80"),
        ("https://box/api/", "https://box:443/api"),
        ("[::]:5", "http://[::1]:5"),
        (":5", "http://127.0.0.1:5"),
        ("box:port", None),
        ("ssh://box", None),
    ],
)
def test_ollama_host(host: str, base: str | None) -> None:
    assert ollama_base(host) == base


def test_providers_come_from_the_environment_only_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("")
    assert load(tmp_path / "c.toml", settings=SETTINGS, environ={"OPENAI_API_KEY": "x"}).config.providers == {}


def test_settings_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[providers.my-box]\nbase_url = "http://127.0.0.1:1"\n[models."gpt-4.1"]\nroutes = [{provider = "my-box", model = "m"}]\n'
    )
    result = load(
        tmp_path / "c.toml",
        settings=SETTINGS,
        environ={
            "CLAWPROXY_LISTEN": "127.0.0.1:1, [::1]:1",
            "CLAWPROXY_ADMIN": "off",
            "CLAWPROXY_STATE_DIR": str(tmp_path / "s"),
            "CLAWPROXY_KEY": "0123456789abcdef0123",
            "CLAWPROXY__PROVIDERS__MY_BOX__BASE_URL": "https://box.example/v1",
            "CLAWPROXY__PROVIDERS__MY_BOX__HEADERS": '{ x-a = "1" }',
            "CLAWPROXY__PROVIDERS__MY_BOX__POOL__MAX": "7",
            "CLAWPROXY__MODELS__GPT_4_1__DEADLINES__STALL": "90s",
            "CLAWPROXY__LIMITS__BODY": "1048576",
            "CLAWPROXY__LIMITS__HEAD": "8KiB",
            "CLAWPROXY__SERVER__ORIGINS": '["https://a.example", "https://b.example"]',
            "CLAWPROXY__KEYS__ENVIRONMENT__MAY_ASSERT": "true",
            "CLAWPROXY__LOG__LEVEL": "debug",
            "CLAWPROXY__LOG__EMPTY": "",
            "CLAWPROXY__PLUGINS__SANITIZE__MODE": "block",
            "CLAWPROXY__PLUGINS__SANITIZE__MOST": "5",
        },
    )
    config = result.config
    assert config.server.listen == ("127.0.0.1:1", "[::1]:1")
    assert config.server.admin is None
    assert config.server.state_dir == tmp_path / "s"
    assert config.server.origins == ("https://a.example", "https://b.example")
    box = config.providers["my-box"]
    assert (box.base_url, box.headers, box.pool.max) == ("https://box.example/v1", {"x-a": "1"}, 7)
    assert config.models["gpt-4.1"].deadlines == {"stall": 90.0}
    assert (config.limits.body, config.limits.head) == (1 << 20, 8192)
    assert config.keys["environment"].secret == SecretRef("env", "CLAWPROXY_KEY")
    assert config.keys["environment"].may_assert
    assert config.log.level == "debug"
    assert (result.settings["sanitize"].mode, result.settings["sanitize"].most) == ("block", 5)


def test_variables_that_fit_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[server]\nlisten = "127.0.0.1:1"\n')
    with pytest.raises(ConfigError) as caught:
        load(
            tmp_path / "c.toml",
            settings=SETTINGS,
            environ={
                "CLAWPROXY__SERVER__LISEN": "127.0.0.1:1",
                "CLAWPROXY__SERVER__LISTEN__X": "1",
                "CLAWPROXY__SERVRE__LISTEN": "127.0.0.1:1",
                "CLAWPROXY__LOG": "x",
                "CLAWPROXY__LIMITS__JSON_DEPTH": "deep",
                "CLAWPROXY__BUDGETS__X__SCOPE": "global",
                "CLAWPROXY__BUDGETS__X__WINDOW": "day",
                "CLAWPROXY__BUDGETS__X__LIMIT": "$5,00",
                "CLAWPROXY_LISTEN": "8642",
            },
        )
    assert caught.value.problems == [
        "CLAWPROXY__LOG: names no key; write CLAWPROXY__SECTION__KEY, like CLAWPROXY__SERVER__WORKERS",
        "CLAWPROXY__SERVER__LISTEN__X: server.listen is no table in the file; set it there, or here as a whole",
        'CLAWPROXY__BUDGETS__X__LIMIT: budgets.x.limit: "$5,00" is no sum of money; write dollars like "$5.00", with nine '
        "decimals at most",
        'CLAWPROXY__LIMITS__JSON_DEPTH: limits.json_depth: "deep" is no integer; write a whole number, like 2',
        "CLAWPROXY__SERVER__LISEN: server.lisen: is not a key here; did you mean `listen`?",
        'CLAWPROXY_LISTEN: server.listen: "8642" names no address; write "127.0.0.1:8642", or "0.0.0.0:8642" for every interface',
        "CLAWPROXY__SERVRE__LISTEN: servre: is not a section; did you mean `server`?",
    ]


def test_slips_and_strangers() -> None:
    """Kubernetes sets variables like the third for a service called clawproxy: they are not ours to complain about."""
    result = load(
        None,
        settings=SETTINGS,
        environ={
            "OPENAI_API_KEY": "x",
            "CLAWPROXY_LISTN": "x",
            "CLAWPROXY_SERVICE_HOST": "10.0.0.1",
            "CLAWPROXY_PORT": "tcp://10.0.0.1:1",
        },
    )
    assert result.warnings == ["CLAWPROXY_LISTN: is not a variable of ClawProxy and is ignored; did you mean CLAWPROXY_LISTEN?"]


def test_where_the_file_is(tmp_path: Path) -> None:
    (tmp_path / "clawproxy.toml").write_text("")
    (tmp_path / "other.toml").write_text("")
    other = tmp_path / "other.toml"
    assert find_config(other, {"CLAWPROXY_CONFIG": "x"}, tmp_path) == other
    assert find_config(None, {"CLAWPROXY_CONFIG": str(other)}, tmp_path) == other
    assert find_config(None, {"CLAWPROXY_CONFIG": ""}, tmp_path) == Path("clawproxy.toml")
    assert find_config(None, {}, tmp_path / "nowhere") is None
    with pytest.raises(ConfigError, match="there is no such file; CLAWPROXY_CONFIG must name a configuration file"):
        find_config(None, {"CLAWPROXY_CONFIG": "gone.toml"}, tmp_path)


def refused(ref: str, **arguments: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_secret(SecretRef.parse(ref), needed_by="providers.a.api_key", **arguments)  # type: ignore[arg-type]
    [problem] = caught.value.problems
    return problem


def test_secrets(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-file\n")
    assert resolve_secret(SecretRef.parse(f"file:{tmp_path}/key")).reveal() == "sk-file"
    assert resolve_secret(SecretRef.parse("env:K"), environ={"K": "sk-env"}).reveal() == "sk-env"
    assert resolve_secret(SecretRef.parse("sk-literal")).reveal() == "sk-literal"
    assert resolve_secret(SecretRef.parse("vault:a/b"), {"vault": lambda path: f"got {path}"}).reveal() == "got a/b"


def test_secrets_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "lines").write_text("a\nb\n")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "big").write_text("x" * 70_000)

    def vault(path: str) -> str:
        raise LookupError("is sealed; unseal it")

    where = "providers.a.api_key: "
    assert refused("env:K", environ={}) == where + "env:K is not set; set the variable, or name another"
    assert refused("env:K", environ={"K": " "}) == where + "env:K is empty; put the secret there"
    assert refused("vault:x", schemes={"vault": vault}) == where + "vault: is sealed; unseal it"
    assert refused("vautl:hunter2") == where + "vautl: is no known kind of secret; known are `env`, `file`"
    for name, sentence in {
        "none": "can not be read (No such file or directory); put the secret there, readable for this user",
        "binary": "is not UTF-8 text; name a file that holds only the secret",
        "lines": "holds a line break or another control character; put the secret alone on one line",
        "empty": "is empty; put the secret there",
        "big": "holds more than 64 KiB; name a file that holds only the secret",
    }.items():
        assert refused(f"file:{tmp_path}/{name}") == f"{where}file:{tmp_path}/{name} {sentence}"


def test_all_secrets_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[server]\nadmin_token = "env:T"\n[providers.a]\nbase_url = "https://x.example"\napi_key = "env:A"\n'
        '[keys.one]\nsecret = "env:ONE"\n[keys.two]\nsecret = "env:TWO"\n'
    )
    result = load(file, settings=SETTINGS, environ={})
    problems, warnings = result.secret_problems(environ={"ONE": "hunter2", "TWO": "hunter2"})
    assert problems == [
        f"{file}:2: server.admin_token: env:T is not set; set the variable, or name another",
        f"{file}:5: providers.a.api_key: env:A is not set; set the variable, or name another",
        f"{file}:9: keys.two.secret: is the same secret as keys.one.secret; give each key its own",
    ]
    assert warnings == [
        f"{file}:{line}: keys.{name}.secret: has fewer than 20 characters and can be guessed; use `clawproxy keys create`"
        for line, name in ((7, "one"), (9, "two"))
    ]
    assert "hunter2" not in "".join(problems + warnings)
