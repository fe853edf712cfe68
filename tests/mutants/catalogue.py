"""The faults. Each is one replacement in one file, and names the tests that have to fail with it in."""

from __future__ import annotations

from .mutant import Mutant
from .objectives import OBJECTIVES
from .students import STUDENTS
from .teachers import TEACHERS
from .telling import TELLING
from .texts import TEXTS

__all__ = ["EQUIVALENT", "MUTANTS", "Mutant"]


_TRAINER = "bertxfer_fast/training/trainer.py"
_DATASETS = "bertxfer_fast/training/datasets.py"
_CHECKPOINTS = "bertxfer_fast/training/checkpoints.py"
_RESUME = "bertxfer_fast/cli/run/resume.py"
_STAGES = "bertxfer_fast/cli/run/stages.py"
_METRICS = "bertxfer_fast/evaluation/metrics.py"
_SAMPLERS = "bertxfer_fast/data/samplers.py"
_DISTILLER = "bertxfer_fast/distillation/distiller.py"

_TRAINING = (
    Mutant(
        "checkpoint_9_before_10",
        _CHECKPOINTS,
        "found.append((int(step), str(path)))",
        "found.append((step, str(path)))",
        ("tests/training/test_trainer.py::test_steps_are_numbers",),
    ),
    Mutant(
        "half_written_checkpoint_counts",
        _CHECKPOINTS,
        "        except (OSError, ValueError):\n            continue",
        "        except (OSError, ValueError):\n            pass",
        ("tests/training/test_trainer.py::test_resume_true_takes_the_last_complete_checkpoint",),
    ),
    Mutant(
        "stale_checkpoint_counts_while_overwritten",
        _TRAINER,
        "(folder / TRAINER_STATE).unlink(missing_ok=True)",
        "pass",
        ("tests/training/test_trainer.py::test_a_checkpoint_that_is_written_over_is_not_complete_meanwhile",),
    ),
    Mutant(
        "projections_not_saved",
        _TRAINER,
        "        save_projections(objectives, folder)\n",
        "",
        ("tests/training/test_trainer.py::test_saved_student_is_an_ordinary_model",),
    ),
    Mutant(
        "projections_not_restored",
        "bertxfer_fast/training/policies.py",
        "    load_projections(trainer.distiller.objectives, folder)\n",
        "",
        ("tests/training/test_trainer.py::test_best_model_comes_back_into_the_student",),
    ),
    Mutant(
        "one_finite_parameter_is_enough",
        _TRAINER,
        "if not all(finite):",
        "if not any(finite):",
        ("tests/training/test_trainer.py::test_non_finite_weights_are_never_saved",),
    ),
    Mutant(
        "sum_blamed_for_its_part",
        "bertxfer_fast/training/monitor.py",
        'bad.pop("loss", None)',
        "pass",
        ("tests/training/test_monitor.py::test_the_guard_names_the_part_not_the_sum",),
    ),
    Mutant(
        "means_not_weighted",
        "bertxfer_fast/training/monitor.py",
        "value = value.detach().float() * weight",
        "value = value.detach().float()",
        ("tests/training/test_monitor.py::test_means_are_weighted_and_start_anew",),
    ),
    Mutant(
        "short_last_step_counts_half",
        _TRAINER,
        "1 / self.current_gradient_accumulation_steps",
        "1 / self.args.gradient_accumulation_steps",
        ("tests/training/test_trainer.py::test_a_short_last_step_is_logged_as_its_own_mean",),
    ),
    Mutant(
        "evaluation_weighs_packs_not_sequences",
        _TRAINER,
        'count = inputs["cu_seq_lens_q"].shape[0] - 1',
        "count = 1",
        ("tests/training/test_trainer.py::test_evaluation_does_not_depend_on_the_packs",),
    ),
    Mutant(
        "schedules_stand_still",
        _TRAINER,
        "self.distiller.progress = step / max(self.state.max_steps, 1)",
        "self.distiller.progress = 0.0",
        ("tests/training/test_trainer.py::test_schedules_see_the_progress",),
    ),
    Mutant(
        "padding_reaches_the_metrics",
        _TRAINER,
        "inputs = self.distiller.pack(self._prepare_inputs(inputs))",
        "inputs = self._prepare_inputs(inputs)",
        ("tests/training/test_collators.py::test_a_masking_collator_measures_the_masked_tokens",),
    ),
    Mutant(
        "lengths_of_a_data_set_that_is_gone",
        _TRAINER,
        "(dataset, sequence_lengths(dataset))",
        "(None, sequence_lengths(dataset))",
        ("tests/training/test_datasets.py::test_lengths_are_those_of_the_data_set_that_is_given",),
    ),
    Mutant(
        "named_sets_share_a_name",
        _DATASETS,
        '[(f"eval_dataset[{name!r}]", dataset) for',
        '[("eval_dataset", dataset) for',
        ("tests/training/test_datasets.py::test_named_evaluation_sets_keep_their_names",),
    ),
    Mutant(
        "named_sets_measured_as_eval",
        _TRAINER,
        'prefix = kwargs.get("metric_key_prefix", "eval")',
        'prefix = "eval"',
        ("tests/training/test_datasets.py::test_named_evaluation_sets_keep_their_names",),
    ),
    Mutant(
        "data_seed_ignored",
        _DATASETS,
        "args.data_seed if args.data_seed is not None else args.seed",
        "args.seed",
        ("tests/training/test_datasets.py::test_the_order_is_that_of_data_seed_else_of_seed",),
    ),
    Mutant(
        "drop_last_ignored",
        _DATASETS,
        "drop_last=args.dataloader_drop_last",
        "drop_last=False",
        ("tests/training/test_datasets.py::test_the_last_pack_is_dropped_where_asked",),
    ),
    Mutant(
        "evaluation_budget_ignored",
        _DATASETS,
        "args.eval_tokens_per_batch or args.tokens_per_batch",
        "args.tokens_per_batch",
        ("tests/training/test_datasets.py::test_an_evaluation_has_a_budget_of_its_own",),
    ),
    Mutant(
        "grouping_by_length_ignored",
        _DATASETS,
        'None if args.train_sampling_strategy == "group_by_length" else 1',
        "1",
        ("tests/training/test_datasets.py::test_grouping_by_length_puts_like_lengths_together",),
    ),
    Mutant(
        "sequential_is_shuffled",
        _DATASETS,
        'shuffle=args.train_sampling_strategy != "sequential"',
        "shuffle=True",
        ("tests/training/test_datasets.py::test_sequential_keeps_the_order_of_the_data",),
    ),
    Mutant(
        "packs_are_evened_out_by_number",
        "bertxfer_fast/training/arguments.py",
        "config.even_batches = False",
        "pass",
        ("tests/training/test_collators.py::test_what_would_cut_a_pack_is_refused",),
    ),
)

