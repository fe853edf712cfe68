"""State dicts in which a parameter with several names (tied weights) is there once."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["TiedStates"]


class TiedStates(nn.Module):
    """A module whose ``state_dict`` has every parameter once, under its first name, and that loads such a one."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module, but a parameter with several names (tied weights) is there once, under its first."""
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for tied in self._tied_names():
            state.pop(prefix + tied, None)
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for tied, first in self._tied_names().items():
            if prefix + first in state_dict:
                state_dict.setdefault(prefix + tied, state_dict[prefix + first])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _tied_names(self) -> dict[str, str]:
        """Every further name of a parameter -> its first one."""
        first: dict[int, str] = {}
        names = ((first.setdefault(id(p), n), n) for n, p in self.named_parameters(remove_duplicate=False))
        return {name: known for known, name in names if name != known}
