"""Every encoder family of transformers: packed it gives the plain model's numbers, or it is refused in one sentence.

The families are those whose classes transformers lists for masked-LM, sequence or token classification, without the
generators among them. Each is built with random weights, in tiny. docs/families.md says what came out;
`python -m tests.models.test_families --write` writes it.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto import modeling_auto

from bertxfer_fast.models.activations import LayerActivations, Tap
from bertxfer_fast.models.hf.encoder import PackedModel
from tests.tiny import VOCAB, pack_padded, padded_batch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
COMMAND = "python -m tests.models.test_families --write"

# What a class of a family is for -> transformers' names of those classes, by family.
CLASSES: dict[str, Mapping[str, Any]] = {
    "encoder": modeling_auto.MODEL_MAPPING_NAMES,
    "masked-LM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "sequence classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}
GENERATORS = {
    *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    *modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}

# The sizes of a tiny encoder, under the names that most configurations have or map to their own.
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "embedding_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "image_size": 8,
    "patch_size": 4,
}
# Sizes that a family has under names of its own, and what it wants besides.
OWN: dict[str, dict[str, Any]] = {
    **{
        family: {
            f"{side}_{size}": 2
            for side in ("encoder", "decoder")
            for size in ("layers", "attention_heads", "ffn_dim")
        }
        for family in ("bart", "mbart", "mvp")
    },
    "canine": {"num_hash_buckets": 16, "bos_token_id": 1, "eos_token_id": 2},
    "distilbert": {"hidden_dim": 24},
    "ernie": {"use_task_id": True},
    "funnel": {"block_sizes": [1, 1], "d_head": 4, "d_inner": 24},
    "layoutlm": {"max_2d_position_embeddings": 32},
    "layoutlmv3": {"max_2d_position_embeddings": 32, "coordinate_size": 2, "shape_size": 4, "input_size": 8},
    "lilt": {"max_2d_position_embeddings": 32},
    "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    "markuplm": {
        "max_xpath_tag_unit_embeddings": 8,
        "max_xpath_subs_unit_embeddings": 8,
        "tag_pad_id": 0,
        "subs_pad_id": 0,
    },
    "mistral4": {
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "kv_lora_rank": 4,
        "q_lora_rank": 4,
        "v_head_dim": 4,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "head_dim": 4,
    },
    "modernvbert": {"pixel_shuffle_factor": 2},
    "neomme": {"hidden_size": 64, "head_dim": 16, "embedding_rank": 8},
    "openai_privacy_filter": {"num_local_experts": 4},
    "perceiver": {"num_latents": 8, "d_latents": 16, "d_model": 16, "num_self_attends_per_block": 2},
    "reformer": {"attn_layers": ["local", "local"], "axial_pos_embds": False, "attention_head_size": 4},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "ultravbert": {"pixel_shuffle_factor": 2},
    "xlnet": {"d_head": 4, "d_inner": 24},
    "xmod": {"default_language": "en_XX"},
}
# Inputs per token that some families take besides ids, types and positions: (highest value, shape of one token's).
FURTHER_INPUTS: dict[str, tuple[int, tuple[int, ...]]] = {
    "task_type_ids": (2, ()),
    "input_shape_ids": (19, ()),
    "input_pronunciation_ids": (19, ()),
    "xpath_tags_seq": (7, (50,)),
    "xpath_subs_seq": (7, (50,)),
}
# Rounding of a few hundred float32 operations, beside the largest value.
TOLERANCE = 32 * torch.finfo(torch.float32).eps


def families() -> list[str]:
    found = {name for task in list(CLASSES)[1:] for name in CLASSES[task]} - GENERATORS
    return sorted(found | CLASSES["masked-LM"].keys() | {"xlnet"})  # it reads both ways and generates


def configuration(family: str) -> Any:
    """A tiny configuration; the parts of one with several (text and vision) are tiny, too."""
    usual: Any = CONFIG_MAPPING[family]()
    parts = {name: getattr(usual, name) for name in usual.sub_configs}
    tiny_parts = {name: {"model_type": part.model_type, **tiny(part)} for name, part in parts.items() if part}
    return type(usual)(num_labels=3, **{**tiny(usual), **tiny_parts, **OWN.get(family, {})})


def tiny(usual: Any) -> dict[str, Any]:
    """Those of `TINY` that a configuration has and lets one set."""
    settable = set()
    for name in TINY:
        with suppress(AttributeError, NotImplementedError):
            setattr(usual, name, getattr(usual, name))
            settable.add(name)
    return {name: size for name, size in TINY.items() if name in settable}


def build(name: str, config: Any) -> PreTrainedModel:
    """The class `name`, with weights so large that every part of the model matters, and attention far from even."""
    model_class = getattr(transformers, name)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in model_class(config).parameters())
    assert size < 2e5, f"{name} is not tiny: {size} weights; OWN should make it so"
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if weight.ndim > 1 or "norm" not in weight_name.lower() or not weight_name.endswith("weight"):
                weight.normal_(std=0.2)
    return model


def batch_for(packed: PackedModel) -> dict[str, Tensor]:
    """A padded batch with every input that the model takes."""
    with_types = "token_type_ids" in inspect.signature(packed.base.forward).parameters
    batch = padded_batch(token_types=with_types and bool(packed.spec.type_vocab_size))
    padding = batch["attention_mask"] == 0
    batch["input_ids"] = batch["input_ids"].masked_fill(padding, packed.model.config.pad_token_id)
    generator = torch.Generator().manual_seed(1)
    for name in packed.inputs & FURTHER_INPUTS.keys():
        highest, shape = FURTHER_INPUTS[name]
        batch[name] = torch.randint(0, highest + 1, (*padding.shape, *shape), generator=generator)
    if "bbox" in packed.inputs:  # left, top, right, bottom
        corner = torch.randint(0, 16, (*padding.shape, 2), generator=generator)
        batch["bbox"] = torch.cat([corner, corner + 7], -1)
    return batch


def pack(batch: dict[str, Tensor]) -> dict[str, Any]:
    mask = batch["attention_mask"].bool()
    further = {name: value[mask][None] for name, value in batch.items() if name != "attention_mask"}
    return {**pack_padded(batch), **further}


@torch.no_grad()
def plain(packed: PackedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model gives without us, its tokens packed: every layer's output, the encoder's, logits."""
    mask, found = batch["attention_mask"].bool(), {}

    def keep(index: int, output: Any) -> None:
        found[f"layer {index + 1}"] = (output[0] if isinstance(output, tuple) else output)[mask]

    hooks = [
        layer.register_forward_hook(lambda _module, _args, output, index=index: keep(index, output))
        for index, layer in enumerate(packed.layers)
    ]
    found["last hidden state"] = packed.base(**batch).last_hidden_state[mask]
    for hook in hooks:
        hook.remove()
    if packed.spec.head is not None:
        logits = packed.model(**batch).logits
        found["logits"] = logits if packed.spec.head == "sequence" else logits[mask]
    return found


