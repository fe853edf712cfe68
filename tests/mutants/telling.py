"""The faults of features and of what is told about a run."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ["TELLING"]

_CACHE = "tests/features/test_sklearn.py"
_INTERVALS = "tests/evaluation/test_intervals.py"
_RUN = "tests/cli/test_evaluate.py"

TELLING: tuple[Mutant, ...] = (
    Mutant(
        "cache_knows_no_max_length",
        "bertxfer_fast/features/extractor.py",
        "source.tokenizer), ready.max_length, source.version)",
        "source.tokenizer), source.version)",
        (f"{_CACHE}::test_a_cache_knows_texts_pairs_models_and_arguments_apart",),
    ),
    Mutant(
        "cache_knows_no_version",
        "bertxfer_fast/features/extractor.py",
        "source.tokenizer), ready.max_length, source.version)",
        "source.tokenizer), ready.max_length)",
        (f"{_CACHE}::test_a_cache_knows_texts_pairs_models_and_arguments_apart",),
    ),
    Mutant(
        "pairs_run_together",
        "bertxfer_fast/features/cache.py",
        'digest.update(len(part).to_bytes(8, "little") + part)',
        "digest.update(part)",
        (f"{_CACHE}::test_a_cache_knows_texts_pairs_models_and_arguments_apart",),
    ),
    Mutant(
        "cache_knows_no_layers",
        "bertxfer_fast/features/cache.py",
        "kept = self._rows.get((key, view), {})\n            return",
        "kept = next(rows for (owner, _), rows in self._rows.items() if owner == key)\n            return",
        (f"{_CACHE}::test_with_a_cache_a_grid_runs_every_text_once",),
    ),
    Mutant(
        "resampled_without_replacement",
        "bertxfer_fast/evaluation/intervals.py",
        "draw.integers(0, count, count)",
        "draw.permutation(count)",
        (f"{_INTERVALS}::test_an_interval_of_a_share_is_that_of_scipy_and_of_theory",),
    ),
    Mutant(
        "interval_of_twice_the_confidence",
        "bertxfer_fast/evaluation/intervals.py",
        "[(1 - confidence) / 2, (1 + confidence) / 2]",
        "[1 - confidence, confidence]",
        (f"{_INTERVALS}::test_an_interval_of_a_share_is_that_of_scipy_and_of_theory",),
    ),
    Mutant(
        "tokens_resampled_alone",
        "bertxfer_fast/evaluation/predictions.py",
        "np.arange(lengths.sum()) + np.repeat(starts[sequences] - into, lengths)",
        "np.random.default_rng(0).integers(0, len(self.outputs), lengths.sum())",
        (f"{_INTERVALS}::test_tokens_are_drawn_by_sequence",),
    ),
    Mutant(
        "no_answer_where_it_is_unlikely",
        "bertxfer_fast/evaluation/answering.py",
        "lacking[row] = min(lacking[row]",
        "lacking[row] = max(lacking[row]",
        ("tests/evaluation/test_answering.py::test_answers_are_the_best_spans_of_all_windows",),
    ),
    Mutant(
        "answer_loses_its_last_word",
        "bertxfer_fast/evaluation/answering.py",
        "contexts[row][offsets[first][0] : offsets[last][1]]",
        "contexts[row][offsets[first][0] : offsets[last][0]]",
        ("tests/evaluation/test_answering.py::test_answers_are_the_best_spans_of_all_windows",),
    ),
    Mutant(
        "answer_where_none_is_likelier",
        "bertxfer_fast/evaluation/answering.py",
        "if may_lack and none > score else",
        "if may_lack and none < score else",
        ("tests/evaluation/test_answering.py::test_answers_are_the_best_spans_of_all_windows",),
    ),
    Mutant(
        "masked_lm_measured_by_whole_logits",
        "bertxfer_fast/distillation/distiller.py",
        "asked = return_logits or (metrics and not from_rows)",
        "asked = return_logits or metrics",
        ("tests/training/test_collators.py::test_a_masking_collator_measures_the_masked_tokens",),
    ),
    Mutant(
        "vocabulary_for_all_tokens_at_once",
        "bertxfer_fast/models/token_ids.py",
        ".nonzero().flatten().split(_ROWS)",
        ".nonzero().flatten().split(len(hidden))",
        ("tests/models/test_token_ids.py",),
    ),
    Mutant(
        "teacher_as_a_share_of_the_student",
        "bertxfer_fast/evaluation/results.py",
        'estimate["value"] / of_teacher["value"]',
        'of_teacher["value"] / estimate["value"]',
        ("tests/evaluation/test_report.py",),
    ),
    Mutant(
        "twin_takes_the_steps_of_one_stage",
        "bertxfer_fast/cli/run/twin.py",
        'steps = sum(record["summary"]["steps"] for record in records.values())',
        'steps = records[last.name]["summary"]["steps"]',
        (f"{_RUN}::test_the_twin_starts_as_the_student_and_takes_as_many_steps_on_labels",),
    ),
    Mutant(
        "twin_starts_from_the_distilled_student",
        "bertxfer_fast/cli/run/twin.py",
        "return copy.deepcopy(plan.student)",
        "return plan.student",
        (f"{_RUN}::test_the_twin_starts_as_the_student_and_takes_as_many_steps_on_labels",),
    ),
    Mutant(
        "seed_of_the_resamples_ignored",
        "bertxfer_fast/cli/run/results.py",
        "Resampling(config.report.resamples, config.seed)",
        "Resampling(config.report.resamples)",
        (_RUN,),
    ),
)
