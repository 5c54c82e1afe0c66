"""Raw TOML to attrs classes, strictly: nothing is coerced, unknown keys are refused, every mistake is reported at once.

Rule 1: a hook raises `Wrong`; `problems` turns the tree of exceptions cattrs makes of it into flat `(path, sentence)` rows.
Rule 2: no secret's value is ever part of a sentence.
Rule 3: plugins' own settings classes go through the same converter, so `Duration`, `Size` and `SecretRef` work there too.
"""

from __future__ import annotations

import datetime
import difflib
import math
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NewType, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.cols import is_mapping, is_sequence
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from clawproxy.clocks import Deadlines
from clawproxy.config.locate import Path as KeyPath
from clawproxy.config.policies import Moment, Words
from clawproxy.config.schema import (
    Duration,
    Factor,
    Hedge,
    KeyConfig,
    ModelConfig,
    PerRequest,
    Price,
    PriceConfig,
    ProviderConfig,
    SecretRef,
    ServerConfig,
    Size,
)
from clawproxy.config.units import (
    kind_of,
    parse_dollars,
    parse_duration,
    parse_factor,
    parse_price,
    parse_rate,
    parse_size,
    shown,
)

_Clock = NewType("_Clock", float)
"""Stands for `Duration` in the tables of a provider's and a model's own clocks."""
_QUANTILE = re.compile(r"p([5-9][0-9])")


class Wrong(ValueError):
    """One wrong value: a sentence that says what is wrong and, after a semicolon, what would be right."""


class EnvText(str):
    """A value that came from an environment variable: text, whatever its key's type."""

    __slots__ = ()


def _text(value: Any, _: Any = None) -> str:
    if not isinstance(value, str):
        raise Wrong(f"is {kind_of(value)}; write a string in quotes")
    return str(value)


def _integer(value: Any, _: Any = None) -> int:
    if isinstance(value, EnvText):
        try:
            return int(value)
        except ValueError:
            raise Wrong(f'"{shown(value)}" is no integer; write a whole number, like 2') from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong(f"is {kind_of(value)}; write a whole number without quotes, like 2")
    return value


def _number(value: Any, _: Any = None) -> float:
    if isinstance(value, EnvText):
        try:
            value = float(value)
        except ValueError:
            raise Wrong(f'"{shown(value)}" is no number; write one like 0.5') from None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise Wrong(f"is {kind_of(value)}; write a number without quotes, like 0.5")
    return float(value)


def _boolean(value: Any, _: Any = None) -> bool:
    if isinstance(value, EnvText) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise Wrong(f"is {kind_of(value)}; write true or false, without quotes")
    return value


def _duration(value: Any, _: Any = None) -> Duration:
    try:
        return Duration(parse_duration(value))
    except ValueError as error:
        raise Wrong(str(error)) from None


def _rate(value: Any, _: Any = None) -> float:
    try:
        return parse_rate(value)
    except ValueError as error:
        raise Wrong(str(error)) from None


def _clock(value: Any, _: Any = None) -> float:
    """A provider's or a model's own limit, of whichever clock."""
    return _rate(value) if isinstance(value, str) and "token" in value else _duration(value)


def _size(value: Any, _: Any = None) -> Size:
    if isinstance(value, EnvText) and value.isdecimal():
        value = int(value)
    try:
        return Size(parse_size(value))
    except ValueError as error:
        raise Wrong(str(error)) from None


def _price(value: Any, _: Any = None) -> Price:
    try:
        return Price(parse_price(value))
    except ValueError as error:
        raise Wrong(str(error)) from None


def _per_request(value: Any, _: Any = None) -> PerRequest:
    try:
        return PerRequest(parse_dollars(value))
    except ValueError as error:
        raise Wrong(str(error)) from None


def _factor(value: Any, _: Any = None) -> Factor:
    try:
        return Factor(parse_factor(value))
    except ValueError as error:
        raise Wrong(str(error)) from None


def _hedge(value: Any, _: Any = None) -> Hedge:
    if isinstance(value, str) and (match := _QUANTILE.fullmatch(value)) is not None:
        return Hedge(quantile=int(match[1]) / 100)
    try:
        after = parse_duration(value)
    except ValueError:
        seen = f'"{shown(value)}"' if isinstance(value, str) else kind_of(value)
        raise Wrong(f'{seen} says no moment to hedge at; write "p95" (p50 to p99), or a duration like "800ms"') from None
    if not 0 < after < math.inf:
        raise Wrong(f'"{shown(str(value))}" is no time to wait before a hedge; write one like "800ms", or leave the key out')
    return Hedge(Duration(after))


def _expires(value: Any, _: Any = None) -> float | None:
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise Wrong("is no date and time; write one with its offset, like 2027-01-31T00:00:00Z") from None
    if not isinstance(value, datetime.datetime) or value.tzinfo is None:
        what = "has no offset from UTC" if isinstance(value, datetime.datetime) else f"is {_date_or(value)}"
        raise Wrong(f"{what}; write a date and time with its offset, like 2027-01-31T00:00:00Z")
    return value.timestamp()


