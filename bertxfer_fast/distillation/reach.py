"""Which parameters of a student no objective reaches, and keeping them out of training while a Distiller is bound.

Layers behind an early stop and heads that nobody looks at never get a gradient. As long as they ask for one,
DistributedDataParallel waits for it; so they do not, until the student is released.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.activations import LayerActivations, PackedOutput, Spot, Tap
from ..models.encoder import Encoder, module_of
from .objectives import Objective

__all__ = ["Hold", "looks_of", "tap_of", "unreached"]

logger = logging.getLogger(__name__)


class Hold:
    """Parameters that do not require grad as long as their student is held.

    One hold of a student counts at a time: taking another one gives the parameters of the one before back.

    Args:
        parameters: what is held.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)

    def take(self, student: nn.Module, owner: object) -> None:
        """Hold the parameters until `release_held`, another `take`, or the end of ``owner``."""
        if _held.get(student) is self:
            return
        release_held(student)
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        _held[student] = self
        weakref.finalize(owner, _release, weakref.ref(student), self).atexit = False


_held: weakref.WeakKeyDictionary[nn.Module, Hold] = weakref.WeakKeyDictionary()


def release_held(student: nn.Module) -> None:
    """Let the student's parameters require grad again, as before they were held."""
    hold = _held.pop(student, None)
    if hold is not None:
        for parameter in hold.parameters:
            parameter.requires_grad_(True)


def _release(student: weakref.ref[nn.Module], hold: Hold) -> None:
    module = student()
    if module is not None and _held.get(module) is hold:
        release_held(module)


def unreached(student: Encoder, objectives: Sequence[Objective]) -> list[nn.Parameter]:
    """The student's parameters that require grad and cannot get one from these objectives, which are bound.

    A copy of the student that shares its parameters runs a pack of four tokens, so the student itself sees nothing of
    it. What did not run only because these four tokens did not ask for it, such as another language's adapter, counts
    as reached. So does everything where the copy cannot run.
    """
    module = module_of(student)
    assert module is not None
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        return []
    device = parameters[0].device
    try:
        twin = copy.deepcopy(student, {id(p): p for p in module.parameters()})
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            return _Probe(twin, objectives, device).unreached(parameters)
    except Exception as error:
        # Whatever a model of the user's making raises; if it is a fault, the first batch will raise it too.
        logger.info("no parameter is held back: a pack of four tokens cannot run (%s)", error)
        return []


class _Probe:
    """Runs a copy of the student and follows its graph."""

    def __init__(self, encoder: Encoder, objectives: Sequence[Objective], device: torch.device) -> None:
        self.encoder, self.objectives = encoder, objectives
        module = module_of(encoder)
        assert module is not None
        self.module = module.eval()
        for part in module.modules():
            for hooks in (part._forward_hooks, part._forward_pre_hooks):
                hooks.clear()
        cu_seqlens = torch.tensor([0, 2, 4], dtype=torch.int32, device=device)
        vocabulary = encoder.spec.vocab_size or 1
        self.batch = {
            "input_ids": torch.arange(4, device=device)[None] % vocabulary,
            "position_ids": torch.tensor([[0, 1, 0, 1]], device=device),
            "cu_seq_lens_q": cu_seqlens,
            "cu_seq_lens_k": cu_seqlens,
            "max_length_q": 2,
            "max_length_k": 2,
        }

    def unreached(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        finished: set[nn.Module] = set()
        for part in self.module.modules():
            part.register_forward_hook(lambda module, _args, _out: finished.add(module))
        seen, _ = self._run({match.student for o in self.objectives for match in o.matches}, stop=True)
        read = [_tensors(seen[match.student], o.reads) for o in self.objectives for match in o.matches]
        reached = _leaves([tensor for tensors in read for tensor in tensors])
        if self.encoder is self.module:  # it ran through `run`, not through its forward
            finished.add(self.module)
        inside = {id(p) for part in finished for p in part.parameters()}
        seen, output = self._run(self._all_spots(), stop=False)
        everything = [t for activations in seen.values() for t in _tensors(activations, None)]
        outputs = (output.last_hidden_state, output.logits)
        reachable = _leaves([*everything, *(t for t in outputs if t is not None)])
        missed = [p for p in parameters if id(p) not in reached]
        return [p for p in missed if id(p) in reachable or id(p) not in inside]

    def _all_spots(self) -> set[Spot]:
        spec = self.encoder.spec
        spots: set[Spot] = {("hidden", i) for i in range(spec.num_layers + 1)}
        if spec.num_heads is not None:
            spots |= {("attention", i) for i in range(spec.num_layers)}
        spots |= {("logits", 0)} if spec.head is not None else set()
        return spots | ({("output_layer", 0)} if spec.output_layer else set())

    def _run(self, spots: set[Spot], *, stop: bool) -> tuple[dict[Spot, LayerActivations], PackedOutput]:
        seen: dict[Spot, LayerActivations] = {}

        def keep(activations: LayerActivations) -> None:
            seen[activations.spot] = activations

        return seen, self.encoder.run(self.batch, tap_of(spots, keep, stop=stop))


def tap_of(spots: Iterable[Spot], sink: Callable[[LayerActivations], None], *, stop: bool) -> Tap:
    """A tap that wants these spots."""
    wanted = set(spots)
    attention, hidden = (
        frozenset(index for place, index in wanted if place == kind) for kind in ("attention", "hidden")
    )
    return Tap(sink, attention, hidden, ("logits", 0) in wanted, stop, ("output_layer", 0) in wanted)


def looks_of(objectives: Iterable[Objective]) -> set[tuple[Spot, str | None]]:
    """The teacher's spots that objectives match, each with the pooling through which alone one looks at it."""
    looks = ((match.teacher, getattr(o, "pooling", None)) for o in objectives for match in o.matches)
    return {(spot, pooling) for spot, pooling in looks if spot is not None}


def _tensors(activations: LayerActivations, names: tuple[str, ...] | None) -> list[Tensor]:
    found = (
        getattr(activations, name) for name in names or ("q", "k", "v", "hidden", "weight", "bias", "logits")
    )
    return [tensor for tensor in found if tensor is not None]


def _leaves(roots: Iterable[Tensor]) -> set[int]:
    """Ids of the parameters that a gradient of the roots would flow into."""
    roots = list(roots)
    leaves = {id(root) for root in roots if root.grad_fn is None and root.requires_grad}
    pending: list[Any] = [root.grad_fn for root in roots]
    visited: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        pending += [following for following, _ in node.next_functions]
    return leaves
