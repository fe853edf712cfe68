"""The `student` section of a recipe file: a directory, sizes, or a kind whose options are keys of the section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import InputError, did_you_mean, user_input
from .settings import Setting

__all__ = ["BESIDE_KIND", "StudentConfig", "option_of_kind", "options_of_kind"]

# Keys of the student that a student of a kind has, too; the others of that section are the kind's options.
BESIDE_KIND = ("kind", "path", "init", "tokenizer")


@dataclass
class StudentConfig:
    """What `students.smaller` needs, or with a `kind` what `students.build` needs; `path` instead of either starts from
    an existing model directory.

    With a `kind`, every key of this section that is an option of that kind stands in `options`.
    """

    kind: str | None = field(
        default=None,
        metadata={
            "help": "no transformer: bilstm, gru, textcnn, mlp, static, or module:Class of your own, whose options are "
            "keys of this section"
        },
    )
    size: str | None = field(
        default=None, metadata={"help": "all sizes by name: tinybert-4, minilm-6x384, 3x192 (layers x width)"}
    )
    path: str | None = field(
        default=None, metadata={"path": True, "help": "directory of an existing student"}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"path": True, "help": "directory of a tokenizer of its own (default: the one of all)"},
    )
    num_hidden_layers: int | None = field(default=None, metadata={"help": "number of encoder layers"})
    hidden_size: int | None = field(default=None, metadata={"help": "width (default: the teacher's)"})
    num_attention_heads: int | None = field(default=None, metadata={"help": "heads (default: the teacher's)"})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "feed-forward width (default: the teacher's)"}
    )
    init: Literal["teacher", "random", "distilled", "blend"] | None = field(
        default=None,
        metadata={"help": "starting weights, of a kind its embeddings (default: teacher where widths allow)"},
    )
    layers: list[int] | None = field(
        default=None, metadata={"help": "teacher layers to copy or blend, from 0 (default: uniform)"}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "one rate for all of its dropout (default: each as the teacher's)"}
    )
    beta: float | None = field(
        default=None, metadata={"help": "init: blend: the teacher's share of the weights (default: 0.5)"}
    )
    width_rule: Literal["error", "truncate", "svd"] | None = field(
        default=None, metadata={"help": "init: blend: how other widths are reached (default: error)"}
    )
    options: dict[str, Any] = field(default_factory=dict, metadata={"collected": True})


def options_of_kind(settings: Mapping[str, Setting]) -> dict[str, Any] | None:
    """The options of the kind of student that is asked for, with their types; None if there is no kind."""
    setting = settings.get("student.kind")
    kind = None if setting is None else setting.typed(str | None, "kind")
    if setting is None or kind is None:
        return None
    with user_input(setting.where):
        from ...students.network import option_types

        return option_types(kind)


def option_of_kind(name: str, setting: Setting, known: Mapping[str, Any]) -> Any:
    """The value of an option of that kind, typed.

    Raises:
        InputError: no such option, or a value of another type.
    """
    if name not in known:
        raise InputError(
            f"{setting.where}: unknown key {name!r} beside this kind{did_you_mean(name, [*known, *BESIDE_KIND])}"
        )
    return setting.typed(known[name], name)
