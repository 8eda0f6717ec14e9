"""The table of faults that AEGIS must survive, with the tests that inject each of them; every named test exists.

Every row has a test. Faults without one are listed with the reason: a GPU, Windows and Ollama are not in CI.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

_KILLED = "faults/test_crashes.py::test_a_command_killed_anywhere_and_started_again_gives_the_same_bytes"

ROWS: dict[str, tuple[str, ...]] = {
    # train and checkpoint
    "killed at any write of a save": (_KILLED,),
    "killed between steps, at random": (
        "faults/test_crashes.py::test_a_training_killed_at_any_moment_ends_in_the_same_bytes",
    ),
    "SIGINT once, twice": (
        "faults/test_signals.py::test_one_signal_saves_and_the_printed_command_resumes",
        "faults/test_signals.py::test_two_signals_stop_at_once_and_damage_nothing",
    ),
    "SIGTERM": (
        "faults/test_signals.py::test_one_signal_saves_and_the_printed_command_resumes",
        "faults/test_signals.py::test_other_stages_remove_their_files_after_a_signal",
    ),
    "disk full in a checkpoint": (
        "faults/test_full_disk.py::test_every_job_recovers_from_a_disk_that_is_full_from_any_operation_on",
        "faults/test_full_disk.py::test_a_disk_too_small_for_a_checkpoint_is_an_error_that_leaves_no_part_of_it",
    ),
    "disk too small before the start": (
        "cli/test_app.py::test_a_full_disk_has_the_exit_code_of_the_environment",
        "stages/test_merge.py::test_too_little_disk_space_is_an_error_before_the_work",
        "stages/test_export.py::test_too_little_disk_space_is_an_error_before_the_work",
    ),
    "newest checkpoint damaged, or all": (
        "faults/test_checkpoints.py::test_a_damaged_newest_checkpoint_is_skipped",
        "faults/test_checkpoints.py::test_training_never_starts_over_if_every_checkpoint_is_damaged",
    ),
    "zeroed tail": ("faults/test_checkpoints.py::test_a_damaged_newest_checkpoint_is_skipped",),
    "config changed between runs": ("stages/test_train.py::test_other_settings_are_refused_with_the_difference",),
    "data changed between runs": ("stages/test_train.py::test_other_settings_are_refused_with_the_difference",),
    "NaN or Inf in loss or gradient": ("stages/test_train.py::test_a_nan_loss_stops_the_run_before_the_update",),
    "overflow of float16": (
        "training/test_step.py::test_an_overflow_skips_the_update_and_lowers_the_scale",
        "training/test_step.py::test_too_many_overflows_in_a_row_are_divergence",
    ),
    "soul without gradient, or not float32": (
        "stages/test_train.py::test_a_soul_out_of_the_graph_is_refused",
        "soul/test_module.py::test_half_precision_is_refused",
    ),
    "R is no rotation": ("soul/test_file.py::test_only_rotations_are_saved_or_loaded",),
    "GPU memory full": ("stages/test_train.py::test_a_full_gpu_names_the_settings_to_lower",),  # the error, not the GPU
    "two runs on one folder; the lock of a killed one": (
        "cli/test_app.py::test_a_held_run_is_exit_8",
        "runs/test_run.py::test_a_held_run_names_its_holder_and_a_killed_ones_lock_is_taken_over",
    ),
    "read-only folder, path is a file": (
        "faults/test_permissions.py::test_a_read_only_folder_is_an_error_with_a_fix",
        "faults/test_permissions.py::test_a_file_at_the_runs_path_is_an_error",
    ),
    "clock set back": ("faults/test_checkpoints.py::test_a_damaged_newest_checkpoint_is_skipped",),
    "state of random generators lost": (  # there is none
        "training/test_step.py::test_a_step_depends_only_on_its_number",
    ),
    "resume under other versions": ("stages/test_train.py::test_resuming_under_other_versions_is_reported",),
    "pickles in a checkpoint": ("faults/test_strangers.py::test_pickles_in_a_run_are_never_loaded",),
    # data
    "bad rows of every kind": (
        "data/test_sources.py::test_broken_json_is_named_by_line_and_column",
        "data/test_sources.py::test_five_bad_rows_are_shown_and_all_are_counted",
        "data/test_sources.py::test_a_line_without_end_is_not_held_in_memory",
        "data/test_sources.py::test_a_byte_order_mark_and_other_line_ends_are_accepted",
        "data/test_formats.py::test_a_row_that_cannot_be_used_says_why",
        "cli/test_app.py::test_bad_data_names_the_line",
    ),
    "another encoding": (
        "data/test_sources.py::test_another_encoding_is_named_and_the_printed_command_converts_it",
        "data/test_sources.py::test_an_encoding_without_its_mark_is_named",
        "data/test_sources.py::test_a_file_of_zero_bytes_is_damaged_and_in_no_encoding",
    ),
    "nothing to learn": (
        "data/test_dataset.py::test_data_without_tokens_to_train_on_is_refused",
        "data/test_dataset.py::test_the_numbers_of_the_report_add_up",
    ),
    "empty set": ("data/test_dataset.py::test_an_empty_dataset_is_refused",),
    "hostile chat template": (
        "data/test_chat.py::test_a_template_cannot_reach_python_objects",
        "data/test_chat.py::test_a_template_that_does_not_end_is_stopped",
        "data/test_chat.py::test_a_template_that_computes_inside_one_call_or_takes_all_memory_is_stopped",
        "faults/test_hostile.py::test_hostile_input_is_refused_or_harmless",
    ),
    "no padding, no chat template": (
        "data/test_dataset.py::test_a_tokenizer_without_padding_or_end_still_pads",
        "data/test_chat.py::test_a_chat_without_a_template_is_refused",
    ),
    # download and base
    "a Hub that cuts off, is busy, lies": (
        "faults/test_download.py::test_a_download_that_is_cut_off_is_resumed",
        "faults/test_download.py::test_a_request_to_a_busy_server_is_repeated",
        "faults/test_download.py::test_a_file_that_never_arrives_completely_is_an_error",
        "faults/test_download.py::test_a_file_of_the_right_size_and_wrong_bytes_is_refused",
    ),
    "offline, gated, bad token": (
        "model/test_base.py::test_missing_files_while_offline_are_an_error_that_says_so",
        "faults/test_download.py::test_each_refusal_has_its_own_message",
    ),
    "code and pickles with a model": (
        "faults/test_strangers.py::test_the_pipeline_runs_no_hostile_code",
        "faults/test_strangers.py::test_hostile_bases_are_refused_before_anything_is_loaded",
        "faults/test_strangers.py::test_weights_in_pickles_only_are_refused",
        "faults/test_strangers.py::test_a_tokenizer_class_that_needs_code_is_refused",
    ),
    "revision not pinned": ("faults/test_download.py::test_a_downloaded_base_is_complete_and_then_used_offline",),
    # merge and fold
    "merge killed": (_KILLED,),
    "adapter of another base": ("stages/test_merge.py::test_another_base_is_refused",),
    "adapter without its soul": ("stages/test_merge.py::test_an_adapter_without_its_soul_is_refused",),
    "values that do not fit": ("stages/test_merge.py::test_bad_values_name_the_tensor",),
    "tied embeddings": (
        "stages/test_merge.py::test_tied_embeddings_are_unchanged",
        "stages/test_export.py::test_a_separate_head_is_exported_though_the_config_is_tied",
    ),
    "less memory than the model": ("faults/test_load.py::test_memory_does_not_grow_with_the_base",),
    "folded twice": ("stages/test_merge.py::test_a_soul_without_a_recorded_base_is_accepted_with_a_warning",),
    "parity of every stage": (
        "stages/test_verify.py::test_a_sound_run_is_proven",
        "verification/test_planted.py::test_a_planted_defect_is_found_at_its_stage",
    ),
    # export
    "a tool that fails, lies, hangs, prints without end": (
        "llama_cpp/test_process.py::test_a_failure_is_reported_and_leaves_no_file",
        "llama_cpp/test_process.py::test_much_output_takes_little_memory_and_the_last_lines_are_kept",
        "llama_cpp/test_process.py::test_a_tool_that_prints_nothing_for_too_long_is_killed",
    ),
    "killed while converting": (
        "llama_cpp/test_process.py::test_the_child_ends_with_its_parent",
        _KILLED,
    ),
    "disk full in convert and quantize": (
        "faults/test_full_disk.py::test_every_job_recovers_from_a_disk_that_is_full_from_any_operation_on",
        "faults/test_full_disk.py::test_a_file_damaged_by_a_full_disk_is_reported_as_the_full_disk",
    ),
    "existing output": ("stages/test_export.py::test_existing_output_is_kept_until_the_new_one_is_complete",),
    "awkward names": (
        "faults/test_names.py::test_the_pipeline_works_under_awkward_names",
        "stages/test_export.py::test_every_requested_file_is_exported",
    ),
    "non-ASCII paths into llama.cpp": (  # on Linux; Windows' own code page cannot be shown here
        "llama_cpp/test_quantize.py::test_non_ascii_paths_work",
        "faults/test_names.py::test_the_pipeline_works_under_awkward_names",
        "doctor/test_machine.py::test_a_file_system_without_non_ascii_names_is_reported",
    ),
    "unknown pre-tokenizer, before training": (
        "verification/test_tokenizer_precheck.py::test_an_unknown_pre_tokenizer_is_refused",
        "verification/test_tokenizer_precheck.py::test_train_and_plan_refuse_before_any_work",
    ),
    "hostile archive": (
        "vendor/test_unpack.py::test_a_hostile_member_anywhere_is_refused",
        "vendor/test_unpack.py::test_a_bomb_among_the_wanted_files_is_refused",
        "vendor/test_fetch.py::test_a_given_sdist_with_one_flipped_bit_is_refused",
    ),
    "damaged GGUF": (
        "llama_cpp/test_gguf_file.py::test_damage_is_an_integrity_error",
        "llama_cpp/test_gguf_file.py::test_truncation_anywhere_is_found",
        "llama_cpp/test_gguf_file.py::test_random_bit_flips_in_the_header_give_a_file_or_an_integrity_error",
    ),
    # attacks
    "links out of a base, pipes in it": (
        "model/test_safe_folder.py::test_a_link_out_of_the_folder_is_refused_at_any_depth",
        "model/test_safe_folder.py::test_a_folder_that_only_looks_like_a_cache_loses_no_file",
        "model/test_safe_folder.py::test_a_pipe_in_the_folder_is_refused_without_waiting",
        "faults/test_strangers.py::test_a_link_out_of_the_base_is_neither_read_nor_written",
    ),
    "data written over while it is read": (
        "data/test_dataset.py::test_data_that_changes_while_it_is_read_is_refused_and_never_cached",
    ),
    "names that a terminal, a shell or a Modelfile would obey": (
        "messages/test_safe.py::test_control_codes_are_escaped_wherever_a_message_is_formatted",
        "messages/test_safe.py::test_a_pasted_command_runs_no_command_hidden_in_a_name",
        "messages/test_safe.py::test_commands_for_powershell_have_its_quotes",
        "cli/console/test_reporters.py::test_no_shown_text_has_control_codes_for_the_terminal",
        "cli/test_logfile.py::test_the_log_has_no_control_codes",
        "llama_cpp/ollama/test_modelfile.py::test_an_end_token_cannot_add_a_command_to_the_modelfile",
    ),
    "values that are no good": (
        "soul/test_file.py::test_a_soul_whose_alpha_is_not_one_finite_float32_is_refused",
        "soul/test_file.py::test_a_step_below_zero_or_without_a_number_is_refused",
        "stages/test_import_soul.py::test_invalid_values_are_refused_and_not_written",
        "model/test_adapter.py::test_bad_matrices_are_refused",
        "model/test_adapter.py::test_bad_ranks_and_alphas_are_refused",
    ),
    "small input that takes all memory": (
        "faults/test_limits.py::test_a_parser_refuses_input_beyond_its_bound_with_little_memory",
        "faults/test_limits.py::test_a_parser_accepts_input_at_its_bound",
        "faults/test_limits.py::test_a_parquet_file_that_needs_more_memory_than_its_reader_may_take_is_refused",
        "faults/test_limits.py::test_no_text_of_a_model_folder_is_read_beyond_its_bound",
        "faults/test_limits.py::test_a_token_id_beyond_every_vocabulary_is_refused",
        "stages/test_import_soul.py::test_an_archive_that_is_larger_unpacked_is_never_unpacked",
    ),
    "patterns without end": ("model/test_adapter.py::test_a_hostile_pattern_is_matched_in_linear_time",),
    "config.json that no model can be built from": (
        "faults/test_hostile.py::test_hostile_input_is_refused_or_harmless",
        "model/test_empty_model.py::test_the_key_that_breaks_config_json_is_named",
    ),
    "a run moved, or its lock file lost, while it trains": (
        "runs/test_run.py::test_a_process_that_has_lost_a_run_writes_nothing_more_to_it",
        "runs/test_run.py::test_a_run_that_is_lost_during_a_checkpoint_does_not_get_the_checkpoint",
    ),
    "Ctrl-Z, or a machine that sleeps, while a tool works": (
        "llama_cpp/test_process.py::test_hours_during_which_every_process_was_stopped_do_not_count_as_silence",
    ),
    "passwords in addresses": (
        "messages/test_safe.py::test_the_password_of_a_used_address_is_never_shown",
        "cli/test_logfile.py::test_the_log_has_no_secrets",
    ),
    # not shown: an Ollama too old, for none was to be had here; AEGIS never starts it, so no name of its can be taken
    "Ollama absent, silent or somebody else; quotes in the system text": (
        "doctor/test_services.py::test_an_ollama_that_answers_is_reported",
        "doctor/test_services.py::test_another_server_at_ollamas_port_is_not_taken_for_it",
        "doctor/test_services.py::test_a_missing_ollama_is_not_a_failure",
        "llama_cpp/ollama/test_modelfile.py::test_a_default_system_prompt_full_of_quotes_is_kept",
        "llama_cpp/ollama/test_modelfile.py::test_every_literal_comes_out_of_ollamas_template_unchanged",
    ),
    "GGUF that does not speak": (
        "stages/test_export.py::test_an_exported_file_answers_in_llama_cpp",
        "verification/test_planted.py::test_a_planted_defect_is_found_at_its_stage",
    ),
    "cp932, no terminal, closed pipe, 40 columns": (
        "cli/test_app.py::test_output_to_a_cp932_pipe_works",
        "cli/test_app.py::test_a_reader_that_closes_the_pipe_ends_the_command_quietly",
        "cli/console/test_reporters.py::test_a_terminal_gets_progress_bars",
    ),
    "set-up interrupted": (
        "tools/test_set_up.py::test_a_start_that_is_interrupted_anywhere_is_finished_by_the_next",
        "tools/test_records.py::test_an_incomplete_installation_is_found",
        "doctor/test_probes.py::test_a_set_up_that_was_cut_short_is_never_ready",
        "doctor/test_installation.py::test_a_missing_package_is_named_with_the_command",
        "doctor/test_installation.py::test_a_half_installed_package_counts_as_missing",
        "doctor/test_kernel.py::test_a_missing_library_is_named",
        "doctor/test_llama.py::test_a_missing_binding_is_reported",
        "doctor/test_gpu.py::test_a_missing_compiler_is_reported_with_its_command",
    ),
}  # fmt: skip


def test_the_table_has_a_row_per_fault() -> None:
    assert len(ROWS) == 62


@pytest.mark.parametrize("row", ROWS)
def test_every_named_test_exists(row: str) -> None:
    assert ROWS[row]
    for name in ROWS[row]:
        path, _, function = name.partition("::")
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
