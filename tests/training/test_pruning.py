"""A pruned student computes what the masked one computes, has the sizes asked for, and is an ordinary model."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    NomicBertConfig,
    NomicBertForSequenceClassification,
    TrainerCallback,
    TrainerState,
)

from bertxfer_fast.distillation import recipes
from bertxfer_fast.distillation.distiller import Distiller
from bertxfer_fast.distillation.objectives import AttentionScores, HiddenStates, Labels, Logits
from bertxfer_fast.models import EncoderSpec
from bertxfer_fast.students.pruning import Kept, prune
from bertxfer_fast.training.pruning import STATE_FILE, Pruning, _Masks

from ..folders import change, distill, make_place
from ..tiny import packed_batch, tiny_bert
from .test_trainer import assert_same, features, losses, padded_logits, trainer_of, weights

FAMILIES = ["Bert", "Roberta", "DistilBert", "Electra"]
HEAD = "ForSequenceClassification"
SIZES = {
    "vocab_size": 50,
    "num_labels": 3,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 16,
}
SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)


def model(family: str, head: str = HEAD, seed: int = 2, **changes: Any) -> Any:
    torch.manual_seed(seed)
    if family == "ModernBert":
        return ModernBertForSequenceClassification(
            ModernBertConfig(**SIZES, intermediate_size=24, **SPECIAL)
        ).eval()
    if family == "NomicBert":
        return NomicBertForSequenceClassification(NomicBertConfig(**SIZES, intermediate_size=24)).eval()
    extra = {"embedding_size": 6} if family == "Electra" else {}
    return tiny_bert(3, head=head, family=family, seed=seed, **extra, **changes)


def rows() -> list[dict[str, Any]]:
    return [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in features(24)]


# ---- cutting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "ModernBert", "NomicBert"])
def test_without_what_gives_nothing_the_numbers_are_the_same(family: str) -> None:
    """Heads and columns whose weights are 0 in a full model, and all of them at once."""
    whole = model(family)
    shares = {"heads": 0.0, "columns": 0.5, "layers": 0.0}
    masks = _Masks(whole, {**shares, "heads": 0.5} if family == "NomicBert" else shares)
    generator = torch.Generator().manual_seed(0)
    for importance in masks.importance.values():
        importance.copy_(torch.rand(importance.shape, generator=generator))
    masks.choose(0.0)
    masks.zero()
    small = prune(whole, masks.kept())
    assert small.config.intermediate_size == 12 if family != "DistilBert" else small.config.hidden_dim == 12
    assert small.config.num_attention_heads == (2 if family == "NomicBert" else 4)
    torch.testing.assert_close(
        padded_logits(small, rows()), padded_logits(whole, rows()), rtol=1e-5, atol=1e-6
    )


def test_what_is_kept_is_kept_as_it_is() -> None:
    whole = model("Bert")
    small = prune(
        whole,
        Kept(heads=[[0, 2], [1, 2], [0, 3]], columns=[[1, 5, 23]] * 3, hidden=range(4, 12), layers=[0, 2]),
    )
    ours, theirs = small.state_dict(), whole.state_dict()
    head = torch.tensor([0, 1, 2, 3, 12, 13, 14, 15])  # heads 0 and 3 of the old layer 2
    query = "bert.encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(ours[query.format(1)], theirs[query.format(2)][head][:, 4:12])
    inner = "bert.encoder.layer.{}.intermediate.dense.weight"
    assert torch.equal(ours[inner.format(0)], theirs[inner.format(0)][torch.tensor([1, 5, 23])][:, 4:12])
    assert torch.equal(ours["bert.pooler.dense.weight"], theirs["bert.pooler.dense.weight"][4:12, 4:12])
    assert torch.equal(ours["classifier.bias"], theirs["classifier.bias"])
    sizes = small.config
    assert (
        sizes.hidden_size,
        sizes.num_attention_heads,
        sizes.intermediate_size,
        sizes.num_hidden_layers,
    ) == (8, 2, 3, 2)
    assert small.training == whole.training and small.dtype == whole.dtype


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        (
            Kept(heads=[[0], [1], [2, 3]], hidden=range(4)),
            r"heads: got \[1, 2\] of them in different layers, want equally",
        ),
        (Kept(heads=[[0]] * 2), "heads: got them for 2 layers, want all 3"),
        (Kept(heads=[[4]] * 3), r"heads: got \[4\], want ascending numbers from 0 to 3"),
        (Kept(heads=[[0, 1]] * 3), "hidden: got 16 dimensions and 2 heads of 4, want 8"),
        (Kept(layers=[]), r"layers: got \[\], want ascending numbers from 0 to 2"),
        (Kept(layers=[1, 0]), "layers: got .* want ascending"),
        (Kept(hidden=range(8), heads=[[0, 1]] * 3, pooled=range(4)), "pooled: got 4 dimensions, want 8"),
    ],
)
def test_what_is_no_plain_model_is_refused(kept: Kept, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        prune(model("Bert"), kept)


def test_a_first_layer_of_its_own_make_stays_the_first() -> None:
    whole = model("ModernBert")
    with pytest.raises(ValueError, match=r"kept: got layers \[1, 2\] .*attn_norm"):
        prune(whole, Kept(layers=[1, 2]))
    masks = _Masks(whole, {"heads": 0.0, "columns": 0.0, "layers": 0.6})
    masks.importance["layers", -1].copy_(torch.tensor([0.0, 2.0, 1.0]))
    masks.choose(0.0)
    assert masks.kept().layers == [0] and masks.pruned().config.num_hidden_layers == 1


# ---- importance and schedule --------------------------------------------------------------------------------


def test_importance_is_the_faded_sum_of_weight_times_gradient() -> None:
    student = model("Bert")
    masks = _Masks(student, {"heads": 0.5, "columns": 0.5, "layers": 0.5})
    for _ in range(2):
        student.zero_grad()
        student(**{"input_ids": torch.arange(5, 12)[None]}).logits.square().sum().backward()
        masks.weigh(fading=0.5)
    name = "bert.encoder.layer.1."
    named = {n: (p * p.grad).detach().double().abs() for n, p in student.named_parameters()}
    times = 1.5  # the same gradient twice, the older one halved
    columns = named[name + "intermediate.dense.weight"].sum(1) + named[name + "intermediate.dense.bias"]
    columns = columns + named[name + "output.dense.weight"].sum(0)
    torch.testing.assert_close(masks.importance["columns", 1].double(), times * columns, rtol=1e-5, atol=0)
    heads = sum(
        named[f"{name}attention.self.{kind}.weight"].sum(1) + named[f"{name}attention.self.{kind}.bias"]
        for kind in ("query", "key", "value")
    )
    heads = (heads + named[name + "attention.output.dense.weight"].sum(0)).reshape(4, 4).sum(1)
    torch.testing.assert_close(masks.importance["heads", 1].double(), times * heads, rtol=1e-5, atol=0)
    layer = sum(value.sum() for n, value in named.items() if n.startswith(name))
    torch.testing.assert_close(masks.importance["layers", -1][1].double(), times * layer, rtol=1e-5, atol=0)
    pooled = named["bert.pooler.dense.weight"].sum(1) + named["bert.pooler.dense.bias"]
    pooled = pooled + named["classifier.weight"].sum(0)
    torch.testing.assert_close(masks.importance["pooled", -1].double(), times * pooled, rtol=1e-5, atol=0)
    reads = ("query.weight", "key.weight", "value.weight", "intermediate.dense.weight", "pooler.dense.weight")
    hidden = torch.zeros(16, dtype=torch.float64)
    for n, value in named.items():
        if "LayerNorm" in n or n.endswith("output.dense.bias"):
            hidden += value
        elif n.endswith("output.dense.weight"):
            hidden += value.sum(1)
        elif "embeddings" in n or n.endswith(reads):
            hidden += value.sum(0)
    torch.testing.assert_close(masks.importance["hidden", -1].double(), times * hidden, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_step_that_a_loss_scaler_leaves_out_does_not_count(value: float) -> None:
    """Its gradients are infinite, or after clipping not a number, and would be so in every sum that follows."""
    student = model("Bert")
    masks = _Masks(student, {"heads": 0.5, "columns": 0.5, "layers": 0.5})
    student(**{"input_ids": torch.arange(5, 12)[None]}).logits.square().sum().backward()
    masks.weigh(fading=0.5)
    before = {key: importance.clone() for key, importance in masks.importance.items()}
    gradient = student.get_parameter("bert.encoder.layer.1.output.dense.weight").grad
    assert gradient is not None
    gradient[3, 5] = value
    masks.weigh(fading=0.5)
    for key, importance in masks.importance.items():
        torch.testing.assert_close(importance, before[key], rtol=0, atol=0)


def test_the_schedule_is_cubic_and_the_least_important_go() -> None:
    pruning = Pruning(columns=0.5, start=0.2, end=0.7)
    assert [pruning.kept_at(p) for p in (0.0, 0.2, 0.7, 1.0)] == [1.0, 1.0, 0.0, 0.0]
    assert pruning.kept_at(0.45) == pytest.approx(0.5**3)
    masks = _Masks(model("Bert"), {"heads": 0.0, "columns": 0.5, "layers": 0.0})
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1)).float()
    masks.importance["columns", 0].copy_(order)
    masks.choose(0.15)
    # Of the 12 that go, so much is left: 1.8, rounded to 2.
    assert torch.equal(masks.alive["columns", 0], order >= 24 - 14)
    # What has gone stays gone, whatever its importance becomes.
    masks.importance["columns", 0].copy_(-order)
    masks.choose(0.0)
    assert int(masks.alive["columns", 0].sum()) == 12
    assert not (masks.alive["columns", 0] & (order < 10)).any()


def test_the_last_step_of_the_schedule_is_that_of_the_run() -> None:
    pruning = Pruning(columns=0.5, start=0.0, end=1.0)
    pruning.on_train_begin(None, None, None, model=model("Bert"))
    left = []
    for step in range(4):
        pruning.on_optimizer_step(None, TrainerState(global_step=step, max_steps=4), None)
        left.append(int(pruning._masks.alive["columns", 0].sum()))
    pruning.release()
    assert left == [12 + round(12 * (1 - t) ** 3) for t in (0.25, 0.5, 0.75, 1.0)]


# ---- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_result_is_the_masked_student_and_loads_as_an_ordinary_model(tmp_path: Path, family: str) -> None:
    """Heads, columns, layers and with the heads hidden dimensions: all of it in one run."""
    teacher, student = model(family, seed=1), model(family)
    trainer = trainer_of(
        tmp_path,
        [HiddenStates(), AttentionScores(), Logits()],
        (teacher, student),
        train=rows(),
        prune_heads=0.5,
        prune_columns=0.4,
        prune_layers=0.3,
        prune_end=1.0,
        weight_decay=0.1,
        max_steps=8,
    )
    trainer.train()
    small = trainer.student
    assert small is not student and type(small) is type(student)
    facts = EncoderSpec.of(small)
    sizes = (facts.num_heads, facts.hidden_size, facts.head_dim, facts.intermediate_size, facts.num_layers)
    assert sizes == (2, 8, 4, 14, 2)
    masked = trainer.distiller(**packed_batch(token_types=False), return_loss=False).logits
    own = Distiller(None, small, [Labels()])(**packed_batch(token_types=False), return_loss=False).logits
    torch.testing.assert_close(own, masked, rtol=1e-4, atol=1e-5)
    trainer.save_model()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(student)
    torch.testing.assert_close(padded_logits(loaded, rows()), padded_logits(small, rows()))
    again = AutoModelForSequenceClassification.from_config(small.config)
    again.load_state_dict(small.state_dict())


@pytest.mark.parametrize("family", ["ModernBert", "NomicBert"])
def test_rotary_models_are_pruned_too(tmp_path: Path, family: str) -> None:
    """One has wide heads in its configuration and keeps its hidden width, the other narrows with its heads."""
    teacher, student = model(family, seed=1), model(family)
    settings = {"prune_heads": 0.5, "prune_columns": 0.5, "prune_layers": 0.3, "max_steps": 6}
    trainer = trainer_of(tmp_path, [Logits()], (teacher, student), train=rows(), **settings)
    trainer.train()
    facts = EncoderSpec.of(trainer.student)
    assert (facts.num_heads, facts.hidden_size) == (2, 16 if family == "NomicBert" else 8)
    assert (facts.intermediate_size, facts.num_layers) == (12, 2)
    batch = packed_batch(token_types=False)
    masked = trainer.distiller(**batch, return_loss=False).logits
    own = Distiller(None, trainer.student, [Labels()])(**batch, return_loss=False).logits
    torch.testing.assert_close(own, masked, rtol=1e-4, atol=1e-5)


def test_a_masked_lm_with_tied_embeddings(tmp_path: Path) -> None:
    teacher, student = model("Bert", "ForMaskedLM", seed=1), model("Bert", "ForMaskedLM")
    plain = [{"input_ids": row["input_ids"]} for row in rows()]
    trainer = trainer_of(tmp_path, [Logits()], (teacher, student), train=plain, prune_heads=0.5, max_steps=4)
    trainer.train()
    small = trainer.student
    assert small.get_output_embeddings().weight is small.get_input_embeddings().weight
    batch = packed_batch(token_types=False)
    masked = trainer.distiller(**batch, return_loss=False).logits
    own = Distiller(None, small, [Labels()])(**batch, return_loss=False).logits
    torch.testing.assert_close(own, masked, rtol=1e-4, atol=1e-5)


def test_resuming_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def pair(seed: int) -> tuple[Any, Any]:
        return model("Bert", seed=1), model("Bert", seed=seed, dropout=0.2)

    common = {
        "train": rows(),
        "prune_heads": 0.5,
        "prune_columns": 0.5,
        "prune_start": 0.0,
        "prune_end": 0.9,
        "save_strategy": "steps",
        "save_steps": 4,
        "max_steps": 8,
    }
    straight = trainer_of(tmp_path / "a", [HiddenStates(), Logits()], pair(2), **common)
    straight.train()
    state = load_file(tmp_path / "a" / "checkpoint-4" / STATE_FILE)
    assert 0 < int(state["alive.columns.0"].sum()) < 24
    resumed = trainer_of(tmp_path / "b", [HiddenStates(), Logits()], pair(9), **common)
    torch.manual_seed(77)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert losses(resumed) == losses(straight)
    assert_same(weights(straight), weights(resumed))
    assert_same(straight.student.state_dict(), resumed.student.state_dict())
    (tmp_path / "a" / "checkpoint-4" / STATE_FILE).unlink()
    with pytest.raises(ValueError, match=f"without {STATE_FILE}"):
        trainer_of(tmp_path / "c", [Logits()], pair(9), **common).train(
            resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4")
        )


def test_an_interrupted_training_leaves_no_hooks(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    student = model("Bert")
    hooks = [len(part._forward_hooks) for part in student.modules()]
    extra = {"callbacks": [Stop()]}
    settings = {"prune_heads": 0.5, "prune_layers": 0.3, "prune_start": 0.0, "prune_end": 0.1}
    trainer = trainer_of(
        tmp_path, [Logits()], (model("Bert", seed=1), student), train=rows(), extra=extra, **settings
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [len(part._forward_hooks) for part in student.modules()] == hooks


def test_a_check_changes_nothing_and_tells_the_sizes() -> None:
    student = model("Bert")
    before = copy.deepcopy(student.state_dict())
    small = Pruning(heads=0.5, columns=0.5, layers=0.5).check(student)
    assert (small.config.num_attention_heads, small.config.hidden_size, small.config.num_hidden_layers) == (
        2,
        8,
        2,
    )
    assert_same(before, student.state_dict())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"prune_heads": 1.0}, r"prune_heads: got 1\.0, want 0 or more and less than 1"),
        (
            {"prune_heads": 0.12},
            r"prune_heads: got 0\.12 of the 4 heads of Bert\w+, which is none, want 0 or a",
        ),
        ({"prune_columns": 0.02}, r"prune_columns: got 0\.02 of the 24 columns"),
        ({"prune_layers": 0.16}, r"prune_layers: got 0\.16 of the 3 layers"),
        ({"prune_columns": 0.5, "prune_start": 0.8}, r"prune_start: got 0\.8 with prune_end=0\.7, want"),
        (
            {"prune_columns": 0.5, "freeze": "embeddings"},
            "freeze: got embeddings beside pruning, want it left out",
        ),
        (
            {"prune_columns": 0.5, "early_stopping_patience": 2, "eval_strategy": "epoch"},
            "early_stopping_patience: got 2 beside pruning",
        ),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        trainer_of(tmp_path, [Logits()], (model("Bert", seed=1), model("Bert")), train=rows(), **settings)


def test_a_share_that_takes_one_is_no_fault() -> None:
    small = Pruning(heads=0.13, columns=0.03, layers=0.17).check(model("Bert"))
    sizes = small.config
    assert (sizes.num_attention_heads, sizes.intermediate_size, sizes.num_hidden_layers) == (3, 23, 2)


def test_a_recipe_hands_the_smaller_student_on_and_resumes(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    tiny_bert(4, 16, 4, head=HEAD, seed=3).save_pretrained(place / "whole")
    change(
        place,
        student="whole",
        stages={"intermediate": {"prune_heads": 0.5, "prune_columns": 0.5, "num_train_epochs": 2}},
        training={"num_train_epochs": 1, "per_device_train_batch_size": 8},
    )
    assert distill(place) == 0
    for folder in ("out", "out/intermediate", "out/prediction"):
        config = AutoModelForSequenceClassification.from_pretrained(place / folder).config
        assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (8, 2, 12)
    before = (place / "out" / "model.safetensors").read_bytes()
    assert distill(place) == 0  # both stages are finished: their student is read again
    assert (place / "out" / "model.safetensors").read_bytes() == before


def test_a_later_stage_that_the_smaller_student_does_not_fit_is_refused_before_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention is matched head by head."""
    registry = recipes.base._registry
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @recipes.register
    def backwards() -> recipes.Recipe:
        stages = [
            recipes.Stage("first", lambda: [Logits()]),
            recipes.Stage("then", lambda: [AttentionScores()]),
        ]
        return recipes.Recipe("backwards", stages)

    place = make_place(tmp_path)
    tiny_bert(4, 16, 4, head=HEAD, seed=3).save_pretrained(place / "whole")
    change(place, recipe="backwards", student="whole", stages={"first": {"prune_heads": 0.5}})
    assert distill(place) == 2
    assert "stage then: attention_scores: got 2 heads of the student and 4" in capsys.readouterr().err
    assert not (place / "out").exists()
