"""`[plugins.truncate]`, and `[plugins.truncate.models.NAME]` over it.

Rule: in a model's section None is "as above"; `fitting` says what holds for a model, once and for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import field, frozen, validators

from clawproxy.config import Config, Duration

Policy = Literal["truncate", "refuse"]
Strategy = Literal["drop_oldest", "keep_pinned", "middle_out", "summarize"]

_AT_LEAST_ONE = validators.ge(1)


@frozen
class TruncateModel:
    websocket: Policy | None = None
    http: Policy | None = None
    strategy: Strategy | None = None
    keep_last: int | None = field(default=None, validator=validators.optional(_AT_LEAST_ONE))
    summary_model: str | None = None


@frozen
class TruncateSettings:
    websocket: Policy = "truncate"
    """What happens to a prompt that does not fit, on the Claw WebSocket."""
    http: Policy = "refuse"
    """The same on the HTTP surfaces, whose clients compact their own history when told `context_length_exceeded`."""
    max_output_tokens: int | None = field(default=None, validator=validators.optional(_AT_LEAST_ONE))
    """The most tokens one answer may have, whatever the client asks."""
    strategy: Strategy = "drop_oldest"
    """What goes, where it is truncated."""
    keep_last: int = field(default=1, validator=_AT_LEAST_ONE)
    """So many of the last turns stay, or the prompt is refused."""
    summary_model: str | None = None
    """Of `[models]`: who writes summaries."""
    summary_tokens: int = field(default=512, validator=[validators.ge(64), validators.le(8192)])
    """The most a summary may have."""
    summary_timeout: Duration = field(default=Duration(10.0), validator=validators.gt(Duration(0.0)))
    """How long one may take; after that the prompt is truncated without."""
    models: Mapping[str, TruncateModel] = field(factory=dict)

    def policy(self, surface: str) -> Policy:
        return self.websocket if surface == "claw" else self.http


@frozen(slots=True)
class Fitting:
    """What holds for one model."""

    websocket: Policy
    http: Policy
    strategy: Strategy
    keep_last: int
    summary_model: str | None

    def policy(self, surface: str) -> Policy:
        return self.websocket if surface == "claw" else self.http


def fitting(settings: TruncateSettings, model: str) -> Fitting:
    own = settings.models.get(model, TruncateModel())
    return Fitting(
        own.websocket or settings.websocket,
        own.http or settings.http,
        own.strategy or settings.strategy,
        own.keep_last or settings.keep_last,
        own.summary_model or settings.summary_model,
    )


def problems(settings: TruncateSettings, config: Config) -> list[str]:
    """What is wrong beside single values, each with its key."""
    found = []
    sections = [("plugins.truncate", settings.strategy, settings.summary_model)]
    for name, own in settings.models.items():
        where = f'plugins.truncate.models."{name}"'
        if config.models and name not in config.models:
            found.append(f"{where}: is not in [models]; name one of {_some(config)}.")
        sections.append((where, own.strategy or settings.strategy, own.summary_model or settings.summary_model))
    for where, strategy, writer in sections:
        if strategy == "summarize" and writer is None:
            found.append(f'{where}.summary_model: is missing; strategy "summarize" needs a model that writes the summaries.')
    for where, writer in [
        ("plugins.truncate", settings.summary_model),
        *((f'plugins.truncate.models."{name}"', own.summary_model) for name, own in settings.models.items()),
    ]:
        if writer is not None and config.models and writer not in config.models:
            found.append(f'{where}.summary_model: "{writer}" is not in [models]; name one of {_some(config)}.')
    return found


def _some(config: Config) -> str:
    return ", ".join(f'"{name}"' for name in list(config.models)[:5])