_EVALUATION = (
    Mutant(
        "warm_up_counts_as_speed",
        "bertxfer_fast/evaluation/speed.py",
        "if turn >= warmup:",
        "if turn >= 0:",
        ("tests/evaluation/test_measuring.py::test_speed_is_that_of_the_passes_after_the_warm_up",),
    ),
    Mutant(
        "tied_weights_count_twice",
        "bertxfer_fast/evaluation/speed.py",
        "sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in left_out)",
        "sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False))",
        ("tests/evaluation/test_measuring.py::test_summary_counts_tied_weights_once",),
    ),
    Mutant(
        "half_a_probability_on_logits",
        "bertxfer_fast/tasks/metrics.py",
        "((logits > 0) == (labels > 0.5)).mean()",
        "((logits > 0.5) == (labels > 0.5)).mean()",
        ("tests/evaluation/test_measuring.py::test_metrics",),
    ),
    Mutant(
        "row_with_a_nan_label_counts",
        _METRICS,
        "np.isfinite(labels).all(-1)",
        "np.isfinite(labels).any(-1)",
        ("tests/evaluation/test_measuring.py::test_metrics",),
    ),
    Mutant(
        "ignored_labels_count",
        _METRICS,
        "counted = labels >= 0",
        "counted = labels >= -100",
        ("tests/evaluation/test_measuring.py::test_metrics",),
    ),
    Mutant(
        "batches_measured_again",
        _METRICS,
        "        self.clear()\n        return",
        "        return",
        ("tests/evaluation/test_measuring.py::test_metrics_for_a_trainer_count_everything_once",),
    ),
    Mutant(
        "interrupted_evaluation_counts",
        _TRAINER,
        "self.compute_metrics.clear()",
        "pass",
        ("tests/training/test_collators.py::test_metrics_do_not_depend_on_how_predictions_arrive",),
    ),
    Mutant(
        "card_tells_of_private_folders",
        "bertxfer_fast/evaluation/card.py",
        "teacher = short_name(self.teacher)",
        "teacher = self.teacher",
        ("tests/evaluation/test_card.py",),
    ),
)

