"""`[roles]`: what is refused at load, with its line, and what keys and issuers may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawproxy.config import authorized
from clawproxy.config.load import Loaded
from clawproxy.messages import Principal
from clawproxy_auth.issuers import IssuerSettings, principal_of
from tests.config import files
from tests.config.files import problems

BASE = """\
[providers.a]
base_url = "https://a.example"
[models.m]
routes = [{ provider = "a", model = "m", region = "eu" }]
"""


def loaded(folder: Path, text: str) -> Loaded:
    return files.loaded(folder, BASE + text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[roles.r]\nmodels = ["n"]', '6: roles.r.models: "n" is not in [models]'),
        ('[roles.r]\nmodels = "m"\nproviders = ["b"]', '7: roles.r.providers: "b" is not a provider'),
        ('[roles.r]\nmodels = "m"\nregions = "us"', '7: roles.r.regions: "us" is not the region of any route'),
        ('[roles.r]\nmodels = "m"\nactions = ["chats"]', '7: roles.r.actions: "chats" is not an action'),
        ('[roles.r]\nmodels = ["a*b"]', '6: roles.r.models: "a*b" is no pattern'),
        ('[roles.r]\nmodels = "m"\nmax_output = 0', "7: roles.r.max_output: 0 leaves no answer"),
        ('[roles.r]\nmodels = "m"\nbudget = 1', "7: roles.r.budget: is not a key here"),
        ('[roles."a b"]\nmodels = "m"', '5: roles."a b": is no name for a role'),
        ('[roles.r]\nmodels = "m"\n[keys.k]\nsecret = "env:K"\nroles = ["s"]', '9: keys.k.roles[0]: "s" is not in [roles]'),
        (
            '[roles.r]\nmodels = "m"\n[plugins.auth.issuers.i]\nissuer = "https://i"\naudiences = ["a"]\ngrants = ["s"]',
            '10: plugins.auth.issuers.i.grants[0]: "s" is not in [roles]',
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    [said] = problems(tmp_path, BASE + text)
    assert said.startswith(f"claw.toml:{problem}"), said


def test_a_role_that_allows_nothing_is_a_warning(tmp_path: Path) -> None:
    assert len(loaded(tmp_path, "[roles.r]").warnings) == 1
    assert loaded(tmp_path, "[roles.r]\nmake_keys = true").warnings == []


def test_without_roles_the_names_are_words_for_policies(tmp_path: Path) -> None:
    config = loaded(tmp_path, '[keys.k]\nsecret = "env:K"\nroles = ["anything"]').config
    assert authorized(Principal("k", roles=("anything",)), config.roles).grants is None
    assert authorized(Principal("k", grants=()), config.roles).grants is None


def test_what_a_principal_is_granted(tmp_path: Path) -> None:
    config = loaded(tmp_path, '[roles.r]\nmodels = "m"\n[roles.s]\nmodels = "*"\nactions = "embeddings"').config
    granted = authorized(Principal("k", roles=("r", "unknown")), config.roles).grants
    assert granted is not None
    assert [grant.role for grant in granted] == ["r"]
    assert authorized(Principal("k", roles=("unknown",)), config.roles).grants == ()  # denied by default
    assert authorized(Principal("k"), config.roles).grants is None
    assert authorized(Principal("k", grants=()), config.roles).grants == ()  # an issuer's token that names no role


def test_the_operators_credential_is_no_clients(tmp_path: Path) -> None:
    text = '[keys.k]\nsecret = "env:K"\n[server]\nadmin_token = "env:T"\nadmin = "127.0.0.1:0"'
    result = loaded(tmp_path, text)
    assert result.warnings == []
    problems, _ = result.secret_problems(environ={"K": "one-secret-for-both-0123456789", "T": "one-secret-for-both-0123456789"})
    assert problems == [f"{tmp_path}/claw.toml:6: keys.k.secret: is the same secret as server.admin_token; give each its own"]
    _, warnings = result.secret_problems(environ={"K": "k" * 30, "T": "short"})
    assert "server.admin_token: has fewer than 20 characters" in warnings[0]


def test_a_token_that_names_no_role_has_none() -> None:
    claims = {"iss": "i", "aud": "a", "sub": "u", "exp": 9e9}
    for settings, said, roles, grants in (
        (IssuerSettings("i", ("a",)), {}, (), None),
        (IssuerSettings("i", ("a",), roles="roles"), {}, (), ()),
        (IssuerSettings("i", ("a",), roles="roles"), {"roles": ["r"]}, ("r",), ()),
        (IssuerSettings("i", ("a",), grants=("g",)), {}, ("g",), ()),
        (IssuerSettings("i", ("a",), roles="roles", grants=("g",)), {"roles": "r s"}, ("g", "r", "s"), ()),
    ):
        principal = principal_of("corp", settings, {**claims, **said})
        assert (principal.roles, principal.grants) == (roles, grants)
