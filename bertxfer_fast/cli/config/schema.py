"""A distillation recipe file: YAML in, checked and typed dataclasses out.

Every key of the file is also a flag (`data.train` is `--data.train`) and flags win. Nothing is guessed: an
unknown key, a key written twice, or a value of the wrong type is an `InputError` that says where it stands and,
for an unknown key, which known one is nearest. Paths in the file count from the file's folder, paths in flags
from the current directory. This module only reads and types; whether files, columns and models fit together is
checked by the command that uses them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ... import tasks
from ...errors import InputError, did_you_mean, user_input
from .sections import DataConfig, EnsembleConfig, ReportConfig, StoreConfig
from .settings import Setting, read_file, read_flags
from .student import BESIDE_KIND, StudentConfig, option_of_kind, options_of_kind

# Training arguments a recipe may not set, and what to do instead.
_RESERVED_TRAINING = {
    "output_dir": "set output_dir at the top level",
    "seed": "set seed at the top level",
    "resume_from_checkpoint": "run the same command again; it resumes by itself",
}
_REQUIRED = ("recipe", "output_dir")


@dataclass
class DistillConfig:
    """One `bertxfer distill` run. `sources` remembers where every key was written, for error messages."""

    recipe: str = field(metadata={"help": "name of the recipe, for example tinybert"})
    teacher: str | list[str] | None = field(
        metadata={
            "path": "several",
            "help": "directory of the teacher or its store, several of them, or rows (.npy, .safetensors); self: the "
            "student's, as it starts (a recipe of labels alone needs none)",
        }
    )
    student: StudentConfig = field(metadata={"help": "directory of a student, or the sizes of a new one"})
    data: DataConfig = field(metadata={"help": "files and columns"})
    output_dir: str = field(metadata={"path": True, "help": "where everything of this run is written"})
    options: dict[str, Any] = field(default_factory=dict, metadata={"help": "options of the recipe"})
    tokenizer: str | None = field(
        default=None, metadata={"path": True, "help": "directory of the tokenizer (default: the teacher's)"}
    )
    task: str | None = field(
        default=None,
        metadata={"help": "what the head does (default: the teacher's own head)", "choices": tasks.names},
    )
    seed: int = field(default=42, metadata={"help": "seed of weights, order and dropout"})
    training: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "any DistillationArguments field, for all stages"}
    )
    stages: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata={"help": "any DistillationArguments field, for one stage"}
    )
    report: ReportConfig = field(
        default_factory=ReportConfig, metadata={"help": "what is told when the last stage is done"}
    )
    store: StoreConfig = field(
        default_factory=StoreConfig,
        metadata={"help": "directory that keeps what the teacher says, or keys of it"},
    )
    ensemble: EnsembleConfig = field(
        default_factory=EnsembleConfig, metadata={"help": "how several teachers are averaged"}
    )
    sources: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def teachers(self) -> list[str]:
        """The paths under `teacher`: none, one, or several."""
        return [self.teacher] if isinstance(self.teacher, str) else list(self.teacher or ())

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
        InputError: unreadable file, unknown or repeated key, wrong type, missing required key.
    """
    return checked(settings_of(Path(path), flags), Path(path).name, training_fields)


def settings_of(path: Path, flags: Sequence[str]) -> dict[str, Setting]:
    """What a recipe file and the flags over it say, by dotted key."""
    return overlay(read_file(path, _is_value), read_flags(flags, named=("tasks",)))


def checked(
    settings: Mapping[str, Setting], file_name: str, training_fields: Mapping[str, Any] | None = None
) -> DistillConfig:
    """The configuration that settings make; `file_name` is for messages. See `load`."""
    if training_fields is None:
        with user_input():  # the operators read the environment when they are imported
            from ...training.arguments import training_field_types

        training_fields = training_field_types()
    config = _build(settings, training_fields)
    _check_values(config, file_name)
    return config


def check_stages(config: DistillConfig, names: Iterable[str]) -> None:
    """Raise InputError if `stages` names a stage the recipe does not have."""
    names = list(names)
    for stage in config.stages:
        if stage not in names:
            raise InputError(
                f"{config.where(f'stages.{stage}')}: recipe {config.recipe!r} has no stage {stage!r}"
                f"{did_you_mean(stage, names)}"
            )


