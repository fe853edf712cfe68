"""Who may import whom: the seams between packages, read from the source; the light ones are imported, too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bertxfer_fast

ROOT = Path(bertxfer_fast.__file__).parent
PACKAGE = ROOT.name
# A room is a folder of the package, or a module that stands beside the folders.
ROOMS = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}

# What a room may import: rooms of the package, and from outside of it and the standard library. Complete.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "__init__": ({"ops"}, set()),
    "__main__": ({"cli"}, set()),
    "packing": ({"data"}, set()),
    "errors": (set(), set()),
    "ops": (set(), {"torch", "triton"}),
    "data": ({"errors"}, {"datasets", "numpy", "pandas", "pyarrow", "torch", "transformers"}),
    "models": ({"ops"}, {"safetensors", "torch", "transformers"}),
    "students": ({"models"}, {"torch", "transformers"}),
    "distillation": ({"data", "errors", "models", "ops"}, {"torch", "transformers"}),
    "features": ({"data", "models", "ops"}, {"numpy", "safetensors", "torch", "transformers"}),
    "evaluation": (
        {"__init__", "data", "models"},
        {"matplotlib", "numpy", "torch", "transformers", "yaml"},
    ),
    "training": (
        {"data", "distillation", "errors", "evaluation", "models"},
        {"accelerate", "numpy", "safetensors", "torch", "transformers"},
    ),
    "cli": (
        {
            "__init__",
            "data",
            "distillation",
            "errors",
            "evaluation",
            "features",
            "models",
            "students",
            "training",
        },
        {"datasets", "torch", "transformers", "yaml"},
    ),
}


def imported(source: str, module: str) -> Iterator[str]:
    """Absolute names of all that a module imports, inside functions too; not what only a type checker reads."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import x` of the package itself: each x may be a room.
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == PACKAGE else (base,)


def neighbours(source: str, module: str) -> tuple[set[str], set[str]]:
    """The other rooms that a module imports, and what it imports from outside of package and standard library."""
    rooms, outside = set(), set()
    for name in imported(source, module):
        top, _, rest = name.partition(".")
        if top == PACKAGE:
            room = rest.partition(".")[0]
            rooms.add(room if room in ROOMS else "__init__")
        elif top not in sys.stdlib_module_names:
            outside.add(top)
    return rooms - {module.split(".")[1]}, outside


def neighbours_of(room: str) -> tuple[set[str], set[str]]:
    rooms, outside = set(), set()
    files = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        module = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
        found = neighbours(file.read_text(encoding="utf-8"), module)
        rooms |= found[0]
        outside |= found[1]
    return rooms, outside


def test_the_table_is_complete():
    assert MAY_IMPORT.keys() == ROOMS


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room):
    rooms, outside = neighbours_of(room)
    assert rooms <= MAY_IMPORT[room][0]
    assert outside <= MAY_IMPORT[room][1]


def test_nothing_imports_the_command_line():
    assert [room for room in ROOMS if "cli" in neighbours_of(room)[0]] == ["__main__"]


def test_imports_have_one_direction():
    TopologicalSorter({room: neighbours_of(room)[0] for room in ROOMS}).prepare()  # raises on a cycle


@pytest.mark.parametrize("room", ["distillation.objectives", "packing", "distillation.recipes"])
def test_light_rooms_import_nothing_heavy(room):
    """In a new process, and with them the package itself, ops and activations."""
    heavy = {"accelerate", "datasets", "matplotlib", "pandas", "sklearn", "transformers"}
    code = f"import sys, {PACKAGE}.{room}; print(*{heavy} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == []


# That the reader of imports sees them


@pytest.mark.parametrize(
    ("source", "module", "rooms", "outside"),
    [
        ("from ..models.hf import Tap", "distillation.objectives", {"models"}, set()),
        ("from .. import ops, training", "distillation.objectives", {"ops", "training"}, set()),
        ("from .. import __version__", "cli.command", {"__init__"}, set()),
        ("from ...models.stream import TeacherStream", "ops.hidden_mse.eager", {"models"}, set()),
        ("from ... import models", "ops.hidden_mse.eager", {"models"}, set()),
        ("from .. import _library\nfrom .eager import x", "ops.hidden_mse.__init__", set(), set()),
        (f"import {PACKAGE}.cli, os.path, numpy.linalg", "data", {"cli"}, {"numpy"}),
        (f"from {PACKAGE} import models", "data.tables", {"models"}, set()),
        ("def f():\n    if x:\n        from .cli import main", "data", {"cli"}, set()),
        ("if TYPE_CHECKING:\n    from .cli import a\nelse:\n    import torch", "data", set(), {"torch"}),
    ],
)
def test_the_reader_of_imports(source, module, rooms, outside):
    assert neighbours(source, f"{PACKAGE}.{module}") == (rooms, outside)
