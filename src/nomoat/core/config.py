"""Frozen values to JSON and back, and overrides from the command line.

    frozen dataclass -> to_json -> {"type": "nomoat.families.lm:LM", "vocab_size": 512, ...} -> from_json -> equal value
    "family.backbone.depth=4" -> override -> a copy with that field changed, read by the field's annotation

A configuration is a frozen dataclass with defaults that train; there is no YAML and no global object. Reading a run
that somebody else made imports modules of `nomoat` and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any, TypeVar

from nomoat.core.errors import ConfigError, nearest

TAG = "type"
"""The key that says which value an object of the JSON was."""

Value = TypeVar("Value")


def to_json(value: Any) -> Any:
    """Return `value` as JSON: frozen dataclasses, tuples, mappings, enums, paths, numbers, strings, None.

    Raises:
        ConfigError: `value` holds something that cannot be read back (a function, a tensor, ...).
    """
    if value is None or (isinstance(value, bool | str | int) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return {TAG: _name_of(type(value)), "value": value.name}
    if isinstance(value, float):
        return value if math.isfinite(value) else {TAG: "float", "value": str(value)}
    if isinstance(value, PurePath):
        return {TAG: "path", "value": str(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        if TAG in value or not all(isinstance(key, str) for key in value):
            return {TAG: "mapping", "items": [[to_json(key), to_json(item)] for key, item in value.items()]}
        return {key: to_json(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        if TAG in names:
            raise ConfigError(f"a configuration cannot have a field named `{TAG}` ({type(value).__name__})")
        return {TAG: _name_of(type(value)), **{name: to_json(getattr(value, name)) for name in names}}
    raise ConfigError(
        f"a value of type {type(value).__name__} cannot be saved in a recipe",
        "a recipe is read back in another process, from text",
        "use numbers, strings, None, tuples, mappings, paths and frozen dataclasses",
    )


def from_json(data: Any) -> Any:
    """Return the value that `to_json` wrote; lists become tuples.

    Raises:
        ConfigError: an unknown field (the nearest is named), a missing one, or a type outside `nomoat` whose module
            nobody has imported.
    """
    if isinstance(data, list):
        return tuple(from_json(item) for item in data)
    if not isinstance(data, dict):
        return data
    if TAG not in data:
        return {key: from_json(item) for key, item in data.items()}
    fields = {key: item for key, item in data.items() if key != TAG}
    match data[TAG]:
        case "float":
            return float(fields["value"])
        case "path":
            return Path(fields["value"])
        case "mapping":
            return {from_json(key): from_json(item) for key, item in fields["items"]}
    found = _type_named(data[TAG])
    if issubclass(found, Enum):
        return found[fields["value"]]
    return construct(found, {name: from_json(item) for name, item in fields.items()})


def construct(kind: type[Value], fields: Mapping[str, Any]) -> Value:
    """Return `kind(**fields)`.

    Raises:
        ConfigError: unknown or missing fields, in the reader's words.
    """
    known = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"{kind.__name__} has no field `{name}`", f"its fields are {', '.join(known)}", nearest(name, known)
            )
    missing = [name for name, field in known.items() if name not in fields and not _has_default(field)]
    if missing:
        raise ConfigError(f"{kind.__name__} needs {', '.join(missing)}")
    return kind(**fields)


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`: 64 hexadecimal digits, the same in every process."""
    text = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def override(value: Value, changes: Sequence[str]) -> Value:
    """Return `value` with every change of the form `a.b=c` applied; of two of the same field the later counts.

    Args:
        value: a frozen dataclass, such as a recipe.
        changes: for example `["family.backbone.depth=4", "optimizer.betas=0.9,0.99", "ema=none"]`.

    Raises:
        ConfigError: no `=`, an unknown field (the nearest is named, with its full path), or a text that does not fit
            the field's type.
    """
    asked = []
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path.strip():
            raise ConfigError(
                f"`{change}` is not a change", "a change is `field=value`", "for example `optimizer.learning_rate=0.01`"
            )
        asked.append((path.strip().split("."), text.strip()))
    return _changed(value, asked, ()) if asked else value


