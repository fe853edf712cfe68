"""Who may import whom: packages and the floors they stand on, read from the source; light rooms are imported, too."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import bertxfer_fast

ROOT = Path(bertxfer_fast.__file__).parent
PACKAGE = ROOT.name
# A room is a folder of the package, or a module that stands beside the folders.
ROOMS = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}

# From the ground up; a room imports only rooms of lower floors.
FLOORS: list[set[str]] = [
    {"__init__", "errors", "ops"},
    {"tasks"},
    {"data", "models"},
    {"students"},
    {"distillation", "features"},
    {"evaluation"},
    {"training"},
    {"cli"},
]
# They only hand on names from within: `packing` those of `data`, `python -m` the command.
DOORS = {"__main__": {"cli"}, "packing": {"data"}}
# What a room may import from outside of the package and the standard library. Complete.
OUTSIDE: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": set(),
    "packing": set(),
    "errors": set(),
    "tasks": set(),
    "ops": {"torch", "triton"},
    "data": {"datasets", "numpy", "pandas", "pyarrow", "tokenizers", "torch", "transformers"},
    "models": {"safetensors", "torch", "transformers"},
    "students": {"torch", "transformers"},
    "distillation": {"numpy", "safetensors", "torch", "transformers"},
    # scikit-learn, which is optional: its tags of an estimator can only be told in its own words, when it asks.
    "features": {"numpy", "safetensors", "sklearn", "torch", "transformers"},
    "evaluation": {"matplotlib", "numpy", "torch", "transformers", "yaml"},
    "training": {"accelerate", "numpy", "safetensors", "torch", "transformers"},
    "cli": {"datasets", "torch", "transformers", "yaml"},
}
MOST_IMPORTS, MOST_LINES = 40, 400


def imported(source: str, module: str) -> Iterator[list[str]]:
    """Absolute names that each import of a module names, inside functions too; not what only a type checker reads."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from . import x` of the package itself: each x may be a room.
            yield [f"{base}.{alias.name}" for alias in node.names] if base == PACKAGE else [base]


def neighbours(source: str, module: str) -> tuple[Counter[str], set[str]]:
    """The other rooms a module imports with how many imports name each, and what it imports from outside."""
    rooms: Counter[str] = Counter()
    outside = set()
    for names in imported(source, module):
        for top, rest in {(name.partition(".")[0], name.partition(".")[2]) for name in names}:
            if top == PACKAGE:
                room = rest.partition(".")[0]
                rooms[room if room in ROOMS else "__init__"] += 1
            elif top not in sys.stdlib_module_names:
                outside.add(top)
    del rooms[module.split(".")[1]]
    return rooms, outside


def neighbours_of(room: str) -> tuple[Counter[str], set[str]]:
    rooms: Counter[str] = Counter()
    outside = set()
    files = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        module = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
        found = neighbours(file.read_text(encoding="utf-8"), module)
        rooms.update(found[0])
        outside |= found[1]
    return rooms, outside


def test_the_tables_are_complete() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert 8 <= len(packages) <= 10 and len(FLOORS) <= 8
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))
    assert set().union(*FLOORS) | DOORS.keys() == OUTSIDE.keys() == ROOMS


def test_imports_lead_downwards_and_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    """Floors leave no way round: a cycle would have to go up somewhere."""
    below: dict[str, set[str]] = dict(DOORS)
    for number, floor in enumerate(FLOORS):
        below |= {room: set().union(*FLOORS[:number]) for room in floor}
    found = {room: neighbours_of(room)[0] for room in sorted(ROOMS)}
    wrong = {room: names for room in ROOMS if (names := found[room].keys() - below[room])}
    assert not wrong
    edges, statements = sum(map(len, found.values())), sum(rooms.total() for rooms in found.values())
    with capsys.disabled():
        print(f"\n{edges} imports between rooms on {len(FLOORS)} floors, in {statements} statements:")
        for room, rooms in found.items():
            print(f"  {room}: {', '.join(f'{name} {count}' for name, count in sorted(rooms.items())) or '-'}")
    assert edges <= MOST_IMPORTS


@pytest.mark.parametrize("room", OUTSIDE)
def test_a_room_imports_from_outside_only_what_it_may(room: str) -> None:
    assert neighbours_of(room)[1] <= OUTSIDE[room]


def test_files_can_be_held_in_the_head() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in ROOT.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long, long


@pytest.mark.parametrize(
    "room", ["distillation.objectives", "packing", "distillation.recipes", "cli", "tasks"]
)
def test_light_rooms_import_nothing_heavy(room: str) -> None:
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
        ("from .. import __version__", "cli.info", {"__init__"}, set()),
        ("from ...models.stream import TeacherStream", "ops.hidden_mse.eager", {"models"}, set()),
        ("from ... import models", "ops.hidden_mse.eager", {"models"}, set()),
        ("from .. import _library\nfrom .eager import x", "ops.hidden_mse.__init__", set(), set()),
        (f"import {PACKAGE}.cli, os.path, numpy.linalg", "data", {"cli"}, {"numpy"}),
        (f"from {PACKAGE} import models", "data.tables", {"models"}, set()),
        ("def f():\n    if x:\n        from .cli import main", "data", {"cli"}, set()),
        ("if TYPE_CHECKING:\n    from .cli import a\nelse:\n    import torch", "data", set(), {"torch"}),
    ],
)
def test_the_reader_of_imports(source: str, module: str, rooms: set[str], outside: set[str]) -> None:
    found = neighbours(source, f"{PACKAGE}.{module}")
    assert (found[0].keys(), found[1]) == (rooms, outside)
