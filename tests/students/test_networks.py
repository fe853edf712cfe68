"""Students that are no transformers: each kind on packed tokens is the plain network on every text by itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from bertxfer_fast import Distiller, objectives, students
from bertxfer_fast.models import Encoder, EncoderSpec, LayerActivations, Tap
from bertxfer_fast.students.recurrent import TimeMajor

from ..folders import tiny_tokenizer
from ..tiny import VOCAB, packed_batch, padded_batch, tiny_bert

LENGTHS = (7, 3, 1, 11, 3)
SPECIAL = [2, 3]

# What of a kind is tried: several layers, widths that differ, both ways of pooling, even and long windows.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bilstm": ("bilstm", {"hidden_size": 10, "num_hidden_layers": 2}),
    "bilstm last": ("bilstm", {"hidden_size": 10, "embedding_size": 6, "pooling": "last"}),
    "gru": ("gru", {"hidden_size": 8, "num_hidden_layers": 2, "pooling": "mean"}),
    "gru one way": ("gru", {"hidden_size": 7, "bidirectional": False, "pooling": "last"}),
    "textcnn": ("textcnn", {"filters": 5}),
    "textcnn wide": ("textcnn", {"filters": 4, "kernel_sizes": [1, 2, 13], "embedding_size": 6}),
    "mlp": ("mlp", {"hidden_size": 9, "num_hidden_layers": 2}),
    "static": ("static", {"embedding_size": 6}),
}


def teacher_of(head: str = "ForSequenceClassification", **sizes: Any) -> Any:
    span = {"num_labels": 2} if head == "ForQuestionAnswering" else {}
    return tiny_bert(2, 16, 4, head=head, **{**span, **sizes})


def student_of(case: str, head: str = "ForSequenceClassification", **more: Any) -> Any:
    kind, chosen = CASES[case]
    torch.manual_seed(3)
    student = students.build(kind, teacher_of(head), init="random", **{**chosen, **more})
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_(std=0.4)
    if hasattr(student, "special_ids"):
        student.config.special_ids, student.special_ids = SPECIAL, torch.tensor(SPECIAL)
    return student.eval()


def batch_of() -> dict[str, Any]:
    batch = packed_batch(LENGTHS)
    starts = batch["cu_seq_lens_q"][:-1].long()
    batch["input_ids"][0, starts] = SPECIAL[0]  # the text of one token has nothing else
    return batch


def heard(student: Any, batch: dict[str, Any], **options: Any) -> tuple[dict[Any, Tensor], Any]:
    seen: dict[Any, Tensor] = {}

    def keep(activations: LayerActivations) -> None:
        found = activations.logits if activations.place == "logits" else activations.hidden
        assert found is not None
        seen[activations.spot] = found

    hidden = frozenset(range(student.spec.num_layers + 1))
    tap = Tap(keep, hidden=hidden, logits=student.spec.head is not None, **options)
    return seen, student.run(batch, tap)


def recurrence(kind: str, layer: Any, x: Tensor, back: int) -> Tensor:
    """The states of one direction of one layer over a text, step by step, as the papers have them."""
    suffix = "_l0" + "_reverse" * back
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w_x, w_h, b_x, b_h = (getattr(layer, f"{name}{suffix}") for name in names)
    h = c = x.new_zeros(layer.hidden_size)
    states = []
    for row in x.flip(0) if back else x:
        read, kept = w_x @ row + b_x, w_h @ h + b_h
        if kind == "bilstm":
            i, f, g, o = (read + kept).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (r, z, n), (r_h, z_h, n_h) = read.chunk(3), kept.chunk(3)
            reset, update = (r + r_h).sigmoid(), (z + z_h).sigmoid()
            h = (1 - update) * (n + reset * n_h).tanh() + update * h
        states.append(h)
    return torch.stack(states[::-1] if back else states)


def plain(student: Any, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """Hidden states and logits of one text, in plain torch."""
    config = student.config
    table = student.get_input_embeddings().weight
    x = table[ids]
    if config.head == "sequence":
        keep = torch.tensor([int(i) not in SPECIAL for i in ids])
        own = x[keep] if keep.any() else x
    if student.kind in ("mlp", "static"):
        rows = own.mean(0, keepdim=True) if config.head == "sequence" else x
        for part in student.layers if student.kind == "mlp" else ():
            if isinstance(part, nn.Linear):
                rows = (rows @ part.weight.T + part.bias).clamp(min=0)
        logits = rows @ student.classifier.weight.T + student.classifier.bias
        return [x], logits
    embeddings = student.embeddings
    if isinstance(embeddings.projection, nn.Linear):
        x = F.linear(x, embeddings.projection.weight, embeddings.projection.bias)
    states = [x]
    if student.kind == "textcnn":
        sums, first = [], 0
        for index, size in enumerate(config.kernel_sizes):
            kernel = student.convolution.weight[:, first : first + size].permute(2, 0, 1)
            bias = student.convolution.bias[index]
            around = F.pad(x.T[None], ((size - 1) // 2, size // 2))  # as padding="same" has it
            sums.append(F.conv1d(around, kernel, bias)[0].T)
            first += size
        states.append(torch.cat(sums, 1).relu())
        pooled = states[-1].max(0).values
    else:
        for layer in student.layers:
            ways = [
                recurrence(student.kind, layer, states[-1], back) for back in range(1 + layer.bidirectional)
            ]
            states.append(torch.cat(ways, 1))
        ends = torch.cat([way[0 if back else -1] for back, way in enumerate(ways)])
        pooled = {
            "max": lambda: states[-1].max(0).values,
            "mean": lambda: states[-1].mean(0),
            "last": lambda: ends,
        }[config.pooling]()
    rows = pooled[None] if config.head == "sequence" else states[-1]
    return states, rows @ student.classifier.weight.T + student.classifier.bias


@pytest.mark.parametrize(
    "head", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
)
@pytest.mark.parametrize("case", CASES)
def test_a_pack_is_the_plain_network_on_each_text_by_itself(case: str, head: str) -> None:
    """Values and gradients, against float64; nothing of a neighbour in the pack gets in."""
    student, batch = student_of(case, head), batch_of()
    double = copy.deepcopy(student).double()
    states, logits = zip(*(plain(double, ids) for ids in batch["input_ids"][0].split(LENGTHS)), strict=True)
    seen, output = heard(student, batch)

    expected = torch.cat(logits)
    assert torch.allclose(output.logits.double(), expected, atol=1e-5)
    assert seen["logits", 0] is output.logits
    for index in range(student.spec.num_layers + 1):
        rows = torch.cat([of_text[index] for of_text in states])
        assert rows.shape[1] == student.spec.hidden_size
        assert torch.allclose(seen["hidden", index].double(), rows, atol=1e-5)

    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    (expected * weights).sum().backward()
    (output.logits * weights).sum().backward()
    for (name, ours), theirs in zip(student.named_parameters(), double.parameters(), strict=True):
        assert theirs.grad is not None and theirs.grad.abs().sum() > 0, name
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-4, rtol=1e-4), name


def test_random_lengths() -> None:
    """The order of a PackedSequence and the windows of a convolution, for whatever lengths a pack has."""
    generator = torch.Generator().manual_seed(0)
    cases = [student_of("bilstm last"), student_of("textcnn wide"), student_of("static")]
    for _ in range(30):
        count = int(torch.randint(1, 9, (1,), generator=generator))
        lengths = torch.randint(1, 20, (count,), generator=generator)
        ids = torch.randint(0, VOCAB, (int(lengths.sum()),), generator=generator)
        bounds = F.pad(lengths.cumsum(0), (1, 0)).int()
        order = TimeMajor(bounds, int(lengths.max()))
        reference = nn.utils.rnn.pack_sequence(ids.split(lengths.tolist()), enforce_sorted=False)
        assert torch.equal(ids[order.tokens], reference.data)
        assert torch.equal(order.batch_sizes, reference.batch_sizes)
        assert torch.equal(ids[order.tokens][order.places], ids)
        for student in cases:
            logits = student.run({"input_ids": ids[None], "cu_seq_lens_q": bounds}).logits
            texts = [plain(student, text)[1] for text in ids.split(lengths.tolist())]
            assert torch.allclose(logits, torch.cat(texts), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_student_is_left_as_soon_as_the_tap_has_everything(case: str) -> None:
    student = student_of(case)
    assert isinstance(student, Encoder)
    student.classifier.register_forward_hook(lambda *_: pytest.fail("the head ran"))
    seen: list[LayerActivations] = []
    output = student.run(batch_of(), Tap(seen.append, hidden=frozenset({0}), stop=True))
    assert [activations.spot for activations in seen] == [("hidden", 0)]
    assert output.logits is None
    with pytest.raises(ValueError, match=rf"hidden: got \[9\], want indices 0..{student.spec.num_layers} of"):
        student.run(batch_of(), Tap(seen.append, hidden=frozenset({9})))
    with pytest.raises(ValueError, match="has no attention"):
        student.run(batch_of(), Tap(seen.append, attention=frozenset({0})))


@pytest.mark.parametrize("case", CASES)
def test_ordinary_batches_are_packed(case: str) -> None:
    padded = padded_batch(LENGTHS)
    mask = padded["attention_mask"]
    for head in ("ForSequenceClassification", "ForTokenClassification", "Model"):
        student = student_of(case, head)
        packed = student.run(packed_batch(LENGTHS))
        output = student(padded["input_ids"], mask)
        if head == "ForSequenceClassification":
            assert torch.equal(output.logits, packed.logits)
        else:
            rows = output.last_hidden_state if head == "Model" else output.logits
            ours = packed.last_hidden_state if head == "Model" else packed.logits
            assert torch.equal(rows[mask.bool()], ours) and not rows[~mask.bool()].any()


def test_dropout_is_of_training_alone() -> None:
    for case in ("bilstm", "textcnn", "mlp"):
        student, batch = student_of(case, dropout=0.5), batch_of()
        calm = student.run(batch).logits
        assert torch.equal(student.run(batch).logits, calm)
        assert not torch.equal(student.train().run(batch).logits, calm)


# ---- building -----------------------------------------------------------------------------------------------


def test_a_student_has_the_teachers_task() -> None:
    teacher = teacher_of(num_labels=3)
    teacher.config.id2label = {0: "neg", 1: "none", 2: "pos"}
    teacher.config.problem_type = "multi_label_classification"
    student = students.build("bilstm", teacher, hidden_size=8)
    spec = student.spec
    assert (spec.head, spec.num_labels, spec.vocab_size) == ("sequence", 3, VOCAB)
    assert (spec.problem_type, spec.labels) == ("multi_label_classification", ("neg", "none", "pos"))
    assert student.training and (spec.num_layers, spec.hidden_size, spec.num_heads) == (1, 8, None)
    assert EncoderSpec.of(student) == spec

    words = students.build("gru", teacher_of("ForMaskedLM"), hidden_size=8).spec
    assert (words.head, words.num_labels, words.labels) == ("token", VOCAB, ())
    assert students.build("gru", teacher_of("Model"), hidden_size=8).spec.head is None


def test_embeddings_start_as_the_teachers() -> None:
    """Where widths differ: the best table of that rank, in coordinates that keep inner products."""
    teacher = teacher_of()
    own = teacher.get_input_embeddings().weight.detach()
    assert torch.equal(students.build("mlp", teacher).get_input_embeddings().weight, own)
    table = students.build("bilstm", teacher, hidden_size=6).get_input_embeddings().weight
    u, s, v = torch.linalg.svd(own.double(), full_matrices=False)
    best = (u[:, :6] * s[:6]) @ v[:6]
    assert torch.allclose(table.double() @ table.double().T, best @ best.T, atol=1e-4)
    assert torch.equal(table, students.teacher_table(teacher, 6))
    others = students.build("bilstm", teacher, hidden_size=6, init="random").get_input_embeddings().weight
    assert not torch.allclose(table, others)


def test_a_static_table_is_what_the_teacher_says_of_each_token(tmp_path: Path) -> None:
    """model2vec's steps in plain torch: each token alone, mean of its states, PCA, SIF weights by Zipf's law."""
    teacher, tokenizer = teacher_of(), tiny_tokenizer(tmp_path)
    with torch.no_grad():
        rows = torch.stack(
            [teacher.base_model(torch.tensor([[2, token, 3]]))[0][0].mean(0) for token in range(VOCAB)]
        ).double()
    special = [
        tokenizer.pad_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
        tokenizer.mask_token_id,
    ]
    text = [token for token in range(VOCAB) if token not in special]
    zipf = 1 / torch.arange(1, len(text) + 1, dtype=torch.float64)
    weights = 1e-4 / (1e-4 + zipf / zipf.sum())

    whole = students.distilled_table(teacher, tokenizer, sif=None)
    assert torch.allclose(whole[text].double(), rows[text], atol=1e-5) and not whole[special].any()
    weighted = students.distilled_table(teacher, tokenizer)
    assert torch.allclose(weighted[text].double(), rows[text] * weights[:, None], atol=1e-6)

    centred = rows[text] - rows[text].mean(0)
    _, _, v = torch.linalg.svd(centred, full_matrices=False)
    axes = centred @ v[:5].T
    student = students.build("static", teacher, tokenizer=tokenizer, embedding_size=5)
    table = student.get_input_embeddings().weight.detach().double()
    signs = (table[text] * axes).sum(0).sign()
    assert torch.allclose(table[text], axes * weights[:, None] * signs, atol=1e-6)
    assert not table[special].any() and student.special_ids.tolist() == sorted(special)


@pytest.mark.parametrize("case", ["bilstm", "textcnn", "mlp"])
def test_a_teacher_that_is_no_transformer_says_it_too(tmp_path: Path, case: str) -> None:
    """Its last hidden states are counted by what it hands over: a convolution has no num_hidden_layers."""
    teacher, tokenizer = student_of(case), tiny_tokenizer(tmp_path)
    seen: list[LayerActivations] = []
    bounds = torch.tensor([0, 3], dtype=torch.int32)
    last = frozenset([teacher.spec.num_layers])
    teacher.run(
        {"input_ids": torch.tensor([[2, 20, 3]]), "cu_seq_lens_q": bounds}, Tap(seen.append, hidden=last)
    )
    assert seen[0].hidden is not None
    table = students.distilled_table(teacher, tokenizer, sif=None)
    torch.testing.assert_close(table[20], seen[0].hidden.detach().mean(0))
    student = students.build("static", teacher, tokenizer=tokenizer)
    assert torch.equal(student.get_input_embeddings().weight, students.distilled_table(teacher, tokenizer))


def test_every_kind_can_start_from_distilled_vectors(tmp_path: Path) -> None:
    teacher, tokenizer = teacher_of(), tiny_tokenizer(tmp_path)
    student = students.build("textcnn", teacher, tokenizer=tokenizer, init="distilled", filters=4)
    table = student.get_input_embeddings().weight
    assert torch.equal(table, students.distilled_table(teacher, tokenizer, 12))


@pytest.mark.parametrize("kind", ["bilstm", "gru", "textcnn"])
def test_a_table_from_the_teacher_is_no_wider_than_the_teachers(kind: str) -> None:
    """Their own widths are 300: papers' numbers, which a tiny teacher does not reach."""
    teacher = tiny_bert(2, 16, 4)
    student = students.build(kind, teacher)
    assert student.get_input_embeddings().weight.shape == teacher.get_input_embeddings().weight.shape
    assert torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    assert student.hidden_width == 300
    assert students.build(kind, teacher, init="random").config.embedding_size == 300


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("bilstn", {}, "student: got 'bilstn', want a known one; did you mean 'bilstm'"),
        ("bilstm", {"hiden_size": 8}, "student bilstm: got option 'hiden_size', want .* 'hidden_size'"),
        ("bilstm", {"hidden_size": 7}, "hidden_size: got 7, want an even number"),
        (
            "bilstm",
            {"hidden_size": 20, "embedding_size": 20},
            "embedding_size: got 20, want 1 to the teacher's 16, or init='random'",
        ),
        ("gru", {"hidden_size": 8, "pooling": "min"}, "pooling: got 'min', want one of max, mean, last"),
        ("gru", {"hidden_size": 8, "num_hidden_layers": 0}, "num_hidden_layers: got 0, want 1 or more"),
        ("textcnn", {"filters": 0}, "embedding_size: got 0|filters: got 0, want 1 or more"),
        ("textcnn", {"filters": 4, "kernel_sizes": [3, 0]}, r"kernel_sizes: got \[3, 0\], want widths"),
        ("mlp", {"hidden_size": 0}, "hidden_size, num_hidden_layers: got 0, 1, want 1 or more"),
        ("mlp", {"dropout": 1.0}, "dropout: got 1.0, want 0 or more and less than 1"),
        ("bilstm", {"dropout": "0.1"}, "dropout: got '0.1', want 0 or more and less than 1"),
        ("static", {}, "tokenizer: got None, want the teacher's: init='distilled'"),
        ("static", {"init": "pca"}, "init: got 'pca', want one of teacher, distilled, random"),
        ("mlp", {"init": "teacher", "vocab_size": 9}, "init: got 'teacher', want 'random'"),
        ("no_such:Kind", {}, "kind: got 'no_such:Kind', want a module that can be imported"),
        ("json:JSONDecoder", {}, "want a Network that json registers"),
    ],
)
def test_bad_options_are_said_before_anything_is_computed(kind: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        students.build(kind, teacher_of(), **options)


def test_a_teacher_must_be_a_transformers_model() -> None:
    with pytest.raises(TypeError, match="teacher: got Linear, want a transformers model"):
        students.build("bilstm", nn.Linear(2, 2))


# ---- folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_folder_opens_as_what_was_saved(case: str, tmp_path: Path) -> None:
    student, batch = student_of(case), batch_of()
    student.config.id2label = {0: "neg", 1: "none", 2: "pos"}
    logits = student.run(batch).logits
    student.save_pretrained(tmp_path)
    for opened in (
        students.load(tmp_path),
        AutoModelForSequenceClassification.from_pretrained(tmp_path).eval(),
    ):
        assert type(opened) is type(student) and opened.spec == student.spec
        assert torch.equal(opened.run(batch).logits, logits)


def test_load_opens_transformers_models_too_and_refuses_what_is_incomplete(tmp_path: Path) -> None:
    teacher = teacher_of()
    teacher.save_pretrained(tmp_path / "bert")
    assert type(students.load(tmp_path / "bert")) is type(teacher)
    bare = student_of("bilstm", "Model")
    bare.config.head, bare.config.num_labels = "sequence", 3  # what was saved has no head
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="bare: got no weights for classifier"):
        students.load(tmp_path / "bare")
    with pytest.raises(ValueError, match="folder: no such directory"):
        students.load(tmp_path / "nowhere")


