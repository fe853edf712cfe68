"""The faults of teachers that are not one running model."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ["TEACHERS"]

_TEACHERS = "bertxfer_fast/distillation/teachers"
_ALIGNMENT = "tests/data/test_alignment.py"
_OTHER_TOKENS = "tests/distillation/teachers/test_other_tokens.py"
_FINGERPRINTS = "tests/distillation/teachers/test_fingerprints.py"
_STORE = "tests/distillation/teachers/test_store.py"
_ENSEMBLE = "tests/distillation/teachers/test_ensemble.py"
_WANTS = "tests/distillation/teachers/test_wants.py"

TEACHERS: tuple[Mutant, ...] = (
    Mutant(
        "file_of_numbers_is_looked_for_as_a_directory",
        "bertxfer_fast/cli/run/teachers.py",
        "        if not rows and Path(path).suffix in teachers.BLACK_BOX_SUFFIXES and not Path(path).is_dir():\n",
        "        if False:\n",
        ("tests/cli/test_teachers.py::test_what_does_not_fit_is_said_and_nothing_is_written",),
    ),
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
    Mutant(
        "first_of_the_teachers_tokens_alone",
        "bertxfer_fast/distillation/alignment.py",
        "alignment.tokens), alignment.bounds)",
        'alignment.tokens), alignment.bounds, mode="cls")',
        (f"{_OTHER_TOKENS}::test_a_token_learns_the_mean_of_its_characters_rows",),
    ),
    Mutant(
        "what_is_pooled_is_aligned",
        "bertxfer_fast/distillation/alignment.py",
        'alignment is None or getattr(objective, "pooling", None) is not None',
        "alignment is None",
        (f"{_OTHER_TOKENS}::test_a_token_learns_the_mean_of_its_characters_rows",),
    ),
    Mutant(
        "spans_of_one_sequence_for_the_pack",
        "bertxfer_fast/data/collators.py",
        "first, last = first + bounds[sequence], last + bounds[sequence]",
        "first, last = first + bounds[0], last + bounds[0]",
        (f"{_ALIGNMENT}::test_the_collator_moves_spans_into_the_pack",),
    ),
    Mutant(
        "characters_of_a_word_counted_from_the_text",
        "bertxfer_fast/data/alignment.py",
        "places[own] += starts[words, None]",
        "places[own] += start",
        (f"{_ALIGNMENT}::test_rows_of_pairs_and_of_words",),
    ),
    Mutant(
        "neighbours_share_a_place",
        "bertxfer_fast/data/alignment.py",
        'theirs[solid, 1], mine[:, 0], side="right"',
        'theirs[solid, 1], mine[:, 0], side="left"',
        (f"{_ALIGNMENT}::test_known_rows",),
    ),
    Mutant(
        "teacher_measured_with_the_students_tokens",
        "bertxfer_fast/cli/run/plan.py",
        'self.teacher_data if role.startswith("teacher") and self.teacher_data else self.data',
        "self.data",
        ("tests/cli/test_other_tokens.py::test_words_are_tagged_by_both",),
    ),
    Mutant(
        "vectors_kept_beside_every_tokens_states",
        f"{_TEACHERS}/wants.py",
        "want[1] is None or (want[0], None) not in wants",
        "True",
        (f"{_WANTS}::test_a_store_teaches_as_its_teacher_does",),
    ),
    Mutant(
        "vectors_of_one_pooling_for_all",
        "bertxfer_fast/distillation/objectives/pooled.py",
        "activations.pooled[mode]",
        "next(iter(activations.pooled.values()))",
        (f"{_WANTS}::test_a_store_teaches_as_its_teacher_does",),
    ),
)
