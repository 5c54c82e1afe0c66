"""Host and Origin policy, value by value; the data listener's over sockets is in `test_connection.py`."""

from __future__ import annotations

import pytest

from clawproxy.config import Config, ServerConfig
from clawproxy.http1.head import Head
from clawproxy.transport.origins import check_admin, check_origin, parse_origin


def head(host: str, *origins: str) -> Head:
    return Head("GET", "/", "/", "", (("host", host), *(("origin", origin) for origin in origins)))


@pytest.mark.parametrize(
    ("host", "origins", "slug"),
    [
        ("127.0.0.1:8643", (), None),
        ("localhost:8643", (), None),
        ("[::1]:8643", (), None),
        ("10.1.2.3", (), None),
        ("admin.example", (), None),
        ("ADMIN.example:9", (), None),
        ("attacker.com", (), "misdirected"),
        ("localhost.attacker.com", (), "misdirected"),
        ("127.0.0.1.attacker.com", (), "misdirected"),
        ("127.0.0.1:8643", ("http://127.0.0.1:8643",), None),
        ("127.0.0.1:8643", ("http://127.0.0.1:8644",), "origin"),
        ("127.0.0.1:8643", ("https://127.0.0.1:8643",), "origin"),
        ("127.0.0.1:8643", ("null",), "origin"),
        ("127.0.0.1:8643", ("http://127.0.0.1:8643", "http://127.0.0.1:8643"), "origin"),
        ("127.0.0.1:8643", ("https://app.example",), None),
    ],
)
def test_the_admin_listener(host: str, origins: tuple[str, ...], slug: str | None) -> None:
    config = Config(server=ServerConfig(hosts=("admin.example",), origins=("https://app.example",)))
    refused = check_admin(head(host, *origins), config, False)
    assert (refused.slug if refused else None) == slug


@pytest.mark.parametrize(
    ("host", "hosts", "served"),
    [
        ("gw.test", ("gw.test",), True),
        ("GW.test:8642", ("gw.test",), True),
        ("gw.test:8642", ("gw.test:8642",), True),
        ("gw.test:1", ("gw.test:8642",), False),
        ("[::1]:80", ("[::1]",), True),
        ("[::1]:80", ("::1",), True),
        ("evil.test", ("gw.test",), False),
        ("xgw.test", ("gw.test",), False),
        ("anything", (), True),
    ],
)
def test_hosts(host: str, hosts: tuple[str, ...], served: bool) -> None:
    assert (check_origin(head(host), Config(server=ServerConfig(hosts=hosts)), False) is None) == served


def test_a_public_listener_takes_a_listed_origin_under_any_name() -> None:
    server = ServerConfig(listen=("0.0.0.0:80",), origins=("https://app.example",))
    assert check_origin(head("gw.example", "https://app.example"), Config(server=server), False) is None


@pytest.mark.parametrize(
    "value", ["null", "", "https://", "https://a/", "https://a?b", "https://u@a", "ftp://a", "https://a:123456", "https://é"]
)
def test_what_is_no_origin(value: str) -> None:
    assert parse_origin(value) is None