@torch.no_grad()
def packed_outputs(packed: PackedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def sink(activations: LayerActivations) -> None:
        if activations.hidden is not None:
            found[f"layer {activations.index}"] = activations.hidden.clone()

    layers = frozenset(range(1, packed.spec.num_layers + 1))
    out = packed.run(pack(batch), Tap(sink, hidden=layers, stop=False))
    # A head that reads the first tokens gets them alone where the encoder's own last step comes after its layers.
    if out.last_hidden_state is not None:
        found["last hidden state"] = out.last_hidden_state
    if out.logits is not None:
        found["logits"] = out.logits
    return found


def difference(model: PreTrainedModel, packed: PackedModel) -> str:
    """Which outputs are not the plain model's; empty if all are."""
    batch = batch_for(packed)
    try:
        model.set_attn_implementation("eager")
        want, got = plain(packed, batch), packed_outputs(packed, batch)
    except (ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    needed = {"logits"} if packed.spec.head is not None else {"last hidden state"}
    assert needed <= got.keys() <= want.keys()
    far = []
    for name, values in got.items():
        if values.shape != want[name].shape:
            far.append(f"{name} {tuple(values.shape)} instead of {tuple(want[name].shape)}")
            continue
        distance, largest = float((values - want[name]).abs().max()), float(want[name].abs().max())
        if not distance <= TOLERANCE * max(largest, 1):
            far.append(f"{name} by {distance:.1e} beside {largest:.1e}")
    return ", ".join(far)


# ---- outcomes -----------------------------------------------------------------------------------------------

# What this package does not do right yet, by the end of a class name, with the reason. Removed when it does.
KNOWN_FAULTS: dict[str, str] = {}
SENTENCE = re.compile(r"model: got \w+, which [^\n]+, want [^\n]+|model: got \w+, which [^\n]+; want [^\n]+")
RUNS, REFUSED, MISSING = "runs", "refused: ", "missing: "


def classes() -> dict[str, str]:
    """Class name -> family, of what is installed."""
    found: dict[str, str] = {}
    for family in families():
        for names in CLASSES.values():
            name = names.get(family)
            name = name[0] if isinstance(name, tuple | list) else name
            if name is not None:
                found[name] = family
    return found


@functools.cache
def outcome(name: str) -> str:
    """`RUNS` where packed equals plain, `REFUSED` or `MISSING` and the sentence, otherwise what is wrong."""
    try:
        model = build(name, configuration(classes()[name]))
    except ImportError as error:
        return f"{MISSING}{' '.join(str(error).split())}"
    try:
        packed = PackedModel(model)
    except Exception as error:
        # Anything but the one kind of error that is promised is a fault, and shown as such.
        return f"{REFUSED if type(error) is ValueError else f'{type(error).__name__}: '}{error}"
    return difference(model, packed) or RUNS


# ---- the page -----------------------------------------------------------------------------------------------


def page() -> str:
    running, refused, faults = [], [], []
    by_family: dict[str, list[str]] = {}
    for name, family in classes().items():
        by_family.setdefault(family, []).append(name)
    for family, names in by_family.items():
        runs = [name for name in names if outcome(name) == RUNS]
        if runs:
            running.append(f"| {family} | {', '.join(f'`{name}`' for name in runs)} |")
        sentences: dict[str, list[str]] = {}
        for name in names:
            kind, _, said = outcome(name).partition(": ")
            if name in KNOWN_FAULTS:
                faults.append(f"| `{name}` | {KNOWN_FAULTS[name]} |")
            elif kind == "refused":
                # One sentence for all classes of a family, with the first one's name in it.
                sentences.setdefault(said.replace(f"got {name},", f"got {names[0]},"), []).append(name)
            elif kind == "missing":
                sentences.setdefault("not tried: it needs a library that is not installed", []).append(name)
        for said, refused_names in sentences.items():
            refused.append(f"| {family} | {', '.join(f'`{name}`' for name in refused_names)} | {said} |")
    parts = [
        "# Families of encoders",
        f"Made by `{COMMAND}` with transformers {minor_version()}: every family whose classes it lists for "
        "masked-LM, sequence or token classification, without the generators among them, built in tiny with random "
        f"weights. {len(running)} of {len(by_family)} run packed; there every layer's output, the encoder's and the "
        "head's logits equal the plain padded model's within float32 rounding. The others are refused at construction, "
        "with the sentence shown.",
        "## Run packed",
        "\n".join(["| family | classes |", "| --- | --- |", *running]),
        "## Refused",
        "\n".join(["| family | classes | sentence |", "| --- | --- | --- |", *refused]),
    ]
    if faults:
        parts += ["## Not right yet", "\n".join(["| class | what happens |", "| --- | --- |", *faults])]
    return "\n\n".join(parts) + "\n"


def minor_version() -> str:
    return ".".join(transformers.__version__.split(".")[:2])


def names_on_page() -> list[str]:
    return re.findall(r"`(\w+(?:Model|For\w+|LMHeadModel))`", PAGE.read_text(encoding="utf-8"))


def cases() -> list[Any]:
    """A class each: those that are installed, and those of the page that are not."""
    found = []
    for name in dict.fromkeys([*classes(), *names_on_page()]):
        fault = KNOWN_FAULTS.get(name)
        found.append(
            pytest.param(name, marks=[pytest.mark.xfail(strict=True, reason=fault)] if fault else [])
        )
    return found


# ---- tests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases())
def test_packed_equals_plain_or_is_refused_in_one_sentence(name: str) -> None:
    if name not in classes():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    found = outcome(name)
    if found.startswith(MISSING):
        pytest.skip(found)
    if found.startswith(REFUSED):
        assert SENTENCE.fullmatch(found.removeprefix(REFUSED)), found
    else:
        assert found == RUNS


def test_there_are_many_families() -> None:
    assert len(families()) > 40
    assert {"bert", "deberta-v2", "modernbert", "xlnet"} <= set(families())
    assert not {"llama", "gpt2", "t5"} & set(families())


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("ModernBertForSequenceClassification", {"classifier_pooling": "mean"}),
        ("EuroBertForSequenceClassification", {"classifier_pooling": "mean"}),
        ("EuroBertForSequenceClassification", {"classifier_pooling": "bos"}),
        ("MobileBertForTokenClassification", {"trigram_input": False, "normalization_type": "layer_norm"}),
    ],
)
def test_settings_that_decide_whether_a_family_runs(name: str, setting: dict[str, Any]) -> None:
    """What a sentence of refusal asks for is enough, and both ways to pool are the plain model's."""
    if name not in classes():
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    config = configuration(classes()[name])
    for key, value in setting.items():
        assert hasattr(config, key)
        setattr(config, key, value)
    model = build(name, config)
    assert difference(model, PackedModel(model)) == ""


def test_the_page_is_current() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if f"with transformers {minor_version()}:" not in text:
        pytest.skip(f"docs/families.md is about another transformers than {transformers.__version__}")
    assert text == page(), f"run {COMMAND}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(f"got {sys.argv[1:]}, want --write")
    PAGE.write_text(page(), encoding="utf-8")
