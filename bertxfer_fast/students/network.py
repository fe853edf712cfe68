"""What every student that is no transformer has in common: its configuration, its embeddings, its place in a registry.

Such a student is a `PreTrainedModel` with a configuration of its own, so it is saved, loaded, labelled and trained like
any other model; and it is an `Encoder`: it reads packed batches itself. A new kind is one file with a configuration and
a network under `register`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, field, fields
from inspect import get_annotations
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..models.activations import LayerActivations, PackedOutput, Place, Tap
from ..models.hf.loading import make_known
from ..models.packed import packed_tokens
from ..models.registry import Registry
from ..models.spec import EncoderSpec

__all__ = ["Embeddings", "Listener", "Network", "NetworkConfig", "get", "kinds", "options", "register"]


class NetworkConfig(PreTrainedConfig):
    """The configuration of a kind of students; a kind adds its own options with their defaults.

    Attributes:
        vocab_size: rows of the embedding table.
        head: what the head reads, as in `EncoderSpec`.
        masked_lm: whether the logits are the vocabulary's.
        special_ids: tokens that carry no text ([CLS], [SEP], ...), for those who leave them out.
        embedding_size: width of the embedding table.
        dropout: share of the embeddings, and of what the head reads, that is zeroed while training.
        initializer_range: standard deviation of random embeddings.
    """

    vocab_size: int = 0
    head: str | None = None
    masked_lm: bool = False
    special_ids: list[int] = field(default_factory=list)
    embedding_size: int | None = None
    dropout: float = 0.1
    initializer_range: float = 0.1


#: Not an option: it follows from what the student learns.
_FACTS = {
    "vocab_size",
    "head",
    "masked_lm",
    "special_ids",
    *(item.name for item in fields(PreTrainedConfig)),
}


class Network(PreTrainedModel):
    """Base of students that are no transformers: an `Encoder` that transformers can save and load.

    A kind sets ``config_class`` and ``kind``, makes its modules in ``__init__``, ends it with ``self.post_init()``, and
    defines ``run``.

    Attributes:
        kind: the name it is registered under.
        init: how its embeddings start where nothing else is asked for: ``"teacher"``, ``"distilled"`` or ``"random"``.
    """

    config_class: type[NetworkConfig] = NetworkConfig
    kind: ClassVar[str] = ""
    init: ClassVar[str] = "teacher"
    config: Any
    embeddings: Any

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        for name in ("vocab_size", "embedding_size"):
            value = getattr(config, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value}, want 1 or more")
        if not isinstance(config.dropout, int | float) or not 0 <= config.dropout < 1:
            raise ValueError(f"dropout: got {config.dropout!r}, want 0 or more and less than 1")

    @classmethod
    def embedding_size(cls, config: NetworkConfig, teacher: int) -> int:
        """Width of the embeddings where none is asked for, of a teacher whose embeddings are ``teacher`` wide."""
        return getattr(config, "hidden_size", teacher)

    @property
    def num_layers(self) -> int:
        """Hidden states count from 0 (embeddings) to this."""
        return 0

    @property
    def hidden_width(self) -> int:
        """Width of every hidden state."""
        return self.config.embedding_size

    @property
    def num_logits(self) -> int:
        """Width of the logits, 0 without a head."""
        if self.config.head is None:
            return 0
        return self.config.vocab_size if self.config.masked_lm else self.config.num_labels

    @property
    def spec(self) -> EncoderSpec:
        """Its facts, as the configuration has them now."""
        config, count = self.config, self.num_logits
        names = {} if config.masked_lm else config.id2label
        return EncoderSpec(
            name=type(self).__name__,
            num_layers=self.num_layers,
            hidden_size=self.hidden_width,
            vocab_size=config.vocab_size,
            num_labels=count,
            head=config.head,
            problem_type=config.problem_type,
            labels=tuple(names[i] for i in range(count)) if all(i in names for i in range(count)) else (),
        )

    def run(self, batch: Mapping[str, Any], tap: Tap | None = None) -> PackedOutput:
        """Run the student on a packed batch, see `Encoder.run`."""
        raise NotImplementedError

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **ignored: Any) -> ModelOutput:
        """An ordinary batch ``[B, L]``: packed, run, and laid out again (0 at padding).

        Returns:
            ``logits`` ``[B, C]`` or ``[B, L, C]``; ``last_hidden_state`` ``[B, L, D]`` of a student without a head.
        """
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        keep = keep != 0
        lengths = keep.sum(1)
        bounds = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        output = self.run({"input_ids": input_ids[keep][None], "cu_seq_lens_q": bounds})
        if self.config.head == "sequence":
            return ModelOutput(logits=output.logits)
        name = "last_hidden_state" if self.config.head is None else "logits"
        rows = getattr(output, name)
        padded = rows.new_zeros(*input_ids.shape, rows.shape[-1])
        padded[keep] = rows
        return ModelOutput({name: padded})

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.table

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings.table = value

    def listen(self, batch: Mapping[str, Any], tap: Tap | None) -> tuple[Listener, Tensor]:
        """The checked pack: who listens to it, and its tokens ``[T]``."""
        ids, cu_seqlens, longest = packed_tokens(batch, self.spec)
        return Listener(tap, cu_seqlens, longest, self.spec), ids[0]

    def make_head(self, width: int) -> nn.Linear | None:
        """A linear map of rows of that width to the logits; None without a head."""
        return nn.Linear(width, self.num_logits) if self.num_logits else None

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own first weights, but for embeddings."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()


class Embeddings(nn.Module):
    """Rows of a table, mapped to another width where one is wanted (Lan et al., "ALBERT", 2020), with dropout.

    Args:
        config: says how many rows there are, and how wide.
        width: what the network reads.
    """

    def __init__(self, config: NetworkConfig, width: int) -> None:
        super().__init__()
        assert config.embedding_size is not None
        self.table = nn.Embedding(config.vocab_size, config.embedding_size)
        same = width == config.embedding_size
        self.projection = nn.Identity() if same else nn.Linear(config.embedding_size, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """``[T]`` -> ``[T, width]``."""
        return self.dropout(self.projection(self.table(ids)))


class Listener:
    """Hands to a tap what it wants of a pack, and knows when it has everything.

    Args:
        tap: who listens; None for nobody.
        cu_seqlens, max_seqlen: of the pack.
        spec: of the model that runs.

    Raises:
        ValueError: the tap wants what the model does not have.
    """

    def __init__(self, tap: Tap | None, cu_seqlens: Tensor, max_seqlen: int, spec: EncoderSpec) -> None:
        self.tap, self.cu_seqlens, self.max_seqlen = tap, cu_seqlens, max_seqlen
        self._left: set[tuple[Place, int]] = set()
        if tap is not None:
            spec.check_wanted(tap.attention, tap.hidden, tap.logits, tap.output_layer)
            self._left = {("hidden", index) for index in tap.hidden}
            self._left |= {("logits", 0)} if tap.logits else set()

    def wants(self, place: Place, index: int = 0) -> bool:
        """Whether the tap wants what is there."""
        return (place, index) in self._left

    def hand(self, place: Place, index: int, **tensors: Any) -> None:
        """Give the tap what it wants."""
        assert self.tap is not None
        self._left.discard((place, index))
        self.tap.sink(LayerActivations(place, index, self.cu_seqlens, self.max_seqlen, **tensors))

    @property
    def done(self) -> bool:
        """Whether the model may be left: nobody wants anything else."""
        return self.tap is not None and self.tap.stop and not self._left


# ---- the registry -------------------------------------------------------------------------------------------

_registry: Registry[type[Network]] = Registry("student")
Kind = TypeVar("Kind", bound=type[Network])


def register(network: Kind) -> Kind:
    """Make a class of students known by its ``kind``, here and to transformers' Auto classes. A decorator.

    Raises:
        ValueError: another one has that name.
    """
    if not network.config_class.model_type:
        network.config_class.model_type = f"bertxfer_{network.kind}"
    _registry.add(network.kind, network)
    make_known(network)
    return network


def get(kind: str) -> type[Network]:
    """The class of students of that kind.

    Args:
        kind: a registered name, or ``"module:Class"``: a module of yours that registers the class.

    Raises:
        ValueError: there is none; the message names the nearest one.
    """
    module, colon, name = kind.partition(":")
    if not colon:
        return _registry.get(kind)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"kind: got {kind!r}, want a module that can be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Network) and found.kind in kinds()):
        raise ValueError(
            f"kind: got {kind!r}, want a Network that {module} registers with @students.register"
        )
    return found


def kinds() -> list[str]:
    """The kinds that `build` knows."""
    return _registry.names()


def check_options(kind: str, chosen: Iterable[str]) -> None:
    """Raise ValueError for an option that the kind does not have; the message names the nearest known one."""
    _registry.check_options(kind, chosen, options(kind))


def option_types(kind: str) -> dict[str, Any]:
    """The options of a kind with their annotated types.

    Raises:
        ValueError: unknown kind.
    """
    classes = [part for part in reversed(get(kind).config_class.__mro__) if issubclass(part, NetworkConfig)]
    hints = {name: hint for part in classes for name, hint in get_annotations(part, eval_str=True).items()}
    return {name: hints[name] for name in options(kind)}


def options(kind: str) -> dict[str, Any]:
    """The options of a kind with their defaults.

    Raises:
        ValueError: unknown kind.
    """
    own = [item for item in fields(get(kind).config_class) if item.name not in _FACTS]
    return {item.name: None if item.default is MISSING else item.default for item in own}
