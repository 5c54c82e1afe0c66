"""A service of the operator's that is asked about each prompt.

    POST url   {"request_id": "...", "key": "...", "model": "...", "texts": ["...", ...]}
    200        {"flagged": true, "labels": ["..."]}        `labels` may stay out

Rule 1: it sees the prompt as providers would: after everything else was redacted, and no credential.
Rule 2: it has `deadline` and no longer. What happens without its answer is configured; nothing passes by silently.
Rule 3: of its labels those count that are short words of `a-z`, `0-9`, `_`, `-`: they go into notices and counts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from clawproxy.errors import ConfigError, Refusal
from clawproxy.fetch import FetchError, fetch, problem_with
from clawproxy_sanitize.settings import ClassifierSettings

if TYPE_CHECKING:
    from clawproxy.context import App, Exchange

log = logging.getLogger("clawproxy.sanitize")

MOST_AT_ONCE: Final = 256
_MOST_ANSWER: Final = 64 * 1024
_LABEL: Final = re.compile(r"[a-z0-9_-]{1,40}")


class Classifier:
    """One generation's. Raises ConfigError where the settings can not be used."""

    def __init__(self, settings: ClassifierSettings, app: App) -> None:
        where = "plugins.sanitize.classifier"
        problems = []
        if (problem := problem_with(settings.url)) is not None:
            problems.append(f"{where}.url: {problem}.")
        budget = app.config.pipeline.hook_budget
        if settings.deadline >= budget:
            problems.append(f"{where}.deadline: must be less than pipeline.hook_budget, which is {budget:g} s.")
        self._token = ""
        if settings.token is not None:
            try:
                self._token = app.resolve_secret(settings.token).reveal()
            except LookupError as error:
                problems.append(f"{where}.token: {error.args[0] if error.args else 'not found'}")
        if problems:
            raise ConfigError(problems)
        self.settings = settings
        self._asking = 0

    async def objections(self, exchange: Exchange, model: str, said: Sequence[str]) -> list[str] | None:
        """The labels of what it objects to, `classifier` where it names none; None where it does not. Raises Refusal where it
        could not be asked and `on_error` says so."""
        if self._asking >= MOST_AT_ONCE:
            self._failed("too many questions at once")
            return None
        self._asking += 1
        try:
            answer = await self._ask(exchange, model, said)
        except FetchError as error:
            self._failed(str(error))
            return None
        finally:
            self._asking -= 1
        flagged = answer.get("flagged")
        if not isinstance(flagged, bool):
            self._failed("its answer has no `flagged`")
            return None
        if not flagged:
            return None
        labels = answer.get("labels")
        known = (
            [label for label in labels if isinstance(label, str) and _LABEL.fullmatch(label)] if isinstance(labels, list) else []
        )
        return known[:16] or ["classifier"]

    def _failed(self, why: str) -> None:
        log.error("sanitize: the classifier could not be asked: %s", why)
        if self.settings.on_error == "block":
            raise Refusal(
                "refused.sanitize",
                "The prompt could not be checked.",
                policy="sanitize",
                extra={"pattern": "classifier_unavailable"},
            )

    async def _ask(self, exchange: Exchange, model: str, said: Sequence[str]) -> dict[str, Any]:
        body = {"request_id": exchange.request_id, "key": exchange.principal.key, "model": model, "texts": said}
        try:
            data = msgspec.json.encode(body)
        except UnicodeEncodeError:  # a lone surrogate, which JSON can carry and UTF-8 can not
            data = msgspec.json.encode({**body, "texts": [text.encode("utf-8", "replace").decode() for text in said]})
        headers = [("content-type", "application/json"), ("accept", "application/json")]
        if self._token:
            headers.append(("authorization", f"Bearer {self._token}"))
        own = self.settings
        answer = await fetch(
            own.url,
            method="POST",
            headers=headers,
            body=data,
            limit=_MOST_ANSWER,
            seconds=own.deadline,
            ca_file=None if own.ca_file is None else Path(own.ca_file),
        )
        if answer.status != 200:
            raise FetchError(f"status {answer.status}")
        try:
            return msgspec.json.decode(answer.body, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError):
            raise FetchError("its answer is not a JSON object") from None
