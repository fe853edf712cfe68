"""The faults of masked and augmented text, spans, and several tasks at once."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ["TEXTS"]

_AUGMENTATION = "bertxfer_fast/data/augmentation"
_MASKING = "tests/data/test_masking.py"
_AUGMENTED = "tests/data/test_augmentation.py"
_SPANS = "tests/data/test_spans.py"

_OF_DATA = (
    Mutant(
        "rows_without_labels_may_be_kept",
        "bertxfer_fast/data/encoding.py",
        '            raise refusal(found, "skip")\n',
        '            raise refusal(found, "skip", "keep")\n',
        ("tests/data/test_data.py::test_bad_input_is_named_before_any_work",),
    ),
    Mutant(
        "augment_writes_over_files",
        "bertxfer_fast/cli/augment.py",
        "    if Path(args.output).is_file():",
        "    if False:",
        ("tests/data/test_augmentation.py::test_the_command_writes_over_no_file",),
    ),
    Mutant(
        "one_mask_for_all_packs_of_a_length",
        "bertxfer_fast/data/masking.py",
        "np.random.default_rng([self.seed, *_digest(ids)])",
        "np.random.default_rng([self.seed, len(ids)])",
        (f"{_MASKING}::test_masks_depend_on_seed_and_pack_alone",),
    ),
    Mutant(
        "seed_of_masks_ignored",
        "bertxfer_fast/data/masking.py",
        "np.random.default_rng([self.seed, *_digest(ids)])",
        "np.random.default_rng(_digest(ids))",
        (f"{_MASKING}::test_masks_depend_on_seed_and_pack_alone",),
    ),
    Mutant(
        "none_of_the_chosen_stays",
        "bertxfer_fast/data/masking.py",
        "_MASKED, _REPLACED = 0.8, 0.1",
        "_MASKED, _REPLACED = 0.8, 0.2",
        (f"{_MASKING}::test_shares_are_berts_and_special_tokens_stay",),
    ),
    Mutant(
        "special_tokens_masked",
        "bertxfer_fast/data/masking.py",
        "(draw.random(len(ids)) < self.share) & ~np.isin(ids, self.special)",
        "draw.random(len(ids)) < self.share",
        (f"{_MASKING}::test_shares_are_berts_and_special_tokens_stay",),
    ),
    Mutant(
        "last_ngram_never_drawn",
        f"{_AUGMENTATION}/ngrams.py",
        "(len(draft.words) - count + 1))",
        "(len(draft.words) - count))",
        (f"{_AUGMENTED}::test_masks_ngrams_and_lists",),
    ),
    Mutant(
        "labels_of_words_not_cut_where_words_are",
        f"{_AUGMENTATION}/rows.py",
        "labels[draft.first : draft.first + len(draft.words)]",
        "labels[: len(draft.words)]",
        (f"{_AUGMENTED}::test_labels_of_words_stay_with_them",),
    ),
    Mutant(
        "copies_come_twice",
        f"{_AUGMENTATION}/rows.py",
        "                seen.add(key)\n",
        "",
        (f"{_AUGMENTED}::test_seed_and_text_alone_decide",),
    ),
    Mutant(
        "seed_of_copies_ignored",
        f"{_AUGMENTATION}/rows.py",
        "repr((seed, *texts))",
        "repr((0, *texts))",
        (f"{_AUGMENTED}::test_tinybert_replaces_four_words_in_ten",),
    ),
    Mutant(
        "word_that_is_asked_for_is_not_masked",
        f"{_AUGMENTATION}/tinybert.py",
        "            ids[text.places[i]] = self.tools.tokenizer.mask_token_id\n",
        "",
        (f"{_AUGMENTED}::test_tinybert_draws_from_the_papers_candidates",),
    ),
    Mutant(
        "share_that_stays_is_replaced",
        f"{_AUGMENTATION}/tinybert.py",
        "candidates and chances[i] < self.p",
        "candidates and chances[i] >= self.p",
        (f"{_AUGMENTED}::test_tinybert_draws_from_the_papers_candidates",),
    ),
    Mutant(
        "kept_words_by_their_case",
        f"{_AUGMENTATION}/tinybert.py",
        "text.words[i].lower() in self.keep",
        "text.words[i] in self.keep",
        (f"{_AUGMENTED}::test_contractions_and_kept_words_stay",),
    ),
    Mutant(
        "alternatives_of_what_was_changed",
        f"{_AUGMENTATION}/words.py",
        "() if draft.is_changed(i) else self.alternatives.of(word)",
        "self.alternatives.of(word)",
        (f"{_AUGMENTED}::test_methods_follow_one_another",),
    ),
    Mutant(
        "token_behind_the_answer_is_in_it",
        "bertxfer_fast/data/spans.py",
        "offsets[i][0] < end]",
        "offsets[i][0] <= end]",
        (f"{_SPANS}::test_the_labels_are_the_answers_tokens",),
    ),
    Mutant(
        "token_before_the_answer_is_in_it",
        "bertxfer_fast/data/spans.py",
        "offsets[i][1] > start and",
        "offsets[i][1] >= start and",
        (f"{_SPANS}::test_the_labels_are_the_answers_tokens",),
    ),
    Mutant(
        "answer_at_the_end_of_a_window_is_lost",
        "bertxfer_fast/data/spans.py",
        "offsets[context[-1]][1] < end:",
        "offsets[context[-1]][1] <= end:",
        (f"{_SPANS}::test_the_labels_are_the_answers_tokens",),
    ),
    Mutant(
        "answer_at_the_beginning_of_a_window_is_lost",
        "bertxfer_fast/data/spans.py",
        "offsets[context[0]][0] > start or",
        "offsets[context[0]][0] >= start or",
        (f"{_SPANS}::test_a_long_context_comes_in_windows",),
    ),
    Mutant(
        "temperature_of_tasks_ignored",
        "bertxfer_fast/data/mixing.py",
        "np.asarray(packs, np.float64) ** (1 / temperature)",
        "np.asarray(packs, np.float64)",
        ("tests/training/test_multitask.py::test_batches_are_shared_out",),
    ),
    Mutant(
        "every_seed_mixes_alike",
        "bertxfer_fast/data/mixing.py",
        "np.random.default_rng([self.seed, self.epoch, 2])",
        "np.random.default_rng([self.epoch, 2])",
        ("tests/training/test_multitask.py::test_an_epoch_in_proportion_sees_every_row_once",),
    ),
    Mutant(
        "every_epoch_mixes_alike",
        "bertxfer_fast/data/mixing.py",
        "np.random.default_rng([self.seed, self.epoch, 2])",
        "np.random.default_rng([self.seed, 2])",
        ("tests/training/test_multitask.py",),
    ),
    Mutant(
        "every_epoch_has_the_same_packs_of_a_task",
        "bertxfer_fast/data/mixing.py",
        "set_epoch(self.epoch * passes + turn)",
        "set_epoch(turn)",
        ("tests/training/test_multitask.py",),
    ),
    Mutant(
        "trainer_mixes_in_proportion",
        "bertxfer_fast/training/multitask.py",
        "temperature=self._temperature, seed=seed)",
        "seed=seed)",
        ("tests/training/test_multitask.py::test_tasks_that_are_not_the_models",),
    ),
)

_OF_TASKS = (
    Mutant(
        "entity_goes_on_in_another_type",
        "bertxfer_fast/tasks/entities.py",
        ' and position in ("I", "E") and kind == kind_before',
        ' and position in ("I", "E")',
        ("tests/tasks/test_entities.py::test_entities",),
    ),
    Mutant(
        "entity_goes_on_behind_its_end",
        "bertxfer_fast/tasks/entities.py",
        'before in ("B", "I") and',
        'before in ("B", "I", "E") and',
        ("tests/tasks/test_entities.py::test_entities",),
    ),
    Mutant(
        "beginning_inside_an_entity_goes_on",
        "bertxfer_fast/tasks/entities.py",
        'position in ("I", "E") and',
        'position in ("B", "I", "E") and',
        ("tests/tasks/test_entities.py::test_entities",),
    ),
    Mutant(
        "half_a_probability_on_logits_of_f1",
        "bertxfer_fast/tasks/metrics.py",
        "taken, right = logits > 0, labels > 0.5",
        "taken, right = logits > 0.5, labels > 0.5",
        ("tests/evaluation/test_measuring.py::test_metrics",),
    ),
    Mutant(
        "ties_have_their_first_rank",
        "bertxfer_fast/tasks/metrics.py",
        "(start + end - 1) / 2",
        "start",
        ("tests/tasks/test_numbers.py::test_spearman_is_of_ranks_with_ties_shared",),
    ),
    Mutant(
        "losses_of_tasks_not_weighted",
        "bertxfer_fast/distillation/multitask.py",
        "output.loss = output.loss * self.weights[task]",
        "output.loss = output.loss * 1.0",
        ("tests/training/test_multitask.py::test_a_batch_runs_the_distiller_of_its_task",),
    ),
)

TEXTS: tuple[Mutant, ...] = _OF_DATA + _OF_TASKS
