"""A distillation recipe file: YAML in, checked and typed dataclasses out.

Every key of the file is also a flag (`data.train` is `--data.train`) and flags win. Nothing is guessed: an
unknown key, a key written twice, or a value of the wrong type is a `ConfigError` that says where it stands and,
for an unknown key, which known one is nearest. Paths in the file count from the file's folder, paths in flags
from the current directory. This module only reads and types; whether files, columns and models fit together is
checked by the command that uses them.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

import yaml

Task = Literal["sequence-classification", "regression", "token-classification", "none"]

# Training arguments a recipe may not set, and what to do instead.
_RESERVED_TRAINING = {
    "output_dir": "set output_dir at the top level",
    "seed": "set seed at the top level",
    "resume_from_checkpoint": "run the same command again; it resumes by itself",
}


class ConfigError(ValueError):
    """A recipe file or a flag that cannot be used as written."""


@dataclass
class StudentConfig:
    """What `students.smaller` needs; `path` instead of sizes starts from an existing model directory."""

    path: str | None = field(
        default=None, metadata={"path": True, "help": "directory of an existing student"}
    )
    num_hidden_layers: int | None = field(default=None, metadata={"help": "number of encoder layers"})
    hidden_size: int | None = field(default=None, metadata={"help": "width (default: the teacher's)"})
    num_attention_heads: int | None = field(default=None, metadata={"help": "heads (default: the teacher's)"})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "feed-forward width (default: the teacher's)"}
    )
    init: Literal["teacher", "random"] = field(default="teacher", metadata={"help": "starting weights"})
    layers: list[int] | None = field(
        default=None, metadata={"help": "teacher layers to copy, from 0 (default: uniform)"}
    )


@dataclass
class DataConfig:
    """Files (csv, tsv, jsonl, parquet, txt) and the columns to read from them."""

    train: str | None = field(default=None, metadata={"path": True, "help": "training file"})
    eval: str | None = field(
        default=None, metadata={"path": True, "help": "dev file, measured while training"}
    )
    test: str | None = field(
        default=None, metadata={"path": True, "help": "test file, measured once at the end"}
    )
    text: str = field(default="text", metadata={"help": "column with the text (or the tokens)"})
    text_pair: str | None = field(default=None, metadata={"help": "column with the second text of a pair"})
    label: str | None = field(default=None, metadata={"help": "column with the label (may be left out)"})
    max_length: int | None = field(
        default=None, metadata={"help": "cut texts to so many tokens (default: what the models can take)"}
    )


@dataclass
class DistillConfig:
    """One `bertxfer distill` run. `sources` remembers where every key was written, for error messages."""

    recipe: str = field(metadata={"help": "name of the recipe, for example tinybert"})
    teacher: str = field(metadata={"path": True, "help": "directory of the teacher"})
    student: StudentConfig = field(metadata={"help": "directory of a student, or the sizes of a new one"})
    data: DataConfig = field(metadata={"help": "files and columns"})
    output_dir: str = field(metadata={"path": True, "help": "where everything of this run is written"})
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "options of the recipe"})
    tokenizer: str | None = field(
        default=None, metadata={"path": True, "help": "directory of the tokenizer (default: the teacher's)"}
    )
    task: Task | None = field(
        default=None, metadata={"help": "what the head does (default: the teacher's own head)"}
    )
    seed: int = field(default=42, metadata={"help": "seed of weights, order and dropout"})
    training: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "any DistillationArguments field, for all stages"}
    )
    stages: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata={"help": "any DistillationArguments field, for one stage"}
    )
    sources: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def where(self, key: str) -> str:
        """Where `key` (dotted) was written: a file and line, a flag, or just the key if it was left out."""
        while key not in self.sources and "." in key:
            key = key.rpartition(".")[0]
        return self.sources.get(key, key)

    def training_for(self, stage: str) -> dict[str, Any]:
        """The user's training arguments of one stage: those for all stages, then those for this one."""
        return {**self.training, **self.stages.get(stage, {})}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they could stand in a YAML file."""
        values = dataclasses.asdict(self)
        del values["sources"]
        return values


def load(
    path: str | Path,
    flags: Sequence[str] = (),
    *,
    training_fields: Mapping[str, Any] | None = None,
) -> DistillConfig:
    """Read a recipe file, lay the flags over it, and return checked settings.

    Args:
        path: the YAML file.
        flags: command-line words such as `["--data.train", "x.tsv", "--training.bf16"]`.
        training_fields: known names of `training` and `stages.*` with their type annotations; by default the
            fields of `DistillationArguments` (which imports transformers).

    Raises:
        ConfigError: unreadable file, unknown or repeated key, wrong type, missing required key.
    """
    path = Path(path)
    leaves = _overlay(_read_file(path), _read_flags(flags))
    if training_fields is None:
        from .trainer import training_field_types

        training_fields = training_field_types()
    return _build(leaves, training_fields, path.name)


def check_stages(config: DistillConfig, names: Iterable[str]) -> None:
    """Raise ConfigError if `stages` names a stage the recipe does not have."""
    names = list(names)
    for stage in config.stages:
        if stage not in names:
            raise ConfigError(
                f"{config.where(f'stages.{stage}')}: recipe {config.recipe!r} has no stage {stage!r}"
                f"{_nearest(stage, names)}"
            )


def describe() -> str:
    """All keys with a line of help each, for `bertxfer distill --help`."""
    lines = []
    for name, _, meta in _schema():
        lines.append(f"  --{name:<30} {meta.get('help', '')}")
    return "\n".join(lines)


# ---- reading ---------------------------------------------------------------------------------------------


@dataclass
class _Leaf:
    """A value and where it came from: `where` for messages, `base` for paths, `flag` if it is raw text."""

    value: Any
    where: str
    base: Path
    flag: bool = False


def _read_file(path: Path) -> dict[str, _Leaf]:
    """Flatten a YAML file into dotted keys, with line numbers kept."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read the recipe {path}: {reason}") from error
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        leaves: dict[str, _Leaf] = {}
        if root is None:
            return leaves
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"{path.name}: a recipe is a mapping of keys to values, this is a {getattr(root, 'id', 'value')}"
            )
        _flatten(loader, root, "", path, leaves)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path.name}{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    finally:
        loader.dispose()
    return leaves


def _flatten(
    loader: yaml.SafeLoader, node: yaml.MappingNode, prefix: str, path: Path, out: dict[str, _Leaf]
) -> None:
    loader.flatten_mapping(node)  # resolves YAML merge keys
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node, deep=True)
        section = f" (section {prefix})" if prefix else ""
        where = f"{path.name}, line {line}{section}"
        if not isinstance(key, str):
            raise ConfigError(f"{where}: keys are text, got {key!r}")
        if key in seen:
            raise ConfigError(f"{where}: key {key!r} is written twice, first on line {seen[key]}")
        seen[key] = line
        dotted = f"{prefix}.{key}" if prefix else key
        if isinstance(value_node, yaml.MappingNode) and not _is_free(dotted):
            out[dotted] = _Leaf({}, where, path.resolve().parent)
            _flatten(loader, value_node, dotted, path, out)
        else:
            value = loader.construct_object(value_node, deep=True)
            out[dotted] = _Leaf(value, where, path.resolve().parent)


