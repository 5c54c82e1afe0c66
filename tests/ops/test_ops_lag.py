from __future__ import annotations

import trio

from clawproxy.ops.lag import LoopLag


async def test_a_blocked_loop_shows() -> None:
    lag = LoopLag(interval=0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lag.watch)
        await trio.sleep(0.03)
        until = trio.current_time() + 0.08
        while trio.current_time() < until:
            pass
        await trio.sleep(0.015)
        assert lag.seconds > 0.03
        nursery.cancel_scope.cancel()
