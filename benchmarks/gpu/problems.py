"""What is measured on a GPU, in order of value, and what was set as a goal for it before anything was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BOTH = ("cuda", "triton")


@dataclass(frozen=True)
class Spec:
    """A call of a benchmark's function that builds a `Problem`; nothing is imported until a job builds it."""

    part: str  # as `make gpu PART=` names it
    label: str  # unique, for people
    arguments: tuple[Any, ...]
    tiny: tuple[Any, ...]  # the same for a dry run
    module: str = ""  # default: bench_<part>
    builder: str = "problem"
    dtype: str = "bfloat16"
    backends: tuple[str, ...] = BOTH
    target_us: float | None = None
    seconds: float = 1.0  # that building and checking it takes
    peers: bool = False  # whether other people have kernels for it

    @property
    def name(self) -> str:
        return f"{self.label} {self.dtype}"

    def job(self, dry: bool = False) -> dict[str, Any]:
        return {
            "module": self.module or f"bench_{self.part}",
            "builder": self.builder,
            "arguments": [None if x is ... else x for x in (self.tiny if dry else self.arguments)],
            # Triton's interpreter does not know bfloat16.
            "dtype": "float16" if dry and self.dtype == "bfloat16" else self.dtype,
            "target_us": self.target_us,
        }


_SHORT, _LONG, _TINY = (64, 512, 12, 32, 64), (16, 2048, 12, 64, 64), (2, 32, 2, 16, 16)
#: Widths from which the peak of the matrix units is the goal, not memory.
_WIDE, _NARROW = (4096, 30522, 2048, 2048), (16, 300, 12, 16)


def _attention(part: str, label: str, shape: tuple[int, ...], *rest: str, **more: Any) -> Spec:
    name = f"{label} {'x'.join(map(str, shape))}"
    return Spec(part, name, (shape, ..., *rest), (_TINY, ..., *rest), **more)


def _pool(mode: str, layers: int, backward: bool, **more: Any) -> Spec:
    label = f"pool_features {mode}, {layers} layers" + ", backward too" * backward
    return Spec("pool_features", label, (mode, layers, backward, ...), (mode, layers, backward, ...), **more)


#: ``...`` in the arguments stands for the dtype.
HALF: tuple[Spec, ...] = (
    _attention("attention_score_mse", "score", _SHORT, target_us=134),
    _attention("attention_score_mse", "score", _LONG, target_us=190),
    _attention("attention_map", "map kl", _SHORT, "kl", target_us=400, peers=True),
    _attention("attention_map", "map kl", _LONG, "kl", target_us=1900, seconds=1.5, peers=True),
    Spec("hidden_mse", "hidden_mse 32768x312->768", (...,), (...,), target_us=150),
    _pool("mean", 4, False, target_us=84),
    _pool("mean", 4, True),
    _pool("max", 4, False),
    Spec(
        "linear_logits_kl",
        "linear_logits_kl 4096x312/768->30522",
        ("",),
        ("",),
        backends=("triton",),
        seconds=1.5,
        peers=True,
    ),
    Spec(
        "linear_logits_kl",
        "linear_logits_kl 4096x2048/2048->30522",
        ("", _WIDE),
        ("", _NARROW),
        backends=("triton",),
        seconds=1.5,
    ),
    _attention("attention_map", "map mse", _SHORT, "mse", target_us=400),
    _attention("attention_map", "map mse", _LONG, "mse", seconds=1.5),
    Spec("hidden_cosine", "hidden_cosine 32768x312->768", (...,), (...,), backends=("triton",)),
    Spec("logits_kl", "logits_kl 4096x30522", (...,), (...,), backends=("triton",)),
    Spec("relation_kl", "relation_kl 64x512", (64, 512, ...), (2, 32, ...), seconds=1.5),
    _attention("varlen_attention", "varlen_attention", _SHORT, backends=("triton",), peers=True),
    _attention("varlen_attention", "varlen_attention", _LONG, backends=("triton",), peers=True),
    Spec(
        "step",
        "step tinybert 64x512",
        (64, 512, ..., "tinybert"),
        (2, 32, ..., "tinybert"),
        backends=("triton",),
        seconds=5,
    ),
    Spec(
        "step",
        "step hidden 64x512",
        (64, 512, ..., "hidden"),
        (2, 32, ..., "hidden"),
        backends=("triton",),
        seconds=5,
    ),
    Spec("teacher", "teacher 64x512", (64, 512, ...), (2, 32, ...), backends=("triton",), seconds=4),
)

#: Lengths drawn from L / 4 to L: what packing brings.
RAGGED: tuple[Spec, ...] = (
    _attention("attention_score_mse", "score ragged", _SHORT, builder="ragged_problem"),
    _attention("attention_map", "map kl ragged", _SHORT, "kl", builder="ragged_problem"),
)

#: Whole precision, in which nobody trains on a GPU: correct first, and not absurdly slow.
WHOLE: tuple[Spec, ...] = (
    _attention("attention_score_mse", "score", _SHORT, dtype="float32"),
    _attention("attention_map", "map kl", _SHORT, "kl", dtype="float32"),
    Spec("hidden_mse", "hidden_mse 32768x312->768", (...,), (...,), dtype="float32"),
)

PARTS = tuple(dict.fromkeys(spec.part for spec in HALF))
