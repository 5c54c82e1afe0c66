"""The test kit for plugins, and for our own tests first.

Three ways to test a plugin, none with a socket:

1. Call its hook with values from `make_request`, `make_exchange` and their like.
2. Run it in the real pipeline against a scripted upstream:

       async with claw(plugins={"mine": my_plugin}) as gateway:
           gateway.upstream.will_say("Hello", Pause(30), " world")
           answer = await gateway.ask("Hi")
           assert answer.text == "Hello world"

3. The same under `autojump_clock`, so that half a minute takes no time.
"""

from clawproxy.testing.factories import (
    make_attempt,
    make_credentials,
    make_exchange,
    make_head,
    make_principal,
    make_request,
    make_route,
)
from clawproxy.testing.harness import Answer, Claw, claw
from clawproxy.testing.sweep import sweep
from clawproxy.testing.upstream import Fail, Pause, ScriptedUpstream

__all__ = [
    "Answer",
    "Claw",
    "Fail",
    "Pause",
    "ScriptedUpstream",
    "claw",
    "make_attempt",
    "make_credentials",
    "make_exchange",
    "make_head",
    "make_principal",
    "make_request",
    "make_route",
    "sweep",
]