_COMMAND = (
    Mutant(
        "teacher_changed_in_place",
        _RESUME,
        '    found["teacher"] = [_sha256(Path(path)) for path in config.teachers]\n',
        "",
        ("tests/cli/test_resume.py::test_a_teacher_that_changed_in_place_is_refused",),
    ),
    Mutant(
        "student_changed_in_place",
        _RESUME,
        '        "student": config.student.path,\n',
        "",
        ("tests/cli/test_resume.py::test_other_files_that_changed_in_place_are_refused",),
    ),
    Mutant(
        "only_the_first_mib_counts",
        _RESUME,
        "while chunk := stream.read(1 << 20):",
        "if chunk := stream.read(1 << 20):",
        ("tests/cli/test_resume.py::test_a_file_that_differs_far_behind_is_another_one",),
    ),
    Mutant(
        "rename_is_a_second_writing",
        _RESUME,
        "part.replace(path)",
        'path.write_text(text, encoding="utf-8")',
        ("tests/cli/test_resume.py::test_a_record_is_there_as_a_whole_or_not_at_all",),
    ),
    Mutant(
        "written_in_place",
        _RESUME,
        'part.write_text(text, encoding="utf-8")\n    part.replace(path)',
        'path.write_text(text, encoding="utf-8")',
        ("tests/cli/test_resume.py::test_a_record_is_there_as_a_whole_or_not_at_all",),
    ),
    Mutant(
        "last_loss_instead_of_best",
        _STAGES,
        'fresh = "eval_loss" in last and not trainer.args.load_best_model_at_end',
        'fresh = "eval_loss" in last',
        ("tests/cli/test_resume.py::test_the_table_tells_of_the_student_that_is_kept",),
    ),
    Mutant(
        "finished_stage_leaves_no_student",
        _STAGES,
        "_restore(plan, load_model(folder, plan.task.auto_class)[0])",
        "pass",
        ("tests/cli/test_cli.py::test_distill_leaves_student_card_curves_and_table",),
    ),
    Mutant(
        "another_seed_goes_on",
        _RESUME,
        '_FREE_KEYS = {"output_dir", "data.test", "store.path", *_READ}',
        '_FREE_KEYS = {"output_dir", "data.test", "store.path", "seed", *_READ}',
        ("tests/cli/test_cli.py::test_other_settings_do_not_mix_with_a_run",),
    ),
    Mutant(
        "libraries_stay_silent",
        "bertxfer_fast/cli/console.py",
        "        logging.set_verbosity(verbosity)\n",
        "",
        ("tests/training/test_marks.py::test_a_command_called_from_python_leaves_the_loggers_alone",),
    ),
)

