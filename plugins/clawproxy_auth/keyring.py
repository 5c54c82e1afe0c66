"""The keys of one configuration generation, by digest; and the plugin's settings."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping

from attrs import field, frozen, validators

from clawproxy.config import Duration
from clawproxy.errors import ClawError
from clawproxy.messages import ClientCertificate, Principal
from clawproxy_auth.introspection import Introspection, IntrospectionSettings
from clawproxy_auth.issuers import IssuerSettings

_CREDENTIAL = re.compile(r"[!-~]{1,8192}")


@frozen
class AuthSettings:
    """`[plugins.auth]`."""

    failures: int = field(default=10, validator=validators.ge(1))
    """Failed attempts from one address, or on one token prefix, within `window` before they are answered 429."""
    window: Duration = field(default=Duration(60.0), validator=validators.gt(Duration(0.0)))
    issuers: Mapping[str, IssuerSettings] = field(factory=dict)
    """Whose JSON Web Tokens are credentials."""
    introspection: IntrospectionSettings | None = None


@frozen(slots=True)
class Keyring:
    settings: AuthSettings
    pepper: bytes = field(repr=False)
    issuers: Mapping[str, str] = field(factory=dict)
    """Names of `settings.issuers`, by `iss`."""
    introspection: Introspection | None = None
    _known: dict[bytes, tuple[bytes, Principal]] = field(factory=dict, repr=False)
    certificates: dict[str, Principal] = field(factory=dict)
    """By identity: `sha256:HEX`, `san:KIND:NAME`, `cn:NAME`."""
    caps: bool = False
    """Whether any role limits its answers."""

    @property
    def unused_hooks(self) -> frozenset[str]:
        return frozenset() if self.caps else frozenset({"prepare_request"})

    def owner(self, certificate: ClientCertificate) -> Principal | None:
        """Whose it is. Raises ClawError("auth.ambiguous") where what it says leads to several keys."""
        found = {who.key: who for identity in certificate.identities if (who := self.certificates.get(identity)) is not None}
        if len(found) > 1:
            raise ClawError("auth.ambiguous")
        return next(iter(found.values()), None)

    def add(self, mark: bytes, principal: Principal) -> Principal | None:
        """Keep a key by its digest. Returns who has it already, if anyone."""
        twin = self._known.get(mark)
        if twin is not None:
            return twin[1]
        self._known[mark] = (mark, principal)
        return None

    def find(self, mark: bytes) -> Principal | None:
        """The look-up's time depends on the digest, which nobody can steer without the pepper."""
        entry = self._known.get(mark)
        if entry is None or not hmac.compare_digest(entry[0], mark):
            return None
        return entry[1]


def is_credential(token: str) -> bool:
    """1 to 8192 visible ASCII characters: nothing else is looked up anywhere."""
    return _CREDENTIAL.fullmatch(token) is not None
