"""Frozen features: text in, one pooled vector per text out.

The encoder runs on packed batches, only as deep as the layers asked for, and every batch's hidden states are
pooled in one pass and dropped; nothing is kept but the pooled rows.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from ..data.empty_rows import check_choice
from ..data.encoding import checked_max_length
from ..data.loaders import sequence_lengths
from ..models.encoder import Encoder
from .cache import FeatureCache
from .estimator import Estimator, columns_of
from .inputs import Features, Rows, check_features, check_ids, check_lengths, check_unpadded, text_windows
from .loaded import Loaded, loaded
from .ready import Ready, features_of_rows, longest_first, pooled, tokenizing
from .tokens import rows_of, token_rows
from .views import View, view_of


class FeatureExtractor(Estimator):
    """Pooled features of a frozen encoder: a transformer in scikit-learn's sense, which need not be installed.

    ``make_pipeline(FeatureExtractor(path), MLPClassifier())`` is a text classifier. The constructor only stores its
    arguments; they are checked and the model is loaded at `fit` or first use. Extractors of one directory share one
    model in a process, and clones share the objects they were given.

    Args:
        model: a transformers encoder (bare or with a head; a head is ignored), another `Encoder`, or a directory to
            load one from. A model passed in runs in eval mode and is left as it was.
        tokenizer: the model's tokenizer; by default loaded from the directory. Not needed for `extract_ids`.
        layers: hidden states to pool: 0 is the embeddings' output, i the output of layer i, negative counts from
            the end (-1 is the last layer). A number or several; duplicates are an error.
        pooling: `"mean"`, `"cls"`, `"max"` or `"mean_sqrt"`, as `ops.pool_features`.
        combine: what becomes of several layers: `"average"` (then pooled, as `ops.pool_features`), or `"concat"`
            (each pooled, side by side).
        normalize: divide each vector by its L2 norm.
        layer_weights: one number per layer; by default 1 / layers, or 1 where they are put side by side.
        max_length: longer texts are cut to this many tokens; by default to the smaller of the model's positions and
            the tokenizer's model_max_length, which it may not exceed.
        tokens_per_batch: tokens in a packed batch; memory grows with it, results do not depend on it beyond
            rounding.
        empty_rows: what becomes of a blank text: ``"keep"`` encodes it as it is, special tokens alone;
            ``"zeros"`` gives zeros and ``"skip"`` leaves the row out, both also for None and NaN; ``"error"``
            refuses it. As in `data.encode` and on the command line, where ``"error"`` is the default.
        device: where to run; by default where the model is (a loaded one: CUDA if there is one).
        cache: a `FeatureCache` that keeps the features of texts for later calls.
        mode: the older name of `pooling`. Deprecated.

    Attributes:
        model: the module that runs; one that was given as a directory is loaded.
        tokenizer: the tokenizer, loaded in the same way; None where there is none.

    Several threads may extract with one extractor. It can be pickled, and `copy.deepcopy` gives one with a model of its
    own.

    Raises:
        TypeError, ValueError: at `fit` or first use: a layer the model does not have, an unknown choice, a wrong
            number of layer weights, a directory without a tokenizer.
    """

    OLDER: ClassVar[frozenset[str]] = frozenset({"mode"})
    _loaded: tuple[Any, Loaded] | None = None

    def __init__(
        self,
        model: PreTrainedModel | Encoder | str | Path,
        tokenizer: Any = None,
        *,
        layers: int | Sequence[int] = (-1,),
        pooling: str = "mean",
        combine: str = "average",
        normalize: bool = False,
        layer_weights: Sequence[float] | None = None,
        max_length: int | None = None,
        tokens_per_batch: int = 8192,
        empty_rows: str = "keep",
        device: str | torch.device | None = None,
        cache: FeatureCache | None = None,
        mode: str | None = None,
    ) -> None:
        if mode is not None:
            warnings.warn(f"mode={mode!r} is now called pooling={mode!r}", DeprecationWarning, stacklevel=2)
            pooling = mode
        self._given = {"model": model, "tokenizer": tokenizer}
        self.layers = layers
        self.pooling = pooling
        self.combine = combine
        self.normalize = normalize
        self.layer_weights = layer_weights
        self.max_length = max_length
        self.tokens_per_batch = tokens_per_batch
        self.empty_rows = empty_rows
        self.device = device
        self.cache = cache

    @property
    def model(self) -> Any:
        return self._source().model

    @property
    def tokenizer(self) -> Any:
        return self._source().tokenizer

    def _source(self) -> Loaded:
        """The model and its tokenizer as they were given last, loaded."""
        given = (self._given["model"], self._given["tokenizer"], self.device)
        if self._loaded is None or any(a is not b for a, b in zip(self._loaded[0], given, strict=True)):
            self._loaded = given, loaded(*given)
        return self._loaded[1]

    def load(self) -> Ready:
        """Load the model, unless it is there, and check the arguments as they are now.

        Raises:
            TypeError, ValueError: as the class says.
        """
        if self.tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch: got {self.tokens_per_batch}, want 1 or more")
        check_choice(self.empty_rows)
        source, weights = self._source(), self.layer_weights
        view = view_of(
            source.spec.num_layers, self.layers, self.pooling, self.combine, weights, self.normalize
        )
        longest = checked_max_length(source.tokenizer, self.max_length, positions=source.spec.max_positions)
        return Ready(source, view, longest, self.tokens_per_batch)

    # ---- scikit-learn's names ---------------------------------------------------------------------------------

    def fit(self, X: Any = None, y: Any = None) -> FeatureExtractor:
        """Load the model and check the arguments. Nothing is learned from `X` and `y`.

        Raises:
            TypeError, ValueError: as the class says.
        """
        self.load()
        return self

    def transform(self, X: Any) -> Any:
        """Features of texts.

        Args:
            X: an iterable of texts, or a table (array, DataFrame) with one column of texts or two of pairs.

        Returns:
            float32 `[N, D]`, rows in input order; an array, or what `set_output` asks for.

        Raises:
            TypeError, ValueError: as `extract`; ``empty_rows="skip"``, which would part rows from their labels.
        """
        if self.empty_rows == "skip":
            raise ValueError(
                "empty_rows: got 'skip', want error, zeros or keep: a transformer keeps every row"
            )
        texts, pairs = columns_of(X)
        return self._contained(self.extract(texts, pairs).numpy(), X)

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """`fit`, then `transform`."""
        return self.fit(X, y).transform(X)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Names of the features, such as `mean_layer3_17` or `mean_layers2+3_17`; loads the model.

        Args:
            input_features: names of the columns of text, not used.
        """
        ready = self.load()
        width, layers = ready.spec.hidden_size, ready.layers
        groups = [[layer] for layer in layers] if self.combine == "concat" else [layers]
        return np.array(
            [
                f"{self.pooling}_layer{'s' if len(group) > 1 else ''}{'+'.join(map(str, group))}_{i}"
                for group in groups
                for i in range(width)
            ],
            dtype=object,
        )

    # ---- features ---------------------------------------------------------------------------------------------

    def extract(
        self, texts: Iterable[str], pairs: Sequence[str] | None = None, *, empty_rows: str | None = None
    ) -> Tensor:
        """Features of `texts` (with `pairs`, of each text and its second text).

        Args:
            texts: a list, tuple, array, Series, generator... of strings. They are tokenised and encoded a window at
                a time, so that of a text nothing but its features is kept.
            pairs: as many, of known length.
            empty_rows: instead of the extractor's own.

        Returns:
            float32 `[N, D]` on the CPU, rows in input order.

        Raises:
            TypeError: `texts` is a single string or holds something that is not text.
            ValueError: no tokenizer, `pairs` of another length, text that UTF-8 cannot hold, a token that the
                model has no embedding for.
        """
        ready = self._ready_for_text(pairs is not None)
        return self._of_texts(ready, [ready.view], texts, pairs, empty_rows)[0]

    def extract_layers(
        self, texts: Iterable[str], pairs: Sequence[str] | None = None, *, empty_rows: str | None = None
    ) -> Tensor:
        """Every layer pooled by itself, all in one pass of the encoder; the rest as in `extract`.

        Returns:
            float32 `[N, layers, D]` on the CPU, layers in the order of `layers`; `layer_weights` are not applied.
        """
        ready = self._ready_for_text(pairs is not None)
        views = [View((layer,), self.pooling, normalize=bool(self.normalize)) for layer in ready.layers]
        return torch.stack(self._of_texts(ready, views, texts, pairs, empty_rows), 1)

    def extract_ids(self, features: Features) -> Tensor:
        """Features of texts that are token ids already (`input_ids`, optional `token_type_ids`, further inputs).

        Args:
            features: a Dataset, or a dict a text; without padding. What the model reads beside text (`bbox`) is
                taken from it, too.

        Returns:
            float32 `[N, D]` on the CPU, rows in input order; a text without any token becomes zeros.

        Raises:
            TypeError: something else than token features.
            ValueError: padding, more tokens than positions, ids that the model has no embedding for.
        """
        ready = self.load()
        check_features(features)
        check_unpadded(features, ready.tokenizer)
        check_lengths(sequence_lengths(features), ready.spec)
        check_ids(features, ready.spec, ready.tokenizer)
        return pooled(ready, features, [ready.view])[0]

    def token_features(
        self, texts: Iterable[str | Sequence[str]], *, words: str | None = None, special_tokens: bool = True
    ) -> list[Tensor]:
        """Hidden states of every token, or of every word; several layers combined as `combine` says.

        Args:
            texts: strings, or lists of words.
            words: None: a row a token. ``"first"`` or ``"mean"``: a row a word, its first piece or the mean of its
                pieces; needs a fast tokenizer. The words of a list have a row each (zeros for one that was cut off or
                has no piece); those of a string are the tokenizer's own.
            special_tokens: whether special tokens have rows, where rows are tokens.

        Returns:
            float32 `[l, D]` for each text, on the CPU; `pooling` and `normalize` are not applied.

        Raises:
            TypeError: something that holds no texts.
            ValueError: as `extract`; words of a tokenizer that does not tell them.
        """
        ready = self._ready_for_text(False)
        with tokenizing:
            features, spans = token_rows(ready.tokenizer, texts, ready.max_length, words, special_tokens)
        check_ids(features, ready.spec, ready.tokenizer, "texts")
        found = [torch.zeros(span.rows, ready.dim, dtype=torch.float32) for span in spans]
        layers = frozenset(ready.layers)
        for indices, hidden, cu_seqlens in ready.source.hidden_states(
            features, layers, ready.tokens_per_batch, longest_first(features)
        ):
            of_pack = [spans[i] for i in indices]
            for i, rows in zip(
                indices, rows_of(ready.view, of_pack, hidden, cu_seqlens.tolist()[:-1]), strict=True
            ):
                found[i] = rows
        return found

    def _ready_for_text(self, pair: bool) -> Ready:
        ready = self.load()
        if ready.tokenizer is None:
            raise ValueError("tokenizer: got None, want one to read text (or use extract_ids)")
        if pair:
            checked_max_length(ready.tokenizer, ready.max_length, pair=True)
        return ready

    def _of_texts(
        self,
        ready: Ready,
        views: list[View],
        texts: Iterable[str],
        pairs: Sequence[str] | None,
        empty_rows: str | None,
    ) -> list[Tensor]:
        """``[N, dim]`` for each view."""
        empty_rows = self.empty_rows if empty_rows is None else empty_rows
        check_choice(empty_rows)
        # Short texts fill several batches of a window.
        size = max(1024, ready.tokens_per_batch // 8)
        blocks = [[torch.zeros(0, view.dim(ready.spec.hidden_size), dtype=torch.float32)] for view in views]
        first = 0
        for rows, empty in text_windows(texts, pairs, size, empty_rows):
            for into, block in zip(blocks, self._window(ready, views, rows, first), strict=True):
                if empty_rows == "skip":
                    block = block[~torch.tensor(empty)]
                elif empty_rows == "zeros":
                    block[torch.tensor(empty)] = 0
                into.append(block)
            first += len(rows)
        return [torch.cat(parts) for parts in blocks]

    def _window(self, ready: Ready, views: list[View], rows: Rows, first: int) -> list[Tensor]:
        if self.cache is None:
            return features_of_rows(ready, views, rows, [first + i for i in range(len(rows))])
        found = []
        source = ready.source
        key = (self.cache.owner(source.model, source.tokenizer), ready.max_length, source.version)
        for view in views:
            wanted = self.cache.views(view, source.spec.num_layers)
            gone = self.cache.missing(key, wanted, rows)
            fresh = features_of_rows(ready, wanted, [rows[i] for i in gone], [first + i for i in gone])
            self.cache.store(key, wanted, [rows[i] for i in gone], fresh)
            found.append(self.cache.look_up(key, view, rows, dict(zip(gone, fresh[0], strict=True))))
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        # A model from a directory is loaded again, where the copy is.
        return functools.partial(type(self), **self.get_params()), (), {"_output": self._output}

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureExtractor:
        copied = type(self)(**{**self.get_params(), "cache": None})
        if self._loaded is not None:
            given, source = copy.deepcopy(self._loaded, memo)
            copied._given, copied.device = {"model": given[0], "tokenizer": given[1]}, given[2]
            copied._loaded = given, source
        copied.cache = self.cache
        return copied.set_output(transform=self._output)
