"""Who may import whom: the seams between modules, read from the source; the light ones are imported, too."""

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
# A room is a module of the package or a folder in it.
ROOMS = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}

# What a room may import: rooms of the package, and from outside of it and the standard library.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "__init__": ({"ops"}, set()),
    "ops": (set(), {"torch", "triton"}),
    "activations": (set(), {"torch"}),
    "packing": (set(), {"numpy", "torch"}),
    "errors": (set(), set()),
    "bench": ({"bench_gpu_report", "bench_report", "errors"}, set()),
    "bench_gpu_report": ({"bench_report", "report"}, set()),
    "bench_report": ({"errors", "report"}, {"matplotlib"}),
    "objectives": ({"activations", "errors", "ops"}, {"torch"}),
    "recipes": ({"errors", "objectives"}, set()),
    "attention": ({"activations", "ops"}, {"torch", "transformers"}),
    "encoder": ({"activations", "attention", "ops"}, {"torch", "transformers"}),
    "stream": ({"activations", "encoder"}, {"torch", "transformers"}),
    "distiller": (
        {"activations", "encoder", "objectives", "packing", "stream"},
        {"torch", "transformers"},
    ),
}

# What the rooms above may never import, whatever else they use.
TRAINING = {"distiller", "objectives", "recipes", "trainer", "prepare", "run", "cli"}
MAY_NOT_IMPORT: dict[str, set[str]] = {
    "data": TRAINING,
    "students": TRAINING,
    "features": TRAINING,
    "evaluate": TRAINING,
    "report": TRAINING,
    "trainer": {"cli", "config"},
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


def test_the_tables_name_rooms_that_exist():
    assert MAY_IMPORT.keys() | MAY_NOT_IMPORT.keys() <= ROOMS


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_lower_room_imports_only_what_it_may(room):
    rooms, outside = neighbours_of(room)
    assert rooms <= MAY_IMPORT[room][0]
    assert outside <= MAY_IMPORT[room][1]


@pytest.mark.parametrize("room", MAY_NOT_IMPORT)
def test_an_upper_room_reaches_neither_sideways_nor_back(room):
    assert not neighbours_of(room)[0] & MAY_NOT_IMPORT[room]


def test_nothing_imports_the_command_line():
    assert [room for room in ROOMS if "cli" in neighbours_of(room)[0]] == ["__main__"]


def test_imports_have_one_direction():
    TopologicalSorter({room: neighbours_of(room)[0] for room in ROOMS}).prepare()  # raises on a cycle


@pytest.mark.parametrize("room", ["objectives", "packing", "recipes"])
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
        ("from .encoder import Tap", "objectives", {"encoder"}, set()),
        ("from . import ops, trainer", "objectives", {"ops", "trainer"}, set()),
        ("from . import __version__", "cli", {"__init__"}, set()),
        ("from ...stream import TeacherStream", "ops.hidden_mse.eager", {"stream"}, set()),
        ("from ... import stream", "ops.hidden_mse.eager", {"stream"}, set()),
        ("from .. import _library\nfrom .eager import x", "ops.hidden_mse.__init__", set(), set()),
        (f"import {PACKAGE}.cli, os.path, numpy.linalg", "data", {"cli"}, {"numpy"}),
        (f"from {PACKAGE} import stream", "data", {"stream"}, set()),
        ("def f():\n    if x:\n        from .cli import main", "data", {"cli"}, set()),
        ("if TYPE_CHECKING:\n    from .cli import a\nelse:\n    import torch", "data", set(), {"torch"}),
    ],
)
def test_the_reader_of_imports(source, module, rooms, outside):
    assert neighbours(source, f"{PACKAGE}.{module}") == (rooms, outside)
