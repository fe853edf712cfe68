"""The faults of objectives and recipes."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ["OBJECTIVES"]

_PAPERS = "tests/distillation/test_papers.py"
_RECIPES = "tests/distillation/test_recipes.py"
_OBJECTIVES = "bertxfer_fast/distillation/objectives"
_RECIPE = "bertxfer_fast/distillation/recipes"

_OF_OBJECTIVES = (
    Mutant(
        "relation_heads_ignored",
        f"{_OBJECTIVES}/relations.py",
        "heads=s.shape[1] if self.heads is None else self.heads,",
        "heads=s.shape[1],",
        (f"{_PAPERS}::test_relations",),
    ),
    Mutant(
        "one_relation_for_three",
        f"{_OBJECTIVES}/relations.py",
        "        for letter in self.of:\n",
        "        for letter in self.of[:1]:\n",
        (f"{_PAPERS}::test_relations",),
    ),
    Mutant(
        "patient_states_summed_over_layers",
        f"{_OBJECTIVES}/patient_states.py",
        "unit(t.float())) / len(self.pairs)",
        "unit(t.float()))",
        (f"{_PAPERS}::test_patient_states",),
    ),
    Mutant(
        "patient_states_normed_before_the_map",
        f"{_OBJECTIVES}/patient_states.py",
        "            s = linear(s)\n        return F.mse_loss(unit(s.float())",
        "            s = linear(unit(s))\n        return F.mse_loss(s.float()",
        (f"{_PAPERS}::test_patient_states",),
    ),
    Mutant(
        "skip_keeps_the_embeddings",
        f"{_OBJECTIVES}/base.py",
        'return pairs[1:-1] if layers == "skip" else pairs',
        'return pairs[:-1] if layers == "skip" else pairs',
        (f"{_PAPERS}::test_patient_states",),
    ),
    Mutant(
        "skip_keeps_the_last_attention",
        f"{_OBJECTIVES}/base.py",
        '        return tuple(enumerate(last))[: -1 if layers == "skip" else None]',
        "        return tuple(enumerate(last))",
        (f"{_PAPERS}::test_skip_needs_something_between",),
    ),
    Mutant(
        "unlabelled_tokens_taught",
        f"{_OBJECTIVES}/linear_logits.py",
        "            s, t = s[rows], t[rows]",
        "            del rows",
        (f"{_PAPERS}::test_linear_logits",),
    ),
    Mutant(
        "teachers_bias_is_the_students",
        f"{_OBJECTIVES}/linear_logits.py",
        "else _first(teacher.bias, self._rows)",
        "else _first(student.bias, self._rows)",
        (f"{_PAPERS}::test_linear_logits",),
    ),
    Mutant(
        "temperature_of_a_vocabulary_stands_still",
        f"{_OBJECTIVES}/linear_logits.py",
        "temperature=self.temperature.at(self.progress)",
        "temperature=self.temperature.value",
        (f"{_PAPERS}::test_a_temperature_that_falls_over_the_training",),
    ),
    Mutant(
        "temperature_of_scores_stands_still",
        f"{_OBJECTIVES}/scores.py",
        "tau = self.temperature.at(self.progress)",
        "tau = self.temperature.value",
        (f"{_PAPERS}::test_a_temperature_that_falls_over_the_training",),
    ),
    Mutant(
        "temperature_of_logits_stands_still",
        f"{_OBJECTIVES}/logits.py",
        "tau = self.temperature.at(self.progress)",
        "tau = self.temperature.value",
        (f"{_PAPERS}::test_a_temperature_that_falls_over_the_training",),
    ),
    Mutant(
        "scores_kl_from_the_student",
        f"{_OBJECTIVES}/scores.py",
        "F.kl_div(s, t, log_target=True",
        "F.kl_div(t, s, log_target=True",
        (f"{_PAPERS}::test_scores",),
    ),
    Mutant(
        "margins_of_unordered_pairs",
        f"{_OBJECTIVES}/scores.py",
        "return 2 * (s - t).var(-1, correction=1).mean()",
        "return (s - t).var(-1, correction=1).mean()",
        (f"{_PAPERS}::test_scores",),
    ),
    Mutant(
        "prefixes_not_normalised_anew",
        f"{_OBJECTIVES}/embeddings.py",
        "        if self.sizes and self.normalize:\n",
        "        if self.normalize and not self.sizes:\n",
        (f"{_PAPERS}::test_embeddings",),
    ),
    Mutant(
        "smallest_axes_first",
        f"{_OBJECTIVES}/embeddings.py",
        ".eigenvectors.flip(1).T  # [D, D], a row an axis",
        ".eigenvectors.T",
        (f"{_PAPERS}::test_principal_axes_are_those_of_the_teachers_vectors",),
    ),
    Mutant(
        "axes_of_the_last_pack",
        f"{_OBJECTIVES}/embeddings.py",
        "self._moments = moments if self._moments is None else self._moments + moments",
        "self._moments = moments",
        (f"{_PAPERS}::test_principal_axes_are_those_of_the_teachers_vectors",),
    ),
    Mutant(
        "a_map_from_the_axes_keeps_its_bias",
        f"{_OBJECTIVES}/embeddings.py",
        "                self.linear.bias.zero_()\n",
        "",
        (f"{_PAPERS}::test_a_learned_map_may_start_from_the_axes",),
    ),
    Mutant(
        "rows_that_differ_are_softened",
        f"{_OBJECTIVES}/temperature.py",
        "beta * (weights.mean() - weights)",
        "beta * (weights - weights.mean())",
        (f"{_PAPERS}::test_temperatures_of_rows",),
    ),
    Mutant(
        "gamma_forgotten",
        f"{_OBJECTIVES}/temperature.py",
        ".clamp(min=0).pow(self.gamma), self.beta)",
        ".clamp(min=0), self.beta)",
        (f"{_PAPERS}::test_temperatures_of_rows",),
    ),
    Mutant(
        "least_likely_class_is_confidence",
        f"{_OBJECTIVES}/temperature.py",
        "student.float().softmax(-1).amax(-1)",
        "student.float().softmax(-1).amin(-1)",
        (f"{_PAPERS}::test_temperatures_of_rows",),
    ),
    Mutant(
        "temperature_of_a_row_not_squared",
        f"{_OBJECTIVES}/logits.py",
        "(rows * tau.square() if squared else rows).mean()",
        "(rows * tau if squared else rows).mean()",
        (f"{_PAPERS}::test_temperatures_of_rows",),
    ),
    Mutant(
        "spans_may_end_behind_their_sequence",
        f"{_OBJECTIVES}/spans.py",
        "activations.max_seqlen, value=_NOWHERE",
        "activations.max_seqlen, value=0.0",
        ("tests/evaluation/test_tasks.py::test_spans_have_transformers_loss",),
    ),
    Mutant(
        "first_and_last_of_a_span_summed",
        f"{_OBJECTIVES}/spans.py",
        "return total / (wanted >= 0).sum().clamp(min=1)",
        "return 2 * total / (wanted >= 0).sum().clamp(min=1)",
        ("tests/evaluation/test_tasks.py::test_spans_have_transformers_loss",),
    ),
    Mutant(
        "several_labels_in_one_softmax",
        f"{_OBJECTIVES}/logits.py",
        'if self._task_labels == "multi-hot" or self.kind == "sigmoid":',
        'if self.kind == "sigmoid":',
        ("tests/training/test_tinybert.py::test_both_stages_on_every_kind_of_task",),
    ),
    Mutant(
        "hidden_states_of_the_layer_before",
        f"{_OBJECTIVES}/base.py",
        "((i + 1, layer + 1) for i, layer in enumerate(last))",
        "((i + 1, layer) for i, layer in enumerate(last))",
        ("tests/distillation/test_objectives.py::test_uniform_map_of_tinybert",),
    ),
    Mutant(
        "padding_of_a_table_counts",
        f"{_OBJECTIVES}/linear_logits.py",
        "self._rows = min(sizes) if self.vocab_size is None else self.vocab_size",
        "self._rows = min(sizes)",
        (
            "tests/distillation/test_output_layer.py::test_tables_that_differ_by_padding_meet_in_the_rows_of_both",
        ),
    ),
    Mutant(
        "any_two_tables_meet",
        f"{_OBJECTIVES}/linear_logits.py",
        "if self.vocab_size is None and not padded_alike(*sizes):",
        "if False:",
        ("tests/distillation/test_papers.py",),
    ),
    Mutant(
        "warm_up_never_ends",
        f"{_OBJECTIVES}/base.py",
        "self.weight * SCHEDULES[self.schedule](min(max(progress, 0.0), 1.0))",
        "self.weight * SCHEDULES[self.schedule](0.0)",
        ("tests/distillation/test_objectives.py::test_schedules",),
    ),
    Mutant(
        "cosine_of_every_layer",
        f"{_OBJECTIVES}/hidden_cosine.py",
        'layers: Layers = "last",\n',
        'layers: Layers = "uniform",\n',
        (f"{_PAPERS}::test_hidden_cosine",),
    ),
)

_OF_RECIPES = (
    Mutant(
        "minilm_maps_by_mse",
        f"{_RECIPE}/minilm.py",
        'AttentionMaps(layers, kind="kl"',
        'AttentionMaps(layers, kind="mse"',
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "minilm_keys_for_values",
        f"{_RECIPE}/minilm.py",
        'Relations("v"',
        'Relations("k"',
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "prediction_stage_forgets_its_temperature",
        f"{_RECIPE}/minilm.py",
        "return [Logits(temperature)]",
        "return [Logits()]",
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "minilmv2_with_twelve_heads",
        f"{_RECIPE}/minilmv2.py",
        "heads: int = 48",
        "heads: int = 12",
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "whole_logits_forget_their_temperature",
        f"{_RECIPE}/distilbert.py",
        "soft = Logits(temperature, weight=soft_weight)",
        "soft = Logits(weight=soft_weight)",
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "tokens_of_distilbert_ignored",
        f"{_RECIPE}/distilbert.py",
        "temperature, tokens=tokens, ",
        "temperature, ",
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "alpha_of_pkd_swapped",
        f"{_RECIPE}/pkd.py",
        "Labels(weight=1 - alpha)",
        "Labels(weight=alpha)",
        (f"{_RECIPES}::test_the_others_are_what_their_papers_say",),
    ),
    Mutant(
        "layers_of_pkd_ignored",
        f"{_RECIPE}/pkd.py",
        "PatientStates(layers, projection=projection, weight=beta)",
        "PatientStates(projection=projection, weight=beta)",
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "scores_at_temperature_one",
        f"{_RECIPE}/embedding.py",
        "scores, temperature=temperature, pooling=pooling",
        "scores, temperature=1.0, pooling=pooling",
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "vectors_pooled_by_their_mean",
        f"{_RECIPE}/embedding.py",
        "                pooling=pooling,\n",
        '                pooling="mean",\n',
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "general_padding_ignored",
        f"{_RECIPE}/tinybert_general.py",
        "AttentionScores(layers, padding=padding, ",
        "AttentionScores(layers, ",
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "kind_of_logits_ignored",
        f"{_RECIPE}/logits.py",
        "Logits(temperature, kind=kind, weight=weight)",
        "Logits(temperature, weight=weight)",
        (f"{_RECIPES}::test_options_are_those_of_the_objectives",),
    ),
    Mutant(
        "what_counts_nothing_needs_a_teacher",
        f"{_RECIPE}/base.py",
        "o.needs_teacher and o.weight > 0 for o",
        "o.needs_teacher for o",
        (f"{_RECIPES}::test_what_counts_nothing_needs_no_teacher",),
    ),
    Mutant(
        "predictions_by_kl",
        f"{_RECIPE}/tinybert.py",
        'Logits(temperature, kind="soft_ce")',
        "Logits(temperature)",
        (f"{_RECIPES}::test_tinybert_is_the_papers_two_stages",),
    ),
)

OBJECTIVES: tuple[Mutant, ...] = _OF_OBJECTIVES + _OF_RECIPES
