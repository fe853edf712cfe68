"""Writes docs/api from the docstrings of all public names.

python docs/generate.py            write
python docs/generate.py --check    exit with 1 where a page is not what the docstrings say
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

API = Path(__file__).resolve().parent / "api"

#: Page -> (module that lists its names in `__all__`, how a user writes what is in front of a name).
PAGES = {
    "package": ("bertxfer_fast", "bertxfer_fast."),
    "ops": ("bertxfer_fast.ops", "ops."),
    "objectives": ("bertxfer_fast.distillation.objectives", "objectives."),
    "recipes": ("bertxfer_fast.distillation.recipes", "recipes."),
    "teachers": ("bertxfer_fast.distillation.teachers", "teachers."),
    "students": ("bertxfer_fast.students", "students."),
    "packing": ("bertxfer_fast.packing", "packing."),
    "data": ("bertxfer_fast.data", "data."),
    "augmentation": ("bertxfer_fast.data.augmentation", "augmentation."),
    "features": ("bertxfer_fast.features", "features."),
    "evaluation": ("bertxfer_fast.evaluation", "evaluation."),
}
_WIDTH = 110
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def pages() -> dict[str, str]:
    """The text of each page by file name."""
    found = {f"{page}.md": _page(page, *where) for page, where in PAGES.items()}
    lines = [f"- [{page}]({page}.md): {_summary(importlib.import_module(PAGES[page][0]))}" for page in PAGES]
    heading = "# API reference\n\nMade from the docstrings by `python docs/generate.py`.\n\n"
    return {"index.md": heading + "\n".join(lines) + "\n", **found}


def _page(page: str, module_name: str, prefix: str) -> str:
    module = importlib.import_module(module_name)
    parts = [f"# {module_name}", inspect.cleandoc(module.__doc__ or "").replace("``", "`")]
    for name in sorted(module.__all__, key=str.lower):
        value = getattr(module, name)
        # Modules have pages of their own; a number or a table is told where it is used.
        if not isinstance(value, ModuleType) and callable(value):
            parts += _entry(f"{prefix}{name}", value)
    return "\n\n".join(part for part in parts if part) + "\n"


def _entry(name: str, value: Any) -> Iterator[str]:
    yield f"## `{name}`"
    yield f"```text\n{_signature(name.rpartition('.')[2], value)}\n```"
    yield _text(value)
    if inspect.isclass(value):
        for member, function in vars(value).items():
            public = not member.startswith("_") and inspect.isfunction(function)
            if public and function.__doc__:  # its own: what it overrides is told where that stands
                yield f"### `{member}`"
                yield f"```text\n{_signature(member, function)}\n```"
                yield _text(function)


def _signature(name: str, value: Any) -> str:
    signature = inspect.signature(value)
    parameters = list(signature.parameters.values())
    own = inspect.get_annotations(value) if dataclasses.is_dataclass(value) else None
    if own is not None and len(own) < len(
        parameters
    ):  # a dataclass that adds to another one: only what it adds
        parameters = [p for p in parameters if p.name in own]
        words = [*map(_plain, parameters), f"**{value.__mro__[1].__name__}'s"]
    else:
        words = [_plain(p) for p in parameters]
        kinds = [p.kind for p in parameters]
        if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
            words.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returns = "" if inspect.isclass(value) else _returns(signature)
    line = f"{name}({', '.join(words)}){returns}"
    return (
        line if len(line) <= _WIDTH else "\n".join([f"{name}(", *(f"    {w}," for w in words), f"){returns}"])
    )


def _plain(thing: object) -> str:
    """A parameter without the marks of postponed evaluation and addresses of defaults."""
    return re.sub(r": '([^']*)'", r": \1", _ADDRESS.sub("", str(thing)))


def _returns(signature: inspect.Signature) -> str:
    found = signature.return_annotation
    if found is inspect.Signature.empty:
        return ""
    return f" -> {found if isinstance(found, str) else inspect.formatannotation(found)}"


def _text(value: Any) -> str:
    """A docstring as Markdown: what is indented stays as it was laid out."""
    text = inspect.cleandoc(value.__doc__ or "")
    text = re.sub(r"::\n", ":\n", text).replace("``", "`")
    lines: list[str] = []
    for line in text.splitlines():
        head = re.fullmatch(r"(Args|Returns|Raises|Attributes|Yields|Example|Note):", line)
        if head:
            lines += [f"**{head[1]}**", ""]
        elif not line.startswith("    "):
            lines.append(line)
        else:
            lines.append(re.sub(r"^    (\S[^:]*): ", r"- `\1`: ", line).replace("    ", "  ", 1))
    return "\n".join(lines)


def _summary(module: ModuleType) -> str:
    return inspect.cleandoc(module.__doc__ or "").splitlines()[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    wrong = []
    API.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = API / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            wrong.append(name)
            if not args.check:
                path.write_text(text, encoding="utf-8")
    print(f"{'differ' if args.check else 'written'}: {', '.join(wrong) or 'none'}")
    return int(args.check and bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
