"""`[plugins.truncate]`."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen, validators

Policy = Literal["truncate", "refuse"]


@frozen
class TruncateSettings:
    websocket: Policy = "truncate"
    """What happens to a prompt that does not fit, on the Claw WebSocket."""
    http: Policy = "refuse"
    """The same on the HTTP surfaces, whose clients compact their own history when told `context_length_exceeded`."""
    max_output_tokens: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    """The most tokens one answer may have, whatever the client asks."""

    def policy(self, surface: str) -> Policy:
        return self.websocket if surface == "claw" else self.http