# ---- distilling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_student_learns(case: str) -> None:
    teacher, student = teacher_of(), student_of(case)
    distiller = Distiller(teacher, student, [objectives.Logits(2.0), objectives.HiddenStates([(0, 0)])])
    assert all(parameter.requires_grad for parameter in student.parameters())
    optimizer = torch.optim.Adam(distiller.parameters(), 0.03)
    losses = []
    for _ in range(12):
        loss = distiller(**batch_of()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_parameters_that_no_objective_reaches_are_held_back() -> None:
    student = student_of("bilstm")
    distiller = Distiller(teacher_of(), student, [objectives.HiddenStates([(1, 1)])])
    held = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert held == {
        name for name, _ in student.named_parameters() if name.startswith(("layers.1", "classifier"))
    }
    distiller.release()


def test_labels_follow_the_teachers_order() -> None:
    teacher, student = teacher_of(), student_of("textcnn")
    teacher.config.id2label = {0: "neg", 1: "none", 2: "pos"}
    student.config.id2label = {0: "POS", 1: "neg", 2: "none"}
    before = student.run(batch_of()).logits
    Distiller(teacher, student, [objectives.Logits()])
    assert torch.equal(student.run(batch_of()).logits, before[:, [1, 2, 0]])
    assert student.spec.labels == ("neg", "none", "pos")
