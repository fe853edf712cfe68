"""Features of ragged texts, the mean over tokens of four layers averaged, against transformers on padded batches.

The plain version runs in the order given, "plain sorted" with the longest texts first, as sentence-transformers does,
and "compile" at one length, because every other length would be compiled anew.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bertxfer_fast import FeatureExtractor

from .harness import Problem, compare, compiled, full_or_quick, on_backend
from .inputs import both_dtypes
from .models import TEACHER, bert, padded, ragged_texts, with_attention

BATCHES = full_or_quick([(32, 128), (8, 512)], [(4, 32)])
PER_BATCH = full_or_quick(4, 2)
LAYERS = (-4, -3, -2, -1)


def problem(texts: int, length: int, dtype: torch.dtype) -> Problem:
    model = bert(TEACHER, length).to(dtype).eval()
    features = ragged_texts(texts, length)
    by_length = sorted(features, key=lambda text: -len(text["input_ids"]))
    extractor = FeatureExtractor(with_attention(model, "sdpa"), layers=LAYERS)
    plain = with_attention(model, "sdpa")

    def pooled(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = plain(input_ids, attention_mask, output_hidden_states=True).hidden_states
        mean = torch.stack([hidden[layer] for layer in LAYERS]).mean(0)
        mask = attention_mask[:, :, None].to(mean.dtype)
        return (mean * mask).sum(1) / mask.sum(1)

    @torch.inference_mode()
    def run(rows: list[dict[str, list[int]]], function: Any = pooled, width: int | None = None) -> Tensor:
        batches = (padded(rows[i : i + PER_BATCH], width) for i in range(0, len(rows), PER_BATCH))
        return torch.cat([function(**batch).float() for batch in batches])

    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(extractor.extract_ids(features), run(features), rtol=tolerance, atol=tolerance)
    fast = compiled(pooled, fullgraph=False)
    implementations = {
        "cpp": on_backend("cpp", lambda: extractor.extract_ids(features)),
        "plain": lambda: run(features),
        "plain sorted": lambda: run(by_length),
        "compile": fast and (lambda: run(features, fast, length)),
    }
    return Problem(
        op="extract",
        implementations=implementations,
        shape=f"{texts}x{length}",
        length=length,
        dtype=dtype,
        valid=sum(len(text["input_ids"]) for text in features) / (texts * length),
    )


@both_dtypes
@pytest.mark.parametrize("texts, length", BATCHES)
def test_extract(benchmark: Any, texts: int, length: int, dtype: torch.dtype) -> None:
    compare(benchmark, problem(texts, length, dtype))
