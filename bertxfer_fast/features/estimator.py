"""What scikit-learn asks of an estimator, without needing it: parameters, clones, tags."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimator", "columns_of"]


class Estimator:
    """An estimator whose constructor stores its arguments and does nothing else.

    Each is kept under its own name; in ``_given`` where that name tells what became of it. ``OLDER`` are older names of
    arguments, which are no parameters.
    """

    OLDER: ClassVar[frozenset[str]] = frozenset()
    _given: dict[str, Any]
    _output: str | None = None

    @classmethod
    def _names(cls) -> list[str]:
        return [name for name in inspect.signature(cls).parameters if name not in cls.OLDER]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name.

        Args:
            deep: there is nothing inside that has parameters of its own.
        """
        return {
            name: self._given[name] if name in self._given else getattr(self, name) for name in self._names()
        }

    def set_params(self, **params: Any) -> Any:
        """Change arguments of the constructor; returns the object itself.

        Raises:
            ValueError: an unknown name (the message names the nearest known one).
        """
        for name in params:
            if name not in self._names():
                raise ValueError(f"set_params: got {name!r}, want one of {', '.join(self._names())}")
        for name, value in params.items():
            if name in self._given:
                self._given[name] = value
            else:
                setattr(self, name, value)
        return self

    def set_output(self, *, transform: str | None = None) -> Any:
        """Choose what `transform` gives; returns the object itself. Needs scikit-learn.

        Args:
            transform: ``"default"`` (an array), ``"pandas"`` or ``"polars"`` (a DataFrame whose columns have the names
                of the features); None leaves it as it is.

        Raises:
            ValueError: something else.
        """
        if transform not in (None, "default", "pandas", "polars"):
            raise ValueError(f"set_output: got {transform!r}, want default, pandas or polars")
        self._output = self._output if transform is None else transform
        return self

    def _contained(self, rows: NDArray[Any], X: Any) -> Any:
        """``rows``, made of `X`, in what `set_output`, or else scikit-learn's configuration, asks for."""
        if self._output is None and sys.modules.get("sklearn") is None:  # nobody can have configured it
            return rows
        return _made()(self, rows).set_output(transform=self._output).transform(X)

    def __sklearn_clone__(self) -> Any:
        """An estimator with the same arguments; models, which are only read, are not copied."""
        return type(self)(**self.get_params()).set_output(transform=self._output)

    def __sklearn_is_fitted__(self) -> bool:
        return True  # nothing is learned from data

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
            requires_fit=False,
        )

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = {
            name: value
            for name, value in self.get_params().items()
            if defaults[name].default is inspect.Parameter.empty or value is not defaults[name].default
        }
        shown = ", ".join(f"{name}={_short(value)}" for name, value in changed.items())
        return f"{type(self).__name__}({shown})"


@functools.cache  # a class refers to itself: one a call would keep models until they are collected
def _made() -> Any:
    """A transformer of scikit-learn's whose rows are made already; its mixin puts them into what is asked for."""
    from sklearn.base import TransformerMixin

    class Made(TransformerMixin):
        def __init__(self, estimator: Any, rows: NDArray[Any]) -> None:
            self.estimator, self.rows = estimator, rows

        def transform(self, X: Any) -> NDArray[Any]:
            return self.rows

        def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
            return self.estimator.get_feature_names_out(input_features)

    return Made


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"<{type(value).__name__}>"


def columns_of(X: Any) -> tuple[Any, list[Any] | None]:
    """Texts, and second texts or None, of what scikit-learn hands over: one column, or two, or a list.

    Raises:
        ValueError: a table with more columns.
    """
    if getattr(X, "ndim", 1) != 2:
        return X, None
    table: NDArray[Any] = np.asarray(X, dtype=object)
    if table.shape[1] not in (1, 2):
        raise ValueError(f"X: got {table.shape[1]} columns, want one of texts, or two of pairs")
    columns = [list(column) for column in table.T]
    return columns[0], columns[1] if len(columns) == 2 else None
