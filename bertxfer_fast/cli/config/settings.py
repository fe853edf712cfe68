"""Settings as a user writes them, in a YAML file or as flags: dotted keys whose values know where they stand.

A file is flattened (`data: {train: x}` is `data.train`), and every value can be converted to an annotated type.
Which keys there are is not known here.
"""

from __future__ import annotations

import enum
import os
import types
import typing
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from ...errors import InputError, did_you_mean

_BOOLS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_NAMES = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


@dataclass(frozen=True)
class Setting:
    """A value as it was written.

    Attributes:
        value: what YAML says it is; the text itself if it came from a flag.
        where: file and line or flag, for messages.
        base: the folder that relative paths count from.
        flag: whether it came from a flag.
    """

    value: Any
    where: str
    base: Path
    flag: bool = False

    @property
    def is_section(self) -> bool:
        """True for a mapping, which was flattened, and for a heading with nothing under it."""
        return not self.flag and (self.value is None or self.value == {})

    def parsed(self) -> Any:
        """The value where its type is open: a flag is read as YAML."""
        return _parsed(self.value) if self.flag else self.value

    def typed(self, hint: Any, name: str) -> Any:
        """The value as the annotation `hint`; text from flags is parsed, text in files stays text.

        Raises:
            InputError: it is something else. `name` is the key, for the message.
        """
        with suppress(ValueError):
            return _convert(self.value, hint, self.flag)
        choices = _choices(hint)
        if choices and isinstance(self.value, str):
            hint_of_name = did_you_mean(self.value, choices, listing=False)
            raise InputError(f"{self.where}: {name}: got {self.value!r}, want {_wanted(hint)}{hint_of_name}")
        raise InputError(f"{self.where}: {name}: got {_given(self.value)}, want {_wanted(hint)}")

    def path(self, name: str) -> str | None:
        """The value as a path that does not depend on the current directory.

        Raises:
            InputError: it is not text, or empty.
        """
        value = self.typed(str | None, name)
        if value is None:
            return None
        if not value:
            raise InputError(f"{self.where}: {name}: got an empty text, want a path")
        return os.path.normpath(self.base / Path(value).expanduser())

    def paths(self, name: str) -> str | list[str] | None:
        """The value as a path, or a list of two or more of them as a list.

        Raises:
            InputError: it is something else, or empty.
        """
        value = self.parsed() if self.flag and str(self.value).startswith("[") else self.value
        if not isinstance(value, list):
            return self.path(name)
        found = [Setting(each, self.where, self.base, self.flag).path(name) for each in value]
        if not found or None in found or len(set(found)) < len(found):
            raise InputError(f"{self.where}: {name}: got {value!r}, want one path or several different ones")
        return [path for path in found if path] if len(found) > 1 else found[0]


# ---- reading ------------------------------------------------------------------------------------------------


