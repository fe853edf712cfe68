"""Packing: what is laid end to end comes back, budgets hold, and resumed training meets the same packs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening

from bertxfer_fast.data.collators import collate_inputs
from bertxfer_fast.packing import PackingCollator, TokenBudgetBatchSampler, cu_seqlens_of, pack, unpack

quick = settings(deadline=None, max_examples=60)


# Padded <-> packed


@quick
@given(
    rows=st.integers(0, 5), width=st.integers(0, 7), inner=st.sampled_from([(), (3,), (2, 3)]), data=st.data()
)
def test_pack_takes_the_marked_tokens_in_order_and_unpack_puts_them_left(rows, width, inner, data):
    marks = data.draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))
    mask = torch.tensor(marks, dtype=torch.bool).view(rows, width)
    padded = torch.randn(rows, width, *inner)

    packed, cu_seqlens, max_seqlen = pack(padded, mask.long())
    expected = [padded[b][mask[b]] for b in range(rows)]

    assert packed.shape[1:] == padded.shape[2:]
    assert cu_seqlens.dtype == torch.int32
    assert cu_seqlens.tolist() == np.cumsum([0, *(len(e) for e in expected)]).tolist()
    assert max_seqlen == max((len(e) for e in expected), default=0)
    for b, tokens in enumerate(expected):
        assert torch.equal(packed[cu_seqlens[b] : cu_seqlens[b + 1]], tokens)

    again = unpack(packed, cu_seqlens, max_seqlen + 1, value=-7)
    assert again.shape == (rows, max_seqlen + 1, *inner)
    for b, tokens in enumerate(expected):
        assert torch.equal(again[b, : len(tokens)], tokens)
        assert (again[b, len(tokens) :] == -7).all()


def test_pack_and_unpack_pass_exact_gradients():
    mask = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 1]])
    padded = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    cu_seqlens = cu_seqlens_of(mask.sum(1))
    assert torch.autograd.gradcheck(lambda x: pack(x, mask)[0], padded)
    assert torch.autograd.gradcheck(lambda x: unpack(x, cu_seqlens), packed)
    assert torch.autograd.gradcheck(lambda x: unpack(pack(x, mask)[0], cu_seqlens), padded)


def test_pack_takes_strided_input_and_keeps_dtype():
    fused = torch.randn(2, 4, 3, 5, dtype=torch.bfloat16)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.uint8)
    packed, _, _ = pack(fused[:, :, 1], mask)
    assert packed.dtype == torch.bfloat16
    assert torch.equal(packed, fused[:, :, 1][mask.bool()])


@pytest.mark.parametrize(
    ("padded", "mask", "error", "named"),
    [
        (
            torch.zeros(2, 3),
            torch.zeros(2, 3),
            TypeError,
            "attention_mask: got torch.float32, want bool or integer",
        ),
        (torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool), ValueError, r"\[2, 4\].*\[2, 3\]"),
        (
            torch.zeros(6),
            torch.ones(6, dtype=torch.bool),
            ValueError,
            r"attention_mask: got \[6\], want \[B, L\]",
        ),
        (torch.zeros(2, 3, device="meta"), torch.ones(2, 3, dtype=torch.bool), ValueError, "cpu.*meta"),
    ],
)
def test_pack_names_what_is_wrong(padded, mask, error, named):
    with pytest.raises(error, match=named):
        pack(padded, mask)


@pytest.mark.parametrize(
    ("cu_seqlens", "max_seqlen", "error", "named"),
    [
        ([0, 2, 5], None, ValueError, "got 0 to 5, want 0 to T = 4"),
        ([1, 2, 4], None, ValueError, "got 1 to 4"),
        ([0, 3, 2, 4], None, ValueError, "got a step of -1, want numbers that never descend"),
        ([0, 1, 4], 2, ValueError, "max_seqlen: got 2, want at least the longest sequence, 3"),
        ([], None, ValueError, r"cu_seqlens: got shape \[0\], want \[N\+1\]"),
        ([0.0, 4.0], None, TypeError, "cu_seqlens: got torch.float32, want int32 or int64"),
    ],
)
def test_unpack_refuses_boundaries_that_do_not_fit(cu_seqlens, max_seqlen, error, named):
    bounds = torch.tensor(cu_seqlens, dtype=None if cu_seqlens else torch.int32)
    with pytest.raises(error, match=named):
        unpack(torch.zeros(4, 2), bounds, max_seqlen)


def test_cu_seqlens_of():
    assert cu_seqlens_of([3, 0, 2]).tolist() == [0, 3, 3, 5]
    assert cu_seqlens_of([]).tolist() == [0]
    assert cu_seqlens_of(torch.tensor([1, 2], dtype=torch.uint8)).dtype == torch.int32
    with pytest.raises(ValueError, match="lengths: got -1, want numbers >= 0"):
        cu_seqlens_of([2, -1])
    with pytest.raises(TypeError, match=r"lengths: got torch.float32, want integers"):
        cu_seqlens_of([1.5])
    with pytest.raises(ValueError, match="want at most 2147483647"):
        cu_seqlens_of([2**30, 2**30])
    with pytest.raises(ValueError, match=r"lengths: got shape .*, want \[N\]"):
        cu_seqlens_of(torch.ones(2, 2, dtype=torch.int64))


# The sampler

lengths_lists = st.lists(st.integers(1, 40), min_size=1, max_size=120)


def at_epoch(sampler: TokenBudgetBatchSampler, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


@quick
@given(
    lengths=lengths_lists,
    room=st.integers(0, 60),
    max_sequences=st.none() | st.integers(1, 5),
    bucket=st.none() | st.integers(1, 50),
    shuffle=st.booleans(),
)
def test_every_epoch_deals_every_sequence_once_within_the_budget(
    lengths, room, max_sequences, bucket, shuffle
):
    max_tokens = max(lengths) + room
    sampler = TokenBudgetBatchSampler(
        lengths, max_tokens, shuffle=shuffle, seed=3, max_sequences=max_sequences, bucket=bucket
    )
    for epoch in range(3):
        packs = at_epoch(sampler, epoch)
        assert len(packs) == len(sampler)
        assert sorted(i for p in packs for i in p) == list(range(len(lengths)))
        for p in packs:
            assert p
            assert sum(lengths[i] for i in p) <= max_tokens
            assert max_sequences is None or len(p) <= max_sequences


@quick
@given(lengths=lengths_lists, max_sequences=st.none() | st.integers(1, 5), shuffle=st.booleans())
def test_drop_last_leaves_out_at_most_the_one_pack_that_is_not_full(lengths, max_sequences, shuffle):
    def packs(drop_last: bool) -> list[list[int]]:
        return list(
            TokenBudgetBatchSampler(
                lengths, 40, shuffle=shuffle, max_sequences=max_sequences, drop_last=drop_last
            )
        )

    every, kept = sorted(packs(False)), sorted(packs(True))
    dropped = [p for p in every if p not in kept]
    assert len(every) - len(kept) == len(dropped) <= 1
    for p in dropped:
        assert sum(lengths[i] for i in p) < 40
        assert len(p) != max_sequences


def test_without_shuffle_packs_are_runs_in_the_given_order_filled_greedily():
    sampler = TokenBudgetBatchSampler([4, 3, 3, 9, 1, 1], 10, shuffle=False)
    assert at_epoch(sampler, 0) == at_epoch(sampler, 5) == [[0, 1, 2], [3, 4], [5]]


def test_epoch_and_seed_decide_the_order_alone():
    lengths = np.random.default_rng(0).integers(5, 60, 500)
    first, second = (TokenBudgetBatchSampler(lengths, 512, seed=1) for _ in range(2))
    at_epoch(first, 0)  # having run an earlier epoch changes nothing
    torch.manual_seed(5)
    assert at_epoch(first, 4) == at_epoch(second, 4)
    assert at_epoch(first, 4) != at_epoch(first, 5)
    assert at_epoch(first, 4) != at_epoch(TokenBudgetBatchSampler(lengths, 512, seed=2), 4)


def test_an_epoch_mixes_the_members_of_packs_not_only_their_order():
    lengths = np.random.default_rng(0).integers(5, 20, 500)
    sampler = TokenBudgetBatchSampler(lengths, 256)
    before, after = ({frozenset(p) for p in at_epoch(sampler, epoch)} for epoch in (0, 1))
    assert not before & after


def test_an_epoch_turns_the_order_of_packs_even_where_no_two_sequences_could_change_places():
    sampler = TokenBudgetBatchSampler(range(10, 60), 64)
    first, second = at_epoch(sampler, 0), at_epoch(sampler, 1)
    assert first != second
    assert sorted(first) == sorted(second)


def test_sorting_in_buckets_makes_packs_even_and_no_pack_order_by_length():
    lengths = np.random.default_rng(0).integers(5, 200, 20_000)
    evens, mixed = (list(TokenBudgetBatchSampler(lengths, 4096, bucket=b)) for b in (None, 1))

    def spread(packs: list[list[int]]) -> float:
        return float(np.mean([lengths[p].std() for p in packs]))

    assert spread(evens) < 0.1 * spread(mixed)
    assert len(evens) < 1.05 * lengths.sum() / 4096
    means = [lengths[p].mean() for p in evens]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


@pytest.mark.parametrize(
    ("lengths", "options", "error", "named"),
    [
        ([3, 9, 4], {}, ValueError, "got 9 tokens at index 1, want at most max_tokens, 8"),
        ([], {}, ValueError, "lengths: got none"),
        ([1.5], {}, TypeError, "lengths: got float64, want integers"),
        ([3, -1], {}, ValueError, "got -1 at index 1"),
        ([[1]], {}, ValueError, r"lengths: got shape \[1, 1\], want \[N\]"),
        ([1], {"max_sequences": 0}, ValueError, "max_sequences: got 0, want 1 or more"),
        ([1], {"bucket": 0}, ValueError, "bucket: got 0, want 1 or more"),
        ([1], {"seed": -1}, ValueError, "seed: got -1, want 0 or more"),
    ],
)
def test_sampler_names_what_is_wrong_at_construction(lengths, options, error, named):
    with pytest.raises(error, match=named):
        TokenBudgetBatchSampler(lengths, 8, **options)


# In loaders


@pytest.fixture
def features() -> list[dict[str, Any]]:
    lengths = np.random.default_rng(1).integers(2, 12, 60)
    return [{"input_ids": [i] * int(n), "labels": i} for i, n in enumerate(lengths)]


def loader(features: list[dict[str, Any]], processes: int = 1, index: int = 0) -> Any:
    sampler = TokenBudgetBatchSampler([len(f["input_ids"]) for f in features], 40, seed=9)
    plain = DataLoader(features, batch_sampler=sampler, collate_fn=PackingCollator())
    return prepare_data_loader(plain, num_processes=processes, process_index=index, put_on_device=False)


def seen(batches: Any) -> list[list[int]]:
    return [batch["labels"].tolist() for batch in batches]


def test_accelerate_moves_on_an_epoch_by_itself_and_reports_the_right_length(features):
    shard = loader(features)
    epochs = [seen(shard) for _ in range(3)]
    assert [len(e) for e in epochs] == [len(shard)] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    again = loader(features)
    again.set_epoch(2)
    assert seen(again) == epochs[2]


@pytest.mark.parametrize("epoch", [0, 2])
def test_skip_first_batches_resumes_in_the_same_order(features, epoch):
    whole = loader(features)
    whole.set_epoch(epoch)
    expected = seen(whole)
    resumed = skip_first_batches(loader(features), 3)
    resumed.set_epoch(epoch)
    assert seen(resumed) == expected[3:]


def test_processes_share_the_packs_of_the_same_epoch(features):
    sampler = TokenBudgetBatchSampler([len(f["input_ids"]) for f in features], 40, seed=9)
    packs = at_epoch(sampler, 1)
    for index in range(2):
        shard = loader(features, processes=2, index=index)
        shard.set_epoch(1)
        share = seen(shard)
        assert share[: len(packs) // 2] == packs[index::2][: len(packs) // 2]


# The collator


def test_batch_follows_transformers_padding_free_convention():
    features = [{"input_ids": [5, 6, 7], "labels": [0, 1, 2]}, {"input_ids": [8], "labels": [3]}]
    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(features)
    ours = PackingCollator(token_labels=True)(features)
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"labels"}:
        assert type(ours[key]) is type(theirs[key]), key
        if isinstance(ours[key], torch.Tensor):
            assert ours[key].dtype == theirs[key].dtype, key
            assert torch.equal(ours[key], theirs[key]), key
        else:
            assert ours[key] == theirs[key], key
    assert ours["labels"].tolist() == [[0, 1, 2, 3]]


def test_batch_keeps_the_order_of_features_and_restarts_positions():
    features = [
        {"input_ids": torch.tensor([1, 2]), "token_type_ids": [0, 1], "other": "x"},
        {"input_ids": np.array([3, 4, 5]), "token_type_ids": np.array([0, 0, 1])},
    ]
    batch = PackingCollator()(features)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert batch["token_type_ids"].tolist() == [[0, 1, 0, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 2, 5]
    assert batch["max_length_q"] == batch["max_length_k"] == 3
    assert "labels" not in batch and "other" not in batch


@pytest.mark.parametrize(
    ("labels", "options", "dtype", "expected"),
    [
        ([2, 0], {}, torch.int64, [2, 0]),
        ([np.int64(2), torch.tensor(0)], {}, torch.int64, [2, 0]),
        ([True, False], {}, torch.int64, [1, 0]),
        ([0.5, -1.0], {}, torch.float32, [0.5, -1.0]),
        ([np.float64(0.5), 1], {}, torch.float32, [0.5, 1.0]),
        ([3, 4], {"label_dtype": torch.float32}, torch.float32, [3.0, 4.0]),
        ([[1, 0, 1], [0, 0, 0]], {}, torch.float32, [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
        ([[1, -100], [-100, 2]], {"token_labels": True}, torch.int64, [[1, -100, -100, 2]]),
    ],
)
@pytest.mark.parametrize("key", ["labels", "label"])
def test_labels_of_every_kind(labels, options, dtype, expected, key):
    batch = PackingCollator(**options)([{"input_ids": [1, 2], key: label} for label in labels])
    assert batch["labels"].dtype == dtype
    assert batch["labels"].tolist() == expected
    assert "label" not in batch


@pytest.mark.parametrize(
    ("features", "options", "named"),
    [
        ([], {}, "features: got none"),
        ([{"labels": 1}], {}, r"features: got the keys \[\'labels\'\], want input_ids"),
        ([{"input_ids": [1]}, {"input_ids": []}], {}, r"features\[1\]: got no input_ids"),
        ([{"input_ids": [1, 0], "attention_mask": [1, 0]}], {}, r"features\[0\]: got padding"),
        ([{"input_ids": [1], "labels": 1}, {"input_ids": [1]}], {}, r"features\[1\]: got no labels"),
        (
            [{"input_ids": [1], "token_type_ids": [0, 0]}],
            {},
            r"got token_type_ids of shape \[2\], want one for each of 1 input_ids",
        ),
        (
            [{"input_ids": [1], "labels": [1, 2]}],
            {"token_labels": True},
            r"got labels of shape \[2\], want one for each of 1 input_ids",
        ),
        ([{"input_ids": [1], "labels": [1]}, {"input_ids": [1], "labels": [1, 0]}], {}, "token_labels=True"),
        (
            [{"input_ids": [1, 2]}, {"input_ids": [3, 50]}],
            {"limits": {"input_ids": 50}},
            r"features\[1\]: got 50 in input_ids, want ids 0..49",
        ),
        ([{"input_ids": [1, -3]}], {"limits": {"input_ids": 50}}, r"features\[0\]: got -3 in input_ids"),
        (
            [{"input_ids": [1], "token_type_ids": [0]}, {"input_ids": [1, 2], "token_type_ids": [1, 0]}],
            {"limits": {"token_type_ids": 1}},
            r"features\[1\]: got 1 in token_type_ids, want ids 0..0",
        ),
        ([{"input_ids": [1, 2], "position_ids": [2, 3]}], {}, "position_ids: got others than 0, 1, 2"),
        (
            [{"input_ids": [1, 2], "bbox": [[0, 0, 1, 1]]}],
            {"inputs": ["bbox"]},
            r"got bbox of shape \[1, 4\]",
        ),
        (
            [{"input_ids": [1], "bbox": [[0]]}, {"input_ids": [1]}],
            {"inputs": ["bbox"]},
            r"features\[1\]: got no bbox",
        ),
    ],
)
def test_collator_names_what_is_wrong(features, options, named):
    with pytest.raises(ValueError, match=named):
        PackingCollator(**options)(features)


def test_further_inputs_are_packed_and_limits_let_pass_what_fits():
    features = [
        {"input_ids": [1, 49], "bbox": [[0, 1], [2, 3]], "position_ids": [0, 1], "word_ids": [7]},
        {"input_ids": [3], "bbox": [[4, 5]], "position_ids": [0], "word_ids": [8]},
    ]
    batch = PackingCollator(inputs=("bbox", "langs"), limits={"input_ids": 50, "token_type_ids": 1})(features)
    assert batch["bbox"].tolist() == [[[0, 1], [2, 3], [4, 5]]] and batch["bbox"].dtype == torch.int64
    assert "word_ids" not in batch and "langs" not in batch
    assert "bbox" in collate_inputs(features, inputs=["bbox"]) and "bbox" not in collate_inputs(features)


def test_inputs_alone_are_checked_before_other_keys_are_left_behind():
    padded = {"input_ids": [1, 0], "attention_mask": [1, 0], "labels": 1}
    with pytest.raises(ValueError, match=r"features\[0\]: got padding"):
        collate_inputs([padded])
    with pytest.raises(ValueError, match="position_ids: got others"):
        collate_inputs([{"input_ids": [1, 0], "position_ids": [2, 3]}])
    assert "labels" not in collate_inputs([{"input_ids": [1], "labels": 1}])
