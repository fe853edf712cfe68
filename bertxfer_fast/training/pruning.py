"""Pruning while distilling (HomoDistil, Liang et al., 2023): a student that starts whole is narrowed step by step.

How much a head, a feed-forward column, a layer or a hidden dimension matters is the sum of |weight * gradient| over all
its weights, added up over the steps with older ones fading. The share that stays follows a cubic schedule,
``r + (1 - r) (1 - t)^3`` for t from 0 to 1 between ``start`` and ``end`` of the run; what matters least is masked and
stays so. At the end the masks become a plain smaller model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from ..students.axes import Axes, axes_of
from ..students.parts import parts_of
from ..students.pruning import Kept, facts_and_layers, heads_are_hidden, prune
from ..students.smaller import layer_stack

__all__ = ["STATE_FILE", "Pruning"]

STATE_FILE = "pruning.safetensors"
Key = tuple[str, int]  # a space and the layer, -1 for what all layers share


class Pruning(TrainerCallback):
    """Masks the least important parts of a student while it trains, and makes a plain smaller model at the end.

    Where a head is as wide as the hidden states over the heads (BERT and its kin), fewer heads need fewer hidden
    dimensions: with ``heads`` those are pruned as well, by the same share.

    Args:
        heads, columns, layers: share of the attention heads, the feed-forward columns of each layer and of the layers
            that goes, 0 or more and less than 1; at least one of each stays, and of what has a share above 0 one goes.
        start, end: shares of the run between which it happens.
        fading: what the importance so far is multiplied by at each step.

    Attributes:
        result: the plain smaller model, once the training has ended.

    Raises:
        ValueError: shares or a schedule out of range.
    """

    def __init__(
        self,
        heads: float = 0.0,
        columns: float = 0.0,
        layers: float = 0.0,
        *,
        start: float = 0.1,
        end: float = 0.7,
        fading: float = 0.95,
    ) -> None:
        for name, share in (("heads", heads), ("columns", columns), ("layers", layers)):
            if not 0 <= share < 1:
                raise ValueError(f"prune_{name}: got {share}, want 0 or more and less than 1")
        if not 0 <= start < end <= 1:
            raise ValueError(f"prune_start: got {start} with prune_end={end}, want 0 <= start < end <= 1")
        if not 0 <= fading <= 1:
            raise ValueError(f"fading: got {fading}, want 0 to 1")
        self.shares = {"heads": heads, "columns": columns, "layers": layers}
        self.start, self.end, self.fading = start, end, fading
        self.result: PreTrainedModel | None = None
        self._masks: _Masks | None = None
        self._loaded: dict[str, Tensor] | None = None

    def check(self, student: PreTrainedModel) -> PreTrainedModel:
        """A model of the sizes that a student will end with, whatever its weights.

        Raises:
            ValueError: the student cannot be pruned like this.
        """
        masks = _Masks(student, self.shares)
        masks.choose(0.0)
        return masks.pruned()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Begin with everything, or with what `load` read.

        Raises:
            ValueError: a student that was pruned before, or that cannot be.
        """
        if self.result is not None and getattr(model, "student", None) is self.result:
            raise ValueError("student: got one that this Distiller pruned, want a new Distiller of it")
        self.release()
        self.result = None
        self._masks = _Masks(getattr(model, "student", model), self.shares)
        if self._loaded is not None:
            self._masks.load_state_dict(self._loaded)
            self._loaded = None
        self._masks.install()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add up importance while the gradients are there."""
        assert self._masks is not None
        self._masks.weigh(self.fading)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mask as much as the schedule says; what is masked stays 0, whatever the optimizer's momentum wants."""
        assert self._masks is not None
        self._masks.choose(self.kept_at((state.global_step + 1) / max(state.max_steps, 1)))
        self._masks.zero()

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Make the smaller model, and let it stand for the student in a Distiller.

        The Distiller still evaluates the masked student, whose sizes its objectives know, until `release`.
        """
        assert self._masks is not None
        self._masks.choose(0.0)
        self._masks.zero()
        self.result = self._masks.pruned()
        if getattr(model, "student", None) is self._masks.student:
            model.student = self.result
            self._masks.student.eval()  # no mode reaches it any more

    def kept_at(self, progress: float) -> float:
        """The part that is still there of what will go, 1 to 0, at a share of the run."""
        done = min(max((progress - self.start) / (self.end - self.start), 0.0), 1.0)
        return (1.0 - done) ** 3

    def save(self, folder: str | Path) -> None:
        """Write masks and importance beside a checkpoint."""
        if self._masks is not None and self.result is None:
            save_file(self._masks.state_dict(), Path(folder) / STATE_FILE)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote, for the training that begins next.

        Raises:
            ValueError: there is none.
        """
        file = Path(folder) / STATE_FILE
        if not file.is_file():
            raise ValueError(f"folder: got {folder} without {STATE_FILE}, want that of a run that prunes")
        self._loaded = load_file(file)

    def release(self) -> None:
        """Take the masks off the student. What they zeroed stays 0."""
        if self._masks is not None:
            self._masks.remove()
        self._masks = None


