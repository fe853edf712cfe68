"""Students: smaller models of a teacher's own class, which may start from the teacher's weights.

Nothing here knows a model by name. Sizes are read and set through the names that transformers' configurations
share (`num_hidden_layers`, ... with their `attribute_map`), and the stack of layers is found as
`models.hf.structure` finds it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..models.hf.structure import layer_lists
from ..models.layers import uniform_layers
from ..models.spec import EncoderSpec
from .embeddings import ROLES, inherited_table, vocabulary_size
from .network import Network
from .sizes import parse_size

__all__ = ["smaller", "uniform_layers"]

Model = TypeVar("Model", bound=PreTrainedModel)

# Configuration names of a size. The first is the one this module speaks; the others are what some models call
# it without saying so in their attribute_map (DistilBERT's feed-forward width is `hidden_dim`).
SIZES = {
    "hidden_size": ("hidden_size",),
    "num_attention_heads": ("num_attention_heads",),
    "intermediate_size": ("intermediate_size", "hidden_dim"),
}
# Configuration lists with one entry a layer.
_PER_LAYER = ("layer_types", "attention_window")


def smaller(
    teacher: Model,
    *,
    size: str | None = None,
    num_hidden_layers: int | None = None,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
    init: Literal["teacher", "random"] | None = None,
    layers: Sequence[int] | None = None,
    dropout: float | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Model:
    """A student of the teacher's class and head, with fewer layers and, if asked, other widths.

    Args:
        teacher: any transformers encoder, bare or with a head; left as it is.
        size: all sizes by one name: ``"tinybert-4"``, ``"3x192"`` and the like, see `parse_size`; single sizes beside
            it win.
        num_hidden_layers: layers of the student, at most the teacher's. Needed where no ``size`` is given.
        hidden_size: width of the hidden states; left out, it stays the teacher's, as the other two do.
        num_attention_heads: heads of a layer.
        intermediate_size: width of the feed-forward layers.
        init: ``"teacher"``: embeddings, chosen layers, pooler and head start as copies of the teacher's, which needs
            the teacher's widths; ``"random"``: as a new model of that class. By default ``"teacher"``, but
            ``"random"`` where a ``size`` has other widths.
        layers: which teacher layer (from 0) every student layer copies; by default `uniform_layers`.
        dropout: the student's one rate for all its dropout, attention's included; by default each rate is the
            teacher's. A student that learns rows or soft labels from much text needs little of it.
        tokenizer: of the student, where it is another one than the teacher's: the student gets its vocabulary and
            special tokens, and where it starts from the teacher the embeddings of `inherited_table`.
        teacher_tokenizer: the teacher's, beside ``tokenizer``.

    Returns:
        A model in training mode, float32, on the teacher's device; it shares no memory with the teacher.

    Raises:
        TypeError: ``teacher`` is not a transformers model.
        ValueError: sizes that do not fit each other or the teacher, before anything is built, or a class whose layers
            cannot be copied one for one (ALBERT shares one layer; layers of different make).
    """
    if not isinstance(teacher, PreTrainedModel) or isinstance(teacher, Network):
        raise TypeError(f"teacher: got {type(teacher).__name__}, want a transformers model")
    if init not in (None, "teacher", "random"):
        raise ValueError(f"init: got {init!r}, want 'teacher' or 'random'")
    if (tokenizer is None) != (teacher_tokenizer is None):
        raise ValueError("tokenizer: got one of two, want the student's and the teacher's, or none")
    named = {} if size is None else parse_size(size, teacher.config)
    depth = num_hidden_layers if num_hidden_layers is not None else named.pop("num_hidden_layers", None)
    if depth is None:
        raise ValueError(
            "num_hidden_layers: got None, want a number of layers, or a size such as size='3x192'"
        )
    widths = {
        "hidden_size": hidden_size,
        "num_attention_heads": num_attention_heads,
        "intermediate_size": intermediate_size,
    }
    widths = {name: named.get(name) if width is None else width for name, width in widths.items()}
    if init is None:
        others = size is not None and _other_widths(teacher.config, widths)
        init = "random" if others else "teacher"
    chosen = _chosen_layers(teacher.config.num_hidden_layers, depth, layers, init)
    config = _student_config(teacher.config, chosen, widths, init)
    if dropout is not None:
        _set_dropout(config, dropout)
    if tokenizer is not None:
        _set_vocabulary(config, teacher, tokenizer, init)
    build: Any = type(teacher)
    try:
        student = build(config).to(device=teacher.device, dtype=torch.float32)
    except (RuntimeError, ValueError) as error:
        got = ", ".join(f"{name}={size}" for name, size in widths.items() if size is not None)
        raise ValueError(
            f"widths: got {got or 'none'}, want sizes that {build.__name__} can be built of: {error}"
        ) from error
    if init == "teacher":
        made = {}
        if tokenizer is not None and teacher_tokenizer is not None:
            table = student.get_input_embeddings().weight
            name = next(name for name, parameter in student.named_parameters() if parameter is table)
            made[name] = inherited_table(teacher, tokenizer, teacher_tokenizer)
        student.load_state_dict(_copied_weights(teacher, student, chosen, made))
    return student


def _chosen_layers(deep: int, shallow: int, layers: Sequence[int] | None, init: str) -> list[int]:
    """Teacher layer behind every student layer."""
    if not 1 <= shallow <= deep:
        raise ValueError(f"num_hidden_layers: got {shallow}, want 1 to the teacher's {deep}")
    if init == "random":
        if layers is not None:
            raise ValueError(
                f"layers: got {list(layers)}, want none: init='random' copies no layers of the teacher"
            )
        return list(range(shallow))
    if layers is None:
        return uniform_layers(deep, shallow)
    if len(layers) != shallow or any(not 0 <= layer < deep for layer in layers):
        raise ValueError(
            f"layers: got {list(layers)}, want num_hidden_layers={shallow} numbers from 0 to {deep - 1}"
        )
    return list(layers)


def _other_widths(teacher: PreTrainedConfig, widths: dict[str, int | None]) -> bool:
    """Whether a width is not the teacher's."""
    own = {
        name: next((getattr(teacher, k) for k in SIZES[name] if hasattr(teacher, k)), None) for name in widths
    }
    return any(size is not None and size != own[name] for name, size in widths.items())


