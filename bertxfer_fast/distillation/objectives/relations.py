"""Self-relations of queries, keys and values."""

from __future__ import annotations

from torch import Tensor

from ... import ops
from ...models.activations import LayerActivations
from ...models.spec import EncoderSpec
from .base import Layers, Objective, WeightLike, register, same_heads

__all__ = ["Relations"]


@register
class Relations(Objective):
    """KL(teacher || student) of the relations of queries, keys or values with themselves, ``softmax(x x^T / sqrt(d))``.

    ``of="v"`` with the models' own heads is MiniLM's value relation (Wang et al., "MiniLM", 2020), ``of="qkv"`` with
    ``heads=48`` is MiniLMv2 (Wang et al., 2021), which re-splits the concatenated heads of each model, so that widths
    and head counts may differ. The value is the sum over the letters of ``of``, each a mean over heads and valid rows.

    Args:
        of: letters out of ``"qkv"``, each once.
        heads: relation heads; must divide both widths. None: the models' own, in equal number.
        layers, weight, schedule, name: see `Objective`; the last layer by default. ``[("last", 20)]`` is the last one
            of the student against the teacher's 21st.
    """

    place = "attention"
    default_name = "relations"

    def __init__(
        self,
        of: str = "qkv",
        *,
        heads: int | None = None,
        layers: Layers = "last",
        weight: WeightLike = 1.0,
        schedule: str = "constant",
        name: str | None = None,
    ) -> None:
        super().__init__(layers=layers, weight=weight, schedule=schedule, name=name)
        if not of or not set(of) <= set("qkv") or len(set(of)) != len(of):
            raise ValueError(f"of: got {of!r}, want letters out of 'qkv', each once")
        if heads is not None and (isinstance(heads, bool) or not isinstance(heads, int) or heads < 1):
            raise ValueError(f"heads: got {heads!r}, want a whole number of 1 or more, or None")
        self.of, self.heads = of, heads
        self.reads = tuple(of)

    def bind(self, student: EncoderSpec, teacher: EncoderSpec | None) -> None:
        super().bind(student, teacher)
        assert teacher is not None
        if self.heads is None:
            same_heads(self.name, student, teacher)
            return
        for role, spec in (("student", student), ("teacher", teacher)):
            assert spec.num_heads is not None and spec.head_dim is not None
            width = spec.num_heads * spec.head_dim
            if width % self.heads or width // self.heads > 256:
                raise ValueError(
                    f"{self.name}: heads: got {self.heads}, want a divisor of the {role}'s width {width}, into 1 to 256"
                )

    def forward(self, student: LayerActivations, teacher: LayerActivations) -> Tensor:
        losses = []
        for letter in self.of:
            s, t = getattr(student, letter), getattr(teacher, letter)
            losses.append(
                ops.relation_kl(
                    s.flatten(1),
                    t.flatten(1),
                    student.cu_seqlens,
                    heads=s.shape[1] if self.heads is None else self.heads,
                    max_seqlen=student.max_seqlen,
                )
            )
        return sum(losses[1:], losses[0])
