"""`DONE`: what a function returns that might have had to wait, and did not.

Awaiting it is allowed and costs no checkpoint. Who runs clean-up need not: where a closing hook, an attempt's context or a store
returns it, there is nothing to shield, and a shielded, bounded scope costs 25 us. `Ready` is the same with an answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, Final, Generic, TypeVar

__all__ = ["DONE", "Ready"]

T = TypeVar("T")


class _Done:
    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield

    def __repr__(self) -> str:
        return "DONE"


DONE: Final[Awaitable[None]] = _Done()


class Ready(Generic[T]):
    """An answer that is there already."""

    __slots__ = ("answer",)

    def __init__(self, answer: T) -> None:
        self.answer = answer

    def __await__(self) -> Generator[Any, Any, T]:
        yield from ()
        return self.answer

    def __repr__(self) -> str:
        return f"Ready({self.answer!r})"
