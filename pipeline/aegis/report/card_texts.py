"""The sentences of a model card, in English and, for a base that speaks Japanese, in Japanese as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aegis.messages import Bilingual, Language, bilingual

if TYPE_CHECKING:  # it loads pydantic, which `aegis doctor` must do without where it is missing
    from aegis.runs.facts import Provenance

JAPANESE = "\n## 日本語\n"
_HUB = "https://huggingface.co"


def speaks_japanese(origin: Provenance) -> bool:
    """Whether the base's own card names Japanese among its languages."""
    named = origin.metadata.get("language") or []
    return "ja" in ([named] if isinstance(named, str) else named)


def japanese(origin: Provenance, version: str, run: str) -> str:
    """Return the Japanese section: what the card's other sections say, without their tables and commands.

    Args:
        run: how to run it, in Japanese.
    """
    parts = [what(origin, version), licence(origin), *([data(origin)] if origin.settings else [])]
    return "\n\n".join([JAPANESE.strip(), *(part.in_language("ja") for part in parts), run])


def what(origin: Provenance, version: str) -> Bilingual:
    """Say what the model is made of."""
    if soul := origin.soul:
        alpha, gate, rotation = (soul[name] for name in ("alpha", "gate", "rotation"))
        return bilingual(
            "card.with_soul", base=_base(origin), version=version, alpha=alpha, gate=gate, rotation=rotation
        )
    if origin.settings:
        return bilingual("card.with_adapter", base=_base(origin), version=version)
    return bilingual("card.converted", base=_base(origin), version=version)


def licence(origin: Provenance) -> Bilingual:
    """Say whose the base is and under which licence."""
    named = origin.metadata.get("license_name") or origin.metadata.get("license")
    by = bilingual("card.by", owner=origin.base.partition("/")[0]) if origin.on_hub else Bilingual.same("")
    if not named:
        return bilingual("card.no_licence", base=_base(origin), by=by)
    return bilingual("card.licence", base=_base(origin), by=by, licence=named)


def data(origin: Provenance) -> Bilingual:
    """Name the rows that it was trained on."""
    found = origin.data
    return bilingual(
        "card.data",
        dataset=found["dataset"],
        train_rows=found["train_rows"],
        heldout_rows=found["heldout_rows"],
        content_sha256=found["content_sha256"],
    )


def verdict(report: Mapping[str, Any], spoken: Language) -> list[str]:
    """Return verify's result and its summary, in sentences."""
    found = (
        bilingual("card.proven", tokens=report["tokens"])
        if report["ok"]
        else bilingual("card.not_proven", stage=report["failed_stage"])
    )
    texts = [found.in_language(spoken)]
    if summary := report["summary"]:
        end = "。" if spoken == "ja" else "."
        texts.append(f"{Bilingual.from_record(summary).capitalised().in_language(spoken)}{end}")
    return texts


def _base(origin: Provenance) -> Bilingual:
    if not origin.on_hub:
        return Bilingual.same(f"`{origin.base}`")
    link = f"[{origin.base}]({_HUB}/{origin.base})"
    return bilingual("card.at", link=link, revision=origin.revision) if origin.revision else Bilingual.same(link)
