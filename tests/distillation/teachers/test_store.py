"""A store says again what the teacher said, refuses what it is not of, and survives what happens to files."""

from __future__ import annotations

import copy
import gc
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizerFast

from bertxfer_fast import Distiller, objectives
from bertxfer_fast.distillation import teachers
from bertxfer_fast.distillation.teachers import shards
from bertxfer_fast.models.stream import TeacherStream
from tests.folders import WORDS
from tests.tiny import tiny_bert, tiny_pair

from .rows import features, pack, streamed, trained

LOGITS = (("logits", 0), None)
HIDDEN = (("hidden", 3), None)
POOLED = (("hidden", 4), "mean")


def tokenizer(words: list[str] = WORDS) -> BertTokenizerFast:
    return BertTokenizerFast(
        vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    )


def teacher(seed: int = 1, **settings: Any) -> Any:
    return tiny_bert(4, 16, 4, seed=seed, **{"head": "ForSequenceClassification", **settings})


def never() -> Any:
    raise AssertionError("the teacher was loaded")


class Counting:
    """A teacher that counts the sequences it ran."""

    def __init__(self, model: Any) -> None:
        self.source, self.sequences, self.fingerprint = TeacherStream(model, logits=True), 0, "counting"
        self.spec, self.inputs = self.source.spec, frozenset[str]()

    def stream(self, batch: dict[str, Any], sink: Any) -> None:
        self.sequences += len(batch["cu_seq_lens_q"]) - 1
        self.source.stream(batch, sink)


def filled(path: Path, model: Any, wants: Any = (LOGITS,), **settings: Any) -> teachers.Store:
    store = teachers.Store.at(path, teachers.About.of(model), **settings)
    teachers.fill(store, model, {"train": features()}, wants, tokens_per_batch=40)
    return store


# ---- what it says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
)
def test_it_says_what_the_teacher_said_in_any_order(tmp_path: Path, head: str) -> None:
    """Float32, several shards, batches of other rows than those that filled it, and duplicates."""
    model, rows = teacher(head=head, num_labels=2), features()
    filled(tmp_path / "s", model, [LOGITS, HIDDEN, POOLED], shard_bytes=200)
    store = teachers.Store.open(tmp_path / "s")
    assert len(store.columns["logits"].shards) > 2
    stored = teachers.StoredTeacher(store).select([LOGITS, HIDDEN, POOLED])
    picked = [3, 17, 0, 3, 23, 11]
    batch = pack([rows[i] for i in picked])
    seen = streamed(stored, batch)
    live = streamed(TeacherStream(model, hidden=[3, 4], logits=True), batch)
    assert seen.keys() == {("logits", 0), ("hidden", 3), ("hidden", 4)}
    torch.testing.assert_close(seen["logits", 0], live["logits", 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen["hidden", 3], live["hidden", 3], rtol=1e-5, atol=1e-6)
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    means = torch.stack([part.double().mean(0) for part in live["hidden", 4].split(lengths)])
    torch.testing.assert_close(seen["hidden", 4].double(), means, rtol=1e-5, atol=1e-6)


def test_a_student_of_vectors_learns_of_pooled_states(tmp_path: Path) -> None:
    """The same loss of the running teacher, of its states pooled in the store, and of every token's in the store."""
    model, batch, losses = teacher(head="Model"), pack(features()[:6]), []
    mean, tokens = (
        filled(tmp_path / "mean", model, [POOLED]),
        filled(tmp_path / "tokens", model, [(("hidden", 4), None)]),
    )
    for taught_by in (model, teachers.StoredTeacher(mean), teachers.StoredTeacher(tokens)):
        torch.manual_seed(0)
        student = tiny_bert(2, 12, 4, seed=2)
        losses.append(
            Distiller(taught_by, student, [objectives.Embeddings(pooling="mean")])(**batch).loss.item()
        )
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-6)
    with pytest.raises(ValueError, match=r"with hidden\.4\.mean, want hidden 4 for each text"):
        Distiller(teachers.StoredTeacher(mean), student, [objectives.Embeddings(pooling="cls")])


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 0.0), ("float16", 2**-11), ("int8", 0.5 / 127)])
def test_the_error_of_each_dtype_is_its_rounding(tmp_path: Path, dtype: str, bound: float) -> None:
    """Of a value for float16, of the row's largest for int8."""
    rows = np.array([b"a", b"b", b"c"], "S16")
    one = torch.randn(1, 16) * 3  # the largest is once above and once below 0
    values = torch.cat([one, -one, torch.zeros(1, 16)])
    store = teachers.Store.at(tmp_path, teachers.About.of(teacher()), dtype=dtype)
    store.append((("hidden", 2), "mean"), rows, np.ones(3, np.int64), values)
    wanted = values[[2, 0, 1]]
    for reopen in (False, True):  # out of memory, and out of a file
        if reopen:
            store.flush()
            store = teachers.Store.open(tmp_path)
        there = store.columns["hidden.2.mean"]
        got = there.gather(there.find(rows[[2, 0, 1]]), torch.device("cpu"))
        scale = wanted.abs().amax(1, keepdim=True) if dtype == "int8" else wanted.abs()
        assert ((got - wanted).abs() <= bound * scale * 1.0001 + 1e-8).all()


