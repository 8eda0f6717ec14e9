"""What the facts of all stages share: how a manifest records them, and how they are read from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from aegis.errors import IntegrityError
from aegis.messages.validation import describe_validation_error
from aegis.runs.manifest import MANIFEST, Manifest, read_manifest


def damaged(manifest: Manifest, part: str, error: ValidationError | str) -> IntegrityError:
    """Return the error of a manifest of which a part cannot be what a stage recorded.

    Args:
        part: the key in the manifest, such as "facts".
        error: what is wrong with it; the first problem is shown.
    """
    why = error
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        part, why = ".".join(map(str, (part, *problem["loc"]))), describe_validation_error(problem)
    return IntegrityError("manifest.damaged", path=manifest.path or Path(MANIFEST), name=part, error=why)


class Frozen(BaseModel):
    """Values that a manifest records; an unknown one is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Facts(Frozen):
    """The facts of one stage's manifest."""

    stage: ClassVar[str]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return the facts of a manifest.

        Raises:
            IntegrityError: another stage wrote the manifest, or its facts are not those of this stage.
        """
        if manifest.stage != cls.stage:
            path = manifest.path or Path(MANIFEST)
            raise IntegrityError("manifest.other_stage", path=path, found=manifest.stage, stage=cls.stage)
        try:
            return cls.model_validate(manifest.facts)
        except ValidationError as error:
            raise damaged(manifest, "facts", error) from None

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read the facts of a published directory.

        Raises:
            IntegrityError: there is no manifest; or as in `of`.
        """
        return cls.of(read_manifest(directory))

    def recorded(self) -> dict[str, Any]:
        """Return the facts as a manifest records them."""
        return self.model_dump(mode="json")
