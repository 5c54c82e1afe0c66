"""The demo's HTTP side, in a thread: the official OpenAI SDK where it is installed, else Python's own http.client."""

from __future__ import annotations

import http.client
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import define

from clawproxy.secrets import Secret


@define
class Answer:
    """What came back, and when. Times are `time.perf_counter()`."""

    started: float = 0.0
    first: float | None = None
    ended: float = 0.0
    route: str = "-"
    why: str = ""
    outcome: str = "-"
    usage: tuple[Any, Any, Any] = (None, None, None)
    """Input tokens, output tokens, how they are known."""
    gateway_ms: float | None = None
    text: str = ""
    sdk: bool = False

    def token(self, text: str) -> None:
        if self.first is None:
            self.first = time.perf_counter()
        self.text += text

    @property
    def first_ms(self) -> float:
        return ((self.first or self.ended) - self.started) * 1000

    @property
    def total_ms(self) -> float:
        return (self.ended - self.started) * 1000


def uses_sdk() -> bool:
    return importlib.util.find_spec("openai") is not None


def ask_over_http(base: str, key: Secret, model: str, prompt: str, show: Callable[[str], None]) -> Answer:
    """One streamed chat completion. Blocks. Raises OSError; an HTTP error is the answer's outcome."""
    return (_ask_sdk if uses_sdk() else ask_plain)(base, key, model, prompt, show)


def _ask_sdk(base: str, key: Secret, model: str, prompt: str, show: Callable[[str], None]) -> Answer:
    import openai

    answer = Answer(sdk=True)
    with openai.OpenAI(base_url=f"{base}/v1", api_key=key.reveal(), max_retries=0, timeout=60) as client:
        try:
            answer.started = time.perf_counter()
            raw = client.chat.completions.with_raw_response.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                stream_options={"include_usage": True},
            )
            _from_headers(answer, dict(raw.headers))
            for chunk in raw.parse():
                _from_chunk(answer, chunk.to_dict(), show)
        except openai.APIStatusError as error:
            answer.outcome = f"HTTP status {error.status_code}"
        except openai.APIError as error:
            answer.outcome = str(error.code or "error")
    answer.ended = time.perf_counter()
    return answer


def ask_plain(base: str, key: Secret, model: str, prompt: str, show: Callable[[str], None]) -> Answer:
    """The same with nothing but the standard library."""
    answer = Answer()
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=60)
    try:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"content-type": "application/json", "authorization": f"Bearer {key.reveal()}"}
        answer.started = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            answer.outcome = f"HTTP status {response.status}"
        else:
            _from_headers(answer, dict(response.headers))
            for line in response:
                data = line.strip().removeprefix(b"data:").strip()
                if line.startswith(b"data:") and data != b"[DONE]":
                    _from_chunk(answer, json.loads(data), show)
    finally:
        connection.close()
    answer.ended = time.perf_counter()
    return answer


def _from_headers(answer: Answer, received: Mapping[str, str]) -> None:
    headers = {name.lower(): value for name, value in received.items()}
    answer.route = headers.get("x-claw-route") or "-"
    for entry in (headers.get("server-timing") or "").split(","):
        name, _, rest = entry.strip().partition(";")
        if name == "gateway" and rest.startswith("dur="):
            answer.gateway_ms = float(rest[4:])


def _from_chunk(answer: Answer, chunk: Mapping[str, Any], show: Callable[[str], None]) -> None:
    for choice in chunk.get("choices") or ():
        text = (choice.get("delta") or {}).get("content")
        if text:
            answer.token(text)
            show(text)
        if choice.get("finish_reason"):
            answer.outcome = "complete" if choice["finish_reason"] == "stop" else str(choice["finish_reason"])
    usage = chunk.get("usage")
    if usage:
        answer.usage = (usage.get("prompt_tokens"), usage.get("completion_tokens"), None)
    if chunk.get("error"):
        answer.outcome = str(chunk["error"].get("code") or "error")