def test_of_the_largest_logits_probabilities_are_exact_and_the_rest_share_what_is_left(
    tmp_path: Path,
) -> None:
    model, rows = teacher(head="ForMaskedLM"), features()
    store = filled(tmp_path, model, top_k=5)
    assert list(store.columns) == ["logits.top5"]
    batch = pack(rows[:4])
    got = streamed(teachers.StoredTeacher(store).select([LOGITS]), batch)["logits", 0].double().softmax(-1)
    live = streamed(TeacherStream(model, logits=True), batch)["logits", 0].double().softmax(-1)
    top, ids = live.topk(5, dim=1)
    torch.testing.assert_close(got.gather(1, ids), top, rtol=1e-5, atol=1e-8)
    others = torch.ones_like(live).scatter(1, ids, 0).bool()
    shares = ((1 - top.sum(1)) / (live.shape[1] - 5))[:, None].expand_as(live)
    torch.testing.assert_close(got[others], shares[others], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"dtype": "float32"}, 16 * 4),
        ({"dtype": "float16"}, 16 * 2),
        ({"dtype": "int8"}, 16 + 4),
    ],
)
def test_bytes_per_token_are_those_of_the_numbers(tmp_path: Path, settings: Any, wanted: float) -> None:
    store = filled(tmp_path, teacher(), [HIDDEN], **settings)
    assert store.bytes_per_token == wanted == store.columns["hidden.3"].column.bytes_per_row
    size = sum(file.stat().st_size for file in tmp_path.glob("hidden*"))
    tokens = sum(len(row["input_ids"]) for row in features())
    assert size >= wanted * tokens


def test_bytes_of_the_largest_logits(tmp_path: Path) -> None:
    store = filled(tmp_path, teacher(head="ForMaskedLM"), dtype="float16", top_k=5)
    assert store.bytes_per_token == 5 * (2 + 2) + 4


# ---- in a training ------------------------------------------------------------------------------------------


def test_a_training_with_a_store_is_the_training_with_the_teacher(tmp_path: Path) -> None:
    """Every loss and every weight, bit for bit: the epoch that fills it, and one that only reads."""
    rows = features()
    weights, losses = [], []
    for kind in ("live", "fills", "reads"):
        model, student = tiny_pair()
        taught_by: Any = model
        if kind != "live":
            store = teachers.Store.at(tmp_path / "s", teachers.About.of(model))
            taught_by = teachers.StoredTeacher(store, model if kind == "fills" else never)
        distiller = Distiller(taught_by, student, [objectives.Logits()])
        losses.append(trained(distiller, rows, epochs=2))
        weights.append(student.state_dict())
        distiller.flush()
    assert losses[0] == losses[1] == losses[2]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in other)


def test_the_teacher_runs_once_for_a_text(tmp_path: Path) -> None:
    counting = Counting(teacher())
    store = teachers.Store.at(tmp_path, teachers.About.of(counting))
    student = tiny_pair()[1]
    distiller = Distiller(teachers.StoredTeacher(store, counting), student, [objectives.Logits()])
    rows = [*features(), *features()[:5]]
    trained(distiller, rows, epochs=3, size=7)
    assert counting.sequences == 24


