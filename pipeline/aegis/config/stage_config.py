"""The base class of all stage configs: frozen; unknown keys, and booleans for other values, are refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from aegis.messages import phrase


class StageConfig(BaseModel):
    # validate the defaults too: an int as the default of a float would change its type when it is read back from JSON
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_are_not_numbers(cls, value: object, info: ValidationInfo) -> object:
        # pydantic would accept true as 1
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(phrase("config.switch"))
        return value
