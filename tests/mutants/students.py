"""The faults of students: their weights, kinds, sizes, freezing and pruning."""

from __future__ import annotations

from .mutant import Mutant

__all__ = ["STUDENTS"]

_STUDENTS = "bertxfer_fast/students"
_TRANSFER = "tests/students/test_transfer.py"
_PRUNING = "tests/training/test_pruning.py"
_POLICIES = "tests/training/test_policies.py"
_NETWORKS = "tests/students/test_networks.py"

STUDENTS: tuple[Mutant, ...] = (
    Mutant(
        "beta_is_the_students_share",
        f"{_STUDENTS}/transfer.py",
        "blended = beta * value.double() + (1 - beta) * into",
        "blended = (1 - beta) * value.double() + beta * into",
        (f"{_TRANSFER}::test_every_tensor_is_the_blend_of_its_own_and_the_mapped_layers",),
    ),
    Mutant(
        "names_of_classes_left_behind",
        f"{_STUDENTS}/transfer.py",
        '    if any(part_of(student, name) == "head" for name in sources):\n',
        "    if False:\n",
        (f"{_TRANSFER}::test_rows_of_the_head_meet_under_their_names",),
    ),
    Mutant(
        "norm_not_scaled_for_its_width",
        f"{_STUDENTS}/widths.py",
        "return math.sqrt(have / size) * (basis.square().T @ value)",
        "return basis.square().T @ value",
        (f"{_TRANSFER}::test_the_projection_is_exact_where_the_teacher_has_no_more_directions",),
    ),
    Mutant(
        "narrow_heads_score_too_low",
        f"{_STUDENTS}/widths.py",
        "scale = (narrow / wide) ** 0.25",
        "scale = (narrow / wide) ** 0.5",
        (f"{_TRANSFER}::test_the_projection_is_exact_where_the_teacher_has_no_more_directions",),
    ),
    Mutant(
        "smallest_heads_and_columns_kept",
        f"{_STUDENTS}/widths.py",
        ".topk(count).indices",
        ".topk(count, largest=False).indices",
        (f"{_TRANSFER}::test_the_projection_is_exact_where_the_teacher_has_no_more_directions",),
    ),
    Mutant(
        "norms_of_parts_added",
        f"{_STUDENTS}/widths.py",
        "norms if product is None else product * norms",
        "norms if product is None else product + norms",
        (_TRANSFER,),
    ),
    Mutant(
        "chosen_layers_ignored",
        f"{_STUDENTS}/smaller.py",
        "    return list(layers)\n",
        "    return uniform_layers(deep, shallow)\n",
        (
            "tests/students/test_students.py::test_a_student_of_the_first_layers_computes_what_the_teacher_computes_there",
        ),
    ),
    Mutant(
        "bias_keeps_the_old_order_of_classes",
        f"{_STUDENTS}/heads.py",
        "for rows in (maps[-1].weight, maps[-1].bias):",
        "for rows in (maps[-1].weight,):",
        ("tests/students/test_heads.py::test_rows_of_the_head_follow_their_names",),
    ),
    Mutant(
        "order_of_classes_the_wrong_way_round",
        f"{_STUDENTS}/heads.py",
        "order = label_order(facts.labels, teacher.labels)",
        "order = label_order(teacher.labels, facts.labels)",
        ("tests/students/test_heads.py::test_rows_of_the_head_follow_their_names",),
    ),
    Mutant(
        "one_layer_too_few_frozen",
        f"{_STUDENTS}/parts.py",
        'for name in ("embeddings", *(f"layer {i}" for i in range(count))) for p',
        'for name in ("embeddings", *(f"layer {i}" for i in range(count - 1))) for p',
        (f"{_POLICIES}::test_a_policy_freezes_exactly_its_parts",),
    ),
    Mutant(
        "thaws_from_below",
        "bertxfer_fast/training/policies.py",
        "for part in reversed(parts_of(student).values())]",
        "for part in parts_of(student).values()]",
        (f"{_POLICIES}::test_parts_thaw_from_the_top_each_after_its_share",),
    ),
    Mutant(
        "nothing_trains_at_first",
        "bertxfer_fast/training/policies.py",
        "thawed = 1 + math.floor(",
        "thawed = math.floor(",
        (f"{_POLICIES}::test_an_error_in_the_middle_thaws_too",),
    ),
    Mutant(
        "most_important_goes_first",
        "bertxfer_fast/training/pruning.py",
        "importance.sort(descending=True, stable=True)",
        "importance.sort(descending=False, stable=True)",
        (f"{_PRUNING}::test_a_first_layer_of_its_own_make_stays_the_first",),
    ),
    Mutant(
        "schedule_is_square",
        "bertxfer_fast/training/pruning.py",
        "return (1.0 - done) ** 3",
        "return (1.0 - done) ** 2",
        (f"{_PRUNING}::test_the_schedule_is_cubic_and_the_least_important_go",),
    ),
    Mutant(
        "importance_cancels",
        "bertxfer_fast/training/pruning.py",
        "(parameter * parameter.grad).abs().float()",
        "(parameter * parameter.grad).float()",
        (f"{_PRUNING}::test_importance_is_the_faded_sum_of_weight_times_gradient",),
    ),
    Mutant(
        "gradient_alone_is_importance",
        "bertxfer_fast/training/pruning.py",
        "(parameter * parameter.grad).abs().float()",
        "parameter.grad.abs().float()",
        (f"{_PRUNING}::test_importance_is_the_faded_sum_of_weight_times_gradient",),
    ),
    Mutant(
        "importance_never_fades",
        "bertxfer_fast/training/pruning.py",
        "fading * importance + added[key]",
        "importance + added[key]",
        (f"{_PRUNING}::test_importance_is_the_faded_sum_of_weight_times_gradient",),
    ),
    Mutant(
        "what_went_comes_back",
        "bertxfer_fast/training/pruning.py",
        "            importance[~alive] = -torch.inf\n",
        "",
        (f"{_PRUNING}::test_the_schedule_is_cubic_and_the_least_important_go",),
    ),
    Mutant(
        "norms_count_what_is_masked",
        "bertxfer_fast/training/pruning.py",
        "            if kept is None:\n                return None\n            bias = None if norm.bias",
        "            if kept is not None:\n                return None\n            bias = None if norm.bias",
        (f"{_PRUNING}::test_the_result_is_the_masked_student_and_loads_as_an_ordinary_model",),
    ),
    Mutant(
        "the_own_start_is_the_student_itself",
        "bertxfer_fast/distillation/fit.py",
        "return copy.deepcopy(student)",
        "return student",
        (f"{_POLICIES}::test_the_older_name_of_the_own_start_warns",),
    ),
    Mutant(
        "a_share_of_nothing_is_not_told",
        "bertxfer_fast/training/pruning.py",
        "        self._check_shares(sizes)\n",
        "",
        (f"{_PRUNING}::test_bad_arguments_are_named",),
    ),
    Mutant(
        "pruning_is_a_step_late",
        "bertxfer_fast/training/pruning.py",
        "self.kept_at((state.global_step + 1) / max(state.max_steps, 1))",
        "self.kept_at(state.global_step / max(state.max_steps, 1))",
        (_PRUNING,),
    ),
    Mutant(
        "windows_reach_into_the_next_text",
        f"{_STUDENTS}/textcnn.py",
        " | (centres >= bounds[row + 1][:, None])",
        "",
        (f"{_NETWORKS}::test_a_pack_is_the_plain_network_on_each_text_by_itself",),
    ),
    Mutant(
        "last_states_in_the_order_of_lengths",
        f"{_STUDENTS}/recurrent.py",
        "ends.transpose(0, 1).flatten(1)[order.rank]",
        "ends.transpose(0, 1).flatten(1)",
        (f"{_NETWORKS}::test_a_pack_is_the_plain_network_on_each_text_by_itself",),
    ),
    Mutant(
        "special_tokens_in_the_mean",
        f"{_STUDENTS}/pooled.py",
        "torch.where(own > 0, counted / own.clamp(min=1), 1 / whole)",
        "(1 / whole)",
        (f"{_NETWORKS}::test_a_pack_is_the_plain_network_on_each_text_by_itself",),
    ),
    Mutant(
        "zipf_without_its_sum",
        f"{_STUDENTS}/embeddings.py",
        "(sif + probability / probability.sum())",
        "(sif + probability)",
        (f"{_NETWORKS}::test_a_static_table_is_what_the_teacher_says_of_each_token",),
    ),
    Mutant(
        "principal_components_about_zero",
        f"{_STUDENTS}/embeddings.py",
        "        rows = rows - rows.mean(0)\n",
        "",
        (f"{_NETWORKS}::test_a_static_table_is_what_the_teacher_says_of_each_token",),
    ),
    Mutant(
        "lstm_is_a_gru",
        f"{_STUDENTS}/bilstm.py",
        "    cell = nn.LSTM\n",
        "    cell = nn.GRU\n",
        (f"{_NETWORKS}::test_a_pack_is_the_plain_network_on_each_text_by_itself",),
    ),
    Mutant(
        "layers_of_an_mlp_are_linear",
        f"{_STUDENTS}/mlp.py",
        "nn.ReLU(), ",
        "nn.Identity(), ",
        (f"{_NETWORKS}::test_a_pack_is_the_plain_network_on_each_text_by_itself",),
    ),
    Mutant(
        "size_by_name_is_narrow_inside",
        f"{_STUDENTS}/sizes.py",
        "feed_forward = 4 * width",
        "feed_forward = 2 * width",
        ("tests/students/test_sizes.py::test_sizes_are_those_of_the_papers",),
    ),
    Mutant(
        "unknown_tokens_have_a_say",
        f"{_STUDENTS}/embeddings.py",
        "[i for i in found if i != unknown]",
        "list(found)",
        ("tests/students/test_other_vocabulary.py::test_other_tokens_are_means_of_their_parts",),
    ),
)