def test_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    """Rows in the middle of a batch, and a column that only some rows have."""
    rows, counting = features(), Counting(teacher())
    store = teachers.Store.at(tmp_path, teachers.About.of(counting))
    source = teachers.StoredTeacher(store, counting).select([LOGITS])
    streamed(source, pack(rows[4:8]))
    seen = streamed(source, pack(rows[:12]))["logits", 0]
    assert counting.sequences == 4 + 8
    live = streamed(counting, pack(rows[:12]))["logits", 0]
    torch.testing.assert_close(seen, live, rtol=1e-5, atol=1e-6)
    model = teacher()
    store = filled(tmp_path / "b", model, [LOGITS])
    both = teachers.StoredTeacher(store, model).select([LOGITS, HIDDEN])
    streamed(both, pack(rows[:3]))
    assert len(store.columns["logits"]) == 24 and len(store.columns["hidden.3"]) == 3


def test_where_attention_is_matched_the_teacher_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, student = tiny_pair()
    stored = teachers.StoredTeacher(teachers.Store.at(tmp_path, teachers.About.of(model)), model)
    matched = [objectives.AttentionScores(), objectives.HiddenStates()]
    batch = pack(features()[:6])
    losses = []
    with caplog.at_level(logging.INFO):
        for taught_by in (model, stored):
            torch.manual_seed(0)
            losses.append(
                Distiller(taught_by, copy.deepcopy(student), copy.deepcopy(matched))(**batch).loss.item()
            )
    assert losses[0] == losses[1] and "attention is not kept" in caplog.text
    assert not list(tmp_path.glob("*.safetensors"))


def test_numbers_come_back_in_the_precision_they_came_in(tmp_path: Path) -> None:
    model = teacher().bfloat16()
    store = filled(tmp_path, model)
    seen = streamed(teachers.StoredTeacher(store).select([LOGITS]), pack(features()[:4]))["logits", 0]
    assert seen.dtype == torch.bfloat16
    assert torch.equal(seen, streamed(TeacherStream(model, logits=True), pack(features()[:4]))["logits", 0])


def test_a_store_of_another_precision_takes_what_is_missing(tmp_path: Path) -> None:
    """Filled in float32, asked under autocast: the rows that were there stay as they were."""
    model, student = tiny_pair()
    store, rows = filled(tmp_path, model), features(30, seed=3)
    stored = teachers.StoredTeacher(store, model).select([LOGITS])
    there = streamed(stored, pack(features()[:4]))["logits", 0]
    with torch.autocast("cpu", torch.bfloat16):
        live = streamed(TeacherStream(model, logits=True), pack(rows))["logits", 0]
        seen = streamed(stored, pack(rows))["logits", 0]
        loss = Distiller(stored, student, [objectives.Logits()])(**pack(rows)).loss
        torch.testing.assert_close(loss, Distiller(model, student, [objectives.Logits()])(**pack(rows)).loss)
    assert live.dtype == torch.bfloat16 and seen.dtype == torch.float32 and torch.equal(seen, live.float())
    assert torch.equal(streamed(stored, pack(features()[:4]))["logits", 0], there)
    store.flush()
    again = teachers.StoredTeacher(teachers.Store.open(tmp_path)).select([LOGITS])
    assert torch.equal(streamed(again, pack(rows))["logits", 0], seen)


def test_a_teacher_goes_through_pickle_and_copies(tmp_path: Path) -> None:
    store = filled(tmp_path, teacher())
    stored = teachers.StoredTeacher(store).select([LOGITS])
    batch = pack(features()[5:9])
    wanted = streamed(stored, batch)["logits", 0]
    for again in (copy.deepcopy(stored), pickle.loads(pickle.dumps(stored))):
        assert torch.equal(streamed(again, batch)["logits", 0], wanted)


# ---- what it is not of --------------------------------------------------------------------------------------


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, teacher())
    changed = teacher()
    with torch.no_grad():
        changed.classifier.bias[0] += 1e-6
    epsilon = teacher(layer_norm_eps=1e-5)
    for other in (changed, epsilon):
        with pytest.raises(
            ValueError, match=r"^store: got .* made with weights or configuration .{8}, want weights"
        ):
            teachers.Store.at(tmp_path, teachers.About.of(other))
    teachers.Store.at(tmp_path, teachers.About.of(teacher()))