def defaults() -> dict[str, Any]:
    """The defaults of all keys that have one, by dotted key."""
    return {
        key: item.default for key, (_, item) in _schema().items() if item.default is not dataclasses.MISSING
    }


def describe() -> str:
    """All keys with a line of help each, and the tasks there are, for `bertxfer distill --help`."""
    keys = [f"  --{key:<30} {item.metadata['help']}" for key, (_, item) in _schema().items()]
    known = [f"  {name:<32} {tasks.get(name).description}" for name in tasks.names()]
    several = [
        "several tasks at once, one encoder (docs/guide/tasks.md):",
        "  --tasks.NAME.KEY                 of one task: teacher, task, data, recipe, options, weight (of its loss)",
        "  --mixing                         batches by size to the power of 1 / mixing (default: 1)",
    ]
    open_keys = "  --training.FIELD, --stages.STAGE.FIELD, --options.NAME"
    return "\n".join([*keys, open_keys, "tasks:", *known, *several])


# ---- from settings to a configuration -----------------------------------------------------------------------


def _is_value(key: str) -> bool:
    """True for keys whose value may be a mapping of its own (a training argument that takes a dict)."""
    parts = key.split(".")
    parts = parts[2:] if parts[0] == "tasks" else parts  # of one of several tasks
    depth = {"training": 2, "stages": 3, "options": 2}.get(parts[0]) if parts else None
    return depth is not None and len(parts) >= depth


def overlay(under: dict[str, Setting], over: dict[str, Setting]) -> dict[str, Setting]:
    """Settings over others, as flags are over a file.

    `--student DIR` or another `--student.kind` replaces the sizes below, `--student.x N` the directory, but for the
    tokenizer that it has. `store` and `store.path` are two spellings of one key.
    """
    was, now = (
        settings["student.kind"].value if "student.kind" in settings else None for settings in (under, over)
    )
    if "student" in over or (now is not None and now != was):
        under = {key: setting for key, setting in under.items() if not key.startswith("student.")}
    if any(key.startswith("student.") and key != "student.tokenizer" for key in over):
        under = {key: setting for key, setting in under.items() if key != "student" or setting.is_section}
    if "store.path" in over or ("store" in over and not over["store"].is_section):
        under = {
            key: setting
            for key, setting in under.items()
            if key != "store.path" and (key != "store" or setting.is_section)
        }
    return {**under, **over}


def _schema() -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    """Dotted key -> (type, field); what stands under `training`, `stages` and `options` is open."""
    rows: dict[str, tuple[Any, dataclasses.Field[Any]]] = {}

    def add(cls: type, prefix: str) -> None:
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if item.name == "sources" or item.metadata.get("collected"):
                continue
            hint = hints[item.name]
            if choices := item.metadata.get(
                "choices"
            ):  # from a registry: what is registered later counts, too
                hint = Literal[tuple(choices())] | None
            rows[prefix + item.name] = (hint, item)
            if dataclasses.is_dataclass(hints[item.name]):
                add(hints[item.name], f"{item.name}.")

    add(DistillConfig, "")
    return rows