def read_file(path: Path, is_value: Callable[[str], bool]) -> dict[str, Setting]:
    """The settings of a YAML file by dotted key, sections included.

    Args:
        path: the file.
        is_value: whether a mapping under this dotted key is a value of its own, not a section.

    Raises:
        InputError: an unreadable file, bad YAML, no mapping, a key that is not text or is written twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read the recipe {path}: {reason}") from error
    loader = yaml.SafeLoader(text)
    settings: dict[str, Setting] = {}
    try:
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            _flatten(loader, root, "", path, is_value, settings)
        elif root is not None:
            kind = "list" if isinstance(root, yaml.SequenceNode) else "single value"
            raise InputError(f"{path.name}: got a {kind}, want a mapping of keys to values")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path.name}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    finally:
        loader.dispose()
    return settings


def _flatten(
    loader: yaml.SafeLoader,
    node: yaml.MappingNode,
    section: str,
    path: Path,
    is_value: Callable[[str], bool],
    into: dict[str, Setting],
) -> None:
    loader.flatten_mapping(node)  # resolves YAML merge keys
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        where = f"{path.name}, line {line}" + (f" (section {section})" if section else "")
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise InputError(f"{where}: key: got {key!r}, want text")
        if key in seen:
            raise InputError(f"{where}: key {key!r} is written twice, first on line {seen[key]}")
        seen[key] = line
        dotted = f"{section}.{key}" if section else key
        nested = isinstance(value_node, yaml.MappingNode) and not is_value(dotted)
        value = {} if nested else loader.construct_object(value_node, deep=True)
        into[dotted] = Setting(value, where, path.resolve().parent)
        if nested:
            _flatten(loader, value_node, dotted, path, is_value, into)


def read_flags(flags: Sequence[str], named: Collection[str] = ()) -> dict[str, Setting]:
    """Settings of command-line words: `--a.b value` or `--a.b=value`; a flag without a value is true.

    Args:
        flags: the words; a `-` in a key is read as `_`.
        named: sections whose keys are names that the user chose, in which a `-` stays.

    Raises:
        InputError: a word that is no flag, or a flag given twice.
    """
    settings: dict[str, Setting] = {}
    words = list(flags)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise InputError(f"flags: got {word!r}, want a flag such as --data.train FILE")
        key, equals, value = word[2:].partition("=")
        parts = key.split(".")
        key = ".".join(
            part if i == 1 and parts[0] in named else part.replace("-", "_") for i, part in enumerate(parts)
        )
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        if key in settings:
            raise InputError(f"flag --{key} is given twice")
        settings[key] = Setting(value, f"flag --{key}", Path.cwd(), flag=True)
    return settings


# ---- types --------------------------------------------------------------------------------------------------


def _convert(value: Any, hint: Any, flag: bool) -> Any:
    """`value` as the first member of the annotation that it fits, or ValueError."""
    for member in _members(hint):
        with suppress(ValueError):
            return _convert_to_one(value, member, flag)
    raise ValueError


def _convert_to_one(value: Any, hint: Any, flag: bool) -> Any:
    """`value` as an annotation that is no union, or ValueError. `flag`: it is text that stands for something."""
    kind = typing.get_origin(hint) or hint
    if hint is Any:
        return _parsed(value) if flag else value
    if kind is Literal and value in typing.get_args(hint):
        return value
    if _is_enum(kind) and value in [member.value for member in kind]:
        return value
    if kind is type(None) and (value is None or (flag and value.lower() in ("null", "~"))):
        return None
    if kind is bool and flag and value.lower() in _BOOLS:
        return _BOOLS[value.lower()]
    if kind is int and flag:
        return int(value)
    # Text counts in files, too: YAML 1.1 reads `3e-5` (no dot) as text, and it means a number where one is wanted.
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)
    if flag and kind in (list, dict):
        value = _parsed(f"[{value}]" if kind is list and not value.startswith("[") else value)
    if kind is list and isinstance(value, list):
        [item] = typing.get_args(hint) or (Any,)
        return [_convert(element, item, False) for element in value]
    if kind in (bool, int, str, dict) and type(value) is kind:
        return value
    raise ValueError


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _members(hint: Any) -> list[Any]:
    """The members of a union, the strict ones first so that text does not swallow everything."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return [hint]
    members = [member for argument in typing.get_args(hint) for member in _members(argument)]
    if any(_is_enum(member) for member in members):  # `Enum | str` means: one of the enum's values
        members = [member for member in members if member is not str]
    return sorted(members, key=lambda member: member is str)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _choices(hint: Any) -> list[str]:
    found: list[str] = []
    for member in _members(hint):
        if typing.get_origin(member) is Literal:
            found += [str(value) for value in typing.get_args(member)]
        elif _is_enum(member):
            found += [str(choice.value) for choice in member]
    return found


def _wanted(hint: Any) -> str:
    """An annotation in words."""
    choices = _choices(hint)
    if choices:
        return f"one of {', '.join(choices)}"
    kinds = [typing.get_origin(member) or member for member in _members(hint)]
    names = [_NAMES[kind] for kind in kinds if kind in _NAMES and kind is not type(None)]
    return " or ".join(dict.fromkeys(names)) or str(hint)


def _given(value: Any) -> str:
    """A value in words."""
    if value is None:
        return "nothing"
    kind = "true/false" if isinstance(value, bool) else _NAMES.get(type(value), type(value).__name__)
    return f"{kind}: {value!r}"