def test_a_folder_that_became_another_teachers_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = teachers.Store.at(tmp_path, teachers.About.of(teacher(2)), create=False)
    filled(tmp_path, teacher())
    before = sorted(tmp_path.iterdir())
    streamed(teachers.StoredTeacher(late, teacher(2)).select([LOGITS]), pack(features()))
    with pytest.raises(ValueError, match=r"^store: got .* made with weights or configuration"):
        late.flush()
    del late
    gc.collect()
    assert "what was still to be written there is lost" in caplog.text
    assert sorted(tmp_path.iterdir()) == before


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    first, swapped = tokenizer(), tokenizer([*WORDS[1:], WORDS[0]])
    cased = BertTokenizerFast(vocab=first.get_vocab(), do_lower_case=False)
    swapped_marks = {"mask_token": "[PAD]", "pad_token": "[MASK]"}
    masked = BertTokenizerFast(vocab=first.get_vocab(), **swapped_marks)
    model = teacher()
    teachers.Store.at(tmp_path, teachers.About.of(model, first))
    for other in (swapped, cased, masked):
        with pytest.raises(ValueError, match=r"made with tokenizer .{8}, want tokenizer .{8}: delete it"):
            teachers.Store.at(tmp_path, teachers.About.of(model, other))
    first(
        "a text", truncation=True, max_length=4, padding="max_length"
    )  # leaves its settings in the tokenizer
    teachers.Store.at(tmp_path, teachers.About.of(model, first))


def test_another_version_of_the_code_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, teacher())
    record = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**record, "code": "00000000"}))
    for attempt in (
        lambda: teachers.Store.open(tmp_path),
        lambda: teachers.Store.at(tmp_path, teachers.About.of(teacher())),
    ):
        with pytest.raises(
            ValueError, match=r"made with version of the code 00000000, want version of the code"
        ):
            attempt()


def test_a_text_that_changed_is_another_row(tmp_path: Path) -> None:
    store = filled(tmp_path, teacher())
    rows = features()
    rows[5] = {**rows[5], "input_ids": [*rows[5]["input_ids"], 7]}
    assert store.missing(rows, ["logits"]).tolist() == [5]
    with pytest.raises(ValueError, match=r"got 1 of 4 rows that are not in .* has the text, the tokenizer"):
        streamed(teachers.StoredTeacher(store).select([LOGITS]), pack(rows[3:7]))


def test_what_it_has_not_is_said_before_training(tmp_path: Path) -> None:
    stored = teachers.StoredTeacher(filled(tmp_path, teacher()))
    student = tiny_pair()[1]
    for wanted, matched in (
        ("hidden 4", objectives.HiddenStates("last")),
        ("attention", objectives.AttentionScores()),
    ):
        with pytest.raises(ValueError, match=f"^teacher: got .* with logits, want {wanted}"):
            Distiller(stored, student, [matched])


def test_rows_that_nobody_knows_are_named_before_training(tmp_path: Path) -> None:
    model, rows = teacher(), features()
    store = filled(tmp_path, model)
    data = {"train": rows, "eval": [*rows[:2], {"input_ids": [9, 9, 9, 9]}]}
    teachers.StoredTeacher(store, never).select([LOGITS]).check(data)
    with pytest.raises(
        ValueError, match=r"got 1 of 3 rows of eval that are not in .* \(row 3 first\), want all"
    ):
        teachers.StoredTeacher(store).select([LOGITS]).check(data)


def test_a_store_that_is_not_made_yet_leaves_no_trace(tmp_path: Path) -> None:
    store = teachers.Store.at(tmp_path / "s", teachers.About.of(teacher()), create=False)
    source = teachers.StoredTeacher(store, teacher()).select([LOGITS])
    streamed(source, pack(features()[:3]))
    assert not (tmp_path / "s").exists()
    source.flush()
    assert len(teachers.Store.open(tmp_path / "s").columns["logits"]) == 3


