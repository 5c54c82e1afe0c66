"""The head of a request, once it has passed the strict check."""

from __future__ import annotations

from attrs import frozen


@frozen(slots=True)
class Head:
    """A request head both parsers and the strict check agree on.

    Attributes:
        method: as sent (case-sensitive).
        target: the raw request target, visible ASCII.
        path: the part of the target before `?`; never decoded, matched exactly.
        query: the part after it, raw.
        headers: lower-case names, values decoded as latin-1 without surrounding white space, in order.
        keep_alive: whether the client allows another request on the connection.
        content_length: None where there is no body or it is chunked.
        chunked: the body is chunked.
        version: `1.1` or `1.0`.
    """

    method: str
    target: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    keep_alive: bool = True
    content_length: int | None = None
    chunked: bool = False
    version: str = "1.1"

    def get(self, name: str) -> str | None:
        """The first value of a header (lower-case name)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]
