"""Bad arguments of calls from Python: what is wrong, in words -> the call, and what is said (a regular expression).

`test_bad_input` tries them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bertxfer_fast import (
    DistillationArguments,
    Distiller,
    FeatureExtractor,
    TeacherStream,
    objectives,
    ops,
    packing,
    recipes,
    students,
)
from bertxfer_fast.data import encode
from bertxfer_fast.models.hf.encoder import PackedModel
from bertxfer_fast.ops._dispatch import backend

from .bad_inputs import base
from .folders import tiny_tokenizer
from .tiny import packed_batch, tiny_bert, tiny_pair


def unknown_backend_in_environment() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BERTXFER_BACKEND", "cudda")
        backend._apply_environment()


def tokenizer() -> Any:
    return tiny_tokenizer(base() / "tokenizer")


Call = tuple[Callable[[], Any], str]
Q = torch.ones(6, 2, 4)
CU = torch.tensor([0, 2, 6], dtype=torch.int32)


def pair_with(**tensors: Any) -> Callable[[], Any]:
    """A call of an attention loss with arguments replaced."""
    good = {"q_student": Q, "k_student": Q, "q_teacher": Q, "k_teacher": Q, "cu_seqlens": CU}
    return lambda: ops.attention_score_mse(**{**good, **tensors})


OPERATORS: dict[str, Call] = {
    "a list for a tensor": (
        pair_with(q_student=[1.0]),
        r"q_student: got list, want a tensor of shape \[T, H, D\]",
    ),
    "queries without heads": (
        pair_with(q_student=Q[:, 0]),
        r"q_student: got 2 dimensions \(6, 4\), want \[T, H, D\]",
    ),
    "integer queries": (
        pair_with(q_student=Q.int(), k_student=Q.int()),
        r"q_student: got dtype torch\.int32, want float32, bfloat16 or float16",
    ),
    "float64": (
        pair_with(q_student=Q.double(), k_student=Q.double()),
        r"q_student: got dtype torch\.float64, want float32, bfloat16 or float16",
    ),
    "keys of other tokens": (pair_with(k_student=Q[:5]), "k_student: got 5 tokens, want 6 as q_student"),
    "other head counts": (
        pair_with(q_teacher=Q[:, :1], k_teacher=Q[:, :1]),
        "q_teacher: got 1 heads, want 2 as q_student",
    ),
    "keys as wide as no query": (
        pair_with(k_teacher=Q[..., :3]),
        "k_teacher: got head_dim 3, want 4 as q_teacher",
    ),
    "heads that are too wide": (
        pair_with(q_student=torch.ones(6, 2, 257), k_student=torch.ones(6, 2, 257)),
        "q_student: got head_dim 257, want 1 to 256",
    ),
    "queries and keys of two dtypes": (
        pair_with(k_student=Q.half()),
        r"k_student: got dtype torch\.float16, want torch\.float32 as q_student",
    ),
    "queries and keys on two devices": (
        pair_with(k_student=Q.to("meta")),
        "k_student: got device meta, want cpu as q_student",
    ),
    "cu_seqlens in int64": (
        pair_with(cu_seqlens=CU.long()),
        r"cu_seqlens: got dtype torch\.int64, want int32",
    ),
    "cu_seqlens that starts late": (
        pair_with(cu_seqlens=torch.tensor([1, 6], dtype=torch.int32)),
        "cu_seqlens: got 1 as first entry, want 0",
    ),
    "cu_seqlens that ends early": (
        pair_with(cu_seqlens=torch.tensor([0, 5], dtype=torch.int32)),
        "cu_seqlens: got 5 as last entry, want the number of tokens, 6",
    ),
    "cu_seqlens that descends": (
        pair_with(cu_seqlens=torch.tensor([0, 4, 2, 6], dtype=torch.int32)),
        "cu_seqlens: got 2 after 4 at entry 2, want entries that never descend",
    ),
    "cu_seqlens without entries": (
        pair_with(cu_seqlens=torch.tensor([], dtype=torch.int32)),
        r"cu_seqlens: got shape \(0,\), want one dimension and at least one entry",
    ),
    "a max_seqlen that is too small": (
        pair_with(max_seqlen=3),
        "max_seqlen: got 3, want at least the longest sequence, 4",
    ),
    "a max_seqlen that is a float": (
        pair_with(max_seqlen=4.0),
        "max_seqlen: got float, want an int, a length in tokens",
    ),
    "a seqused beyond its sequence": (
        pair_with(seqused=torch.tensor([3, 4], dtype=torch.int32)),
        "seqused: got 3 at entry 0, want 0 to the sequence's length, 2",
    ),
    "an unknown reduction": (
        pair_with(reduction="median"),
        "reduction: got 'median', want one of 'mean', 'sum'",
    ),
    "a temperature of 0": (
        lambda: ops.logits_kl(Q[:, 0], Q[:, 0], temperature=0.0),
        r"temperature: got 0\.0, want a positive number",
    ),
    "logits of other classes": (
        lambda: ops.logits_kl(Q[:, 0], Q[:, 0, :3]),
        r"teacher: got shape \(6, 3\), want \(6, 4\) as student",
    ),
    "an unknown kind of loss": (
        lambda: ops.attention_map_loss(Q, Q, Q, Q, CU, kind="l1"),
        "kind: got 'l1', want one of 'kl', 'mse'",
    ),
    "hidden states of other widths": (
        lambda: ops.hidden_mse(Q[:, 0], torch.ones(6, 5)),
        r"weight: got None with widths 4 and 5, want a weight of shape \(5, 4\)",
    ),
    "a projection that does not fit": (
        lambda: ops.hidden_mse(Q[:, 0], torch.ones(6, 5), torch.ones(4, 5)),
        r"weight: got shape \(4, 5\), want \(5, 4\)",
    ),
    "relation heads that do not divide": (
        lambda: ops.relation_kl(Q[:, 0], Q[:, 0], CU, heads=3),
        "heads: got 3, want a divisor of the width of x_student, 4, into 1 to 256",
    ),
    "an unknown pooling": (
        lambda: ops.pool_features(Q[:, 0], CU, mode="median"),
        "mode: got 'median', want one of 'mean', 'cls', 'max', 'mean_sqrt'",
    ),
    "one layer weight for two layers": (
        lambda: ops.pool_features([Q[:, 0], Q[:, 0]], CU, layer_weights=[1.0]),
        "layer_weights: got 1 numbers, want 2, one per layer",
    ),
    "values of another width": (
        lambda: ops.varlen_attention(Q, Q, Q[..., :3], CU),
        r"v: got shape \(6, 2, 3\), want \(6, 2, 4\) as q",
    ),
    "a dropout of 1.5": (
        lambda: ops.varlen_attention(Q, Q, Q, CU, dropout_p=1.5),
        r"dropout_p: got 1\.5, want 0 <= p < 1",
    ),
    "an unknown backend": (
        lambda: ops.use_backend("cudda"),
        r"use_backend\(name\): got 'cudda', want one of auto, eager, cpp, triton, cuda",
    ),
    "an unknown backend in the environment": (
        unknown_backend_in_environment,
        "environment variable BERTXFER_BACKEND: got 'cudda', want one of auto, eager, cpp, triton, cuda",
    ),
}

ROWS = [{"input_ids": [2, 7, 3]}, {"input_ids": [2, 3]}]


def packing_of(*features: dict[str, Any], **settings: Any) -> Callable[[], Any]:
    return lambda: packing.PackingCollator(**settings)(list(features))


BATCHES: dict[str, Call] = {
    "no features": (packing_of(), "features: got none, want at least one to pack"),
    "features without input_ids": (
        packing_of({"ids": [1]}),
        r"features: got the keys \['ids'\], want input_ids",
    ),
    "a text without tokens": (
        packing_of({"input_ids": []}),
        r"features\[0\]: got no input_ids, want one or more: drop empty sequences",
    ),
    "features that are padded": (
        packing_of({"input_ids": [2, 3, 0], "attention_mask": [1, 1, 0]}),
        r"features\[0\]: got padding \(zeros in attention_mask\), want none: tokenise with padding=False",
    ),
    "a label that only some have": (
        packing_of({"input_ids": [2], "labels": 1}, {"input_ids": [2]}),
        r"features\[1\]: got no labels, want one as in other features of the batch",
    ),
    "labels of several lengths": (
        packing_of({"input_ids": [2, 3], "labels": [1, 0]}, {"input_ids": [2], "labels": [1]}),
        r"labels: got shapes \[\(1,\), \(2,\)\], want one number or one vector of the same length a feature;",
    ),
    "token types of another length": (
        packing_of({"input_ids": [2, 3], "token_type_ids": [0]}),
        r"features\[0\]: got token_type_ids of shape \[1\], want one for each of 2 input_ids",
    ),
    "a token budget below a text": (
        lambda: packing.TokenBudgetBatchSampler([3, 9], 8),
        "lengths: got 9 tokens at index 1, want at most max_tokens, 8: raise max_tokens or truncate the",
    ),
    "lengths with fractions": (
        lambda: packing.TokenBudgetBatchSampler([1.5], 8),
        "lengths: got float64, want integers",
    ),
    "rows that are no whole groups": (
        lambda: packing.TokenBudgetBatchSampler([3, 4], 8, group=3),
        "lengths: got 2 of them, want a multiple of group=3",
    ),
    "no lengths": (lambda: packing.TokenBudgetBatchSampler([], 8), "lengths: got none, want at least one"),
    "a negative length": (lambda: packing.cu_seqlens_of([3, -1]), "lengths: got -1, want numbers >= 0"),
    "an additive mask": (
        lambda: packing.pack(torch.ones(1, 2, 3), torch.zeros(1, 2)),
        r"attention_mask: got torch\.float32, want bool or integer \(nonzero = token\); an additive mask of",
    ),
    "a mask of another shape": (
        lambda: packing.pack(torch.ones(1, 2, 3), torch.ones(1, 3).bool()),
        r"attention_mask: got \[1, 3\], want \[B, L\], the first two dimensions of padded \[1, 2, 3\]",
    ),
    "text where words are wanted": (
        lambda: encode([{"text": 1}], tokenizer(), text="text"),
        r"column 'text': got Value\('int64'\), want text or lists of words",
    ),
    "a number to predict that is not finite": (
        lambda: encode([{"text": "good", "y": float("inf")}], tokenizer(), label="y", task="regression"),
        "column 'y', row 1: inf is not finite",
    ),
    "a number to predict that is a word": (
        lambda: encode([{"text": "good", "y": "much"}], tokenizer(), label="y", task="regression"),
        "column 'y', row 1: could not convert string to float: 'much'",
    ),
    "classes without a map": (
        lambda: encode(
            [{"text": "good", "y": "pos"}], tokenizer(), label="y", task="sequence-classification"
        ),
        r"label2id: got None, want a map for task 'sequence-classification': label_map\(train, label\)",
    ),
    "a map with a gap": (
        lambda: encode(
            [{"text": "good", "y": "pos"}],
            tokenizer(),
            label="y",
            task="sequence-classification",
            label2id={"pos": 1},
        ),
        r"label2id: got \{'pos': 1\}, want the ids 0 \.\. 0 once each",
    ),
    "a dict of splits": (
        lambda: encode({"train": [{"text": "good"}]}, tokenizer()),
        r"source: got a dict of splits \['train'\], want one of them",
    ),
    "data that is a number": (
        lambda: encode(3, tokenizer()),
        r"source: got int, want a path, a datasets\.Dataset or a list of dicts",
    ),
}


def distiller(*chosen: Any, **student: Any) -> Callable[[], Any]:
    def do() -> Distiller:
        teacher, small = tiny_pair(**student)
        return Distiller(teacher, small, list(chosen))

    return do


def distiller_of_spans(**batch: torch.Tensor) -> Callable[[], Any]:
    """A run of a student of spans alone."""

    def do() -> Any:
        student = tiny_bert(head="ForQuestionAnswering", num_labels=2)
        return Distiller(None, student, [objectives.Labels()])(**batch)

    return do


def on_packed(**changes: Any) -> Callable[[], Any]:
    """A packed model's run with parts of its batch replaced."""
    return lambda: PackedModel(tiny_bert()).run({**packed_batch(), **changes})


