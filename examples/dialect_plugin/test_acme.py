"""The dialect by itself: what is sent, and what is read however the bytes were cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from clawproxy_acme import Acme, Decoder

from clawproxy.errors import ClawError
from clawproxy.events import Begin, End, Event, Failed, Finish, Text, UsageReport
from clawproxy.messages import Message, Usage
from clawproxy.testing import make_request, make_route

ANSWER = b'{"token":"Hel"}\n{"token":"lo"}\n{"done":true,"why":"end","tokens":{"in":3,"out":2}}\n'


def sent(**changes: Any) -> dict[str, Any]:
    outbound = Acme().encode_request(make_request(**changes), make_route(model="acme-1"))
    assert outbound.path == "/generate"
    document: dict[str, Any] = json.loads(outbound.body)
    return document


def test_a_conversation_is_one_prompt() -> None:
    messages = (Message("system", "Be brief."), Message("user", "hi"))
    assert sent(messages=messages, max_tokens=50) == {"model": "acme-1", "prompt": "system: Be brief.\nuser: hi", "limit": 50}


@pytest.mark.parametrize(("field", "value"), [("temperature", 0.5), ("stop", ("x",)), ("extra", {"n": 2})])
def test_what_can_not_be_said_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ClawError) as caught:
        sent(**{field: value})
    assert caught.value.details.param == ("n" if field == "extra" else field)


def read(*pieces: bytes) -> list[Event]:
    decoder = Decoder()
    batches = [*map(decoder.feed, pieces), decoder.close()]
    return [event for batch in batches if batch is not None for event in batch.events]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_an_answer_however_it_was_cut(size: int) -> None:
    assert read(*[ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]) == [
        Begin(), Text("Hel"), Text("lo"), Finish("stop", "end"), UsageReport(Usage(3, 2)), End(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "slug"),
    [
        (ANSWER[:-5], "cut"),
        (b'{"token":"a"}\nnonsense\n', "malformed"),
        (b"[]\n", "malformed"),
        (b'{"problem":"out of paper"}\n', "server"),
    ],
)
def test_a_bad_end_is_an_event(answer: bytes, slug: str) -> None:
    last = read(answer)[-1]
    assert isinstance(last, Failed)
    assert last.error.slug == f"provider_error.{slug}"