class _Masks:
    """What of a student still counts, how important it was, and the hooks that mask what zeros alone do not."""

    def __init__(self, student: PreTrainedModel, shares: dict[str, float]) -> None:
        parts_of(student)  # says what is no transformers model
        self.student, self.shares = student, shares
        self.axes: Axes = axes_of(student)
        self.facts, self.layers = facts_and_layers(student)
        self.stack = layer_stack(student)
        self.coupled = shares["heads"] > 0 and heads_are_hidden(student)
        self._handles: list[Any] = []
        depth, heads = self.facts.num_layers, cast(int, self.facts.num_heads)
        sizes: dict[Key, int] = {}
        if shares["heads"]:
            sizes |= {("heads", layer): heads for layer in range(depth)}
        if shares["columns"]:
            if self.facts.intermediate_size is None:
                raise ValueError(
                    f"prune_columns: got {shares['columns']}, want 0: {self.facts.name} has no such width"
                )
            sizes |= {("columns", layer): self.facts.intermediate_size for layer in range(depth)}
        if shares["layers"]:
            sizes["layers", -1] = depth
        if self.coupled:
            sizes["hidden", -1] = self.facts.hidden_size
            if any("pooled" in self._spaces(name) for name in self.axes.spaces):
                sizes["pooled", -1] = self.facts.hidden_size
        device = student.device
        self.alive = {key: torch.ones(size, dtype=torch.bool, device=device) for key, size in sizes.items()}
        self.importance = {key: torch.zeros(size, device=device) for key, size in sizes.items()}
        self.counts = {key: self._final(key[0], size) for key, size in sizes.items()}
        self._check_shares(sizes)
        # Numbers of what is masked and what is not; without them every step would wait for the device to count.
        self._dead: dict[Key, Tensor] = {}
        self._kept: dict[Key, Tensor] = {}
        self._skipped: set[int] = set()
        # A first layer of another make (ModernBERT's has no norm before attention) fits no other place.
        makes = [{name for name, _ in layer.named_parameters()} for layer in self.layers]
        self._first_stays = any(make != makes[0] for make in makes)
        self._check_norms()

    def _final(self, space: str, size: int) -> int:
        """How many stay in the end."""
        share = self.shares["heads" if space in ("hidden", "pooled") else space]
        if space in ("hidden", "pooled"):
            return self._final("heads", cast(int, self.facts.num_heads)) * cast(int, self.facts.head_dim)
        return max(1, round(size * (1 - share)))

    def _check_shares(self, sizes: dict[Key, int]) -> None:
        for key, size in sizes.items():  # heads come before the hidden dimensions, whose share is theirs
            if self.counts[key] == size:
                raise ValueError(
                    f"prune_{key[0]}: got {self.shares[key[0]]} of the {size} {key[0]} of {self.facts.name}, which is "
                    "none, want 0 or a share that takes one and leaves one"
                )

    # ---- what a parameter's entries belong to

    def _spaces(self, name: str) -> tuple[str | None, ...]:
        same = {"pooled": "hidden"} if self.axes.pooled_is_hidden else {}
        return tuple(same.get(str(space), space) for space in self.axes.spaces[name])

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter, int | None]]:
        """(name, parameter, its layer)."""
        for name, parameter in self.student.named_parameters():
            inside = name.startswith(self.stack)
            layer = int(name.removeprefix(self.stack).partition(".")[0]) if inside else None
            yield name, parameter, layer

    def _axes(self, name: str, layer: int | None) -> Iterator[tuple[int, Key, int, int]]:
        """(axis, key, blocks, entries of one) of the axes of a parameter that are pruned."""
        for axis, space in enumerate(self._spaces(name)):
            key = (str(space), -1 if space in ("hidden", "pooled") or layer is None else layer)
            if key in self.alive:
                width = cast(int, self.facts.head_dim) if space == "heads" else 1
                yield axis, key, self.axes.blocks.get((name, axis), 1), width

    @torch.no_grad()
    def weigh(self, fading: float) -> None:
        """Add |weight * gradient| to the importance.

        Of a step with gradients that are not finite nothing counts: a loss scaler leaves it out, too.
        """
        added = {key: torch.zeros_like(importance) for key, importance in self.importance.items()}
        for name, parameter, layer in self._parameters():
            if parameter.grad is None:
                continue
            products = (parameter * parameter.grad).abs().float()
            for axis, key, blocks, width in self._axes(name, layer):
                along = products.movedim(axis, 0).flatten(1) if products.ndim > 1 else products[:, None]
                added[key] += along.reshape(blocks, -1, width * along.shape[1]).sum((0, 2))
            if layer is not None and ("layers", -1) in added:
                added["layers", -1][layer] += products.sum()
        # Asked on the device: the host would wait for it at every step.
        finite = torch.stack([value.isfinite().all() for value in added.values()]).all()
        for key, importance in self.importance.items():
            importance.copy_(torch.where(finite, fading * importance + added[key], importance))

    @torch.no_grad()
    def choose(self, left: float) -> None:
        """Mask the least important, down to the final counts and ``left``, 0 to 1, of what goes."""
        for key, alive in self.alive.items():
            count = self.counts[key] + round(left * (len(alive) - self.counts[key]))
            before = len(self._kept[key]) if key in self._kept else len(alive)
            if before <= count:
                continue
            importance = self.importance[key].clone()
            if key[0] == "layers" and self._first_stays:
                importance[0] = torch.inf
            importance[~alive] = -torch.inf
            # Of equally important ones the first stay: a stable sort is the same everywhere.
            order = importance.sort(descending=True, stable=True).indices
            alive.zero_()
            alive[order[:count]] = True
            self._number(key)

    def _number(self, key: Key) -> None:
        self._kept[key] = self.alive[key].nonzero().flatten()
        if key[0] == "layers":
            self._skipped = set((~self.alive[key]).nonzero().flatten().tolist())
        self._dead[key] = (~self.alive[key]).nonzero().flatten()

    @torch.no_grad()
    def zero(self) -> None:
        """Zero the weights of all that is masked."""
        for name, parameter, layer in self._parameters():
            for axis, key, blocks, width in self._axes(name, layer):
                if key not in self._dead:
                    continue
                inside = (
                    self._dead[key][:, None] * width + torch.arange(width, device=parameter.device)
                ).flatten()
                starts = torch.arange(blocks, device=parameter.device)[:, None] * (
                    len(self.alive[key]) * width
                )
                parameter.index_fill_(axis, (starts + inside).flatten(), 0.0)

    def pruned(self) -> PreTrainedModel:
        """The plain model of what is not masked."""
        return prune(self.student, self.kept(), axes=self.axes)

    def kept(self) -> Kept:
        """The numbers of what still counts."""

        def numbers(space: str, layer: int = -1) -> list[int]:
            return self.alive[space, layer].nonzero().flatten().tolist()

        depth = range(self.facts.num_layers)
        return Kept(
            heads=[numbers("heads", i) for i in depth] if ("heads", 0) in self.alive else None,
            columns=[numbers("columns", i) for i in depth] if ("columns", 0) in self.alive else None,
            layers=numbers("layers") if ("layers", -1) in self.alive else None,
            hidden=numbers("hidden") if self.coupled else None,
            pooled=numbers("pooled") if ("pooled", -1) in self.alive else None,
        )

    # ---- hooks: a norm that counts what is left alone, a layer that is not there

    def install(self) -> None:
        """Put the hooks on."""
        for norm, key in self._norms():
            self._handles.append(norm.register_forward_hook(self._norm_of_kept(key)))
        if ("layers", -1) in self.alive:
            for number, layer in enumerate(self.layers):
                self._handles.append(layer.register_forward_hook(self._skip(number), with_kwargs=True))

    def remove(self) -> None:
        """Take them off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _norms(self) -> Iterator[tuple[nn.Module, Key]]:
        """The modules that normalise over hidden dimensions, where those are pruned."""
        for name, spaces in self.axes.spaces.items():
            module, _, own = name.rpartition(".")
            space = self._spaces(name)[0] if spaces else None
            if self.coupled and own == "weight" and len(spaces) == 1 and (str(space), -1) in self.alive:
                yield self.student.get_submodule(module), (str(space), -1)

    def _check_norms(self) -> None:
        for norm, _ in self._norms():
            if not isinstance(norm, nn.LayerNorm):
                raise ValueError(
                    f"prune_heads: got {self.shares['heads']} for {self.facts.name}, whose norms are "
                    f"{type(norm).__name__}, want 0: fewer heads need narrower hidden states, and only LayerNorm can "
                    "count a part of them"
                )

    def _norm_of_kept(self, key: Key) -> Callable[..., Tensor | None]:
        def hook(norm: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            kept = self._kept.get(key)
            if kept is None:
                return None
            bias = None if norm.bias is None else norm.bias[kept]
            normed = F.layer_norm(args[0][..., kept], (len(kept),), norm.weight[kept], bias, norm.eps)
            return torch.zeros_like(output).index_copy(-1, kept, normed.to(output.dtype))

        return hook

    def _skip(self, number: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if number not in self._skipped:
                return None
            read = args[0] if args else kwargs["hidden_states"]
            return (read, *output[1:]) if isinstance(output, tuple) else read

        return hook

    # ---- checkpoints

    def state_dict(self) -> dict[str, Tensor]:
        """Masks and importance by name."""
        kinds = {"alive": self.alive, "importance": self.importance}
        return {
            f"{kind}.{space}.{layer}": value.detach().cpu().contiguous()
            for kind, values in kinds.items()
            for (space, layer), value in values.items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take them over.

        Raises:
            ValueError: they are of another student or other shares.
        """
        mine = self.state_dict()
        if {name: value.shape for name, value in mine.items()} != {
            name: v.shape for name, v in state.items()
        }:
            raise ValueError(f"folder: got {STATE_FILE} of another pruning, want that of this one")
        for kind, values in (("alive", self.alive), ("importance", self.importance)):
            for (space, layer), value in values.items():
                value.copy_(state[f"{kind}.{space}.{layer}"])
        for key, alive in self.alive.items():
            if not alive.all():
                self._number(key)
