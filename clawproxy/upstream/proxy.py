"""Which provider is reached through which HTTP proxy: HTTPS_PROXY, HTTP_PROXY and NO_PROXY, in either case.

Rule 1: the lower-case variable wins, as with curl. Only `http://` proxies are spoken to; anything else is refused when the
        configuration is loaded, never bypassed silently.
Rule 2: loopback addresses and `localhost` are never proxied (as with Go's net/http).
Rule 3: the proxy's password lives in a Secret and appears in no message.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import unquote

from attrs import frozen

from clawproxy.secrets import Secret
from clawproxy.upstream.url import BaseURL, bracketed, split_authority

_PROXY = re.compile(r"^(?:([A-Za-z][A-Za-z0-9+.-]*)://)?(?:([^@/?#]*)@)?([^@/?#]+)/?$")


@frozen(slots=True)
class Proxy:
    host: str
    port: int
    authorization: Secret | None = None
    """The value of `Proxy-Authorization`: Basic, from the URL's user name and password (RFC 7617)."""

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"


def proxy_for(url: BaseURL, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy towards this provider, or None. Raises ValueError with a sentence that names the variable."""
    name = f"{url.scheme}_proxy"
    variable = name if environ.get(name) else name.upper()
    text = environ.get(variable, "").strip()
    if not text or _bypassed(url, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
        return None
    match = _PROXY.match(text)
    if match is None:
        raise ValueError(f"{variable}: write it as http://[USER:PASSWORD@]HOST:PORT")
    scheme, userinfo, authority = match.groups()
    if (scheme or "http").lower() != "http":
        raise ValueError(f"{variable}: only http:// proxies are spoken to")
    try:
        host, port = split_authority(authority, 80)
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None
    return Proxy(host, port, _basic(userinfo) if userinfo else None)


def _basic(userinfo: str) -> Secret:
    user, _, password = userinfo.partition(":")
    pair = f"{unquote(user)}:{unquote(password)}".encode()
    return Secret("Basic " + base64.b64encode(pair).decode("ascii"))


def _bypassed(url: BaseURL, no_proxy: str) -> bool:
    host = url.server_name
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address is not None and address.is_loopback):
        return True
    return any(_matches(entry, host, url.port, address) for entry in re.split(r"[,\s]+", no_proxy.lower()) if entry)


def _matches(entry: str, host: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    """`*`, `example.com` and `.example.com` (the name and all below it), `10.0.0.0/8`, `host:port`, `[::1]:port`.

    An entry that makes no sense matches nothing.
    """
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    if address is not None and ":" in entry and "[" not in entry and entry.count(":") > 1:
        entry = f"[{entry}]"
    try:
        name, entry_port = split_authority(entry.removeprefix("*").removeprefix("."), port)
    except ValueError:
        return False
    if entry_port != port:
        return False
    name = name.rstrip(".")
    if address is not None:
        return name == host
    return host == name or host.endswith(f".{name}")