def _is_free(dotted: str) -> bool:
    """True for keys whose value is a mapping of its own (a training argument that takes a dict)."""
    parts = dotted.split(".")
    depth = {"training": 2, "stages": 3, "options": 2}.get(parts[0])
    return depth is not None and len(parts) >= depth


def _read_flags(flags: Sequence[str]) -> dict[str, _Leaf]:
    """`--a.b value`, `--a.b=value`; a flag without a value is true."""
    leaves: dict[str, _Leaf] = {}
    words = list(flags)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ConfigError(f"expected a flag such as --data.train FILE, got {word!r}")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        where = f"flag --{name}"
        if name in leaves:
            raise ConfigError(f"{where} is given twice")
        leaves[name] = _Leaf(value, where, Path.cwd(), flag=True)
    return leaves


def _overlay(file: dict[str, _Leaf], flags: dict[str, _Leaf]) -> dict[str, _Leaf]:
    """Flags over the file. `--student DIR` replaces the file's sizes, `--student.x N` replaces its directory."""
    if "student" in flags:
        file = {key: leaf for key, leaf in file.items() if not key.startswith("student.")}
    elif any(key.startswith("student.") for key in flags) and not _is_section(file.get("student")):
        file = {key: leaf for key, leaf in file.items() if key != "student"}
    return {**file, **flags}


# ---- checking --------------------------------------------------------------------------------------------


def _schema() -> list[tuple[str, Any, Mapping[str, Any]]]:
    """(dotted key, type, metadata) of every fixed key; `training`, `stages`, `options` are open."""
    rows: list[tuple[str, Any, Mapping[str, Any]]] = []
    hints = typing.get_type_hints(DistillConfig)
    for item in dataclasses.fields(DistillConfig):
        if item.name == "sources":
            continue
        kind = hints[item.name]
        rows.append((item.name, kind, item.metadata))
        if dataclasses.is_dataclass(kind):
            inner = typing.get_type_hints(kind)
            rows += [
                (f"{item.name}.{sub.name}", inner[sub.name], sub.metadata) for sub in dataclasses.fields(kind)
            ]
    return rows