MODELS_IN_PYTHON: dict[str, Call] = {
    "a model that is none": (
        lambda: PackedModel(torch.nn.Linear(2, 2)),
        "model: got Linear, want a transformers PreTrainedModel or an Encoder",
    ),
    "an unknown head": (
        lambda: PackedModel(tiny_bert(), head="pair"),
        "head: got 'pair', want 'sequence', 'token', 'span' or None",
    ),
    "ids that are not packed": (
        on_packed(input_ids=torch.ones(2, 11, dtype=torch.long)),
        r"input_ids: got \(2, 11\), want packed tokens \[1, T\]",
    ),
    "an id beyond the vocabulary": (
        on_packed(input_ids=torch.full((1, 22), 50)),
        r"input_ids: got 50, want ids 0\.\.49",
    ),
    "a token type beyond its table": (
        on_packed(token_type_ids=torch.full((1, 22), 2)),
        r"token_type_ids: got 2, want ids 0\.\.1",
    ),
    "a pack that starts late": (
        on_packed(cu_seq_lens_q=torch.tensor([1, 22], dtype=torch.int32)),
        r"cu_seq_lens_q: got \[1, 22\], want it to rise from 0 to T = 22 \(no sequence is empty\)",
    ),
    "more tokens than positions": (
        lambda: PackedModel(tiny_bert(max_positions=8)).run(packed_batch()),
        "max_length_q: got 11 tokens, want at most the 8 positions of BertModel",
    ),
    "a layer to match that is not there": (
        distiller(objectives.HiddenStates(layers=[(3, 4)])),
        r"hidden_states: layers: got student hidden index 3 in \(3, 4\), want 0\.\.2",
    ),
    "layers in no known way": (
        distiller(objectives.HiddenStates(layers="evenly")),
        "layers: got 'evenly', want one of 'uniform', 'skip', 'last'",
    ),
    "no objective": (distiller(), r"objectives: got \[\], want at least one with a weight above 0"),
    "an objective twice": (
        distiller(objectives.Logits(), objectives.Logits()),
        r"objectives: got 'logits' more than once, want names of their own \(name=\)",
    ),
    "an objective that is none": (
        distiller(torch.nn.MSELoss()),
        "objectives: got MSELoss, want Objective instances",
    ),
    "a weight that is not finite": (
        lambda: objectives.Logits(weight=float("nan")),
        "weight: got nan, want a finite number >= 0 or a schedule name",
    ),
    "an unknown schedule": (
        lambda: objectives.Logits(schedule="sometimes"),
        "schedule: got 'sometimes', want one of 'constant', 'linear_decay', 'linear_growth'",
    ),
    "a linear temperature without numbers": (
        lambda: objectives.Logits(temperature="linear"),
        "temperature: got 'linear' alone, want where it starts or ends beside it, as in",
    ),
    "head counts that differ": (
        distiller(objectives.AttentionMaps(), heads=3),
        "attention_maps: got 3 heads of the student and 4 of the teacher, want equal head counts:",
    ),
    "a teacher that is its own student": (
        lambda: Distiller(tiny := tiny_bert(), tiny, [objectives.HiddenStates()]),
        r"teacher: got the student itself, want another model \(copy\.deepcopy gives one\)",
    ),
    "widths that differ without a projection": (
        distiller(objectives.HiddenStates(projection="none")),
        "hidden_states: got widths 12 of the student and 16 of the teacher, want equal widths with",
    ),
    "labels that are not in the batch": (
        lambda: distiller(objectives.Labels())()(**packed_batch()),
        r"labels: got a batch of \['cu_seq_lens_k', 'cu_seq_lens_q', 'input_ids', 'max_length_k',",
    ),
    "a label beyond the classes": (
        lambda: distiller(objectives.Labels())()(**packed_batch(), labels=torch.tensor([0, 1, 2, 3])),
        r"labels: got 3, want class ids 0\.\.2 \(or -100\)",
    ),
    "a span that ends in padding": (
        distiller_of_spans(
            input_ids=torch.tensor([[2, 7, 3, 0]]),
            attention_mask=torch.tensor([[1, 1, 1, 0]]),
            labels=torch.tensor([[1, 3]]),
        ),
        r"labels: got 3, want a token of its sequence \(or -100\)",
    ),
    "a layer to stream that is not there": (
        lambda: TeacherStream(tiny_bert(), hidden=[5]),
        r"hidden: got \[5\], want indices 0\.\.2 of BertModel",
    ),
    "an unknown recipe": (lambda: recipes.get("tinybrt"), "recipe: got 'tinybrt', want a known one"),
    "an option that is not the recipe's": (
        lambda: recipes.get("tinybert", temprature=1),
        "recipe tinybert: got option 'temprature', want a known one",
    ),
    "a student deeper than its teacher": (
        lambda: students.smaller(tiny_bert(), num_hidden_layers=5),
        "num_hidden_layers: got 5, want 1 to the teacher's 2",
    ),
    "a rate of dropout that is text": (
        lambda: students.smaller(tiny_bert(), num_hidden_layers=1, dropout="0.1"),  # type: ignore[arg-type]
        "dropout: got '0.1', want 0 or more and less than 1",
    ),
    "one string for many texts": (
        lambda: FeatureExtractor(tiny_bert(), tokenizer()).extract("good film"),
        "texts: got str, want a list or another iterable of strings",
    ),
    "pairs that are too few": (
        lambda: FeatureExtractor(tiny_bert(), tokenizer()).extract(["a", "b"], ["c"]),
        "pairs: got 1, want 2 texts",
    ),
    "texts without a tokenizer": (
        lambda: FeatureExtractor(tiny_bert()).extract(["good"]),
        r"tokenizer: got None, want one to read text \(or use extract_ids\)",
    ),
    "an extractor of no layers": (
        lambda: FeatureExtractor(tiny_bert(), layers=[]).fit(),
        "layers: got none, want at least one layer",
    ),
    "arguments of a budget below 1": (
        lambda: DistillationArguments("out", tokens_per_batch=0),
        "tokens_per_batch: got 0, want 1 or more",
    ),
    "an early end without checkpoints": (
        lambda: DistillationArguments(
            "out", early_stopping_patience=2, eval_strategy="epoch", save_strategy="no"
        ),
        "early_stopping_patience: got 2 without checkpoints, want save_strategy 'epoch': it leaves the best",
    ),
}
