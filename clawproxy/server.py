"""The process: listeners, one task per connection, the service nursery, draining.

Rule 1: nurseries are opened here, in a connection that speaks WebSocket, and nowhere else on the request path.
Rule 2: an exception in one connection ends that connection, is logged once, and never the server.
Rule 3: what starts is stopped in reverse: listeners, calls, connections, lifespans, providers, store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

LAG_PERIOD = 0.1
LAST_WORDS = 2.0
"""Seconds that calls have to say goodbye once draining is over, or at a second SIGTERM."""