def _build(leaves: dict[str, _Leaf], training_fields: Mapping[str, Any], file_name: str) -> DistillConfig:
    schema = {name: (kind, meta) for name, kind, meta in _schema()}
    values: dict[str, Any] = {}
    training: dict[str, Any] = {}
    stages: dict[str, dict[str, Any]] = {}
    options: dict[str, Any] = {}
    for key, leaf in leaves.items():
        head, *rest = key.split(".")
        if head == "training" and len(rest) == 1:
            training[rest[0]] = _training_value(rest[0], leaf, training_fields)
        elif head == "stages" and len(rest) == 2:
            stages.setdefault(rest[0], {})[rest[1]] = _training_value(rest[1], leaf, training_fields)
        elif head == "stages" and len(rest) == 1 and _is_section(leaf):
            stages.setdefault(rest[0], {})
        elif head == "options" and len(rest) == 1:
            options[rest[0]] = yaml.safe_load(leaf.value) if leaf.flag else leaf.value
        elif key in ("training", "stages", "options", "data"):
            if not _is_section(leaf):
                raise ConfigError(f"{leaf.where}: {key} is a section of keys, got {leaf.value!r}")
        elif key == "student":
            if not _is_section(leaf):
                values["student.path"] = _path(leaf, _coerce(leaf, str, "student"))
        elif key in schema:
            kind, meta = schema[key]
            value = _coerce(leaf, kind, key)
            values[key] = _path(leaf, value) if meta.get("path") else value
        else:
            raise ConfigError(
                f"{leaf.where}: unknown key {_shown(key, leaf)!r}{_suggest(key, schema, training_fields)}"
            )
    sections = {"student": StudentConfig, "data": DataConfig}
    for name, cls in sections.items():
        values[name] = cls(
            **{k.partition(".")[2]: values.pop(k) for k in list(values) if k.startswith(f"{name}.")}
        )
    sources = {key: leaf.where for key, leaf in leaves.items()}
    _check_required(values, sources, file_name)
    return DistillConfig(**values, training=training, stages=stages, options=options, sources=sources)


def _is_section(leaf: _Leaf | None) -> bool:
    """True for a mapping, already flattened, or for a heading with nothing under it."""
    return leaf is not None and not leaf.flag and (leaf.value is None or leaf.value == {})


def _shown(key: str, leaf: _Leaf) -> str:
    """In a file the section is already named by `where`; a flag is shown in full."""
    return key if leaf.flag else key.rpartition(".")[2]


