"""Objectives that look at one spot in several ways learn the same bits of a teacher that is read and one that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import Distiller, objectives, students
from bertxfer_fast.data.collators import ALIGNMENT, TEACHER
from bertxfer_fast.distillation import teachers
from bertxfer_fast.distillation.multitask import MultiTask
from bertxfer_fast.models.activations import LayerActivations
from bertxfer_fast.models.stream import TeacherStream
from tests.tiny import tiny_bert

from .rows import features, pack, streamed

ROWS = features()
LAST = ("hidden", 4)


def teacher(seed: int = 1) -> Any:
    return tiny_bert(4, 16, 4, seed=seed)


def tokens() -> Any:
    return objectives.HiddenStates("last", projection="none")


def vectors(pooling: str = "mean", **options: Any) -> Any:
    return objectives.Embeddings(pooling=pooling, normalize=False, name=pooling, **options)


#: By name, what looks at the last hidden state, and the columns that keep it.
LOOKS: dict[str, tuple[Callable[[], list[Any]], set[str]]] = {
    "pooled": (lambda: [vectors("max")], {"hidden.4.max"}),
    "pooled, and by the token": (lambda: [vectors(weight=100.0), tokens()], {"hidden.4"}),
    "in two ways": (lambda: [vectors(), vectors("cls")], {"hidden.4.mean", "hidden.4.cls"}),
    "in two ways, and by the token": (
        lambda: [vectors("max"), tokens(), objectives.PatientStates([(2, 4)])],
        {"hidden.4"},
    ),
}
looks = pytest.mark.parametrize("look", LOOKS)


def student(seed: int = 2) -> Any:
    return tiny_bert(2, 16, 4, seed=seed)


def learned(taught_by: Any, look: str, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Values of the objectives and gradients of the student."""
    distiller = Distiller(taught_by, student(), LOOKS[look][0]())
    output = distiller(**batch)
    output.loss.backward()
    grads = {n: p.grad for n, p in distiller.named_parameters() if p.grad is not None}
    assert len(grads) > 10
    return {**output.parts, **grads}


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []


def stored(path: Path, model: Any) -> teachers.StoredTeacher:
    return teachers.StoredTeacher(teachers.Store.at(path, teachers.About.of(model)), model)


@looks
def test_a_store_teaches_as_its_teacher_does(tmp_path: Path, look: str) -> None:
    """While it is filled, and read; nothing is kept twice."""
    model, batch = teacher(), pack(ROWS[:8])
    wanted = learned(model, look, batch)
    fills = stored(tmp_path, model)
    assert_equal(learned(fills, look, batch), wanted)
    assert set(fills.shelf.columns) == LOOKS[look][1]
    fills.flush()
    assert_equal(learned(teachers.StoredTeacher(teachers.Store.open(tmp_path)), look, batch), wanted)


@looks
def test_every_tokens_states_serve_all(tmp_path: Path, look: str) -> None:
    """Where they are kept, alone or beside pooled ones, a spot is read once and nothing is asked."""
    model, batch = teacher(), pack(ROWS[:8])
    wanted = learned(model, look, batch)
    whole = stored(tmp_path, model)
    streamed(whole.select([(LAST, None)]), batch)
    reads = teachers.StoredTeacher(whole.shelf)
    assert_equal(learned(reads, look, batch), wanted)
    before = teachers.Store.at(tmp_path / "b", teachers.About.of(model))
    for want in ((LAST, "mean"), (LAST, None)):
        streamed(teachers.StoredTeacher(before, model).select([want]), batch)
    assert set(before.columns) == {"hidden.4.mean", "hidden.4"}
    assert_equal(learned(teachers.StoredTeacher(before), look, batch), wanted)
    assert streamed(teachers.StoredTeacher(before), batch).keys() == {LAST}


def test_filling_keeps_no_states_twice(tmp_path: Path) -> None:
    model = teacher()
    store = teachers.Store.at(tmp_path, teachers.About.of(model))
    both = [(LAST, "mean"), (LAST, None)]
    assert teachers.fill(store, model, {"train": ROWS}, both) == len(ROWS)
    assert set(store.columns) == {"hidden.4"}
    assert teachers.fill(store, model, {"train": ROWS}, both) == 0
    teachers.StoredTeacher(store).select(both).check({"train": ROWS})


def test_pooled_states_do_not_serve_tokens(tmp_path: Path) -> None:
    model, batch = teacher(), pack(ROWS[:8])
    pooled = stored(tmp_path, model)
    learned(pooled, "pooled", batch)
    with pytest.raises(ValueError, match=r"with hidden\.4\.max, want hidden 4 for each token"):
        learned(teachers.StoredTeacher(pooled.shelf), "in two ways, and by the token", batch)