def _build(settings: Mapping[str, Setting], training_fields: Mapping[str, Any]) -> DistillConfig:
    """The configuration; what is required and left out is None in it."""
    schema = _schema()
    top: dict[str, Any] = dict.fromkeys((*_REQUIRED, "teacher"))
    sections: dict[str, dict[str, Any]] = {
        "student": {},
        "data": {},
        "training": {},
        "options": {},
        "report": {},
        "store": {},
        "ensemble": {},
    }
    stages: dict[str, dict[str, Any]] = {}
    of_kind = options_of_kind(settings)
    for key, setting in settings.items():
        match key.split("."):
            case ["training", name]:
                sections["training"][name] = _training_value(name, setting, training_fields)
            case ["stages", stage, name]:
                value = _training_value(name, setting, training_fields)
                stages.setdefault(stage, {})[name] = value
            case ["stages", stage] if setting.is_section:
                stages.setdefault(stage, {})
            case ["options", name]:
                sections["options"][name] = setting.parsed()
            case ["student", name] if of_kind is not None and name not in BESIDE_KIND:
                chosen = sections["student"].setdefault("options", {})
                chosen[name] = option_of_kind(name, setting, of_kind)
            case ["student"] if not setting.is_section:
                sections["student"]["path"] = setting.path(key)
            case ["store"] if not setting.is_section:
                sections["store"]["path"] = setting.path(key)
            case [section] | ["stages", section] if section in sections or "stages" in key.split("."):
                if not setting.is_section:
                    raise InputError(f"{setting.where}: {key}: got {setting.value!r}, want a section of keys")
            case [*section, name] if key in schema:
                kind, item = schema[key]
                into = sections[section[0]] if section else top
                into[name] = _value(key, setting, kind, item)
            case [*_, name]:
                # In a file `where` names the section already; a flag is shown in full.
                shown = key if setting.flag else name
                raise InputError(
                    f"{setting.where}: unknown key {shown!r}{_suggest(key, schema, training_fields)}"
                )
    teacher = settings.get("teacher")
    if teacher is not None and teacher.value == "self":
        top["teacher"] = sections["student"].get("path")
        if top["teacher"] is None:
            raise InputError(
                f"{teacher.where}: teacher: got 'self', want it beside a student's directory: that student, as it is "
                "there, is its own teacher"
            )
    return DistillConfig(
        **top,
        student=StudentConfig(**sections["student"]),
        data=DataConfig(**sections["data"]),
        report=ReportConfig(**sections["report"]),
        training=sections["training"],
        options=sections["options"],
        store=StoreConfig(**sections["store"]),
        ensemble=EnsembleConfig(**sections["ensemble"]),
        stages=stages,
        sources={key: setting.where for key, setting in settings.items()},
    )


def _value(key: str, setting: Setting, kind: Any, item: dataclasses.Field[Any]) -> Any:
    match item.metadata.get("path"):
        case None:
            return setting.typed(kind, key)
        case "several":
            return setting.paths(key)
    return setting.path(key)


def _training_value(name: str, setting: Setting, known: Mapping[str, Any]) -> Any:
    if name in _RESERVED_TRAINING:
        raise InputError(f"{setting.where}: {name} cannot be set here; {_RESERVED_TRAINING[name]}")
    if name not in known:
        raise InputError(f"{setting.where}: unknown key {name!r}{did_you_mean(name, known)}")
    return setting.typed(known[name], name)


def _suggest(key: str, schema: Iterable[str], training_fields: Iterable[str]) -> str:
    """The known key that an unknown one was meant to be: a neighbour, the same name elsewhere, a similar key."""
    section, _, last = key.rpartition(".")
    siblings = [name.rpartition(".")[2] for name in schema if name.rpartition(".")[0] == section]
    elsewhere = [name for name in schema if name.rpartition(".")[2] == last]
    elsewhere += [f"training.{last}"] if last in training_fields else []
    return (
        did_you_mean(last, siblings, listing=False)
        or (f"; did you mean {elsewhere[0]!r}?" if elsewhere else "")
        or did_you_mean(key, schema, listing=False)
        or did_you_mean(last, siblings)
    )


def _check_values(config: DistillConfig, file_name: str) -> None:
    """What types cannot say."""
    student, data = config.student, config.data
    left_out = [key for key in _REQUIRED if getattr(config, key) is None]
    left_out += ["data.train"] if data.train is None else []
    if left_out:
        raise InputError(f"{file_name}: required key {left_out[0]!r} is missing")
    if not any((student.path, student.kind, student.size, student.num_hidden_layers is not None)):
        raise InputError(
            f"{file_name}: 'student' is missing: give a directory, or a section with a size, num_hidden_layers or a "
            "kind"
        )
    free = (
        "path",
        "tokenizer",
        *(("init", "beta", "width_rule", "layers") if student.init == "blend" else ()),
    )
    beside = {key.removeprefix("student."): key for key in config.sources if key.startswith("student.")}
    sizes = [key for name, key in beside.items() if name not in free]
    if student.path is not None and sizes:
        raise InputError(
            f"{config.where(sizes[0])}: student is a directory; {sizes[0].partition('.')[2]} cannot be set beside it"
        )
    for key, least in (("sentences", 0), ("resamples", 1)):
        if (value := getattr(config.report, key)) < least:
            raise InputError(f"{config.where(f'report.{key}')}: {key}: got {value}, want {least} or more")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"{config.where('seed')}: seed: got {config.seed}, want 0 to {2**32 - 1}")
    if data.max_length is not None and data.max_length < 1:
        raise InputError(
            f"{config.where('data.max_length')}: max_length: got {data.max_length}, want 1 or more"
        )
