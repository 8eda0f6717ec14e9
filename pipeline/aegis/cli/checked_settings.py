"""Resolves the settings of the commands, and refuses wrong ones before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis import progress
from aegis.cli import paths
from aegis.config.presets import DEMO
from aegis.config.resolve import resolve
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.stage_config import StageConfig
from aegis.config.study_settings import StudyConfig
from aegis.config.train_settings import TrainConfig
from aegis.data.columns import Columns
from aegis.data.formats import KNOWN_KEYS
from aegis.data.sources import refuse_absent
from aegis.errors import UsageError
from aegis.llama_cpp import parse_quant, parse_tensor_type, refuse_without_imatrix
from aegis.messages import phrase
from aegis.model.base_name import refuse_no_base


@dataclass(frozen=True)
class AllSettings:
    """The settings of every stage."""

    train: TrainConfig
    merge: MergeConfig
    export: ExportConfig
    verify: VerifyConfig


def train_settings(preset: str | None, config: Path | None, flags: dict[str, Any]) -> TrainConfig:
    """Return the settings of train; the demo's base, if it is named, has its own defaults.

    Raises:
        UsageError: no base is given, or base or data do not exist.
    """
    settings = resolve(TrainConfig, preset=preset, file=config, flags=flags)
    if "base_model" not in settings.model_fields_set:
        raise UsageError("cli.no_base")
    if settings.base_model == DEMO:
        settings = resolve(TrainConfig, preset=preset or DEMO, file=config, flags=flags)
    elif "dataset" not in settings.model_fields_set:
        progress.warn(phrase("cli.demo_data"))
    refuse_no_base(settings.base_model)
    paths.refuse_absent(settings.chat_template)
    for source in (settings.dataset, DEMO if settings.keep_data is None else settings.keep_data):
        if source != DEMO:
            refuse_absent(source)
    Columns(settings.columns, KNOWN_KEYS)
    return settings


def export_settings(preset: str | None, config: Path | None, flags: dict[str, Any]) -> ExportConfig:
    """Return the settings of export-gguf.

    Raises:
        UsageError: there is no such type, or no such file.
    """
    settings = resolve(ExportConfig, preset=preset, file=config, flags=flags)
    _refuse_unknown_types(settings.quant, settings.head_quant, settings.imatrix)
    paths.refuse_absent(settings.imatrix, settings.llama_cpp_dir)
    return settings


def verify_settings(preset: str | None, config: Path | None, flags: dict[str, Any]) -> VerifyConfig:
    """Return the settings of verify.

    Raises:
        UsageError: there is no such file.
    """
    settings = resolve(VerifyConfig, preset=preset, file=config, flags=flags)
    paths.refuse_absent(settings.llama_cpp_dir)
    paths.refuse_no_text(settings.text)
    return settings


def study_settings(preset: str | None, config: Path | None, flags: dict[str, Any]) -> StudyConfig:
    """Return the settings of quantize-study.

    Raises:
        UsageError: there is no such type, or no such file.
    """
    settings = resolve(StudyConfig, preset=preset, file=config, flags=flags)
    for quant in settings.quant:
        parse_quant(quant)
    paths.refuse_absent(settings.llama_cpp_dir)
    paths.refuse_no_text(settings.text)
    return settings


def all_settings(preset: str | None, config: Path | None, flags: dict[str, Any]) -> AllSettings:
    """Return the settings of all stages, from flags for any of them.

    Raises:
        UsageError: as for each stage; or verify has a bound on kept text, and keep is off.
    """
    train = train_settings(preset, config, _only(flags, TrainConfig))
    chosen = DEMO if preset is None and train.base_model == DEMO else preset
    merge = resolve(MergeConfig, preset=chosen, file=config, flags=_only(flags, MergeConfig))
    export = export_settings(chosen, config, _only(flags, ExportConfig))
    verify = verify_settings(chosen, config, _only(flags, VerifyConfig))
    if verify.max_kept_kl is not None and train.keep_weight == 0:  # known before the first step, not after the last
        raise UsageError("verify.kept_nothing")
    return AllSettings(train, merge, export, verify)


def _only(flags: dict[str, Any], model: type[StageConfig]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name in model.model_fields}


def _refuse_unknown_types(quants: tuple[str, ...], head: str | None, imatrix: Path | None) -> None:
    for quant in quants:
        refuse_without_imatrix(parse_quant(quant), imatrix)
    if head is not None:
        parse_tensor_type(head)
