"""`[plugins.audit]`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from attrs import field, frozen, validators

from clawproxy.config import KIB, MIB, Duration, SecretRef, Size

_SOME: Final = validators.gt(Duration(0.0))


@frozen
class AuditTeam:
    """What holds for the rows of one team, and what was said in them."""

    retain: Duration = field(default=Duration(math.inf), validator=_SOME)
    """Not longer than everybody's."""
    retain_content: Duration | None = field(default=None, validator=validators.optional(_SOME))
    """None: as long as everybody's."""


@frozen
class AuditSettings:
    max_bytes: Size = field(default=Size(64 * MIB), validator=validators.ge(Size(4096)))
    """A file that has grown to this is put aside and a new one begun."""
    keep: int = field(default=10, validator=validators.ge(0))
    """How many files put aside are kept; together with the open ones they never hold more than `(keep + 1) * max_bytes`."""
    retain: Duration = field(default=Duration(math.inf), validator=validators.gt(Duration(0.0)))
    """How long a file put aside is kept, beside what `keep` says; a file is put aside after a tenth of this, too."""
    content: Literal["none", "redacted", "full"] = "none"
    """What is kept of what was said (`clawproxy_audit.content`)."""
    content_key: SecretRef | None = None
    """What it is encrypted with."""
    max_content: Size = field(default=Size(64 * KIB), validator=validators.ge(Size(1)))
    """Bytes of text of one exchange."""
    retain_content: Duration = field(default=Duration(math.inf), validator=_SOME)
    """How long what was said is kept in its row."""
    teams: Mapping[str, AuditTeam] = field(factory=dict)
    """By the teams' names, whole."""
