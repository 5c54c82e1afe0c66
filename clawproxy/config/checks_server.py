"""The checks of `[server]`: addresses that parse and do not clash, names that can be compared."""

from __future__ import annotations

import re

from clawproxy.config.checks_tls import check_tls
from clawproxy.config.findings import Findings
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.schema import ServerConfig
from clawproxy.config.units import Address, parse_address, shown

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


def check_server(server: ServerConfig, found: Findings) -> None:
    taken: list[tuple[KeyPath, Address]] = []
    if not server.listen:
        found.wrong(("server", "listen"), 'is empty; write an address, like "127.0.0.1:8642"')
    places: list[tuple[KeyPath, str]] = [(("server", "listen", index), text) for index, text in enumerate(server.listen)]
    if server.admin is not None:
        places.append((("server", "admin"), server.admin))
    for path, text in places:
        if len(server.listen) == 1 and path[1] == "listen":
            path = path[:2]
        try:
            address = parse_address(text)
        except ValueError as error:
            found.wrong(path, str(error))
            continue
        clash = next((other for other in taken if _clash(address, other[1])), None)
        if clash is not None:
            found.wrong(path, f"{address} is taken by server.{clash[0][1]}; give it a port of its own, or 0 for any free one")
        taken.append((path, address))
        if path[1] == "admin" and not address.loopback:
            found.warn(path, f"{address} is open to other machines, and /metrics needs no credential; use a loopback address")
        elif address.wildcard and server.tls is None:
            found.warn(
                path, f"{address} is every interface, and keys travel in the clear; set server.tls, or use a loopback address"
            )
    if server.workers != 1:
        what = "must be at least 1" if server.workers < 1 else "more than one worker is not available in this version"
        found.wrong(("server", "workers"), f"{what}; write 1, and run more instances to use more cores")
    if server.tls is not None:
        check_tls(server.tls, found)
    for index, origin in enumerate(server.origins):
        if not _ORIGIN.fullmatch(origin):
            found.wrong(
                ("server", "origins", index),
                f'"{shown(origin)}" is no origin; write each as "https://app.example", without a path or *',
            )
    for index, host in enumerate(server.hosts):
        if not _HOST.fullmatch(host):
            found.wrong(("server", "hosts", index), f'"{shown(host)}" is no host; write a name as it stands in a Host header')
    if server.trusted_proxies:
        found.wrong(("server", "trusted_proxies"), "forwarded addresses are not read by this version; leave it out")
    if server.admin_token is not None and server.admin is None:
        found.warn(("server", "admin_token"), "has no use without an admin listener; set server.admin, or remove it")


def _clash(one: Address, two: Address) -> bool:
    if one.kind != two.kind:
        return False
    if one.kind == "unix":
        return one.path == two.path
    same_host = one.host.lower() == two.host.lower() or one.wildcard or two.wildcard
    return one.port == two.port != 0 and same_host
