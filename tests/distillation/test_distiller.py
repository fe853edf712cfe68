"""The whole step: the packed, streamed distillation against a from-scratch eager one, and what it must not do."""

from __future__ import annotations

import copy
import warnings
from itertools import pairwise

import pytest
import tokenizers
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertxfer_fast import ops
from bertxfer_fast.distillation import recipes
from bertxfer_fast.distillation.distiller import Distiller, check_tokenizers
from bertxfer_fast.distillation.objectives import (
    AttentionMaps,
    AttentionScores,
    HiddenStates,
    Labels,
    Logits,
    Match,
    Objective,
)
from bertxfer_fast.models.hf.encoder import PackedModel
from bertxfer_fast.models.stream import TeacherStream
from tests.tiny import LENGTHS, pack_padded, packed_batch, padded_batch, tiny_bert, tiny_pair


def stage(name: str, **options):
    return next(s for s in recipes.get("tinybert", **options).stages if s.name == name).build_objectives()


# A from-scratch eager TinyBERT on padded tensors. It uses nothing of the package: queries and keys come from hooks on
# the linear layers, scores are written out, masks are applied to them.


class Padded:
    """Runs a BertForSequenceClassification on a padded batch and keeps its scores, hidden states and logits."""

    def __init__(self, model, batch):
        self.heads = model.config.num_attention_heads
        projections, self.hidden, handles = [], [], []

        def keep(into):
            return lambda _module, _args, out: into.append(out)

        handles.append(model.bert.embeddings.register_forward_hook(keep(self.hidden)))
        for layer in model.bert.encoder.layer:
            handles.append(layer.attention.self.query.register_forward_hook(keep(projections)))
            handles.append(layer.attention.self.key.register_forward_hook(keep(projections)))
            handles.append(layer.register_forward_hook(keep(self.hidden)))
        model.set_attn_implementation("eager")
        self.logits = model(**batch).logits
        for handle in handles:
            handle.remove()
        self.scores = [self._scores(q, k) for q, k in zip(projections[::2], projections[1::2], strict=True)]

    def _scores(self, q, k):
        q, k = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k))
        return q @ k.mT / q.shape[-1] ** 0.5  # [B, H, L, L]


def eager_intermediate(student, teacher, projection, batch, *, padding="valid"):
    """TinyBERT's intermediate loss, attention and hidden parts, by the definition."""
    s = Padded(student, batch)
    with torch.no_grad():
        t = Padded(teacher, batch)
    mask = batch["attention_mask"].bool()
    pairs = (mask[:, None, :, None] & mask[:, None, None, :]).float()  # [B, 1, L, L]
    rows = mask[..., None].float()
    ones = padding == "reference"
    step = len(t.scores) // len(s.scores)
    attention = hidden = 0.0
    for i, scores in enumerate(s.scores):
        error = (scores - t.scores[i * step + step - 1]).square() * pairs
        attention = (
            attention + error.sum() / (torch.ones_like(error) if ones else pairs.expand_as(error)).sum()
        )
    for i, states in enumerate(s.hidden):
        error = (F.linear(states, *projection) - t.hidden[i * step]).square() * rows
        hidden = hidden + error.sum() / (torch.ones_like(error) if ones else rows.expand_as(error)).sum()
    return attention, hidden


def eager_prediction(student, teacher, batch):
    with torch.no_grad():
        target = teacher(**batch).logits.softmax(-1)
    return F.cross_entropy(student(**batch).logits, target)


def assert_same_gradients(model, reference):
    """Parameter by parameter, to float32 rounding of each gradient's own size."""
    seen = 0
    wanted = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        want = wanted[name].grad
        if parameter.grad is None or want is None:
            assert parameter.grad is None and (want is None or not want.any()), name
            continue
        # The biases of keys shift all scores of a row alike: their gradient through the softmax is zero but for
        # rounding, so sizes are compared with the largest gradient too.
        scale = want.abs().max().item()
        torch.testing.assert_close(
            parameter.grad, want, rtol=0, atol=3e-6 * scale + 1e-7, msg=lambda m, name=name: f"{name}: {m}"
        )
        seen += 1
    assert seen > 10


