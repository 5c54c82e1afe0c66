"""A conversation as turns: what may be dropped together."""

from __future__ import annotations

from collections.abc import Sequence

from clawproxy.messages import Message

KEPT = frozenset({"system", "developer"})


def split_turns(messages: Sequence[Message]) -> list[list[int]]:
    """The places of all messages but system and developer ones, by turn, oldest first.

    A turn begins with a user message and runs to the next one. Turns between a tool call and its result are one turn, so that
    dropping turns can not part them.
    """
    turns: list[list[int]] = []
    called: dict[str, int] = {}
    for place, message in enumerate(messages):
        if message.role in KEPT:
            continue
        if not turns or message.role == "user":
            turns.append([])
        origin = called.get(message.tool_call_id) if message.tool_call_id is not None else None
        if origin is not None and origin < len(turns) - 1:
            joined = [each for turn in turns[origin:] for each in turn]
            turns[origin:] = [joined]
            called = {call: min(turn, origin) for call, turn in called.items()}
        turns[-1].append(place)
        for call in message.tool_calls:
            called[call.id] = len(turns) - 1
    return turns
