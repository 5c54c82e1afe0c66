"""Raw TOML to attrs classes, strictly: nothing is coerced, unknown keys are refused, every mistake is reported at once.

Rule 1: a hook raises `Wrong`; `problems` turns the tree of exceptions cattrs makes of it into flat `(path, sentence)` rows.
Rule 2: no secret's value is ever part of a sentence.
Rule 3: plugins' own settings classes go through the same converter, so `Duration`, `Size` and `SecretRef` work there too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin

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
from clawproxy.config.prices import Factor, PerRequest, Price, PriceConfig
from clawproxy.config.scalars import (
    Clock,
    EnvText,
    Wrong,
    array_of,
    boolean_of,
    clock_of,
    duration_of,
    expires_of,
    factor_of,
    hedge_of,
    integer_of,
    noted,
    number_of,
    per_request_of,
    price_of,
    rate_of,
    size_of,
    table_of,
    text_of,
    words_of,
)
from clawproxy.config.schema import (
    Duration,
    Hedge,
    KeyConfig,
    ModelConfig,
    ProviderConfig,
    ProviderTLSConfig,
    SecretRef,
    ServerConfig,
    Size,
)
from clawproxy.config.units import kind_of, shown

_VARIABLE = re.compile(r"(?:env:)?\$\{?[A-Z][A-Z0-9_]*\}?")


def _sequence_hook(cl: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    args = [arg for arg in get_args(cl) if arg is not Ellipsis]
    element: Any = args[0] if args else Any
    hook = converter.get_structure_hook(element) if element is not Any else None
    make: Any = {list: list, set: set, frozenset: frozenset}.get(get_origin(cl) or cl, tuple)

    def structure(value: Any, _: Any) -> Any:
        made, errors = [], []
        for index, item in enumerate(array_of(value)):
            try:
                made.append(item if hook is None else hook(item, element))
            except Exception as error:
                errors.append(noted(error, IterableValidationNote("", index, element)))
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
        for name, item in table_of(value).items():
            try:
                made[name] = item if hook is None else hook(item, element)
            except Exception as error:
                errors.append(noted(error, IterableValidationNote("", name, element)))
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
        text = text_of(value)
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
        if _VARIABLE.fullmatch(value):  # as a shell would have it; taken for a secret, it would be found out by the provider
            raise Wrong('is written like a variable in a shell, and those are not put in here; write "env:NAME", without $')
        reference = SecretRef.parse(str(value))
        return SecretRef("file", str(path(reference.value))) if reference.scheme == "file" else reference

    converter.register_structure_hook_factory(is_sequence, _sequence_hook)
    converter.register_structure_hook_factory(_is_collection, _sequence_hook)
    converter.register_structure_hook_factory(is_mapping, _mapping_hook)
    converter.register_structure_hook_factory(lambda cl: str(get_origin(cl)) == "typing.Literal", _literal_hook)
    hooks: tuple[tuple[Any, Any], ...] = (
        (str, text_of),
        (int, integer_of),
        (float, number_of),
        (bool, boolean_of),
        (Path, path),
        (SecretRef, secret),
        (Duration, duration_of),
        (Clock, clock_of),
        (Size, size_of),
        (Price, price_of),
        (PerRequest, per_request_of),
        (Factor, factor_of),
        (Hedge, hedge_of),
        (Words, words_of),
        (Moment, expires_of),
    )
    for kind, hook in hooks:
        converter.register_structure_hook(kind, hook)

    def listen(value: Any, _: Any) -> tuple[str, ...]:
        if isinstance(value, str) and not value.startswith("["):
            return tuple(part.strip() for part in value.split(",")) if isinstance(value, EnvText) else (value,)
        return tuple(text_of(item) for item in array_of(value))

    def pins(value: Any, _: Any) -> tuple[str, ...]:
        one = isinstance(value, str) and not value.startswith("[")
        return (value,) if one else tuple(text_of(pin) for pin in array_of(value))

    def admin(value: Any, _: Any) -> str | None:
        return None if value in ("", "off") else text_of(value)

    def of_table(cl: type[Any], **overrides: Any) -> None:
        inner = make_dict_structure_fn(
            cl, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **overrides
        )
        converter.register_structure_hook(cl, lambda value, kind: inner(table_of(value), kind))

    def is_class(cl: Any) -> bool:
        return isinstance(cl, type) and attrs.has(cl)

    def class_hook(cl: Any, converter: Converter) -> Callable[[Any, Any], Any]:
        inner = make_dict_structure_fn(cl, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True)
        return lambda value, kind: inner(table_of(value), kind)

    converter.register_structure_hook_factory(lambda cl: is_class(cl) and cl not in (SecretRef, Hedge), class_hook)
    clocks = {attribute.name: override(struct_hook=duration_of) for attribute in attrs.fields(Deadlines)}
    clocks["rate"] = override(struct_hook=rate_of)
    of_table(Deadlines, **clocks)
    of_table(ProviderTLSConfig, pin=override(struct_hook=pins))
    of_table(PriceConfig, origin=override(omit=True))
    own_clocks = _mapping_hook(Mapping[str, Clock], converter)
    of_table(ProviderConfig, deadlines=override(struct_hook=own_clocks))
    of_table(ModelConfig, deadlines=override(struct_hook=own_clocks))
    of_table(KeyConfig, expires=override(struct_hook=expires_of))
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
                ordered = sorted(attrs.fields(child.cl), key=lambda each: each.kw_only)  # what is inherited comes last
                known = [each.name for each in ordered if not each.metadata.get("internal")]
                for name in sorted(child.extra_fields):
                    yield (*path, name), f"is not a key here; {suggest(name, known)}"
            else:
                yield from problems(child, path if step is None else (*path, step))
    elif isinstance(error, Wrong):
        yield path, str(error)
    else:  # a plugin's validator: its own words, on one line
        yield path, f"is refused: {shown(' '.join(str(error.args[0] if error.args else error).split()), 300)}"


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
            # A required key that was pruned, or the table around one, is now missing: said already.
            known = {path[:length] for path, _ in wrong for length in range(len(path) + 1)}
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