def _date_or(value: Any) -> str:
    return "a date without a time" if isinstance(value, datetime.date) else kind_of(value)


def _words(value: Any, _: Any = None) -> Words:
    if isinstance(value, str) and not isinstance(value, EnvText):
        return Words((value,))
    if not isinstance(value, (str, list)):
        raise Wrong(f"is {kind_of(value)}; write a string, or an array of them")
    made, errors = [], []
    for index, item in enumerate(_array(value)):
        try:
            made.append(_text(item))
        except Wrong as error:
            errors.append(_noted(error, IterableValidationNote("", index, str)))
    if errors:
        raise IterableValidationError("array", errors, tuple)
    if not made:
        raise Wrong("is empty; write a string, or leave the key out")
    return Words(tuple(made))


def _array(value: Any) -> list[Any]:
    if isinstance(value, EnvText):
        if not value.startswith("["):
            return [EnvText(part.strip()) for part in value.split(",") if part.strip()]
        try:
            value = tomllib.loads(f"v = {value}")["v"]
        except ValueError:
            raise Wrong("is no TOML array; write [...], or values with commas between them") from None
    if not isinstance(value, list):
        raise Wrong(f"is {kind_of(value)}; write an array, like [...]")
    return value


def _table(value: Any) -> dict[str, Any]:
    if isinstance(value, EnvText):
        try:
            value = tomllib.loads(f"v = {value}")["v"]
        except ValueError:
            raise Wrong("is no TOML table; write it like {key = 1}") from None
    if not isinstance(value, dict):
        raise Wrong(f"is {kind_of(value)}; write a table")
    return value


def _noted(error: Exception, note: str) -> Exception:
    error.__notes__ = [*getattr(error, "__notes__", []), note]
    return error


