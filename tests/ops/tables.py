"""The lists of operators that are written down: derived from the registry, for readers and type checkers.

    python -m tests.ops.tables            say which of them are out of date
    python -m tests.ops.tables --write    write them

They are the operators' table of README.md, the kernels' table of csrc/README.md and ``bertxfer_fast/ops/__init__.pyi``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bertxfer_fast.ops._dispatch.registry import OPS, OpInfo

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m tests.ops.tables --write"


def rooms() -> dict[str, list[OpInfo]]:
    """Room -> its operators, both sorted."""
    found: dict[str, list[OpInfo]] = {}
    for _, info in sorted(OPS.items()):
        found.setdefault(info.room, []).append(info)
    return dict(sorted(found.items()))


def markdown(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(columns), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def operators() -> str:
    rows = [
        (f"`ops.{info.function.__name__}`", info.summary.replace("``", "`"))
        for infos in rooms().values()
        for info in infos
        if info.function is not None
    ]
    return markdown(("operator", "what"), rows)


def kernels(root: Path = ROOT) -> str:
    """Folder, what it registers, and where its math, shapes, bytes and operations are explained."""
    rows = []
    for room, infos in rooms().items():
        folder = root / "csrc" / room
        registered = [f"`{info.name}.{backend}`" for info in infos for backend in info.compiled]
        headers = [name for name in (f"{room}.h", f"{room}_cuda.h") if (folder / name).is_file()]
        links = [f"[{name}]({room}/{name})" for name in headers or [f"{room}_op.cpp"]]
        if registered:
            rows.append((f"`{room}/`", ", ".join(registered), ", ".join(links)))
    return markdown(("folder", "operators it registers", "contract"), rows)


def stub() -> str:
    """What a type checker reads in place of ``ops/__init__.py``, whose names are found at run time."""
    functions = {
        info.function.__name__: room
        for room, infos in rooms().items()
        for info in infos
        if info.function is not None
    }
    names = {
        "explain": "_dispatch.backend",
        "use_backend": "_dispatch.backend",
        "build_info": "_dispatch.library",
    }
    lines = [f"# Written by `{COMMAND}`."]
    lines += [f"from .{room} import {name} as {name}" for name, room in {**names, **functions}.items()]
    return "\n".join(lines) + "\n"


def between(marker: str, table: Callable[[], str]) -> Callable[[str], str]:
    """A page with a table between ``<!-- marker:begin -->`` and ``<!-- marker:end -->``, made anew."""
    begin, end = f"<!-- {marker}:begin -->\n", f"<!-- {marker}:end -->\n"

    def renewed(text: str) -> str:
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"page: got no {begin.strip()} ... {end.strip()}, want both")
        return f"{before}{begin}{table()}\n{end}{after}"

    return renewed


#: File -> its text, made of its present text.
FILES: dict[str, Callable[[str], str]] = {
    "README.md": between("operators", operators),
    "csrc/README.md": between("operators", kernels),
    "bertxfer_fast/ops/__init__.pyi": lambda _: stub(),
}


def outdated(*, write: bool = False) -> list[str]:
    found = []
    for name, renewed in FILES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        wanted = renewed(text)
        if wanted != text:
            found.append(name)
            if write:
                path.write_text(wanted, encoding="utf-8")
    return found


if __name__ == "__main__":
    write = sys.argv[1:] == ["--write"]
    names = outdated(write=write)
    print("\n".join(f"{name}: {'written' if write else 'out of date'}" for name in names) or "up to date")
    sys.exit(bool(names) and not write)
