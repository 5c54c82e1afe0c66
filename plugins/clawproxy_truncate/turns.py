"""A conversation as turns: what may be dropped together."""

from __future__ import annotations

from collections.abc import Sequence

from clawproxy.messages import Message

KEPT = frozenset({"system", "developer"})


def split_turns(messages: Sequence[Message]) -> list[list[int]]:
    """The places of all messages but system and developer ones, by turn, oldest first.

    A turn begins with a user message and runs to the next one. Turns between a tool call and its result are one turn, so that
    dropping turns can not part them. Linear, whatever the calls are.
    """
    called: dict[str, int] = {}
    spans = [0] * (len(messages) + 1)
    """How many spans from a call to its result begin (1) or are over (-1) before a message: none of those within begins a turn.
    """
    for place, message in enumerate(messages):
        if message.role in KEPT:
            continue
        origin = called.get(message.tool_call_id) if message.tool_call_id is not None else None
        if origin is not None:
            spans[origin + 1] += 1
            spans[place + 1] -= 1
        for call in message.tool_calls:
            called[call.id] = place
    turns: list[list[int]] = []
    within = 0
    for place, message in enumerate(messages):
        within += spans[place]
        if message.role in KEPT:
            continue
        if not turns or (message.role == "user" and not within):
            turns.append([])
        turns[-1].append(place)
    return turns