def test_the_files_of_a_model_tell_whose_a_store_is(tmp_path: Path) -> None:
    """Without loading it; where they cannot tell, the model has to."""
    model, folder, words = teacher(), tmp_path / "model", tokenizer()
    model.save_pretrained(folder)
    assert teachers.known_about(tmp_path / "s", folder) is None
    about = teachers.About.of(model, words, folder=folder)
    teachers.Store.at(tmp_path / "s", about)
    assert teachers.known_about(tmp_path / "s", folder, words) == about
    assert teachers.known_about(tmp_path / "s", folder, tokenizer([*WORDS[1:], WORDS[0]])) is None
    teacher(seed=2).save_pretrained(folder)
    assert teachers.known_about(tmp_path / "s", folder, words) is None


def test_another_dtype_than_the_stores_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, teacher(), dtype="float16")
    with pytest.raises(ValueError, match=r"^dtype: got int8, want float16 as"):
        teachers.Store.open(tmp_path, dtype="int8")


def test_another_number_of_logits_than_the_stores_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "some", teacher(head="ForTokenClassification", num_labels=9), top_k=5)
    with pytest.raises(ValueError, match=r"^top_k: got 2, want 5 as"):
        teachers.Store.open(tmp_path / "some", top_k=2)
    assert teachers.Store.open(tmp_path / "some").columns.keys() == {"logits.top5"}
    filled(tmp_path / "all", teacher(head="ForTokenClassification", num_labels=9))
    with pytest.raises(ValueError, match=r"^top_k: got 2, want all logits of a token as"):
        teachers.Store.open(tmp_path / "all", top_k=2)
    filled(tmp_path / "texts", teacher())
    teachers.Store.open(tmp_path / "texts", top_k=2)  # of texts all logits are kept, whatever it is


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor([[1.0, float("nan")] + [0.0] * 14]), "not finite"),
        (torch.full((1, 16), 1e5), "got float16 for hidden.2.mean up to 1e"),
    ],
)
def test_numbers_that_cannot_be_kept_are_refused(tmp_path: Path, values: torch.Tensor, message: str) -> None:
    store = teachers.Store.at(tmp_path, teachers.About.of(teacher()), dtype="float16")
    with pytest.raises(ValueError, match=message):
        store.append((("hidden", 2), "mean"), np.array([b"a"], "S16"), np.ones(1, np.int64), values)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="want an empty folder or a store: something else is in it"):
        teachers.Store.at(tmp_path, teachers.About.of(teacher()))
    with pytest.raises(ValueError, match=r"there is no store\.json in it"):
        teachers.Store.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# ---- what happens to files ----------------------------------------------------------------------------------


def one_shard(folder: Path) -> Path:
    [path] = folder.glob("*.safetensors")
    return path


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """In the numbers at their first use, in the keys when the store is opened."""
    filled(tmp_path, teacher())
    path, found = one_shard(tmp_path), set()
    whole, tensors = path.read_bytes(), load_file(path)
    places = {name: whole.index(tensor.numpy().tobytes()) for name, tensor in tensors.items()}

    def flip(place: int) -> None:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])

    flip(places["values"] + 5)
    for attempt in (
        lambda: teachers.Store.open(tmp_path).verify(),
        lambda: streamed(
            teachers.StoredTeacher(teachers.Store.open(tmp_path)).select([LOGITS]), pack(features()[:2])
        ),
    ):
        with pytest.raises(
            ValueError, match=f"{path.name}: got a damaged shard .*want it whole: delete it"
        ) as caught:
            attempt()
        found.add(str(caught.value))
    assert len(found) == 1 and tensors.keys() == {"keys", "lengths", "values"}
    for name in ("keys", "lengths"):
        flip(places[name])
        with pytest.raises(ValueError, match=f"its {name} are not what was written"):
            teachers.Store.open(tmp_path)


@pytest.mark.parametrize("kept", [0, 7, 300, -1])
def test_a_torn_shard_is_noticed_and_made_anew(tmp_path: Path, kept: int) -> None:
    model = teacher()
    store = filled(tmp_path, model)
    wanted = streamed(teachers.StoredTeacher(store).select([LOGITS]), pack(features()))["logits", 0]
    path = one_shard(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="got a damaged shard"):
        teachers.Store.open(tmp_path)
    path.unlink()
    again = teachers.Store.open(tmp_path)
    teachers.fill(again, model, {"train": features()}, [LOGITS], tokens_per_batch=40)
    seen = streamed(teachers.StoredTeacher(teachers.Store.open(tmp_path)).select([LOGITS]), pack(features()))
    assert torch.equal(seen["logits", 0], wanted)


