"""The faults AEGIS is to survive, and the tests that inject each of them: every test named here exists.

Every row has one. What no test of ours can show is said: a GPU, Windows and Ollama are not in CI.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

_KILLED = "faults/test_crashes.py::test_killed_anywhere_and_started_again_it_ends_in_the_same_bytes"

ROWS: dict[str, tuple[str, ...]] = {
    # train and checkpoint
    "killed at any write of a save": (_KILLED,),
    "killed between steps, at random": ("faults/test_crashes.py::test_killed_at_any_moment_of_training",),
    "SIGINT once, twice": (
        "faults/test_signals.py::test_once_saves_and_the_command_it_prints_goes_on",
        "faults/test_signals.py::test_twice_stops_at_once_and_spoils_nothing",
    ),
    "SIGTERM": (
        "faults/test_signals.py::test_once_saves_and_the_command_it_prints_goes_on",
        "faults/test_signals.py::test_other_stages_clean_up",
    ),
    "disk full in a checkpoint": (
        "faults/test_full_disk.py::test_full_from_any_operation_on",
        "faults/test_full_disk.py::test_a_small_disk",
    ),
    "disk too small before the start": (
        "cli/test_app.py::test_no_disk_is_the_environments_fault",
        "stages/test_merge.py::test_too_little_disk_is_said_before_the_work",
        "stages/test_export.py::test_too_little_disk_is_said_before_the_work",
    ),
    "newest checkpoint damaged, or all": (
        "faults/test_checkpoints.py::test_the_newest_is_passed_over",
        "faults/test_checkpoints.py::test_none_left_is_never_a_fresh_start",
    ),
    "zeroed tail": ("faults/test_checkpoints.py::test_the_newest_is_passed_over",),
    "config changed between runs": ("stages/test_train.py::test_other_settings_are_refused_with_the_difference",),
    "data changed between runs": ("stages/test_train.py::test_other_settings_are_refused_with_the_difference",),
    "NaN or Inf in loss or gradient": ("stages/test_train.py::test_nan_stops_before_the_update",),
    "overflow of float16": (
        "training/test_step.py::test_an_overflow_is_skipped_and_the_scale_lowered",
        "training/test_step.py::test_overflow_for_ever_is_divergence",
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
        "faults/test_permissions.py::test_a_folder_that_may_not_be_written",
        "faults/test_permissions.py::test_a_run_that_is_a_file",
    ),
    "clock set back": ("faults/test_checkpoints.py::test_the_newest_is_passed_over",),
    "state of random generators lost": (  # there is none
        "training/test_step.py::test_a_step_depends_on_its_number_and_nothing_else",
    ),
    "resume under other versions": ("stages/test_train.py::test_going_on_under_other_versions_is_said",),
    "pickles in a checkpoint": ("faults/test_strangers.py::test_pickles_among_our_own_files",),
    # data
    "bad rows of every kind": (
        "data/test_sources.py::test_broken_json_is_named_by_line_and_column",
        "data/test_sources.py::test_five_bad_rows_are_shown_and_all_are_counted",
        "data/test_sources.py::test_a_line_without_end_is_not_held_in_memory",
        "data/test_sources.py::test_byte_order_mark_and_line_ends_do_not_matter",
        "data/test_formats.py::test_a_row_that_cannot_be_used_says_why",
        "cli/test_app.py::test_bad_data_names_the_line",
    ),
    "another encoding": (
        "data/test_sources.py::test_another_encoding_is_named_and_the_command_given_converts_it",
        "data/test_sources.py::test_utf16_without_its_mark_is_named",
    ),
    "nothing to learn": (
        "data/test_dataset.py::test_nothing_to_learn_is_refused",
        "data/test_dataset.py::test_the_report_adds_up",
    ),
    "empty set": ("data/test_dataset.py::test_an_empty_dataset_is_refused",),
    "hostile chat template": (
        "data/test_chat.py::test_a_template_reaches_nothing_of_python",
        "data/test_chat.py::test_a_template_that_does_not_end_is_stopped",
        "data/test_deadline.py::test_memory_is_refused_before_it_is_taken",
        "faults/test_hostile.py::test_hostile_input_is_refused_or_harmless",
    ),
    "no padding, no chat template": (
        "data/test_dataset.py::test_a_tokenizer_without_padding_or_end_still_pads",
        "data/test_chat.py::test_a_chat_without_a_template_is_refused",
    ),
    # download and base
    "a Hub that cuts off, is busy, lies": (
        "faults/test_download.py::test_cut_off_half_way",
        "faults/test_download.py::test_a_busy_server_is_asked_again",
        "faults/test_download.py::test_a_file_that_never_comes_whole",
        "faults/test_download.py::test_right_size_and_wrong_bytes",
    ),
    "offline, gated, bad token": (
        "model/test_base.py::test_offline_without_the_files_says_so",
        "faults/test_download.py::test_each_refusal_has_a_message_of_its_own",
    ),
    "code and pickles with a model": (
        "faults/test_strangers.py::test_the_whole_pipeline_runs_none_of_it",
        "faults/test_strangers.py::test_refused_before_anything_is_loaded",
        "faults/test_strangers.py::test_weights_that_are_pickles_only",
        "faults/test_strangers.py::test_a_tokenizer_class_that_only_its_code_knows",
    ),
    "revision not pinned": ("faults/test_download.py::test_whole_then_offline",),
    # merge and fold
    "merge killed": (_KILLED,),
    "adapter of another base": ("stages/test_merge.py::test_another_base_is_refused",),
    "adapter without its soul": ("stages/test_merge.py::test_an_adapter_without_its_soul_is_refused",),
    "values that do not fit": ("stages/test_merge.py::test_bad_values_name_the_tensor",),
    "tied embeddings": (
        "stages/test_merge.py::test_tied_embeddings_are_unchanged",
        "stages/test_export.py::test_a_config_that_still_says_tied",
    ),
    "less memory than the model": ("faults/test_load.py::test_memory_does_not_grow_with_the_base",),
    "folded twice": ("stages/test_merge.py::test_a_soul_without_a_base_is_taken_with_a_warning",),
    "parity of every stage": (
        "stages/test_verify.py::test_a_sound_run_is_proven",
        "verification/test_planted.py::test_a_planted_defect_is_found_at_its_stage",
    ),
    # export
    "a tool that fails, lies, hangs, prints without end": (
        "llama_cpp/test_process.py::test_a_failure_is_told_and_leaves_nothing",
        "llama_cpp/test_process.py::test_much_output_costs_no_memory_and_the_last_lines_are_kept",
        "llama_cpp/test_process.py::test_a_tool_that_falls_silent_is_ended",
    ),
    "killed while converting": (
        "llama_cpp/test_process.py::test_the_child_ends_with_its_parent",
        _KILLED,
    ),
    "disk full in convert and quantize": (
        "faults/test_full_disk.py::test_full_from_any_operation_on",
        "faults/test_full_disk.py::test_a_damaged_file_on_a_full_disk_is_the_disks_fault",
    ),
    "existing output": ("stages/test_export.py::test_existing_output_is_kept_until_the_new_is_whole",),
    "awkward names": (
        "faults/test_names.py::test_the_whole_pipeline_under_an_awkward_name",
        "stages/test_export.py::test_everything_asked_for_is_there",
    ),
    "non-ASCII paths into llama.cpp": (  # on Linux; Windows' own code page cannot be shown here
        "llama_cpp/test_quantize.py::test_non_ascii_paths_work",
        "faults/test_names.py::test_the_whole_pipeline_under_an_awkward_name",
        "doctor/test_machine.py::test_names_outside_ascii",
    ),
    "unknown pre-tokenizer, before training": (
        "verification/test_tokenizer_precheck.py::test_an_unknown_pre_tokenizer",
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
        "llama_cpp/test_gguf_file.py::test_random_flips_in_the_header_end_in_a_file_or_an_integrity_error",
    ),
    # not shown: an Ollama too old, for none was to be had here; AEGIS never starts it, so no name of its can be taken
    "Ollama absent, silent or somebody else; quotes in the system text": (
        "doctor/test_services.py::test_one_that_answers",
        "doctor/test_services.py::test_somebody_else_at_its_port",
        "doctor/test_services.py::test_one_that_is_not_there_is_no_fault",
        "llama_cpp/ollama/test_modelfile.py::test_a_default_system_prompt_full_of_quotes",
        "llama_cpp/ollama/test_modelfile.py::test_no_literal_leaks",
    ),
    "GGUF that does not speak": (
        "stages/test_export.py::test_it_speaks_in_llama_cpp",
        "verification/test_planted.py::test_a_planted_defect_is_found_at_its_stage",
    ),
    "cp932, no terminal, closed pipe, 40 columns": (
        "cli/test_app.py::test_a_narrow_cp932_pipe",
        "cli/test_app.py::test_a_reader_that_goes_away",
        "cli/console/test_reporters.py::test_bars_on_a_terminal",
    ),
    "set-up interrupted": (
        "tools/test_set_up.py::test_a_start_that_is_interrupted_anywhere_is_finished_by_the_next",
        "tools/test_records.py::test_a_cut_installation_is_taken_away",
        "doctor/test_probes.py::test_a_set_up_that_was_cut_short_is_never_ready",
        "doctor/test_installation.py::test_what_is_missing_is_named_with_the_command",
        "doctor/test_installation.py::test_what_a_killed_pip_left_is_not_taken_for_installed",
        "doctor/test_kernel.py::test_a_missing_library_is_named",
        "doctor/test_llama.py::test_a_missing_binding",
        "doctor/test_gpu.py::test_a_missing_compiler_has_its_command",
    ),
}  # fmt: skip


def test_there_are_as_many_rows_as_faults() -> None:
    assert len(ROWS) == 52


@pytest.mark.parametrize("row", ROWS)
def test_every_test_that_is_named_exists(row: str) -> None:
    assert ROWS[row]
    for name in ROWS[row]:
        path, _, function = name.partition("::")
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name