def _suggest(key: str, schema: Mapping[str, Any], training_fields: Mapping[str, Any]) -> str:
    section, _, last = key.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in schema if name.rpartition(".")[0] == section]
    near = difflib.get_close_matches(last, siblings, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    near = difflib.get_close_matches(key, list(schema), n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    for name in schema:
        if "." in name and name.rpartition(".")[2] == last:
            return f"; did you mean {name!r}?"
    if last in training_fields:
        return f"; did you mean 'training.{last}'?"
    return f"; known here: {', '.join(sorted(siblings or schema))}"


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if len(known) <= 20 else ""


def _training_value(name: str, leaf: _Leaf, fields: Mapping[str, Any]) -> Any:
    if name in _RESERVED_TRAINING:
        raise ConfigError(f"{leaf.where}: {name} cannot be set here; {_RESERVED_TRAINING[name]}")
    if name not in fields:
        raise ConfigError(f"{leaf.where}: unknown key {name!r}{_nearest(name, fields)}")
    return _coerce(leaf, fields[name], name)


def _check_required(values: Mapping[str, Any], sources: Mapping[str, str], file_name: str) -> None:
    for key in ("recipe", "teacher", "output_dir"):
        if values.get(key) is None:
            raise ConfigError(f"{file_name}: required key {key!r} is missing")
    data, student = values["data"], values["student"]
    if data.train is None:
        raise ConfigError(f"{file_name}: required key 'data.train' is missing")
    if student.path is None and student.num_hidden_layers is None:
        raise ConfigError(
            f"{file_name}: 'student' is missing: give a directory, or a section with num_hidden_layers"
        )
    sizes = [
        f.name for f in dataclasses.fields(student) if f.name != "path" and f"student.{f.name}" in sources
    ]
    if student.path is not None and sizes:
        raise ConfigError(
            f"{sources[f'student.{sizes[0]}']}: student is a directory; {sizes[0]} cannot be set beside it"
        )
    if data.max_length is not None and data.max_length < 1:
        raise ConfigError(
            f"{sources.get('data.max_length', file_name)}: max_length wants 1 or more, got {data.max_length}"
        )


def _path(leaf: _Leaf, value: str | None) -> str | None:
    if value is None:
        return None
    if not value:
        raise ConfigError(f"{leaf.where}: a path cannot be empty")
    return os.path.normpath(leaf.base / Path(value).expanduser())


# ---- types -----------------------------------------------------------------------------------------------


def _coerce(leaf: _Leaf, hint: Any, name: str) -> Any:
    """`leaf.value` as `hint`, or ConfigError. Text from flags is parsed; text in files stays text."""
    for option in _options(hint):
        ok, value = _convert(leaf.value, option, leaf.flag)
        if ok:
            return value
    choices = _choices(hint)
    if choices and isinstance(leaf.value, str):
        raise ConfigError(f"{leaf.where}: {name} does not know {leaf.value!r}{_nearest(leaf.value, choices)}")
    raise ConfigError(f"{leaf.where}: {name} wants {_type_name(hint)}, got {_value_name(leaf.value)}")


def _options(hint: Any) -> list[Any]:
    """The members of a union, the strict ones first so that text does not swallow everything."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        members = [option for member in typing.get_args(hint) for option in _options(member)]
        if any(_is_enum(member) for member in members):  # `Enum | str` means: one of the enum's values
            members = [member for member in members if member is not str]
        return sorted(members, key=lambda member: member is str)
    return [hint]


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _choices(hint: Any) -> list[str]:
    found: list[str] = []
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            found += [str(value) for value in typing.get_args(option)]
        elif _is_enum(option):
            found += [str(member.value) for member in option]
    return found


_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def _convert(value: Any, hint: Any, flag: bool) -> tuple[bool, Any]:
    """(True, converted) if `value` fits `hint`, else (False, None)."""
    origin = typing.get_origin(hint)
    if hint is Any:
        return True, yaml.safe_load(value) if flag else value
    if hint is type(None):
        return value is None or (flag and value.lower() in ("null", "~")), None
    if hint is bool:
        if flag and value.lower() in _TRUE + _FALSE:
            return True, value.lower() in _TRUE
        return isinstance(value, bool), value
    if hint is int:
        return _integer(value, flag)
    if hint is float:
        return _number(value)
    if hint is str:
        return isinstance(value, str), value
    if origin is Literal:
        return value in typing.get_args(hint), value
    if _is_enum(hint):
        return value in [member.value for member in hint], value
    if hint is list or origin is list:
        return _sequence(value, typing.get_args(hint), flag)
    if hint is dict or origin is dict:
        value = _parsed(value) if flag else value
        return isinstance(value, dict), value
    return False, None


def _integer(value: Any, flag: bool) -> tuple[bool, Any]:
    if flag:
        try:
            return True, int(value)
        except ValueError:
            return False, None
    return isinstance(value, int) and not isinstance(value, bool), value


def _number(value: Any) -> tuple[bool, Any]:
    """Text counts: YAML 1.1 reads `3e-5` (no dot) as text, and it means a number where one is wanted."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False, None
    try:
        return True, float(value)
    except ValueError:
        return False, None


def _sequence(value: Any, args: tuple[Any, ...], flag: bool) -> tuple[bool, Any]:
    if flag:
        value = _parsed(value if value.startswith("[") else f"[{value}]")
    if not isinstance(value, list):
        return False, None
    if not args:
        return True, value
    items = [
        next((pair for option in _options(args[0]) if (pair := _convert(v, option, False))[0]), None)
        for v in value
    ]
    if any(item is None for item in items):
        return False, None
    return True, [item[1] for item in items if item is not None]


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _type_name(hint: Any) -> str:
    choices = _choices(hint)
    if choices:
        return "one of " + ", ".join(choices)
    names = []
    for option in _options(hint):
        origin = typing.get_origin(option) or option
        name = _NAMES.get(option) or {list: "a list", dict: "a mapping"}.get(origin)
        if name and option is not type(None):
            names.append(name)
    return " or ".join(dict.fromkeys(names)) or str(hint)


def _value_name(value: Any) -> str:
    if value is None:
        return "nothing"
    kind = {
        bool: "true/false",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a mapping",
    }
    return f"{kind.get(type(value), type(value).__name__)}: {value!r}"