def test_each_objective_is_shown_its_own_vectors(tmp_path: Path) -> None:
    """Principal axes, which are found before training."""
    model, batch, axes = teacher(), pack(ROWS), []
    for taught_by in (model, stored(tmp_path, model)):
        wanted = [vectors("mean", projection="pca"), vectors("cls", projection="pca")]
        Distiller(taught_by, student(), wanted).preview([batch])
        axes.append([objective.axes for objective in wanted])
    assert all(torch.equal(live, read) for live, read in zip(*axes, strict=True))
    assert not torch.equal(*axes[0])


@looks
def test_several_teachers_teach_as_their_stores_do(tmp_path: Path, look: str) -> None:
    """A store of each, of one beside a teacher that runs, and one of their mean."""
    models, batch = [teacher(1), teacher(5)], pack(ROWS[:8])
    mean = teachers.AveragedTeachers(models, (3.0, 1.0))
    wanted = learned(mean, look, batch)
    each = [stored(tmp_path / str(i), model) for i, model in enumerate(models)]
    for some in (each, [models[0], each[1]], [each[0], models[1]]):
        assert_equal(learned(teachers.AveragedTeachers(some, (3.0, 1.0)), look, batch), wanted)
    of_mean = stored(tmp_path / "mean", mean)
    assert_equal(learned(of_mean, look, batch), wanted)
    assert set(of_mean.shelf.columns) == LOOKS[look][1]
    # Of a store of every token's states, too: it asks for more than is looked at.
    whole = stored(tmp_path / "whole", mean)
    streamed(whole.select([(LAST, None)]), pack(ROWS[8:10]))
    got = learned(whole, look, batch)
    if look != "pooled":  # the mean of maxima is not the maximum of means
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@looks
def test_a_teacher_with_other_tokens_is_stored_as_well(tmp_path: Path, look: str) -> None:
    """The first tokens of both stand for each other; also where it is several teachers, stored and not."""
    model, batch, theirs = teacher(), pack(ROWS[:8]), pack(ROWS[8:16])
    batch |= {f"{TEACHER}{name}": value for name, value in theirs.items() if name != "labels"}
    batch |= {
        f"{ALIGNMENT}rows": batch["cu_seq_lens_q"][:-1].long(),
        f"{ALIGNMENT}tokens": theirs["cu_seq_lens_q"][:-1].long(),
        f"{ALIGNMENT}bounds": torch.arange(9, dtype=torch.int32),
    }
    wanted = learned(teachers.OtherTokens(model), look, batch)
    kept = teachers.OtherTokens(stored(tmp_path, model))
    for _ in ("fills", "reads"):
        assert_equal(learned(kept, look, batch), wanted)
    twice = teachers.AveragedTeachers([kept.teacher, model])
    torch.testing.assert_close(learned(teachers.OtherTokens(twice), look, batch), wanted)


def test_rows_of_vectors_serve_every_pooling() -> None:
    """Somebody else pooled them: each objective learns them as if it were alone."""
    batch = pack(ROWS[:8])
    rows = torch.randn(len(ROWS), 16, generator=torch.Generator().manual_seed(0))
    box = teachers.StoredTeacher(teachers.BlackBox({"train": rows}, {"train": ROWS}, kind="vectors"))
    both = Distiller(box, student(), [vectors(), vectors("cls")])(**batch).parts
    for alone in (vectors(), vectors("cls")):
        [(name, value)] = Distiller(box, student(), [alone])(**batch).parts.items()
        assert torch.equal(both[name], value)
    live = Distiller(teacher(), student(), [vectors(), vectors("cls")])(**batch).parts
    assert not torch.equal(both["mean"], live["mean"])


def test_tasks_share_a_store(tmp_path: Path) -> None:
    """One looks at vectors, one at tokens, too."""
    model, batch, seen = teacher(), pack(ROWS[:8]), []
    store = teachers.Store.at(tmp_path, teachers.About.of(model))
    for taught_by in (model, teachers.StoredTeacher(store, model), teachers.StoredTeacher(store)):
        pupils = {"a": student(), "b": student()}
        students.share_encoder(pupils)
        tasks = {"a": [vectors()], "b": [vectors(), tokens()]}
        both = MultiTask({name: Distiller(taught_by, pupils[name], tasks[name]) for name in pupils})
        losses = torch.stack([both(task=name, **batch).loss for name in pupils])
        losses.sum().backward()
        grads = {n: p.grad for n, p in both.named_parameters() if p.grad is not None}
        seen.append({"losses": losses.detach(), **grads})
    for got in seen[1:]:
        assert_equal(got, seen[0])


def test_a_spot_comes_once_with_all_that_is_wanted_of_it(tmp_path: Path) -> None:
    model, batch, seen = teacher(), pack(ROWS[:8]), list[LayerActivations]()
    source = stored(tmp_path, model).select([(LAST, "mean"), (LAST, "cls")])
    source.stream(batch, seen.append)
    [last] = seen
    assert last.spot == LAST and last.hidden is None and last.pooled is not None
    assert last.pooled.keys() == {"mean", "cls"}
    first = streamed(TeacherStream(model, hidden=[4]), batch)[LAST][batch["cu_seq_lens_q"][:-1].long()]
    torch.testing.assert_close(last.pooled["cls"], first)