_DATA = (
    Mutant(
        "every_epoch_in_one_order_across_processes",
        _SAMPLERS,
        "        self.batch_sampler.set_epoch(epoch)",
        "        pass",
        ("tests/data/test_loaders.py::test_epochs_differ_and_every_process_turns_to_the_same_one",),
    ),
    Mutant(
        "accelerate_finds_no_epoch_to_set",
        _SAMPLERS,
        "    def sampler(self) -> EvenBatchSampler:",
        "    def no_sampler(self) -> EvenBatchSampler:",
        ("tests/data/test_loaders.py::test_epochs_differ_and_every_process_turns_to_the_same_one",),
    ),
    Mutant(
        "pack_over_the_budget",
        _SAMPLERS,
        'side="right")) - 1',
        'side="right"))',
        (
            "tests/data/test_packing.py::test_without_shuffle_packs_are_runs_in_the_given_order_filled_greedily",
        ),
    ),
    Mutant(
        "positions_run_on",
        "bertxfer_fast/data/packing.py",
        "torch.arange(row.shape[0], device=row.device) - cu_seqlens.to(torch.int64)[row]",
        "torch.arange(row.shape[0], device=row.device)",
        ("tests/data/test_packing.py::test_batch_keeps_the_order_of_features_and_restarts_positions",),
    ),
    Mutant(
        "every_piece_of_a_word_is_labelled",
        "bertxfer_fast/data/labels.py",
        "IGNORED if word is None or word == last else labels[word]",
        "IGNORED if word is None else labels[word]",
        ("tests/data/test_data.py::test_a_word_label_goes_to_the_first_token_of_its_word",),
    ),
)

_MODELS = (
    Mutant(
        "labels_of_a_text_taken_for_its_tokens",
        "bertxfer_fast/distillation/batches.py",
        'of_tokens = head == "token" and labels.shape == ids.shape',
        "of_tokens = labels.shape == ids.shape",
        ("tests/distillation/test_batches.py::test_a_row_of_labels_a_text_is_not_taken_for_one_a_token",),
    ),
    Mutant(
        "students_scale_for_the_teacher",
        "bertxfer_fast/distillation/objectives/attention_maps.py",
        "scale_teacher=teacher.scale",
        "scale_teacher=student.scale",
        ("tests/distillation/test_objectives.py::test_attention_maps_of_models_with_scales_of_their_own",),
    ),
    Mutant(
        "temperature_forgotten",
        "bertxfer_fast/distillation/objectives/logits.py",
        "ops.logits_kl(s, t, temperature=tau)",
        "ops.logits_kl(s, t)",
        ("tests/distillation/test_objectives.py::test_logits",),
    ),
    Mutant(
        "first_layer_of_every_block",
        "bertxfer_fast/models/layers.py",
        "list(range(block - 1, teacher_layers, block))",
        "list(range(0, teacher_layers, block))",
        ("tests/students/test_students.py::test_uniform_layers",),
    ),
    Mutant(
        "micro_batches_add_up",
        _DISTILLER,
        "accepts_loss_kwargs = False",
        "accepts_loss_kwargs = True",
        ("tests/distillation/test_trainer_seam.py::test_an_accumulated_gradient_is_the_whole_batchs",),
    ),
    Mutant(
        "copies_stay_frozen",
        _DISTILLER,
        "        if not all(parameter.requires_grad for parameter in self._hold.parameters):\n"
        "            self._hold.take(self.student, self)\n",
        "",
        ("tests/distillation/test_reach.py::test_a_copy_gives_its_own_student_back",),
    ),
    Mutant(
        "logits_of_tokens_without_their_rows",
        _DISTILLER,
        "        padded[mask != 0] = logits\n        return padded",
        "        return logits",
        (
            "tests/training/test_collators.py::test_a_plain_trainer_gets_logits_beside_the_labels_they_are_for",
        ),
    ),
    Mutant(
        "teacher_drops_out",
        "bertxfer_fast/models/stream.py",
        "with eval_mode(self.model), torch.no_grad():",
        "with torch.no_grad():",
        ("tests/distillation/test_distiller.py::test_teacher_noise_is_off_and_the_students_is_on",),
    ),
    Mutant(
        "modes_not_given_back",
        "bertxfer_fast/models/loans.py",
        "return lambda: _set_training(training, True)",
        "return lambda: None",
        ("tests/data/test_loaders.py::test_inference_leaves_the_model_as_it_was",),
    ),
    Mutant(
        "weights_for_sorted_layers",
        "bertxfer_fast/features/views.py",
        "return tuple(resolved)",
        "return tuple(sorted(resolved))",
        ("tests/features/test_features.py::test_weights_follow_the_layers_in_the_order_given",),
    ),
    Mutant(
        "features_in_the_default_dtype",
        "bertxfer_fast/features/loaded.py",
        "view.dim(self.spec.hidden_size), dtype=torch.float32)",
        "view.dim(self.spec.hidden_size))",
        ("tests/training/test_marks.py::test_the_default_dtype_is_somebody_elses",),
    ),
)