def test_a_shard_of_another_store_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "a", teacher())
    filled(tmp_path / "b", teacher(seed=3))
    path = one_shard(tmp_path / "b")
    path.rename(tmp_path / "a" / path.name)
    with pytest.raises(ValueError, match="got a shard of another store"):
        teachers.Store.open(tmp_path / "a")
    foreign = tmp_path / "a" / path.name
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="it is no shard of the format"):
        teachers.Store.open(tmp_path / "a")


@pytest.mark.parametrize("moment", ["while writing", "before renaming"])
def test_killed_while_writing_it_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The shards before are there, nothing of the torn one is read, and only its rows are asked again."""
    counting, rows = Counting(teacher()), features()
    store = teachers.Store.at(tmp_path, teachers.About.of(counting), shard_bytes=100)
    whole, writes = shards.save_file, [0]

    def killed(tensors: Any, path: Path, header: Any) -> None:
        writes[0] += 1
        whole(tensors, path, header)
        if writes[0] == 2:
            if moment == "while writing":
                path.write_bytes(path.read_bytes()[:50])
            raise KeyboardInterrupt

    monkeypatch.setattr(shards, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        teachers.fill(store, counting, {"train": rows}, [LOGITS], tokens_per_batch=30)
    monkeypatch.undo()
    monkeypatch.setattr(type(store._writer), "flush", lambda _: None)  # nobody tidies up after a kill
    again = teachers.Store.open(tmp_path)
    there = len(again.columns["logits"])
    assert 0 < there < 24 and list(tmp_path.glob(".*.part"))
    monkeypatch.undo()
    counting.sequences = 0
    assert teachers.fill(again, counting, {"train": rows}, [LOGITS]) == counting.sequences == 24 - there
    seen = streamed(teachers.StoredTeacher(teachers.Store.open(tmp_path)).select([LOGITS]), pack(rows))[
        "logits", 0
    ]
    torch.testing.assert_close(seen, streamed(counting, pack(rows))["logits", 0], rtol=1e-5, atol=1e-6)


def test_what_is_discarded_is_asked_again(tmp_path: Path) -> None:
    counting, rows = Counting(teacher()), features()
    store = teachers.Store.at(tmp_path, teachers.About.of(counting))
    source = teachers.StoredTeacher(store, counting).select([LOGITS])
    streamed(source, pack(rows[:3]))
    store.discard()
    assert not store.columns
    streamed(source, pack(rows[:4]))
    source.flush()
    streamed(source, pack(rows[4:6]))
    store.discard()
    assert len(store.columns["logits"]) == 4 and counting.sequences == 9


def test_many_flushes_leave_few_files(tmp_path: Path) -> None:
    store = teachers.Store.at(tmp_path, teachers.About.of(teacher()))
    source = teachers.StoredTeacher(store, teacher()).select([LOGITS])
    for i in range(0, 24, 4):
        streamed(source, pack(features()[i : i + 4]))
        source.flush()
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert len(teachers.Store.open(tmp_path).columns["logits"]) == 24


def test_two_processes_may_fill_one_store(tmp_path: Path) -> None:
    model, rows = teacher(), features()
    stores = [teachers.Store.at(tmp_path, teachers.About.of(model)) for _ in range(2)]
    for store, some in zip(stores, (rows[:14], rows[10:]), strict=True):
        teachers.fill(store, model, {"train": some}, [LOGITS])
    store = teachers.Store.open(tmp_path)
    assert not len(store.missing(rows, ["logits"])) and len(store.columns["logits"]) == 24


def test_what_is_left_is_written_when_the_store_is_forgotten(tmp_path: Path) -> None:
    store = teachers.Store.at(tmp_path, teachers.About.of(teacher()))
    source = teachers.StoredTeacher(store, teacher()).select([LOGITS])
    streamed(source, pack(features()[:4]))
    assert not list(tmp_path.glob("*.safetensors"))
    del store, source
    assert len(teachers.Store.open(tmp_path).columns["logits"]) == 4
