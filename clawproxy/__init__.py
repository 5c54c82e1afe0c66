"""ClawProxy: a gateway between applications and LLM providers.

Reading order, for someone who is new here:

1. `exchange.py`: what happens to a request, on one page; then `attempts.py`, one call of one provider.
2. `hookspecs.py`: the hooks in the order a request meets them; `pipeline/` runs them.
3. `errors.py`, `messages.py`, `events.py`, `clocks.py`: the vocabulary everything else speaks.
4. `lifetime.py` and `exchange_clock.py`: what ends a request early, and how it says so.
5. `service.py`: the border to the clients' side, `transport/` (and `http1/`, `dialects/` for its formats).
6. `upstream/base.py`: the border to the providers' side, `upstream/`.
7. `gateway.py`, `server.py`: one configuration generation, one process. `stores/`, `ops/`, `cli/`, `scripted/`, `testing/`.

The public names below are what plugins import; they are loaded when asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clawproxy._version import __version__

if TYPE_CHECKING:
    from clawproxy.errors import ClawError, Refusal
    from clawproxy.events import Batch, Outcome
    from clawproxy.hookspecs import Observe, Transform, hookimpl
    from clawproxy.messages import ChatRequest, Message, Principal, Route, Usage

_HOMES = {
    "Batch": "events",
    "ChatRequest": "messages",
    "ClawError": "errors",
    "Message": "messages",
    "Observe": "hookspecs",
    "Outcome": "events",
    "Principal": "messages",
    "Refusal": "errors",
    "Route": "messages",
    "Transform": "hookspecs",
    "Usage": "messages",
    "hookimpl": "hookspecs",
}

__all__ = [
    "Batch",
    "ChatRequest",
    "ClawError",
    "Message",
    "Observe",
    "Outcome",
    "Principal",
    "Refusal",
    "Route",
    "Transform",
    "Usage",
    "__version__",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"clawproxy.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'clawproxy' has no attribute {name!r}")