_OPS = (
    Mutant(
        "layers_added_not_averaged",
        "bertxfer_fast/ops/pool_features/__init__.py",
        "1.0 / layers, dtype=torch.float32, device=device",
        "1.0, dtype=torch.float32, device=device",
        ("tests/features/test_features.py::test_features_equal_transformers",),
    ),
    Mutant(
        "forced_backend_stays",
        "bertxfer_fast/ops/_dispatch/backend.py",
        "        _force(previous)",
        "        pass",
        ("tests/ops/test_backend.py::test_use_backend_is_undone_after_an_error",),
    ),
    Mutant(
        "choice_of_another_backend_is_remembered",
        "bertxfer_fast/ops/_dispatch/backend.py",
        "    _picked.clear()\n",
        "",
        ("tests/ops/test_backend.py::test_use_backend_lasts_as_long_as_its_block",),
    ),
    Mutant(
        "second_derivative_is_silently_wrong",
        "bertxfer_fast/ops/_dispatch/autograd.py",
        "        if torch.is_grad_enabled():  # create_graph",
        "        if False:  # create_graph",
        ("tests/ops/test_logits_kl.py::TestContract::test_double_backward_is_refused_in_words",),
    ),
    Mutant(
        "temperature_not_squared",
        "csrc/logits_kl/logits_kl_op.cpp",
        "scalar(sum_of(losses) * temperature * temperature * loss_scale)",
        "scalar(sum_of(losses) * temperature * loss_scale)",
        ("tests/ops/test_logits_kl.py::test_temperature_multiplies_by_its_square",),
    ),
    Mutant(
        "mean_of_entries_over_rows",
        "csrc/attention_map/attention_map_op.cpp",
        "mse ? map_entry_count(inputs.packing, inputs.heads)",
        "mse ? map_row_count(inputs.packing, inputs.heads)",
        ("tests/distillation/test_objectives.py::test_attention_maps",),
    ),
    Mutant(
        "gradient_written_into_the_neighbour",
        "csrc/pool_features/pool_features_op.cpp",
        "row < first + used,",
        "row <= first + used,",
        ("tests/ops/test_registry.py::test_rows_that_are_not_the_sequences_own_are_not_written",),
    ),
)

#: Those of the layers around training here, those of the ways to move knowledge in files of their own.
MUTANTS: tuple[Mutant, ...] = (
    *(_TRAINING + _EVALUATION + _COMMAND + _DATA + _MODELS + _OPS),
    *(OBJECTIVES + TEXTS + STUDENTS + TEACHERS + TELLING),
)

#: Faults that no test can notice, and why: (name, file, reason).
EQUIVALENT: tuple[tuple[str, str, str], ...] = (
    (
        "bias_of_what_is_masked_stays",
        "bertxfer_fast/training/pruning.py",
        "all that reads a masked head, column or dimension is zeroed itself, or a norm that counts without it",
    ),
)
