"""Tests of the configuration: the source of each value, the refusals, and the numbers of the presets."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from aegis.config.advice import harmful_settings
from aegis.config.presets import PRESETS
from aegis.config.resolve import resolve
from aegis.config.settings import SECTIONS, ExportConfig, MergeConfig, VerifyConfig
from aegis.config.stage_config import StageConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import UsageError


def toml(folder: Path, text: str) -> Path:
    path = folder / "aegis.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_later_sources_override_earlier_ones(tmp_path: Path) -> None:
    """Defaults < preset < TOML < environment < flags, each shown by adding one more."""
    sources: dict = {"environment": {}}
    assert resolve(TrainConfig, **sources).max_length == 512
    sources["preset"] = "demo"
    demo = PRESETS["demo"]["train"]
    assert resolve(TrainConfig, **sources).max_length == demo["max_length"] != 512
    sources["file"] = toml(tmp_path, "[train]\nmax_length = 64\n")
    assert resolve(TrainConfig, **sources).max_length == 64
    sources["environment"] = {"AEGIS_TRAIN_MAX_LENGTH": "96"}
    assert resolve(TrainConfig, **sources).max_length == 96
    sources["flags"] = {"max_length": 32}
    assert resolve(TrainConfig, **sources).max_length == 32
    # and what nobody overrode is still the preset's
    assert resolve(TrainConfig, **sources).batch_size == demo["batch_size"] != TrainConfig().batch_size


def test_a_flag_that_is_not_given_overrides_nothing(tmp_path: Path) -> None:
    file = toml(tmp_path, "[train]\npacking = false\n")
    assert resolve(TrainConfig, file=file, environment={}, flags={"packing": None, "seed": None}).packing is False


def test_steps_and_epochs_take_each_others_place(tmp_path: Path) -> None:
    """The later source counts, whichever of the two it gives."""
    config = resolve(TrainConfig, preset="demo", environment={}, flags={"epochs": 3})
    assert (config.epochs, config.max_steps) == (3, TrainConfig().max_steps)
    file = toml(tmp_path, "[train]\nepochs = 3\n")
    config = resolve(TrainConfig, preset="demo", file=file, environment={"AEGIS_TRAIN_MAX_STEPS": "7"})
    assert (config.epochs, config.max_steps) == (None, 7)
    assert resolve(TrainConfig, file=file, environment={}, flags={"seed": 1}).epochs == 3


def test_steps_and_epochs_of_one_source_are_refused() -> None:
    with pytest.raises(UsageError) as refused:
        resolve(TrainConfig, environment={}, flags={"epochs": 3, "max_steps": 7})
    assert refused.value.key == "config.alternatives"
    assert "max_steps + epochs" in refused.value.what


def test_the_borea_preset_has_the_original_runs_numbers(tmp_path: Path) -> None:
    """To the digit, but for the start of the rotation; nothing in a TOML is needed for it."""
    config = resolve(TrainConfig, preset="borea-12gb", environment={})
    wanted = {
        "base_model": "AXCXEPT/Borea-Phi-3.5-mini-Instruct-Jp",
        "load_in": "4bit",
        "rotation": "so8",
        "rotation_init": "identity",
        "counter_scale": True,
        "alpha": "scheduled",
        "alpha_start": -5.0,
        "alpha_target": 1.618,
        "warmup_steps": 50,
        "annealing_steps": 400,
        "orthogonality_weight": 0.1,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_targets": (),
        "max_steps": 500,
        "batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_length": 512,
        "learning_rate": 2e-4,
        "save_steps": 100,
    }
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert resolve(MergeConfig, preset="borea-12gb", environment={}).dtype == "float16"
    export = resolve(ExportConfig, preset="borea-12gb", environment={})
    assert export.quant == ("Q4_K_M",)
    assert "phi-3" in str(export.name).lower()


def test_the_original_preset_has_every_number_of_the_original_run() -> None:
    """One d x d rotation from a random start, mixed = h + g R h; and each harmful setting is named with its figure."""
    config = resolve(TrainConfig, preset="original", environment={})
    assert (config.rotation, config.rotation_init, config.counter_scale) == ("dense", "random", False)
    (advice,) = harmful_settings(config)
    assert "5.5 to 7.2 nats" in advice
    assert harmful_settings(TrainConfig()) == []
    assert len(harmful_settings(TrainConfig(counter_scale=False))) == 1
    assert len(harmful_settings(TrainConfig(rotation_init="random"))) == 1


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", [TrainConfig, MergeConfig, ExportConfig, VerifyConfig])
def test_presets_are_valid(preset: str, model: type) -> None:
    resolve(model, preset=preset, environment={})


@pytest.mark.parametrize("model", [TrainConfig, MergeConfig, ExportConfig, VerifyConfig])
def test_a_config_that_is_read_and_written_is_the_same_text(model: type[StageConfig]) -> None:
    """A manifest's identity is a hash of this text: 32 and 32.0 would be two."""
    text = model().model_dump_json()
    assert model.model_validate_json(text).model_dump_json() == text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"keep_source": "data"}, "needs keep_data"),
        ({"keep_source": "both"}, "needs keep_data"),
        ({"keep_source": "written", "keep_data": "a.txt"}, "does not use keep_data"),
        ({"keep_weight": 0.0, "keep_data": "a.txt"}, "switches keep off"),
        ({"keep_weight": 0.0, "keep_source": "written"}, "switches keep off"),
        ({"keep_windows": 7}, "keep_windows"),
        ({"keep_every": 0}, "keep_every"),
        ({"keep_weight": -1.0}, "keep_weight"),
    ],
)
def test_contradicting_keep_settings_are_refused(given: dict, shown: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(TrainConfig, environment={}, flags=given)
    assert shown in str(caught.value)


def test_configs_are_frozen() -> None:
    for config in (TrainConfig(), MergeConfig(), ExportConfig(), VerifyConfig()):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, next(iter(type(config).model_fields)), "other")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[train]\nmax_step = 3\n", "did you mean 'max_steps'?"),
        ("[trian]\nmax_steps = 3\n", "did you mean 'train'?"),
        ("max_steps = 3\n", "max_steps"),
        ("[merge]\ndtypes = 'float16'\n", "did you mean 'dtype'?"),
        ("[train]\nmax_steps = 3\nmax_steps = 4\n", "cannot be read as TOML"),
        ("[train\n", "cannot be read as TOML"),
        ("train = 3\n", "[train] is not a table"),
    ],
)
def test_an_unknown_key_of_a_file_is_refused(tmp_path: Path, text: str, shown: str) -> None:
    """An unknown table or key, of any stage, is refused by any stage, with the nearest name."""
    file = toml(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        resolve(TrainConfig, file=file, environment={})
    assert shown in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", ["max".encode("utf-16"), "[train]\nbase_model='日本'".encode("cp932")])
def test_a_file_in_another_encoding_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "aegis.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="is not UTF-8"):
        resolve(TrainConfig, file=file, environment={})


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "aegis.toml"
    file.write_bytes("[train]\nseed = 7\n".encode("utf-8-sig"))
    assert resolve(TrainConfig, file=file, environment={}).seed == 7


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no config file"):
        resolve(TrainConfig, file=tmp_path / "absent.toml", environment={})
    with pytest.raises(UsageError, match="cannot be read"):
        resolve(TrainConfig, file=tmp_path, environment={})


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("AEGIS_TRAIN_MAX_STEP", "did you mean 'AEGIS_TRAIN_MAX_STEPS'?"),
        ("AEGIS_TRIAN_MAX_STEPS", "did you mean 'AEGIS_TRAIN_MAX_STEPS'?"),
        ("AEGIS_MERGE_DTYP", "did you mean 'AEGIS_MERGE_DTYPE'?"),
        ("AEGIS_CACHEDIR", "AEGIS_CACHEDIR is not a variable"),
        ("AEGIS_TRAIN_", "AEGIS_TRAIN_ is not a variable"),
    ],
)
def test_an_unknown_variable_is_refused(name: str, shown: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(TrainConfig, environment={name: "3"})
    assert shown in str(caught.value)


def test_variables_of_other_programs_are_ignored() -> None:
    environment = {"AEGIS_CACHE_DIR": "/x", "AEGIS_EXPORT_KEEP_F16": "yes", "TRAIN_SEED": "1", "PATH": "/bin"}
    assert resolve(TrainConfig, environment=environment) == TrainConfig()
    assert resolve(ExportConfig, environment=environment).keep_f16 is True


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("max_steps", "many", 'max_steps = "many"'),
        ("max_steps", 0, "at least 1"),
        ("max_steps", 2.5, "max_steps = 2.5"),
        ("max_steps", True, "max_steps = true"),
        ("learning_rate", -1.0, "more than 0"),
        ("learning_rate", float("nan"), "learning_rate"),
        ("learning_rate", float("inf"), "learning_rate"),
        ("alpha_start", float("nan"), "alpha_start"),
        ("load_in", "8bit", "'4bit' or '16bit'"),
        ("gpu_memory_gib", 0, "more than 0"),
        ("gpu_memory_gib", -3.0, "more than 0"),
        ("gpu_memory_gib", float("inf"), "gpu_memory_gib"),
        ("gpu_memory_gib", True, "gpu_memory_gib = true"),
        ("gpu_memory_gib", "3GiB", 'gpu_memory_gib = "3GiB"'),
        ("lora_targets", [1], "lora_targets"),
        ("seed", 2**31, "less than 2,147,483,648"),
        ("max_length", 2**21, "at most 1,048,576"),
        ("finish_steps", "99999999999", "from 1 to 999,999,999"),
        ("max_steps", 10**400, "at most 999,999,999"),
        ("max_steps", "9" * 5000, "of far fewer digits"),
        ("epochs", 1.7e308, "at most 1,000,000"),
        ("keep_windows", 10**20, "at most 2,147,483,647"),
        ("alpha_start", -1e308, "at least -2,147,483,647"),
        ("lora_r", datetime.date(1979, 5, 27), "lora_r = 1979-05-27"),
        ("lora_r", [1, {"a": False}], "lora_r = [1, {a = false}]"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, key: str, value: object, shown: str) -> None:
    """The stage, the key, the value and what it should have been; all wrong ones at once."""
    with pytest.raises(UsageError) as caught:
        resolve(TrainConfig, environment={}, flags={key: value, "batch_size": -1})
    assert shown in str(caught.value)
    assert "train: batch_size = -1" in str(caught.value)


def test_a_cap_on_the_gpus_memory_may_be_a_whole_number(tmp_path: Path) -> None:
    """There is no cap by default."""
    assert TrainConfig().gpu_memory_gib is None
    file = toml(tmp_path, "[train]\ngpu_memory_gib = 3\n")
    assert repr(resolve(TrainConfig, file=file, environment={}).gpu_memory_gib) == "3.0"
    assert resolve(TrainConfig, environment={"AEGIS_TRAIN_GPU_MEMORY_GIB": "2.5"}).gpu_memory_gib == 2.5


def test_a_map_of_blocks_is_refused_for_a_rotation_without_blocks() -> None:
    with pytest.raises(UsageError, match="rotation = 'dense' has no skew blocks"):
        resolve(TrainConfig, flags={"rotation": "dense", "rotation_map": "cayley"})
    assert resolve(TrainConfig, flags={"rotation": "so8", "rotation_map": "cayley"}).rotation_map == "cayley"
    assert resolve(TrainConfig, flags={"rotation": "dense"}).rotation_map == "exp"


def test_alpha_may_not_jump() -> None:
    with pytest.raises(UsageError, match="alpha would jump at the first step"):
        resolve(TrainConfig, environment={}, flags={"warmup_steps": 0, "annealing_steps": 0})
    still = {"warmup_steps": 0, "annealing_steps": 0, "alpha_start": 1.0, "alpha_target": 1.0}
    assert resolve(TrainConfig, environment={}, flags=still).alpha_start == 1.0


@pytest.mark.parametrize("given", ["Q4_K_M, Q8_0", ["Q4_K_M,Q8_0"], ["Q4_K_M", "Q8_0"]])
def test_lists_may_be_written_with_commas(given: object) -> None:
    """The environment has no other form, and the command line allows it too."""
    assert resolve(ExportConfig, environment={}, flags={"quant": given}).quant == ("Q4_K_M", "Q8_0")


def test_an_empty_list_of_quantizations_is_refused() -> None:
    with pytest.raises(UsageError, match="quant"):
        resolve(ExportConfig, environment={"AEGIS_EXPORT_QUANT": " , "})


def test_no_number_is_without_a_bound() -> None:
    """A number that no 64 bits and no float holds would end in the middle of the work."""
    for section, model in SECTIONS.items():
        for key, field in model.model_fields.items():
            if {int, float} & {field.annotation, *get_args(field.annotation)}:
                for text in ("9" * 400, "1e308"):
                    with pytest.raises(UsageError, match=key):
                        resolve(model, environment={f"AEGIS_{section}_{key}".upper(): text})


def test_a_file_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(TrainConfig, file=toml(tmp_path, "[train]\nlora_r = " + "[" * 3000 + "]" * 3000), environment={})
    assert caught.value.key == "config.cannot_read_toml"
    assert "nested too deep" in caught.value.why


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'borea-12gb'\?"):
        resolve(TrainConfig, preset="borea-12", environment={})
    with pytest.raises(UsageError, match="known: demo, borea-12gb"):
        resolve(TrainConfig, preset="zzz", environment={})