BATCHES = {
    "unpadded": padded_batch((9, 9, 9)),
    "padded": padded_batch(LENGTHS),
}


@pytest.mark.parametrize("padding", ["valid", "reference"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_intermediate_step_equals_a_from_scratch_eager_one(batch, padding):
    teacher, student = tiny_pair()
    reference = copy.deepcopy(student)
    distiller = Distiller(copy.deepcopy(teacher), student, stage("intermediate", padding=padding))
    linear = distiller.objectives[1].projections[0]
    assert (linear.in_features, linear.out_features) == (12, 16)
    weight, bias = (p.detach().clone().requires_grad_() for p in (linear.weight, linear.bias))

    output = distiller(**pack_padded(batch))
    output.loss.backward()
    attention, hidden = eager_intermediate(reference, teacher, (weight, bias), batch, padding=padding)
    (attention + hidden).backward()

    torch.testing.assert_close(output.parts["attention_scores"], attention.detach(), rtol=2e-6, atol=0)
    torch.testing.assert_close(output.parts["hidden_states"], hidden.detach(), rtol=2e-6, atol=0)
    torch.testing.assert_close(output.loss, attention + hidden, rtol=2e-6, atol=0)
    assert_same_gradients(student, reference)
    for got, want in ((linear.weight.grad, weight.grad), (linear.bias.grad, bias.grad)):
        torch.testing.assert_close(got, want, rtol=0, atol=3e-6 * want.abs().max().item())
    # The last layer's own output is matched, its pooler and classifier are not.
    assert student.bert.encoder.layer[-1].output.dense.weight.grad is not None
    assert student.classifier.weight.grad is None


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_prediction_step_equals_a_from_scratch_eager_one(batch):
    teacher, student = tiny_pair()
    reference, eager_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    for model in (reference, eager_teacher):
        model.set_attn_implementation("eager")
    distiller = Distiller(teacher, student, stage("prediction"))
    output = distiller(**pack_padded(batch))
    output.loss.backward()
    loss = eager_prediction(reference, eager_teacher, batch)
    loss.backward()
    torch.testing.assert_close(output.loss, loss, rtol=2e-6, atol=0)
    torch.testing.assert_close(output.logits, reference(**batch).logits.detach(), rtol=0, atol=2e-6)
    assert not output.logits.requires_grad
    assert_same_gradients(student, reference)


def test_a_padded_batch_is_packed_first():
    batch = padded_batch()
    teacher, student = tiny_pair()
    labels = torch.tensor([0, 2, 1, 1])
    distiller = Distiller(teacher, student, [*stage("intermediate"), Labels()])
    packed = distiller(**pack_padded(batch), labels=labels)
    padded = distiller(**batch, labels=labels)
    assert torch.equal(packed.loss, padded.loss)
    del batch["attention_mask"]  # everything counts
    assert distiller(**batch, labels=labels).loss != padded.loss


def test_token_labels_of_a_padded_batch_are_packed_too():
    batch = padded_batch()
    student = tiny_bert(head="ForTokenClassification")
    labels = torch.arange(batch["input_ids"].numel()).view_as(batch["input_ids"]) % 3
    output = Distiller(None, student, [Labels()])(**batch, labels=labels)
    mask = batch["attention_mask"].bool()
    expected = F.cross_entropy(student(**batch).logits[mask], labels[mask])
    torch.testing.assert_close(output.loss, expected, rtol=2e-6, atol=0)


# What a step does not do


class Shapes(TorchDispatchMode):
    """Every tensor that any operator returns, forward and backward."""

    def __init__(self):
        super().__init__()
        self.shapes: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.shapes += [(str(func), tuple(x.shape)) for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        return out


def compiled(op: str) -> bool:
    return ops.explain()[op]["cpu"]["implementation"] == "cpp"


needs_kernels = pytest.mark.skipif(
    not all(compiled(op) for op in ("varlen_attention", "varlen_attention_backward", "attention_score_mse")),
    reason="runs eagerly here, which does build one sequence's score map at a time",
)


@needs_kernels
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("padding", ["valid", "reference"])
def test_a_training_step_makes_no_tensor_of_length_by_length(dropout, padding):
    length, lengths = 61, (61, 17, 5, 40)
    teacher = tiny_bert(4, 16, 4, head="ForSequenceClassification", seed=1, dropout=0.1)
    student = tiny_bert(2, 12, 4, head="ForSequenceClassification", seed=2, dropout=dropout)
    asked: list[dict] = []
    for model in (teacher, student):
        for module in model.modules():
            module.register_forward_pre_hook(lambda _m, _a, kwargs: asked.append(kwargs), with_kwargs=True)
    objectives = [*stage("intermediate", padding=padding), *stage("prediction"), Labels()]
    distiller = Distiller(teacher, student, objectives).train()
    batch = packed_batch(lengths, labels="class")
    with Shapes() as watched:
        distiller(**batch).loss.backward()
    assert len(watched.shapes) > 500 and any("backward" in name for name, _ in watched.shapes)
    square = [(n, s) for n, s in watched.shapes if len(s) > 1 and s[-1] >= length and s[-2] >= length]
    assert not square
    assert len(asked) > 100 and not any(kwargs.get("output_attentions") for kwargs in asked)


def allocations(run) -> list[int]:
    """Bytes of everything the CPU allocator gave out during ``run()``, inside operators too."""
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        run()
    found, events = [], list(profile.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if "Allocation" in str(event.tag):
            found.append(event.extra_fields.alloc_size)
    return found


@needs_kernels
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_no_kernel_allocates_a_map_inside(dropout):
    length = 400
    settings = {"head": "ForSequenceClassification", "max_positions": length}
    teacher = tiny_bert(4, 16, 4, seed=1, **settings)
    student = tiny_bert(2, 12, 4, seed=2, dropout=dropout, **settings)
    distiller = Distiller(teacher, student, [*stage("intermediate"), *stage("prediction")]).train()
    batch = packed_batch((length, 30))
    one_map_in_bf16 = 2 * length**2
    assert max(allocations(lambda: distiller(**batch).loss.backward())) < one_map_in_bf16 / 2
    with ops.use_backend("eager"):  # what the same watcher sees where maps are built
        assert max(allocations(lambda: distiller(**batch).loss.backward())) > one_map_in_bf16


def test_the_watcher_of_shapes_sees_maps():
    model = tiny_bert(1, 16, 4)
    model.set_attn_implementation("eager")
    with Shapes() as watched:
        model(input_ids=torch.zeros(1, 61, dtype=torch.long)).last_hidden_state.sum().backward()
    assert [s for _, s in watched.shapes if s[-2:] == (61, 61)]


def test_the_teacher_stays_outside():
    teacher = tiny_bert(4, 16, 4, head="ForSequenceClassification", seed=1, dropout=0.3)
    student = tiny_pair(dropout=0.1)[1]
    distiller = Distiller(teacher, student, stage("intermediate"))
    inside = {id(p) for p in distiller.parameters()}
    assert not inside & {id(p) for p in teacher.parameters()}
    assert {id(p) for p in student.parameters()} < inside
    prefixes = {name.split(".")[0] for name in distiller.state_dict()}
    assert prefixes == {"student", "objectives"}
    assert all(module is not teacher for module in distiller.modules())
    assert distiller.teacher is teacher and distiller.student is student

    distiller.train()
    assert student.training and not any(m.training for m in teacher.modules())
    exact = distiller.eval()(**packed_batch()).loss
    teacher.train()  # dropout stays out of the loss all the same
    loss = distiller(**packed_batch()).loss
    assert torch.equal(loss, exact) and all(m.training for m in teacher.modules())
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())

    distiller.double()
    assert (
        teacher.dtype == student.dtype == distiller.objectives[1].projections[0].weight.dtype == torch.float64
    )
    distiller.to("meta")
    assert teacher.device.type == student.device.type == "meta"


def test_teacher_noise_is_off_and_the_students_is_on():
    teacher, student = tiny_bert(4, 16, 4, dropout=0.3, seed=1), tiny_bert(2, 12, 4, dropout=0.3, seed=2)
    distiller = Distiller(teacher, student, [HiddenStates([(0, 0)])])
    teacher.train()  # as whoever trained it may have left it
    batch = packed_batch()
    assert distiller.eval()(**batch).loss == distiller(**batch).loss
    distiller.train()
    assert distiller(**batch).loss != distiller(**batch).loss


@pytest.mark.parametrize(
    ("objectives", "student_layers", "teacher_layers"),
    [
        ([AttentionScores([(0, 1)])], 0, 1),  # whole layers: that of the last attention does not finish
        ([HiddenStates([(1, 2)])], 1, 2),
        ([HiddenStates([(0, 0)])], 0, 0),
        ([AttentionScores("last")], 1, 3),
        ([Logits()], 2, 4),
        ([Labels()], 2, 0),
    ],
)
def test_neither_model_runs_further_than_needed(objectives, student_layers, teacher_layers):
    teacher, student = tiny_pair()
    finished = {"student": 0, "teacher": 0}
    for role, model in (("student", student), ("teacher", teacher)):
        for layer in model.bert.encoder.layer:
            layer.register_forward_hook(lambda *_, role=role: finished.__setitem__(role, finished[role] + 1))
    Distiller(teacher, student, objectives).train()(**packed_batch(labels="class"))
    assert finished == {"student": student_layers, "teacher": teacher_layers}


def test_the_graph_keeps_nothing_of_the_teacher():
    teacher, student = tiny_pair()
    distiller = Distiller(teacher, student, [*stage("intermediate"), AttentionMaps(), *stage("prediction")])
    made: list[StorageWeakRef] = []
    for module in teacher.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm):
            module.register_forward_hook(
                lambda _m, _a, out: made.append(StorageWeakRef(out.untyped_storage()))
            )
    output = distiller(**packed_batch())
    assert len(made) > 20 and output.loss.requires_grad
    assert all(storage.expired() for storage in made)


# Evaluation, weights, autocast


def test_evaluation_gives_loss_and_logits_without_grad():
    teacher, student = tiny_pair()
    distiller = Distiller(teacher, student, stage("intermediate")).eval()
    batch = packed_batch(labels="class")
    with torch.no_grad():
        output = distiller(**batch)
    assert not output.loss.requires_grad and output.loss > 0
    torch.testing.assert_close(output.logits, PackedModel(student)(batch).logits)
    assert output.to_tuple()[0] is output.loss and output["parts"] is output.parts
    assert distiller.train()(**batch).logits is None  # nobody needs them
    assert distiller.eval()(**packed_batch()).logits is None


def test_weights_and_schedules():
    teacher, student = tiny_pair()
    objectives = [AttentionScores(weight=2.0), HiddenStates(weight=3.0, schedule="linear_decay"), Logits()]
    distiller = Distiller(teacher, student, objectives)
    assert distiller.progress == 0.0
    for progress, hidden_weight in ((0.0, 3.0), (0.25, 2.25), (1.0, 0.0)):
        distiller.progress = progress
        output = distiller(**packed_batch())
        a, h, l = (output.parts[name] for name in ("attention_scores", "hidden_states", "logits"))
        torch.testing.assert_close(output.loss.detach(), 2 * a + hidden_weight * h + l)
    assert list(output.parts) == ["attention_scores", "hidden_states", "logits"]
    for part in (*output.parts.values(), output.loss):
        assert part.dtype == torch.float32 and part.ndim == 0
    assert not any(part.requires_grad for part in output.parts.values())


@pytest.mark.parametrize("schedule", ["linear_growth", "linear_decay", "warmup"])
def test_an_evaluation_does_not_depend_on_the_progress(schedule):
    teacher, student = tiny_pair()
    logits = Logits(
        weight={"kind": schedule, "value": 3.0}, temperature={"kind": "linear", "value": 8, "end": 2}
    )
    distiller = Distiller(teacher, student, [logits]).eval()
    plain = Distiller(teacher, student, [Logits(weight=3.0, temperature=2.0)]).eval()
    for progress in (0.0, 0.5, 1.0):
        distiller.progress = progress
        torch.testing.assert_close(distiller(**packed_batch()).loss, plain(**packed_batch()).loss)


@pytest.mark.parametrize(
    "moving", [Logits(weight="warmup"), Logits(temperature={"kind": "linear", "value": 8, "end": 1})]
)
def test_a_schedule_that_nobody_moves_is_warned_of_once(moving):
    still, batch = Distiller(*tiny_pair(), [Logits(weight=2.0)]), packed_batch()
    driven = Distiller(*tiny_pair(), [copy.deepcopy(moving)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            driven.progress = 0.0  # of a step's further batches, too
            driven(**batch)
            still(**batch)
    distiller = Distiller(*tiny_pair(), [moving])
    distiller(**batch)
    with pytest.warns(UserWarning, match=r"progress: got 0 in every batch, .* the schedules of logits stay"):
        distiller(**batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller(**batch)


def test_bf16_autocast_step():
    teacher, student = tiny_pair()
    objectives = [*stage("intermediate"), AttentionMaps(), *stage("prediction"), Labels()]
    distiller = Distiller(teacher, student, objectives)
    batch = packed_batch(labels="class")
    exact = distiller(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = distiller(**batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    for name, part in output.parts.items():
        torch.testing.assert_close(part, exact.parts[name], rtol=0.05, atol=0.02)
    gradients = {name: p.grad for name, p in distiller.named_parameters()}
    assert all(g is not None and g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_teacher_of_another_dtype(dtypes):
    teacher, student = tiny_pair()
    distiller = Distiller(
        teacher.to(dtypes[0]), student.to(dtypes[1]), [*stage("intermediate"), AttentionMaps(), Logits()]
    )
    distiller(**packed_batch()).loss.backward()
    assert distiller.objectives[1].projections[0].weight.grad.isfinite().all()


def test_gradient_checkpointing_of_the_student():
    batch = packed_batch()
    gradients = []
    for checkpointing in (False, True):
        teacher, student = tiny_pair()
        torch.manual_seed(5)
        distiller = Distiller(teacher, student, stage("intermediate")).train()
        if checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        distiller(**batch).loss.backward()
        gradients.append([p.grad for p in distiller.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_without_a_teacher_labels_train_a_student():
    student = tiny_bert(head="ForSequenceClassification")
    reference = copy.deepcopy(student)
    distiller = Distiller(None, student, [Labels()])
    assert distiller.teacher is None
    batch = padded_batch()
    labels = torch.tensor([0, 2, 1, 1])
    output = distiller(**pack_padded(batch), labels=labels)
    output.loss.backward()
    expected = reference(**batch, labels=labels).loss
    expected.backward()
    torch.testing.assert_close(output.loss, expected, rtol=2e-6, atol=0)
    assert_same_gradients(student, reference)


@pytest.mark.parametrize("families", [("Roberta", "Roberta"), ("Bert", "DistilBert"), ("Electra", "Electra")])
def test_other_families_and_mixed_pairs_train(families):
    head = "ForSequenceClassification"
    teacher = tiny_bert(4, 16, 4, head=head, family=families[0], seed=1)
    student = tiny_bert(2, 12, 4, head=head, family=families[1], seed=2)
    distiller = Distiller(teacher, student, [*stage("intermediate"), *stage("prediction")])
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        loss = distiller(**packed_batch(token_types=families[0] == "Bert")).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_masked_lm_models_match_every_token():
    teacher = tiny_bert(4, 16, 4, head="ForMaskedLM", seed=1)
    student = tiny_bert(2, 12, 4, head="ForMaskedLM", seed=2)
    output = Distiller(teacher, student, [Logits(2.0), Labels()])(**packed_batch(labels="token"))
    assert output.logits.shape == (sum(LENGTHS), 50)


def test_a_checkpoint_restores_student_and_projections():
    teacher, student = tiny_pair()
    distiller = Distiller(teacher, student, stage("intermediate"))
    state = {name: value.clone() for name, value in distiller.state_dict().items()}
    assert "objectives.1.projections.0.weight" in state
    other = Distiller(copy.deepcopy(teacher), tiny_pair(seed=9)[1], stage("intermediate"))
    other.load_state_dict(state)
    assert torch.equal(other(**packed_batch()).loss, distiller(**packed_batch()).loss)


def test_copies_are_independent():
    teacher, student = tiny_pair()
    distiller = Distiller(teacher, student, stage("intermediate"))
    twin = copy.deepcopy(distiller)
    assert twin.teacher is not teacher and twin._roles.student.model is twin.student is not student
    assert torch.equal(twin(**packed_batch()).loss, distiller(**packed_batch()).loss)


# Errors before work starts


@pytest.mark.parametrize(
    ("teacher", "student", "objectives", "message"),
    [
        ({"vocab": 60}, {}, [AttentionScores()], "got vocab_size 50 and 60 of the teacher"),
        (
            {"heads": 2},
            {},
            [AttentionScores()],
            "got 4 heads of the student and 2 of the teacher",
        ),
        (
            {},
            {},
            [HiddenStates(projection="none")],
            "got widths 12 of the student and 16 of the teacher",
        ),
        ({"layers": 5}, {}, [HiddenStates()], "got 2 of the student and 5 of the teacher"),
        ({"head": "Model"}, {}, [Logits()], "as teacher, want a classification"),
        ({"num_labels": 4}, {}, [Logits()], "as many labels"),
        ({}, {}, [Logits(), Logits()], "got 'logits' more than once"),
        ({}, {}, [], "objectives: got .*, want at least one"),
        (None, {}, [Logits()], "teacher: got None, want a model"),
    ],
)
def test_what_does_not_fit_is_an_error_at_once(teacher, student, objectives, message):
    head = "ForSequenceClassification"
    made = {"layers": 4, "hidden": 16, "head": head}
    teacher = None if teacher is None else tiny_bert(**{**made, **teacher})
    student = tiny_bert(**{"hidden": 12, "head": head, **student})
    with pytest.raises(ValueError, match=message):
        Distiller(teacher, student, objectives)


def test_what_is_not_a_model_or_an_objective_is_refused():
    teacher, student = tiny_pair()
    with pytest.raises(
        TypeError, match="teacher: got str, want a transformers PreTrainedModel or an Encoder"
    ):
        Distiller("teacher", student, [Logits()])
    with pytest.raises(TypeError, match="student: got Linear, want"):
        Distiller(teacher, torch.nn.Linear(1, 1), [Logits()])
    with pytest.raises(TypeError, match="objectives: got str, want Objective instances"):
        Distiller(teacher, student, ["logits"])
    with pytest.raises(ValueError, match="got the student itself"):
        Distiller(student, student, [Logits()])
    assert isinstance(TeacherStream(PackedModel(teacher)).encoder, PackedModel)


def test_labels_that_are_missing_are_named():
    distiller = Distiller(None, tiny_bert(head="ForSequenceClassification"), [Labels()])
    with pytest.raises(ValueError, match=r"labels: got a batch of .*, want labels for objective 'labels'"):
        distiller(**packed_batch())
    with pytest.raises(ValueError, match=r"input_ids: got \(3,\), want \[B, L\]"):
        distiller(input_ids=torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="want a tensor 'input_ids'"):
        distiller(labels=torch.zeros(3))


# The same model twice


def test_a_teacher_that_shares_trained_parameters_is_refused():
    teacher = tiny_bert(4, 16, 4, seed=1)
    embeddings, layer, tied = (tiny_bert(2, 16, 4, seed=2) for _ in range(3))
    embeddings.embeddings.word_embeddings = teacher.embeddings.word_embeddings
    layer.encoder.layer[1] = teacher.encoder.layer[3]
    tied.pooler.dense.weight.data = teacher.pooler.dense.weight.data  # another parameter, the same memory
    for student, name in (
        (embeddings, "embeddings.word_embeddings.weight"),
        (layer, "encoder.layer.1.attention.self.query.weight"),
        (tied, "pooler.dense.weight"),
    ):
        with pytest.raises(
            ValueError, match=rf"teacher: got \d+ parameters that are the student's too \({name}"
        ):
            Distiller(teacher, student, [HiddenStates()])
    headed = tiny_bert(4, 16, 4, head="ForSequenceClassification", seed=3)
    with pytest.raises(ValueError, match="that are the student's too"):
        Distiller(headed, headed.bert, [HiddenStates()])
    embeddings.embeddings.word_embeddings.weight.requires_grad_(False)  # nobody changes it
    assert Distiller(teacher, embeddings, [HiddenStates()])(**packed_batch()).loss > 0
    Distiller(teacher, copy.deepcopy(layer), [HiddenStates()])


def test_a_parameter_that_another_distiller_holds_counts_as_trained():
    teacher, student = tiny_bert(4, 16, 4, seed=1), tiny_bert(2, 16, 4, seed=2)
    student.encoder.layer[1] = teacher.encoder.layer[3]
    first = Distiller(copy.deepcopy(teacher), student, [HiddenStates([(0, 0)])])
    assert not student.encoder.layer[1].output.dense.weight.requires_grad and first is not None
    with pytest.raises(ValueError, match="that are the student's too"):
        Distiller(teacher, student, [HiddenStates()])


@pytest.mark.parametrize("sizes", [(56, 52), (52, 56), (64, 50), (128, 56)])
def test_a_vocabulary_that_is_padded_fits_where_no_loss_spans_it(sizes):
    teacher, student = (
        tiny_bert(layers, 16, 4, vocab=size, head="ForSequenceClassification", seed=layers)
        for layers, size in zip((4, 2), sizes, strict=True)
    )
    distiller = Distiller(teacher, student, [*stage("intermediate"), Logits()])
    assert distiller(**packed_batch()).loss > 0
    assert distiller.limits == {"input_ids": min(sizes), "token_type_ids": 2}
    beyond = {**packed_batch(), "input_ids": torch.full((1, sum(LENGTHS)), min(sizes))}
    with pytest.raises(ValueError, match=f"input_ids: got {min(sizes)}, want ids 0..{min(sizes) - 1}"):
        distiller(**beyond)
    heads = (tiny_bert(2, 16, 4, vocab=size, head="ForMaskedLM", seed=i) for i, size in enumerate(sizes))
    with pytest.raises(ValueError, match="as many labels"):
        Distiller(*heads, [Logits()])


def tokenizer(words: list[str], **options) -> PreTrainedTokenizerBase:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizerFast(vocab={word: i for i, word in enumerate([*special, *words])}, **options)


CYRILLIC = ["кот", "пёс", "пес", "Кот", "##ка", "и", "й"]
CHINESE = ["中", "文", "中文", "##文"]


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (CYRILLIC, {"do_lower_case": False}),  # all unknown to a probe in English
        (CYRILLIC, {"strip_accents": False}),
        (CHINESE, {"tokenize_chinese_chars": False}),
        (["good", "bad"], {"do_lower_case": False}),
    ],
)
def test_tokenizers_that_cut_text_differently_are_refused(words, options):
    one = tokenizer(words)
    check_tokenizers(one, tokenizer(words))
    with pytest.raises(ValueError, match=r"student_tokenizer: got .*cuts text differently"):
        check_tokenizers(one, tokenizer(words, **options))


def test_tokenizers_with_other_merges_are_refused():
    def bpe(merges):
        vocab = {"<unk>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5}
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, unk_token="<unk>")),
            unk_token="<unk>",
        )

    one = bpe([("a", "b"), ("b", "c")])
    check_tokenizers(one, bpe([("a", "b"), ("b", "c")]))
    with pytest.raises(ValueError, match="cuts text differently"):
        check_tokenizers(one, bpe([("b", "c"), ("a", "b")]))


def test_vocabularies_are_compared_and_equal_tokenizers_settle_what_sizes_leave_open():
    one = tokenizer(["a", "b"])
    with pytest.raises(ValueError, match="'a' is 5 for the teacher and 6 for the student"):
        check_tokenizers(one, tokenizer(["b", "a"]))
    teacher, student = tiny_bert(4, 16, 4, vocab=61, seed=1), tiny_bert(2, 16, 4, seed=2)
    with pytest.raises(ValueError, match="student_tokenizer"):
        Distiller(
            teacher, student, [HiddenStates()], teacher_tokenizer=one, student_tokenizer=tokenizer(["a"])
        )
    with pytest.raises(ValueError, match="got vocab_size 50 and 61 of the teacher"):
        Distiller(teacher, student, [HiddenStates()])
    Distiller(
        teacher, student, [HiddenStates()], teacher_tokenizer=one, student_tokenizer=tokenizer(["a", "b"])
    )


# What counts, and what is declared


def test_an_objective_of_weight_0_checks_nothing_and_costs_nothing():
    """Other head counts: attention is left out, hidden states are distilled all the same."""
    teacher, student = tiny_bert(4, 16, 4, seed=1), tiny_bert(2, 12, 2, seed=2)
    calls: list[int] = []
    objectives = stage("intermediate", attention_weight=0)
    objectives[0].register_forward_hook(lambda *_: calls.append(1))
    output = Distiller(teacher, student, objectives)(**packed_batch())
    hidden = Distiller(teacher, student, [objectives[1]])(**packed_batch())
    assert list(output.parts) == ["hidden_states"] and not calls
    assert torch.equal(output.loss, hidden.loss)
    with pytest.raises(ValueError, match=r"got \['labels'\], want at least one with a weight above 0"):
        Distiller(None, student, [Labels(weight=0)])


class RightTeacher(Objective):
    """The teacher's logits where the teacher is right, and hidden states of both: declared, not asked by type."""

    default_name = "right_teacher"
    place = "logits"

    @property
    def matches(self):
        return (
            Match(("logits", 0), ("logits", 0), labels=True),
            Match(("hidden", 1), ("hidden", 3)),
            Match(("hidden", 2)),
        )

    def forward(self, student, teacher=None, labels=None):
        if teacher is None:
            return student.hidden.square().mean()
        if labels is None:
            return (student.hidden.mean() - teacher.hidden.mean()).square()
        right = teacher.logits.argmax(-1) == labels
        return (student.logits - teacher.logits)[right].square().sum()


def test_an_objective_gets_what_it_declares():
    teacher, student = tiny_pair()
    batch = packed_batch(labels="class")
    output = Distiller(teacher, student, [RightTeacher()])(**batch)
    s, t = (PackedModel(model).run(batch) for model in (student, teacher))
    seen: list[torch.Tensor] = []
    TeacherStream(teacher, hidden=[3]).stream(batch, lambda a: seen.append(a.hidden))
    TeacherStream(student, hidden=[1, 2]).stream(batch, lambda a: seen.append(a.hidden))
    right = t.logits.argmax(-1) == batch["labels"]
    assert 0 < right.sum() < len(right)
    expected = (s.logits - t.logits)[right].square().sum()
    expected = expected + (seen[1].mean() - seen[0].mean()).square() + seen[2].square().mean()
    torch.testing.assert_close(output.loss, expected)
