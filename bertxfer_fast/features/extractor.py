"""Frozen features: text in, one pooled vector per text out.

The encoder runs on packed batches, only as deep as the layers asked for, and every batch's hidden states are
pooled in one pass and dropped; nothing is kept but the pooled rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..data.collators import INPUTS, collate_inputs
from ..data.empty_rows import check_choice
from ..data.encoding import checked_max_length
from ..data.loaders import packed_batches, sequence_lengths
from ..models.activations import LayerActivations
from ..models.hf.loading import load_model, load_tokenizer, model_folder
from ..models.loans import device_of
from ..models.spec import EncoderSpec
from ..models.stream import TeacherStream
from ..ops import pool_features
from ..ops.pool_features import MODES
from .inputs import Features, check_features, check_ids, check_lengths, check_unpadded, text_windows

OUTPUT_SUFFIXES = (".npy", ".safetensors", ".csv")

# A tokenizer sets its truncation for each call and refuses while another thread reads it.
_tokenizing = threading.Lock()


class FeatureExtractor:
    """Pooled features of a frozen encoder.

    Args:
        model: a transformers encoder (bare or with a head; a head is ignored), or a directory to load one from.
            A model passed in runs in eval mode and is left as it was.
        tokenizer: the model's tokenizer; by default loaded from the directory. Not needed for `extract_ids`.
        layers: hidden states to pool: 0 is the embeddings' output, i the output of layer i, negative counts from
            the end (-1 is the last layer). Duplicates are an error.
        mode: `"mean"`, `"cls"`, `"max"` or `"mean_sqrt"`, as `ops.pool_features`.
        normalize: divide each vector by its L2 norm.
        layer_weights: one number per layer; by default the layers are averaged.
        max_length: longer texts are cut to this many tokens; by default to the smaller of the model's positions and
            the tokenizer's model_max_length, which it may not exceed.
        tokens_per_batch: tokens in a packed batch; memory grows with it, results do not depend on it beyond
            rounding.
        device: where to run; by default where the model is (a loaded one: CUDA if there is one).

    Several threads may extract with one extractor, and it can be copied and pickled.

    Raises:
        ValueError: a layer the model does not have, an unknown mode, a wrong number of layer weights, a
            directory without a tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel | str | Path,
        tokenizer: Any = None,
        *,
        layers: Sequence[int] = (-1,),
        mode: str = "mean",
        normalize: bool = False,
        layer_weights: Sequence[float] | None = None,
        max_length: int | None = None,
        tokens_per_batch: int = 8192,
        device: str | torch.device | None = None,
    ) -> None:
        if isinstance(model, str | Path):
            folder = model_folder(model, "model")
            tokenizer = load_tokenizer(folder) if tokenizer is None else tokenizer
            model = cast(PreTrainedModel, load_model(folder, "AutoModel", "auto")[0])
            device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        if device is not None:
            torch.nn.Module.to(model, device)
        self.model = model
        self.tokenizer = tokenizer
        spec = EncoderSpec.of(self.model)
        self.layers = _resolve_layers(layers, spec.num_layers)
        if mode not in MODES:
            raise ValueError(f"mode: got {mode!r}, want one of {', '.join(MODES)}")
        if layer_weights is not None and len(layer_weights) != len(self.layers):
            raise ValueError(f"layer_weights: got {len(layer_weights)}, want {len(self.layers)} numbers")
        if tokens_per_batch < 1:
            raise ValueError(f"tokens_per_batch: got {tokens_per_batch}, want 1 or more")
        self.max_length = checked_max_length(tokenizer, max_length, positions=spec.max_positions)
        self.mode, self.normalize, self.layer_weights = mode, normalize, layer_weights
        self.tokens_per_batch = tokens_per_batch
        self.dim = spec.hidden_size
        self._stream = TeacherStream(self.model, hidden=self.layers)

    def extract(
        self, texts: Iterable[str], pairs: Sequence[str] | None = None, *, empty_rows: str = "keep"
    ) -> Tensor:
        """Features of `texts` (with `pairs`, of each text and its second text).

        Args:
            texts: a list, tuple, array, Series, generator... of strings. They are tokenised and encoded a window at
                a time, so that of a text nothing but its features is kept.
            pairs: as many, of known length.
            empty_rows: what becomes of a blank text: ``"keep"`` encodes it as it is, special tokens alone;
                ``"zeros"`` gives zeros and ``"skip"`` leaves the row out, both also for None and NaN; ``"error"``
                refuses it. As in `data.encode` and on the command line, where ``"error"`` is the default.

        Returns:
            float32 `[N, D]` on the CPU, rows in input order.

        Raises:
            TypeError: `texts` is a single string or holds something that is not text.
            ValueError: no tokenizer, `pairs` of another length, text that UTF-8 cannot hold, a token that the
                model has no embedding for.
        """
        if self.tokenizer is None:
            raise ValueError("tokenizer: got None, want one to read text (or use extract_ids)")
        check_choice(empty_rows)
        if pairs is not None:
            checked_max_length(self.tokenizer, self.max_length, pair=True)
        # Short texts fill several batches of a window.
        size = max(1024, self.tokens_per_batch // 8)
        blocks, first = [torch.zeros(0, self.dim, dtype=torch.float32)], 0
        for rows, empty in text_windows(texts, pairs, size, empty_rows):
            block = self._extract_window(rows, first)
            if empty_rows == "skip":
                block = block[~torch.tensor(empty)]
            elif empty_rows == "zeros":
                block[torch.tensor(empty)] = 0
            blocks.append(block)
            first += len(rows)
        return torch.cat(blocks)

    def _extract_window(self, rows: Sequence[tuple[str, ...]], first: int) -> Tensor:
        with _tokenizing:
            encoded = self.tokenizer(
                *(list(column) for column in zip(*rows, strict=True)),
                truncation=self.max_length is not None,
                max_length=self.max_length,
                padding=False,
                return_attention_mask=False,
            )
        names = [name for name in INPUTS if name in encoded]
        features = [{name: encoded[name][i] for name in names} for i in range(len(rows))]
        check_ids(features, self._stream.spec, self.tokenizer, "texts", first)
        return self._extract_checked(features)

    def extract_ids(self, features: Features) -> Tensor:
        """Features of texts that are token ids already (`input_ids`, optional `token_type_ids`).

        Args:
            features: a Dataset, or a dict a text; without padding.

        Returns:
            float32 `[N, D]` on the CPU, rows in input order; a text without any token becomes zeros.

        Raises:
            TypeError: something else than token features.
            ValueError: padding, more tokens than positions, ids that the model has no embedding for.
        """
        spec = self._stream.spec
        check_features(features)
        check_unpadded(features, self.tokenizer)
        check_lengths(sequence_lengths(features), spec)
        check_ids(features, spec, self.tokenizer)
        return self._extract_checked(features)

    def _extract_checked(self, features: Features) -> Tensor:
        lengths = sequence_lengths(features)
        rows = torch.zeros(len(lengths), self.dim, dtype=torch.float32)
        # Longest first: not for padding (there is none) but so that batches cost alike.
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        budget, device = self.tokens_per_batch, device_of(self.model)
        with torch.no_grad():
            for indices, batch in packed_batches(features, budget, device, collate_inputs, order):
                rows[indices] = self._pool(batch).float().cpu()
        return rows

    def _pool(self, batch: Mapping[str, Any]) -> Tensor:
        """One packed batch -> `[N, D]`; its hidden states live until the end of this call."""
        hidden: dict[int, Tensor] = {}

        def keep(seen: LayerActivations) -> None:
            assert seen.hidden is not None
            hidden[seen.index] = seen.hidden

        self._stream.stream(batch, keep)
        return pool_features(
            [hidden[layer] for layer in self.layers],
            batch["cu_seq_lens_q"],
            mode=self.mode,
            layer_weights=self.layer_weights,
            normalize=self.normalize,
        )


def _resolve_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Layers as hidden indices 0..num_layers, in the order given (layer_weights follows it)."""
    if not len(layers):
        raise ValueError("layers: got none, want at least one layer")
    resolved = []
    for layer in layers:
        index = layer + num_layers + 1 if layer < 0 else layer
        if not 0 <= index <= num_layers:
            raise ValueError(f"layers: got {layer}, want hidden states 0..{num_layers} (or -1, -2, ...)")
        resolved.append(index)
    if len(set(resolved)) != len(resolved):
        raise ValueError(f"layers: got {list(layers)}, want each layer once")
    return tuple(resolved)


def save_features(features: Tensor, path: str | Path) -> Path:
    """Write `[N, D]` features by the ending of `path`: `.npy`, `.safetensors` (tensor `features`) or `.csv`.

    Raises:
        ValueError: another ending.
    """
    path = Path(path)
    if path.suffix == ".npy":
        np.save(path, features.numpy())
    elif path.suffix == ".safetensors":
        save_file({"features": features.contiguous()}, path)
    elif path.suffix == ".csv":
        header = ",".join(f"f{i}" for i in range(features.shape[1]))
        # 9 significant digits give every float32 back exactly.
        np.savetxt(path, features.numpy(), delimiter=",", fmt="%.9g", header=header, comments="")
    else:
        raise ValueError(f"output: got {path.name!r}, want a name ending in {', '.join(OUTPUT_SUFFIXES)}")
    return path
