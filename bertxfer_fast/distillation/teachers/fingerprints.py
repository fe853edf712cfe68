"""Fingerprints: by what a store knows a teacher, a tokenizer, its own code, and a row of text again.

All are BLAKE2b digests of 16 bytes. Two things with one fingerprint are the same for everything that is kept here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.collators import Features, collate_inputs
from ...data.loaders import end_to_end, packed_batches
from ...models.encoder import module_of
from ...models.spec import EncoderSpec

__all__ = [
    "DIGEST_BYTES",
    "code_fingerprint",
    "dataset_keys",
    "folder_fingerprint",
    "row_keys",
    "teacher_fingerprint",
    "tokenizer_fingerprint",
]

DIGEST_BYTES = 16

# Of a model's configuration: where it came from and how it is run here, not what it computes.
_NOT_THE_MODEL = {
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "_attn_implementation",
    "dtype",
    "torch_dtype",
    "transformers_version",
}
# Of a tokenizer's state: left behind by its last call.
_NOT_THE_TOKENIZER = ("truncation", "padding")
_CHUNK = 10_000  # rows of a data set that are hashed together


def row_keys(batch: Mapping[str, Any], inputs: Collection[str] = ()) -> NDArray[np.bytes_]:
    """What each sequence of a packed batch is known by: a digest of all that a teacher reads of it.

    Token types and further inputs that are zero throughout a sequence count as left out, which is how models read them.
    On CUDA this waits for the device: the ids come to the host.

    Args:
        batch: packed, see `Encoder.run`.
        inputs: names of what the teacher reads beside text, as far as the batch has it.

    Returns:
        ``[N]``, bytes of length 16.
    """
    lengths = batch["cu_seq_lens_q"].diff().cpu().numpy().astype(np.int64)
    read = ("input_ids", "token_type_ids", *sorted(inputs))
    found = {name: batch[name] for name in read if isinstance(batch.get(name), Tensor)}
    return _keys({name: value[0].detach().cpu().numpy() for name, value in found.items()}, lengths)


def dataset_keys(dataset: Features, inputs: Collection[str] = ()) -> NDArray[np.bytes_]:
    """The keys of all rows of a data set (token features), in its order, as `row_keys` gives them for a batch."""
    rows = range(0, len(dataset), _CHUNK)
    if inputs:
        packs = packed_batches(
            dataset, 1 << 16, torch.device("cpu"), lambda features: collate_inputs(features, inputs=inputs)
        )
        keys = np.empty(len(dataset), f"S{DIGEST_BYTES}")
        for indices, batch in packs:
            keys[indices] = row_keys(batch, inputs)
        return keys
    return np.concatenate([_chunk_keys(dataset, start) for start in rows])


def _chunk_keys(dataset: Features, start: int) -> NDArray[np.bytes_]:
    ids, lengths = end_to_end(dataset, "input_ids", start, start + _CHUNK)
    types, of_types = end_to_end(dataset, "token_type_ids", start, start + _CHUNK)
    found = {"input_ids": ids}
    if np.array_equal(of_types, lengths):
        found["token_type_ids"] = types
    return _keys(found, lengths)


def _keys(values: Mapping[str, NDArray[Any]], lengths: NDArray[np.int64]) -> NDArray[np.bytes_]:
    """Digests of ``values [T, ...]``, cut into rows of these lengths."""
    bounds = np.concatenate([[0], lengths.cumsum()]).tolist()
    ids, *others = (
        (name, np.ascontiguousarray(value, dtype="<f8" if value.dtype.kind == "f" else "<i4"))
        for name, value in values.items()
    )
    marked = [(name.encode(), value) for name, value in others if value.any()]
    digests = []
    for start, stop in itertools.pairwise(bounds):
        digest = hashlib.blake2b(ids[1][start:stop].data, digest_size=DIGEST_BYTES)
        for name, value in marked:
            row = value[start:stop]
            if row.any():
                digest.update(name)
                digest.update(row.data)
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), dtype=f"S{DIGEST_BYTES}")


def teacher_fingerprint(teacher: Any) -> str:
    """Of a teacher's weights and of all else that decides what it computes.

    A teacher that is neither a transformers model nor another ``nn.Module`` says by its own ``fingerprint`` (a text)
    what it is; whoever changes it changes that.

    Raises:
        TypeError: it has neither weights nor a ``fingerprint``.
    """
    own = getattr(teacher, "fingerprint", None)
    if isinstance(own, str):
        return own
    module = module_of(teacher)
    if module is None:
        raise TypeError(
            f"teacher: got {type(teacher).__name__}, want a model, or a source with a fingerprint (a text that changes "
            "whenever its values do)"
        )
    return _module_fingerprint(module)


def _module_fingerprint(module: nn.Module) -> str:
    digest = _digest(type(module).__name__)
    if isinstance(module, PreTrainedModel):
        facts = {k: v for k, v in module.config.to_dict().items() if k not in _NOT_THE_MODEL}
        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    else:
        digest.update(repr(getattr(module, "spec", EncoderSpec)).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def folder_fingerprint(folder: str | Path, loaded_as: str = "") -> str:
    """Of the files that a model directory's weights and configuration are in, so that they need not be loaded.

    Args:
        folder: the directory.
        loaded_as: the class that would load them.
    """
    digest = _digest(f"folder {loaded_as}")
    for file in sorted(Path(folder).iterdir()):
        if file.name == "config.json" or file.suffix in (".safetensors", ".bin", ".pt"):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides which ids a text becomes."""
    digest = _digest("tokenizer")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        for name in _NOT_THE_TOKENIZER:
            state.pop(name, None)
    else:
        state = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab(), **tokenizer.init_kwargs}
    digest.update(json.dumps(state, sort_keys=True, default=str).encode())
    digest.update(json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def code_fingerprint() -> str:
    """Of the code that runs teachers and keeps what they say: the sources of these rooms, and the package's version."""
    digest = _digest("code")
    here = Path(__file__).resolve().parent
    package = here.parent.parent
    for file in [
        package / "__init__.py",
        *sorted((package / "models").rglob("*.py")),
        *sorted(here.glob("*.py")),
    ]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest(start: str) -> Any:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    digest.update(start.encode())
    return digest