def _sequence_hook(cl: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    args = [arg for arg in get_args(cl) if arg is not Ellipsis]
    element: Any = args[0] if args else Any
    hook = converter.get_structure_hook(element) if element is not Any else None
    make: Any = {list: list, set: set, frozenset: frozenset}.get(get_origin(cl) or cl, tuple)

    def structure(value: Any, _: Any) -> Any:
        made, errors = [], []
        for index, item in enumerate(_array(value)):
            try:
                made.append(item if hook is None else hook(item, element))
            except Exception as error:
                errors.append(_noted(error, IterableValidationNote("", index, element)))
        if errors:
            raise IterableValidationError("array", errors, cl)
        return make(made)

    return structure


def _mapping_hook(cl: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    args = get_args(cl)
    element: Any = args[1] if len(args) == 2 else Any
    hook = converter.get_structure_hook(element) if element is not Any else None

    def structure(value: Any, _: Any) -> Any:
        made, errors = {}, []
        for name, item in _table(value).items():
            try:
                made[name] = item if hook is None else hook(item, element)
            except Exception as error:
                errors.append(_noted(error, IterableValidationNote("", name, element)))
        if errors:
            raise IterableValidationError("table", errors, cl)
        return made

    return structure


def _literal_hook(cl: Any, _converter: Converter) -> Callable[[Any, Any], Any]:
    allowed = get_args(cl)

    def structure(value: Any, _: Any) -> Any:
        for choice in allowed:
            if value == choice and isinstance(value, bool) == isinstance(choice, bool):
                return choice
        if isinstance(value, str):
            raise Wrong(f'"{shown(value)}" is not known; {suggest(value, [str(choice) for choice in allowed])}')
        raise Wrong(f"is {kind_of(value)}; write one of {listed(allowed)}")

    return structure


@lru_cache(4)
def make_converter(base: Path) -> Converter:
    """A converter for one file; relative paths in it mean `base`. Kept: making it is most of the work of a reload (8 ms)."""
    converter = Converter(forbid_extra_keys=True, detailed_validation=True)

    def path(value: Any, _: Any = None) -> Path:
        text = _text(value)
        if not text or "\0" in text:
            raise Wrong("is empty; write a path")
        try:
            return base / Path(text).expanduser()
        except RuntimeError:  # no home directory: serve says so where it needs one
            return Path(text)

    def secret(value: Any, _: Any = None) -> SecretRef:
        if not isinstance(value, str):
            raise Wrong(f'is {kind_of(value)}; write a reference, like "env:NAME" or "file:PATH"')
        if not value:
            raise Wrong('is empty; write a reference, like "env:NAME" or "file:PATH", or leave the key out')
        reference = SecretRef.parse(str(value))
        return SecretRef("file", str(path(reference.value))) if reference.scheme == "file" else reference

    converter.register_structure_hook_factory(is_sequence, _sequence_hook)
    converter.register_structure_hook_factory(_is_collection, _sequence_hook)
    converter.register_structure_hook_factory(is_mapping, _mapping_hook)
    converter.register_structure_hook_factory(lambda cl: str(get_origin(cl)) == "typing.Literal", _literal_hook)
    hooks: tuple[tuple[Any, Any], ...] = (
        (str, _text),
        (int, _integer),
        (float, _number),
        (bool, _boolean),
        (Path, path),
        (SecretRef, secret),
        (Duration, _duration),
        (_Clock, _clock),
        (Size, _size),
        (Price, _price),
        (PerRequest, _per_request),
        (Factor, _factor),
        (Hedge, _hedge),
        (Words, _words),
        (Moment, _expires),
    )
    for kind, hook in hooks:
        converter.register_structure_hook(kind, hook)

    def listen(value: Any, _: Any) -> tuple[str, ...]:
        if isinstance(value, str) and not value.startswith("["):
            return tuple(part.strip() for part in value.split(",")) if isinstance(value, EnvText) else (value,)
        return tuple(_text(item) for item in _array(value))

    def admin(value: Any, _: Any) -> str | None:
        return None if value in ("", "off") else _text(value)

    def of_table(cl: type[Any], **overrides: Any) -> None:
        inner = make_dict_structure_fn(
            cl, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **overrides
        )
        converter.register_structure_hook(cl, lambda value, kind: inner(_table(value), kind))

    def is_class(cl: Any) -> bool:
        return isinstance(cl, type) and attrs.has(cl)

    def class_hook(cl: Any, converter: Converter) -> Callable[[Any, Any], Any]:
        inner = make_dict_structure_fn(cl, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True)
        return lambda value, kind: inner(_table(value), kind)

    converter.register_structure_hook_factory(lambda cl: is_class(cl) and cl not in (SecretRef, Hedge), class_hook)
    clocks = {attribute.name: override(struct_hook=_duration) for attribute in attrs.fields(Deadlines)}
    clocks["rate"] = override(struct_hook=_rate)
    of_table(Deadlines, **clocks)
    of_table(PriceConfig, origin=override(omit=True))
    own_clocks = _mapping_hook(Mapping[str, _Clock], converter)
    of_table(ProviderConfig, deadlines=override(struct_hook=own_clocks))
    of_table(ModelConfig, deadlines=override(struct_hook=own_clocks))
    of_table(KeyConfig, expires=override(struct_hook=_expires))
    of_table(ServerConfig, listen=override(struct_hook=listen), admin=override(struct_hook=admin))
    return converter


def _is_collection(cl: Any) -> bool:
    return (get_origin(cl) or cl) in (tuple, set, frozenset)


def problems(error: BaseException, path: KeyPath = ()) -> Iterable[tuple[KeyPath, str]]:
    """Flat rows of what `converter.structure` raised: where, and a sentence."""
    if isinstance(error, BaseValidationError):
        for child in error.exceptions:
            step = next(
                (
                    note.name if isinstance(note, AttributeValidationNote) else note.index
                    for note in getattr(child, "__notes__", ())
                    if isinstance(note, (AttributeValidationNote, IterableValidationNote))
                ),
                None,
            )
            if isinstance(child, KeyError) and step is not None:
                yield (*path, step), f"is missing; add `{step} = ...` here"
            elif isinstance(child, ForbiddenExtraKeysError):
                assert isinstance(error, ClassValidationError)
                known = [each.name for each in attrs.fields(child.cl) if not each.metadata.get("internal")]
                for name in sorted(child.extra_fields):
                    yield (*path, name), f"is not a key here; {suggest(name, known)}"
            else:
                yield from problems(child, path if step is None else (*path, step))
    elif isinstance(error, Wrong):
        yield path, str(error)
    else:  # a plugin's validator: its own words, on one line
        yield path, f"is refused: {shown(' '.join(str(error.args[0] if error.args else error).split()))}"


def listed(names: Iterable[object]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def suggest(word: str, known: Collection[str]) -> str:
    """`did you mean ...?` where one is close, else what there is."""
    lowered = {name.lower().replace("-", "_"): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), list(lowered), n=1, cutoff=0.66)
    if close:
        return f"did you mean `{lowered[close[0]]}`?"
    return f"known are {listed(known)}" if known else "nothing is known here"


def structure_section(converter: Converter, cl: type[Any], section: Any, path: KeyPath) -> tuple[Any, list[tuple[KeyPath, str]]]:
    """One table as `cl`, and what is wrong with it. What is wrong is left out, so that the rest can be looked at too; None
    where that leaves nothing that can stand."""
    wrong: list[tuple[KeyPath, str]] = []
    while True:
        try:
            return converter.structure(section, cl), wrong
        except Exception as error:
            rows = list(problems(error, path))
            known = {row[0] for row in wrong}  # a required key that was pruned is now missing: said already
            wrong += [row for row in rows if row[0] not in known]
            pruned = section
            for where in sorted((row[0] for row in rows), key=lambda where: [str(part) for part in where], reverse=True):
                pruned = _pruned(pruned, where[len(path) :])
            if pruned is None or pruned == section:
                return None, wrong
            section = pruned


def _pruned(value: Any, path: KeyPath) -> Any:
    """`value` without what is at `path`; None where nothing is left of it. An array ends before its first bad element."""
    if not path:
        return None
    if isinstance(value, dict):
        if path[0] not in value:  # a missing key: its table can not stand
            return None
        inner = _pruned(value[str(path[0])], path[1:])
        rest = {name: item for name, item in value.items() if name != path[0]}
        return rest if inner is None else {**rest, path[0]: inner}
    if isinstance(value, list) and isinstance(path[0], int):
        return value[: path[0]]
    return None
