"""Frozen features: text in, one pooled vector per text out.

The encoder runs on packed batches, only as deep as the layers asked for, and every batch's hidden states are
pooled in one pass and dropped; nothing is kept but the pooled rows.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from ..data.collators import INPUTS, collate_inputs
from ..data.loaders import packed_batches, sequence_lengths
from ..models.activations import LayerActivations
from ..models.hf.loading import load_tokenizer, model_folder
from ..models.loans import device_of
from ..models.spec import EncoderSpec
from ..models.stream import TeacherStream
from ..ops import pool_features
from ..ops.pool_features import MODES

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
        max_length: longer texts are cut to this many tokens; by default as long as the model has positions.
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
            model = cast(PreTrainedModel, AutoModel.from_pretrained(folder, local_files_only=True))
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
        limit = spec.max_positions
        if max_length is not None and limit is not None and max_length > limit:
            raise ValueError(
                f"max_length: got {max_length}, want at most the {limit} positions of {spec.name}"
            )
        self.max_length = max_length if max_length is not None else limit
        self.mode, self.normalize, self.layer_weights = mode, normalize, layer_weights
        self.tokens_per_batch = tokens_per_batch
        self.dim = spec.hidden_size
        self._stream = TeacherStream(self.model, hidden=self.layers)

    def extract(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """Features of `texts` (with `pairs`, of each text and its second text).

        Returns:
            float32 `[N, D]` on the CPU, rows in input order.

        Raises:
            TypeError: `texts` is a single string or holds something that is not text.
            ValueError: no tokenizer, or `pairs` of another length.
        """
        if self.tokenizer is None:
            raise ValueError("tokenizer: got None, want one to read text (or use extract_ids)")
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts: got {type(texts).__name__}, want a sequence of strings")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"pairs: got {len(pairs)}, want {len(texts)} texts")
        if not len(texts):
            return torch.zeros(0, self.dim, dtype=torch.float32)
        with _tokenizing:
            encoded = self.tokenizer(
                list(texts),
                None if pairs is None else list(pairs),
                truncation=self.max_length is not None,
                max_length=self.max_length,
                padding=False,
                return_attention_mask=False,
            )
        names = [name for name in INPUTS if name in encoded]
        return self.extract_ids([{name: encoded[name][i] for name in names} for i in range(len(texts))])

    def extract_ids(self, features: Sequence[Mapping[str, Any]]) -> Tensor:
        """Features of texts that are token ids already (`input_ids`, optional `token_type_ids`).

        Returns:
            float32 `[N, D]` on the CPU, rows in input order; a text without any token becomes zeros.
        """
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
