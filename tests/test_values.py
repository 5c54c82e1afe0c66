"""`@value`: to attrs and to Python the same as `attrs.frozen(slots=True)`."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import attrs
import msgspec
import pytest

from clawproxy import events, messages
from clawproxy.dialects.base import OutboundRequest
from clawproxy.events import Text, ToolCallDelta
from clawproxy.messages import ChatRequest, Message, Route, Usage
from clawproxy.values import value

HERE: dict[str, Any] = {**vars(messages), **vars(events)}
VALUES = [each for each in HERE.values() if inspect.isclass(each) and issubclass(each, msgspec.Struct)]


def test_which_classes_are_values() -> None:
    assert {ChatRequest, Message, Route, Usage, Text, ToolCallDelta} <= set(VALUES)
    assert issubclass(OutboundRequest, msgspec.Struct)
    assert not issubclass(messages.Credentials, msgspec.Struct)  # its repr hides the token
    assert "sesame" not in repr(messages.Credentials("sesame"))


@pytest.mark.parametrize("cls", VALUES, ids=lambda cls: str(cls.__name__))
def test_attrs_knows_them(cls: type[Any]) -> None:
    names = [field.name for field in attrs.fields(cls)]
    assert names == list(cls.__annotations__)
    given = [f"f{place}" for place, field in enumerate(attrs.fields(cls)) if field.default is attrs.NOTHING]
    made = cls(*given)
    for field, said in zip(attrs.fields(cls), given, strict=False):
        assert getattr(made, field.name) == said
    for field in attrs.fields(cls)[len(given) :]:
        assert getattr(made, field.name) is field.default
    assert attrs.has(cls)
    assert attrs.evolve(made) == made
    for name in names:
        changed = attrs.evolve(made, **{name: "new"})
        assert changed != made
        assert attrs.asdict(changed, recurse=False) == {**attrs.asdict(made, recurse=False), name: "new"}
        with pytest.raises(AttributeError):
            setattr(made, name, "new")
        with pytest.raises(AttributeError):
            delattr(made, name)
    with pytest.raises(AttributeError):
        made.another = 1
    assert repr(made).startswith(f"{cls.__name__}(")
    assert copy.copy(made) == made


def test_they_are_plain_python_classes() -> None:
    assert Text("a") == Text("a") != Text("b")
    assert hash(Text("a")) == hash(Text("a"))
    others: list[object] = [events.Refused("a"), "a"]
    assert Text("a") not in others
    assert pickle.loads(pickle.dumps(ToolCallDelta(0, "c"))) == ToolCallDelta(0, "c")
    assert Message("user", "hi").text() == "hi"
    assert Usage(1, 2).total_tokens == 3
    assert (Text.__module__, Text.__qualname__, Text.__match_args__) == ("clawproxy.events", "Text", ("text",))
    assert Usage.__doc__ is not None


def test_what_a_value_can_not_have() -> None:
    with pytest.raises(TypeError, match="more than plain fields"):

        @value
        class _Hidden:
            token: str = attrs.field(repr=False)

    with pytest.raises(TypeError, match="more than plain fields"):

        @value
        class _Made:
            items: list[str] = attrs.field(factory=list)