def _student_config(
    teacher: PreTrainedConfig, chosen: list[int], widths: dict[str, int | None], init: str
) -> PreTrainedConfig:
    """The teacher's configuration with the student's sizes, checked."""
    config = copy.deepcopy(teacher)
    config.name_or_path = ""  # it is not the model of that path any more
    changed = {}
    for name, size in widths.items():
        if size is None:
            continue
        key = next((k for k in SIZES[name] if hasattr(teacher, k)), None)
        if key is None:
            raise ValueError(f"{name}: got {size}, want none: {type(teacher).__name__} has no such size")
        if size < 1:
            raise ValueError(f"{name}: got {size}, want 1 or more")
        if size != getattr(teacher, key):
            changed[name] = getattr(teacher, key)
            setattr(config, key, size)
    if changed and init == "teacher":
        got = ", ".join(f"{name}={widths[name]}" for name in changed)
        want = ", ".join(f"{name}={size}" for name, size in changed.items())
        raise ValueError(
            f"widths: got {got}, want the teacher's {want}, or init='random': weights of other widths cannot be "
            "copied, a projection bridges them while distilling"
        )
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size: got {config.hidden_size}, want a multiple of "
            f"num_attention_heads={config.num_attention_heads}"
        )
    if getattr(teacher, "head_dim", None) == teacher.hidden_size // teacher.num_attention_heads:
        config.head_dim = config.hidden_size // config.num_attention_heads
    groups = getattr(teacher, "num_key_value_heads", None)
    if groups == teacher.num_attention_heads:
        config.num_key_value_heads = config.num_attention_heads
    elif isinstance(groups, int) and config.num_attention_heads % groups:
        raise ValueError(
            f"num_attention_heads: got {config.num_attention_heads}, want a multiple of num_key_value_heads={groups}"
        )
    for name in _PER_LAYER:
        entries = getattr(teacher, name, None)
        if isinstance(entries, list):
            setattr(config, name, [entries[layer] for layer in chosen])
    config.num_hidden_layers = len(chosen)
    return config


def _set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    """One rate wherever the configuration has one: no model by name, whatever is a number and is called dropout."""
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout: got {dropout!r}, want 0 or more and less than 1")
    rates = [
        name
        for name, rate in config.to_dict().items()
        if "dropout" in name and isinstance(rate, int | float) and not isinstance(rate, bool)
    ]
    if not rates:
        raise ValueError(f"dropout: got {dropout}, want none: {type(config).__name__} has no such rate")
    for name in rates:
        setattr(config, name, float(dropout))


def _set_vocabulary(
    config: PreTrainedConfig, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, init: str
) -> None:
    """The tokens of another tokenizer in a student's configuration."""
    facts = EncoderSpec.of(teacher)
    if facts.output_layer:
        raise ValueError("teacher: got a masked-LM head, want none: the student's vocabulary is another one")
    pad = tokenizer.pad_token_id
    if facts.position_offset and init == "teacher" and pad != config.pad_token_id:
        raise ValueError(
            f"tokenizer: got the padding id {pad}, want {config.pad_token_id}, the teacher's, from which its positions "
            "count, or init='random'"
        )
    config.vocab_size = vocabulary_size(tokenizer)
    for role in ROLES:
        name = f"{role}_token_id"
        if hasattr(config, name):
            setattr(config, name, getattr(tokenizer, name))


def _copied_weights(
    teacher: PreTrainedModel, student: PreTrainedModel, chosen: list[int], made: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The student's state dict filled from the teacher's, but for what is made; an error if anything does not
    correspond exactly."""
    stack = layer_stack(teacher)
    source, wanted = teacher.state_dict(), student.state_dict()
    copied: dict[str, Tensor] = {}
    used = set()
    for key in wanted:
        origin = key
        if key.startswith(stack):
            index, _, rest = key.removeprefix(stack).partition(".")
            origin = f"{stack}{chosen[int(index)]}.{rest}"
        if key in made:
            copied[key] = made[key]
            used.add(origin)
            continue
        if origin not in source or source[origin].shape != wanted[key].shape:
            raise ValueError(
                f"layers: got {chosen}, want others or init='random': the student's {key} {list(wanted[key].shape)} "
                f"has no counterpart {origin} of that shape in the teacher"
            )
        copied[key] = source[origin]
        used.add(origin)
    skipped = {str(layer) for layer in range(teacher.config.num_hidden_layers)} - {
        str(layer) for layer in chosen
    }
    for origin in source.keys() - used:
        if not (origin.startswith(stack) and origin.removeprefix(stack).partition(".")[0] in skipped):
            raise ValueError(
                f"layers: got {chosen}, want others or init='random': the teacher's {origin} has no place in the "
                "student"
            )
    return copied


def layer_stack(model: PreTrainedModel) -> str:
    """Name, with a closing dot, of the ModuleList with one entry a layer."""
    names = [name for name, _ in layer_lists(model)]
    if len(names) != 1:
        raise ValueError(
            f"teacher: got {type(model).__name__} with {len(names)} lists of {model.config.num_hidden_layers} layers "
            f"{names}, want one, so that layers can be told apart, or init='random'"
        )
    return f"{names[0]}."