def _changed(value: Any, changes: Sequence[tuple[list[str], str]], above: tuple[str, ...]) -> Any:
    """All changes of one value at once, for what holds between its fields need not hold after each of them."""
    held = isinstance(value, Mapping)
    if not held and (not dataclasses.is_dataclass(value) or isinstance(value, type)):
        raise ConfigError(
            f"`{'.'.join(above)}` has no fields", f"it is {value!r}", f"set it whole: `{'.'.join(above)}=...`"
        )
    found: dict[str, Any] = {}
    for name in dict.fromkeys(path[0] for path, _ in changes):
        here, inner = (*above, name), list[tuple[list[str], str]]()
        annotation = Any if held else _annotation_of(value, name, above)
        new = value.get(name) if held else getattr(value, name)
        for path, text in changes:
            if path == [name]:  # whole: what was said of its fields before no longer counts
                new, inner = _parse(text, annotation, new, ".".join(here)), []
            elif path[0] == name:
                inner.append((path[1:], text))
        found[name] = _changed(new, inner, here) if inner else new
    return {**value, **found} if held else dataclasses.replace(value, **found)


def _annotation_of(value: Any, name: str, above: tuple[str, ...]) -> Any:
    """The annotation of a field that can be set."""
    known = [field.name for field in dataclasses.fields(value) if field.init]
    if name not in known:
        near = nearest(name, known)
        if near and above:
            near = near.replace("`", f"`{'.'.join(above)}.", 1)
        raise ConfigError(
            f"there is no field `{'.'.join((*above, name))}`", f"{type(value).__name__} has {', '.join(known)}", near
        )
    return _annotation(type(value), name)


def _annotation(kind: type, name: str) -> Any:
    """The resolved annotation of a field, or Any where it names what only a type checker imports."""
    for owner in kind.__mro__:
        found = inspect.get_annotations(owner).get(name, Any)
        if not isinstance(found, str):
            if found is not Any:
                return found
            continue
        try:
            return eval(found, dict(vars(sys.modules[owner.__module__])))  # our own source text, never input
        except NameError:
            return Any
    return Any


def _parse(text: str, annotation: Any, old: Any, path: str) -> Any:
    """Read `text` as `annotation` says; where that says nothing, as the type of the old value."""
    if annotation is Any or isinstance(annotation, TypeVar):
        annotation = type(old) if old is not None else Any
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(text, typing.get_args(annotation), old, path)
    if origin is typing.Literal:
        known = [str(choice) for choice in typing.get_args(annotation)]
        if text not in known:
            raise ConfigError(f"`{path}` cannot be `{text}`", f"it is one of {', '.join(known)}", nearest(text, known))
        return typing.get_args(annotation)[known.index(text)]
    if tuple in (origin, annotation):
        return _parse_tuple(text, typing.get_args(annotation), old, path)
    if isinstance(annotation, type) and (dataclasses.is_dataclass(annotation) or issubclass(annotation, Enum)):
        return _parse_named(text, annotation, path)
    return _parse_plain(text, annotation, path)


def _parse_union(text: str, choices: tuple[Any, ...], old: Any, path: str) -> Any:
    if text.lower() in ("none", "null", "") and type(None) in choices:
        return None
    order = [choice for choice in choices if choice is not type(None)]
    order.sort(key=lambda choice: choice is str)  # anything is a string: try the narrower readings first
    if "," not in text and any(choice is str for choice in order):
        order = [choice for choice in order if tuple not in (typing.get_origin(choice), choice)]
    failure: ConfigError | None = None
    for choice in order:
        try:
            return _parse(text, choice, old, path)
        except ConfigError as error:
            failure = failure or error
    raise failure or ConfigError(f"`{path}` cannot be `{text}`")


