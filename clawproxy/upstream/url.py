"""A provider's `base_url`, taken apart once, when the configuration is loaded.

Rule: what is not plainly a base URL is refused here with a sentence, so that no later code has to think about user names,
queries, fragments or odd characters (RFC 3986, 3.2 and 3.3).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from attrs import frozen

DEFAULT_PORTS = {"http": 80, "https": 443}

_SPLIT = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?$", re.DOTALL)
_AUTHORITY = re.compile(r"^(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]*))(?::([0-9]*))?$")
_NAME = re.compile(r"^(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62}))*\.?$")
_PATH = re.compile(r"^(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*$")


@frozen(slots=True)
class BaseURL:
    """`scheme://host:port/prefix`. `host` is a lower-case name or a bare IP literal; `prefix` is "" or begins with `/` and
    does not end with one."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    prefix: str = ""

    @property
    def address(self) -> str:
        """`host:port`, an IPv6 literal in brackets."""
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def authority(self) -> str:
        """The `Host` header: the port only where it is not the scheme's own."""
        return bracketed(self.host) if self.port == DEFAULT_PORTS[self.scheme] else self.address

    @property
    def server_name(self) -> str:
        """What the certificate must be for: the host without a trailing dot."""
        return self.host.rstrip(".")


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_base_url(text: str) -> BaseURL:
    """Raises ValueError with a clause that completes `providers.NAME.base_url: ...`. It never repeats the text, which may
    hold a password."""
    match = _SPLIT.match(text)
    if match is None:
        raise ValueError("write it as https://HOST[:PORT]/PREFIX")
    scheme, authority, path, query, fragment = match.groups()
    scheme = scheme.lower()
    if scheme != "http" and scheme != "https":
        raise ValueError("only http and https are spoken here")
    if query or fragment:
        raise ValueError("it must not have a query or a fragment")
    if "@" in authority:
        raise ValueError("it must not hold a user name or a password; use api_key")
    host, port = split_authority(authority, DEFAULT_PORTS[scheme])
    prefix = path.rstrip("/")
    if not _PATH.match(prefix) or has_dot_segment(prefix):
        raise ValueError("its path has characters or dot segments that do not belong there")
    return BaseURL("https" if scheme == "https" else "http", host, port, prefix)


def split_authority(authority: str, default_port: int) -> tuple[str, int]:
    """`host[:port]` to its parts. Raises ValueError with a clause."""
    match = _AUTHORITY.match(authority)
    if match is None:
        raise ValueError("its host can not be understood")
    literal, name, port_text = match.groups()
    if literal is not None:
        try:
            host = str(ipaddress.IPv6Address(literal))
        except ValueError:
            raise ValueError("its host is not an IPv6 address") from None
    elif not _NAME.match(name):
        raise ValueError("its host is not a name or an address (write international names in their xn-- form)")
    else:
        host = name.lower()
    port = int(port_text) if port_text else default_port
    if not 0 < port < 65536:
        raise ValueError("its port must be between 1 and 65535")
    return host, port


def has_dot_segment(path: str) -> bool:
    """Whether a segment is `.` or `..`, percent-encoded or not (RFC 3986, 5.2.4): it would leave the prefix."""
    plain = path.replace("%2e", ".").replace("%2E", ".")
    return any(segment in (".", "..") for segment in plain.split("/"))
