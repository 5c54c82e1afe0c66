"""What can be wrong with `[providers]`, found at construction and named by its key."""

from __future__ import annotations

import pytest

from clawproxy.errors import ClawError, ConfigError
from tests.upstream.kit import make_providers


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"base_url": None}, "base_url"),
        ({"base_url": "api.example.com"}, "base_url"),
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "https://user:pass@x"}, "base_url"),
        ({"base_url": "https://x?key=1"}, "base_url"),
        ({"base_url": "https://x:0"}, "base_url"),
        ({"base_url": "https://x:99999"}, "base_url"),
        ({"base_url": "https://[::g]"}, "base_url"),
        ({"base_url": "https://x/../y"}, "base_url"),
        ({"base_url": "https://x y"}, "base_url"),
        ({"base_url": "https://"}, "base_url"),
        ({"dialect": "klingon"}, "dialect"),
        ({"headers": {"Host": "x"}}, "headers"),
        ({"headers": {"x": "a\nb"}}, "headers"),
        ({"headers": {"Authorization": "Bearer x"}}, "headers"),
        ({"environ": {"http_proxy": "socks5://x:1"}, "base_url": "http://provider.test"}, "base_url"),
    ],
)
def test_bad_configuration_is_reported_by_key(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_providers(**({"base_url": "https://x"} | changes))  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert problem.startswith(f"providers.test.{key}: ")
    assert "user:pass" not in problem


def test_an_unknown_provider() -> None:
    providers = make_providers("http://127.0.0.1:1")
    with pytest.raises(ClawError, match="no_route"):
        providers.dialect("nobody")
    assert repr(providers) == "<Providers generation 1 [<Pool test [0 active, 0 idle, 0 waiting | max 1024]>]>"