def _parse_tuple(text: str, inner: tuple[Any, ...], old: Any, path: str) -> tuple[Any, ...]:
    pieces = [piece.strip().strip("'\"") for piece in text.strip("()[] ").split(",") if piece.strip()]
    if len(inner) == 2 and inner[1] is Ellipsis:
        return tuple(_parse(piece, inner[0], None, path) for piece in pieces)
    if inner and len(inner) != len(pieces):
        raise ConfigError(f"`{path}` takes {len(inner)} values", f"`{text}` has {len(pieces)}", f"it is now {old!r}")
    kinds = inner or (type(old[0]) if old else Any,) * len(pieces)
    return tuple(_parse(piece, kind, None, path) for piece, kind in zip(pieces, kinds, strict=True))


def _parse_named(text: str, annotation: Any, path: str) -> Any:
    """A dataclass by `parse` or by the name of a constant in its module (`dialect=GPT2`); an enum by its member."""
    if issubclass(annotation, Enum):
        members: Mapping[str, Any] = {**annotation.__members__, **{str(item.value): item for item in annotation}}
    elif hasattr(annotation, "parse"):
        return annotation.parse(text)
    else:
        space = vars(sys.modules[annotation.__module__])
        members = {name: item for name, item in space.items() if isinstance(item, annotation)}
    for name in (text, text.upper(), text.lower()):
        if name in members:
            return members[name]
    raise ConfigError(
        f"`{path}` cannot be `{text}`",
        f"it is one of {', '.join(members)}" if members else f"it is a {annotation.__name__} with fields of its own",
        nearest(text.upper(), members) if members else f"set one of them: `{path}.FIELD=...`",
    )


def _parse_plain(text: str, annotation: Any, path: str) -> Any:
    lowered = text.lower()
    if annotation is str:
        return text
    if annotation is bool:
        if lowered in ("true", "yes", "on", "1"):
            return True
        if lowered in ("false", "no", "off", "0"):
            return False
        raise ConfigError(f"`{path}` is true or false", f"`{text}` is neither")
    if annotation in (int, float):
        try:
            return annotation(text.replace("_", ""))
        except ValueError:
            whole = "a whole number" if annotation is int else "a number"
            raise ConfigError(f"`{path}` is {whole}", f"`{text}` is not") from None
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return annotation(text)
    if annotation is not Any:
        raise ConfigError(f"`{path}` cannot be set from a text", f"it is a {annotation}", "set it in a recipe file")
    if lowered in ("none", "null", "true", "false"):
        return {"true": True, "false": False}.get(lowered)
    return _literal(text)


def _literal(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _name_of(kind: type) -> str:
    if "<locals>" in kind.__qualname__:
        raise ConfigError(
            f"{kind.__name__} is defined inside a function and could not be found again",
            "a recipe is read back in another process",
            "move the class to the top level of its module",
        )
    return f"{kind.__module__}:{kind.__qualname__}"


def _type_named(name: Any) -> type:
    """The dataclass or enum called `module:Name`; imports modules of nomoat only."""
    module_name, _, qualified = str(name).partition(":")
    if module_name == "nomoat" or module_name.startswith("nomoat."):
        try:
            found: Any = import_module(module_name)
        except ImportError as error:
            raise ConfigError(
                f"this nomoat has no `{module_name}`", str(error), "the run may need another version"
            ) from error
    elif module_name in sys.modules:
        found = sys.modules[module_name]
    else:
        raise ConfigError(
            f"`{name}` is not part of nomoat",
            "reading a run imports nothing but nomoat, because a run may come from somebody else",
            f"if you trust it, `import {module_name}` first",
        )
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not (dataclasses.is_dataclass(found) or issubclass(found, Enum)):
        raise ConfigError(f"`{name}` is no configuration", "", "the run may need another version of nomoat")
    return found
