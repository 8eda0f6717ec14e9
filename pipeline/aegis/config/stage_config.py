"""What the configs of all stages have in common: they are frozen, and refuse unknown keys and numbers for switches."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from aegis.messages import phrase


class StageConfig(BaseModel):
    # defaults are validated too: an int that stands for a float would be another value once it was read back from JSON
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, value: object, info: ValidationInfo) -> object:
        # pydantic takes true for 1
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(phrase("config.switch"))
        return value
