"""A recipe file of several tasks: what stands under ``tasks.NAME`` is that task's, everything else is all tasks'."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, did_you_mean
from .schema import DistillConfig, checked, overlay, settings_of
from .settings import Setting

__all__ = ["SeveralConfig", "load_several"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")
# What there is once: one student, trained once.
_COMMON = ("student", "output_dir", "training", "stages", "seed", "report")


@dataclass
class SeveralConfig:
    """One `bertxfer distill` run of several tasks.

    Attributes:
        tasks: the configuration of each, complete, with an ``output_dir`` of its own.
        weights: what each task's loss is multiplied by.
        mixing: temperature by which batches are shared out among the tasks.
        output_dir: of all.
        where: where ``tasks`` was written, for messages.
    """

    tasks: dict[str, DistillConfig]
    weights: dict[str, float]
    mixing: float
    output_dir: str
    where: str


def load_several(path: str | Path, flags: Sequence[str] = ()) -> SeveralConfig | None:
    """Read a recipe file with a section ``tasks``; None where it has none. See `schema.load`.

    Raises:
        InputError: as `schema.load`; fewer than two tasks, a flag of a task that the file has not, or what belongs to
            all of them under one.
    """
    path = Path(path)
    settings = settings_of(path, flags)
    own: dict[str, dict[str, Setting]] = {}
    for key, setting in settings.items():
        section, _, rest = key.partition(".")
        if section == "tasks" and rest:
            name, _, inner = rest.partition(".")
            own.setdefault(name, {})[inner] = setting
    heading = settings.get("tasks")
    if heading is None and not own:
        return None
    where = heading.where if heading is not None else next(iter(next(iter(own.values())).values())).where
    written = [name for name, inside in own.items() if not all(setting.flag for setting in inside.values())]
    if unknown := [name for name in own if name not in written]:
        name, first = unknown[0], next(iter(own[unknown[0]].values()))
        raise InputError(
            f"{first.where}: tasks: got the name {name!r}, want one of {path.name}{did_you_mean(name, written)}"
        )
    if len(own) < 2:
        raise InputError(f"{where}: tasks: got {', '.join(own) or 'none'}, want at least two")
    common = {key: value for key, value in settings.items() if key.partition(".")[0] != "tasks"}
    mixing = _number(common.pop("mixing", None), "mixing", above=True)
    output = common.get("output_dir")
    folder = None if output is None else output.path("output_dir")
    if output is None or folder is None:
        raise InputError(f"{path.name}: required key 'output_dir' is missing")
    # Flags win over the file, also over what it says of one task; `bertxfer finetune` is a flag.
    flags_of_all = {key: setting for key, setting in common.items() if setting.flag}
    tasks, weights = {}, {}
    for name, inside in own.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"{where}: tasks: got the name {name!r}, want letters, digits, _ and - alone")
        weights[name] = _number(inside.pop("weight", None), "weight", above=False)
        for key, setting in inside.items():
            if key.partition(".")[0] in _COMMON:
                raise InputError(
                    f"{setting.where}: {key}: got it for task {name!r}, want it once, for all tasks"
                )
        inside.pop("", None)  # the section's own heading
        place = Setting(os.path.join(folder, name), output.where, output.base)
        own_flags = {key: setting for key, setting in inside.items() if setting.flag}
        complete = functools.reduce(overlay, (common, inside, flags_of_all, own_flags, {"output_dir": place}))
        tasks[name] = checked(complete, f"{path.name}, tasks.{name}")
    return SeveralConfig(tasks, weights, mixing, folder, where)


def _number(setting: Setting | None, key: str, *, above: bool) -> float:
    if setting is None:
        return 1.0
    value: Any = setting.typed(float, key)
    if not (value > 0 if above else value >= 0) or value == float("inf"):
        raise InputError(
            f"{setting.where}: {key}: got {value}, want a number {'above' if above else 'from'} 0"
        )
    return float(value)
