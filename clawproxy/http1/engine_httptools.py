"""The fast engine: llhttp through httptools (3-5 us a request)."""

from __future__ import annotations

import httptools

from clawproxy.http1.engine import EngineRefused, RawHead


class HttptoolsEngine:
    __slots__ = ("_data", "_headers", "_parser", "_target", "complete", "head_done")

    def __init__(self) -> None:
        self.complete = False
        self.head_done = False
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._data: list[bytes] = []
        self._parser = httptools.HttpRequestParser(self)

    # --- callbacks ---------------------------------------------------------------------------------------------------------

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_done:  # llhttp reports trailers as headers
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.head_done = True

    def on_body(self, data: bytes) -> None:
        self._data.append(data)

    def on_message_complete(self) -> None:
        self.complete = True

    # --- the seam ----------------------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> bool:
        """Whether llhttp stopped at an offer to upgrade."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return True
        except httptools.HttpParserError as error:
            raise EngineRefused(str(error)) from error
        return False

    def head(self, data: bytes) -> RawHead:
        stopped = self._feed(data)
        if not self.head_done:
            raise EngineRefused("the head is not whole")
        raw = RawHead(self._parser.get_method(), self._target, self._parser.get_http_version(), self._headers)
        if stopped:
            self._go_on()
        return raw

    def _go_on(self) -> None:
        """An offer to upgrade may be ignored (RFC 9110 section 7.8), and then the body follows (curl's h2c on a POST). llhttp
        thinks that the message ends with such a head, so another parser gets the body, behind the framing alone."""
        framing = [pair for pair in self._headers if pair[0].lower() in (b"content-length", b"transfer-encoding")]
        if framing:
            self.complete = False
            self._parser = httptools.HttpRequestParser(self)
            self._feed(b"POST / HTTP/1.1\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % pair for pair in framing))

    def body(self, data: bytes) -> bytes:
        self._feed(data)
        pieces, self._data = self._data, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
