"""What a training loop watches without making the device wait: that values are finite, and their means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteLossError


@dataclass(frozen=True)
class _Watched:
    """Values on their way to the host; on CUDA they are there when the event `arrived` has passed."""

    step: int
    names: tuple[str, ...]
    values: Tensor  # float32 [len(names)]
    arrived: torch.cuda.Event | None


class FiniteGuard:
    """Raises NonFiniteLossError when a value it was shown is NaN or infinite.

    On CUDA values travel to pinned memory behind the work that computes them; by the time of the next step they
    have arrived long ago, and looking costs nothing.

    Args:
        last_checkpoint: called for the error's message.
    """

    def __init__(self, last_checkpoint: Callable[[], str | None]) -> None:
        self._last_checkpoint = last_checkpoint
        self._pending: list[_Watched] = []

    def watch(self, values: Mapping[str, Tensor], step: int) -> None:
        """Take note of scalars computed after `step` optimizer steps, for the next `check`.

        Raises:
            NonFiniteLossError: something noted at an earlier step is not finite.
        """
        if self._pending and self._pending[-1].step != step:
            self.check()
        stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        arrived = None
        if stacked.device.type == "cuda":
            host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            stacked = host.copy_(stacked, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append(_Watched(step, tuple(values), stacked, arrived))

    def check(self) -> None:
        """Look at all that was noted.

        Raises:
            NonFiniteLossError: naming what is not finite at the first such step.
        """
        pending, self._pending = self._pending, []
        for seen in pending:
            if seen.arrived is not None:
                seen.arrived.synchronize()
            values = dict(zip(seen.names, seen.values.tolist(), strict=True))
            bad = {name: value for name, value in values.items() if not math.isfinite(value)}
            if len(bad) > 1:
                bad.pop("loss", None)  # the sum is not finite because a part is not: name the part
            if bad:
                raise NonFiniteLossError([*bad], [*bad.values()], seen.step, self._last_checkpoint())

    def forget(self) -> None:
        """Drop what was noted and not looked at."""
        self._pending = []


class RunningMeans:
    """Weighted means of scalars by name; the sums stay on the device until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor], weight: float) -> None:
        """Add one value for every name; over processes the names have to be the same."""
        for name, value in values.items():
            value = value.detach().float() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def take(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The means so far, with one transfer for all of them, and start anew.

        Args:
            reduce: adds a float32 vector up over processes.
        """
        sums, weights = self._sums, self._weights
        self.clear()
        if not sums:
            return {}
        totals = torch.stack(list(sums.values()))
        totals = torch.cat([totals, totals.new_tensor(list(weights.values()))])
        found = (reduce(totals) if reduce is not None else totals).view(2, -1).tolist()
        return {name: total / weight for name, total, weight in zip(sums, *found, strict=True)}

    def clear(self) -> None:
        """Start anew."""
        self._sums, self._weights = {}, {}
