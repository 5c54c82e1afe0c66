"""The providers' side of I/O. Reading order: `base` (what the exchange asks for), `providers`, `answer`, `pool`, `connection`;
then `responses_ws` and `websocket`, the other way of asking."""

from clawproxy.upstream.dns import Resolver
from clawproxy.upstream.pool import PoolStatistics
from clawproxy.upstream.providers import Providers

__all__ = ["PoolStatistics", "Providers", "Resolver"]
