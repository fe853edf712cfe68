"""The faults of teachers that are not one running model."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ["TEACHERS"]

_TEACHERS = "bertxfer_fast/distillation/teachers"
_FINGERPRINTS = "tests/distillation/teachers/test_fingerprints.py"
_STORE = "tests/distillation/teachers/test_store.py"
_ENSEMBLE = "tests/distillation/teachers/test_ensemble.py"

TEACHERS: tuple[Mutant, ...] = (
    Mutant(
        "key_without_token_types",
        f"{_TEACHERS}/fingerprints.py",
        'read = ("input_ids", "token_type_ids", *sorted(inputs))',
        'read = ("input_ids", *sorted(inputs))',
        (f"{_FINGERPRINTS}::test_token_types_count_where_they_are_not_zero",),
    ),
    Mutant(
        "keys_of_a_data_set_without_token_types",
        f"{_TEACHERS}/fingerprints.py",
        '        found["token_type_ids"] = types\n',
        "        del types\n",
        (f"{_FINGERPRINTS}::test_token_types_count_where_they_are_not_zero",),
    ),
    Mutant(
        "fingerprint_without_the_configuration",
        f"{_TEACHERS}/fingerprints.py",
        "        digest.update(json.dumps(facts, sort_keys=True, default=str).encode())\n",
        "        del facts\n",
        (f"{_FINGERPRINTS}::test_a_teacher_is_known_by_what_it_computes",),
    ),
    Mutant(
        "fingerprint_without_the_weights",
        f"{_TEACHERS}/fingerprints.py",
        "        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())\n",
        "",
        (f"{_STORE}::test_another_teacher_is_refused",),
    ),
    Mutant(
        "fingerprint_without_special_tokens",
        f"{_TEACHERS}/fingerprints.py",
        "    digest.update(json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str).encode())\n",
        "",
        (_STORE,),
    ),
    Mutant(
        "scale_of_positive_numbers_alone",
        f"{_TEACHERS}/columns.py",
        "kept.abs().amax(1) / 127",
        "kept.amax(1) / 127",
        (f"{_STORE}::test_the_error_of_each_dtype_is_its_rounding",),
    ),
    Mutant(
        "rest_for_each_of_the_others",
        f"{_TEACHERS}/columns.py",
        "others - torch.tensor(float(values.shape[1] - top_k)).log()",
        "others",
        (f"{_STORE}::test_of_the_largest_logits_probabilities_are_exact_and_the_rest_share_what_is_left",),
    ),
    Mutant(
        "rows_of_several_shards_in_their_order",
        f"{_TEACHERS}/rows.py",
        "np.repeat(starts[mine] - before, counts)",
        "np.repeat(starts[: len(mine)] - before, counts)",
        (f"{_STORE}::test_it_says_what_the_teacher_said_in_any_order",),
    ),
    Mutant(
        "row_begins_with_its_neighbour",
        f"{_TEACHERS}/shards.py",
        "np.repeat(starts - before, lengths)",
        "np.repeat(starts - lengths, lengths)",
        (f"{_STORE}::test_it_says_what_the_teacher_said_in_any_order",),
    ),
    Mutant(
        "weights_of_teachers_not_shares",
        f"{_TEACHERS}/ensemble.py",
        "[weight / math.fsum(given) for weight in given]",
        "list(given)",
        (f"{_ENSEMBLE}::test_the_mean_of_one_class_a_row",),
    ),
    Mutant(
        "probabilities_not_weighted",
        f"{_TEACHERS}/ensemble.py",
        "numbers + math.log(weight) if self.log",
        "numbers if self.log",
        (f"{_ENSEMBLE}::test_the_mean_of_one_class_a_row",),
    ),
    Mutant(
        "weights_not_in_the_fingerprint",
        f"{_TEACHERS}/ensemble.py",
        "parts = [(teacher_fingerprint(t), w) for t, w in",
        "parts = [(teacher_fingerprint(t), 1.0) for t, w in",
        (f"{_ENSEMBLE}::test_a_student_learns_of_the_mean_and_of_a_store_of_it",),
    ),
    Mutant(
        "classes_of_a_teacher_the_wrong_way_round",
        f"{_TEACHERS}/ensemble.py",
        "label_order(other.labels, first.labels)",
        "label_order(first.labels, other.labels)",
        (f"{_ENSEMBLE}::test_classes_in_another_order_are_read_in_the_first_ones",),
    ),
)
