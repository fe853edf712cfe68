"""The documentation's Python runs as it stands there, and its links and its recipe name things that exist."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bertxfer_fast import tasks
from bertxfer_fast.cli.config import schema as config
from bertxfer_fast.cli.config.several import load_several
from bertxfer_fast.distillation import objectives, recipes
from bertxfer_fast.students import network
from bertxfer_fast.training import arguments

from .folders import tiny_tokenizer
from .ops import tables
from .tiny import packed_batch, tiny_bert

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "csrc" / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[Any]:
    return [
        pytest.param(body, id=f"{page.name}-{number}")
        for page in PAGES
        for number, (kind, body) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
        if kind == language
    ]


def at_hand(folder: Path) -> dict[str, Any]:
    """What the text around the examples says is there, in tiny."""
    rows, length, heads = 3, 5, 4
    return {
        "torch": torch,
        "teacher": tiny_bert(12, 16, heads, head="ForSequenceClassification"),
        "student": tiny_bert(3, 12, heads, head="ForSequenceClassification"),
        "features": [{"input_ids": [2, 7, 9, 3]}, {"input_ids": [2, 8, 3]}],
        "batch": packed_batch(),
        "B": rows,
        "L": length,
        "student_q": torch.randn(rows, length, heads, 3, requires_grad=True),
        "student_k": torch.randn(rows, length, heads, 3, requires_grad=True),
        "teacher_q": torch.randn(rows, length, heads, 4),
        "teacher_k": torch.randn(rows, length, heads, 4),
        "lengths": torch.tensor([5, 2, 4], dtype=torch.int32),
    }


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    registries = (objectives.base._registry, recipes.base._registry, network._registry)
    for registry in registries:  # what a page registers is forgotten
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    encoder = tmp_path / "path" / "to" / "encoder"
    tiny_bert(3, 16, 4).save_pretrained(encoder)
    tiny_tokenizer(encoder)
    exec(compile(code, "example", "exec"), at_hand(tmp_path))


def test_the_readmes_example_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code, promised = re.search(
        r"```python\n(.*?)```\n\nIt prints\n\n```text\n(.*?)```", text, re.DOTALL
    ).groups()  # type: ignore[union-attr]
    exec(compile(code, "example", "exec"), {})
    shown = [line for line in capsys.readouterr().out.splitlines() if line[:1].isdigit()]
    number = re.compile(r"\d[\d.e+-]*")
    assert [number.sub("#", line) for line in shown] == [number.sub("#", x) for x in promised.splitlines()]
    # Their last digits differ between processors.
    for mine, theirs in zip(shown, promised.splitlines(), strict=True):
        values = [[float(x) for x in number.findall(line)] for line in (mine, theirs)]
        assert values[0] == pytest.approx(values[1], rel=0.35)


@functools.cache
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate


def test_the_api_reference_has_no_words_of_other_libraries() -> None:
    """A method that overrides another library's inherits its docstring, which is not ours to print."""
    assert inspect.getdoc(network.Network.set_input_embeddings)
    shown = "\n".join(generator()._entry("Network", network.Network))
    assert "### `run`" in shown and "set_input_embeddings" not in shown


def test_the_api_reference_is_what_the_docstrings_say() -> None:
    generate = generator()
    for name, text in generate.pages().items():
        assert (ROOT / "docs" / "api" / name).read_text(encoding="utf-8") == text, (
            "run python docs/generate.py"
        )


@pytest.mark.parametrize("text", blocks("yaml"))
def test_recipes_use_known_keys(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    several = load_several(path)
    for loaded in [config.load(path)] if several is None else several.tasks.values():
        known = {stage.name for stage in recipes.get(loaded.recipe, **loaded.options).stages}
        assert set(loaded.stages) <= known


def test_the_examples_recipe_is_a_recipe() -> None:
    path = ROOT / "examples" / "sentiment" / "recipe.yaml"
    loaded = config.load(path)
    stages = [stage.name for stage in recipes.get(loaded.recipe).stages]
    assert list(yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]) == stages
    assert set(loaded.training) <= set(arguments.training_field_types())


def test_tables_of_operators_are_current() -> None:
    assert tables.outdated() == [], f"run {tables.COMMAND}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
