"""An existing export: whether the requested types can be added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aegis import progress
from aegis.config.recorded import recorded_config
from aegis.config.settings import ExportConfig
from aegis.errors import IntegrityError, UsageError
from aegis.messages import phrase
from aegis.runs.facts import ExportFacts
from aegis.runs.manifest import Manifest, finished, read_manifest


@dataclass(frozen=True)
class EarlierExport:
    """A published export in the folder that the next one goes to."""

    out: Path
    manifest: Manifest
    facts: ExportFacts
    config: ExportConfig

    @classmethod
    def find(cls, out: Path) -> EarlierExport | None:
        """Return the export at `out`; None if there is no readable one."""
        try:
            manifest = read_manifest(out)
            return cls(out, manifest, ExportFacts.of(manifest), recorded_config(manifest, ExportConfig))
        except IntegrityError:
            return None

    def with_its_types(self, config: ExportConfig) -> ExportConfig:
        """Return the settings with this export's types first, and its name and head unless others are given."""
        return config.model_copy(
            update={
                "quant": (*self.config.quant, *config.quant),
                "keep_f16": self.config.keep_f16 or config.keep_f16,
                "name": config.name or self.config.name,
                "head_quant": config.head_quant or self.config.head_quant,
                "system": self.config.system if config.system is None else config.system,
                "temperature": self.config.temperature if config.temperature is None else config.temperature,
            }
        )

    def facts_if_alike(self, wanted: Manifest, *, overwrite: bool) -> ExportFacts | None:
        """Return this export's facts if it is undamaged and differs from the wanted one only in its types, else None.

        Without an importance matrix in `wanted`, this export's is assumed.

        Raises:
            UsageError: it differs or is damaged, and must not be replaced.
        """
        mine = self.manifest
        types = {name: mine.config[name] for name in ("quant", "keep_f16")}
        imatrix = {name: value for name, value in mine.inputs.items() if name == "imatrix"}
        alike = replace(wanted, config={**wanted.config, **types}, inputs={**imatrix, **wanted.inputs})
        if finished(self.out, alike) is not None:
            return self.facts
        old, new = {**mine.config, **mine.inputs}, {**alike.config, **wanted.inputs}
        changed = ", ".join(
            f"{name} {_short(old.get(name))} → {_short(new.get(name))}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        )
        if not overwrite and changed:
            raise UsageError("export.other_settings", out=self.out, changed=changed)
        if not overwrite:
            raise UsageError("export.not_whole", out=self.out)
        if changed:
            progress.say(phrase("export.again", out=self.out, changed=changed))
        return None

    def refuse_lost_imatrix(self, config: ExportConfig, missing: Sequence[str]) -> None:
        """Refuse to add types without the importance matrix that this export's types were made with.

        Raises:
            UsageError: the importance matrix is not given again.
        """
        if "imatrix" in self.manifest.inputs and config.imatrix is None:
            raise UsageError("export.imatrix_again", out=self.out, missing=", ".join(missing))


def _short(value: object) -> str:
    return "-" if value is None else str(value)[:16]
