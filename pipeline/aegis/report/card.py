"""Writes the model card: origin, licence, training, files, how to run the model, and verify's result.

A card is a pure function of its arguments, without date, machine or path, so the same run gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aegis.messages import bilingual
from aegis.report import card_texts

if TYPE_CHECKING:  # it loads pydantic, which `aegis doctor` must do without where it is missing
    from aegis.runs.facts import Provenance

_VERIFIED = "\n## Verified\n"
_NOT_TRAINED_ON = {"kept": "kept text never trained on", "other": "text nobody trained on"}
_NOT_YET = """
Not in this file, which was sealed before `aegis verify` could run: `aegis card` prints it with what was found, and
`aegis push` uploads it so.
"""


@dataclass(frozen=True)
class CardFile:
    """A file in a card's list."""

    name: str
    bytes: int
    sha256: str


def merged_card(origin: Provenance, name: str, files: Sequence[CardFile], version: str) -> str:
    """Return the card of a merged folder."""
    run = (
        "It is an ordinary transformers folder:\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto", device_map="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n```'
    )
    run_ja = bilingual("card.run_folder").in_language("ja")
    return _card(origin, name, files, version, (run, run_ja), library="transformers")


def gguf_card(
    origin: Provenance,
    name: str,
    files: Sequence[CardFile],
    version: str,
    *,
    context_tokens: int,
    long_rope: bool,
    prompt: str = "",
) -> str:
    """Return the card of GGUF files; the first of `files` is the one to run.

    Args:
        long_rope: whether the model has rope factors for long contexts; then `context_tokens` must not be exceeded.
        prompt: a question as the model sees it, "" if its template cannot be put so simply.
    """
    first = files[0].name
    hub = f"ollama run hf.co/OWNER/NAME:{first.rpartition('-')[2].removesuffix('.gguf')}"
    run = (
        f"```\nollama create {ollama_name(name)} -f Modelfile\nollama run {ollama_name(name)}\n"
        f'llama-server -m "{first}" -c {context_tokens} --jinja\n'
        f'aegis chat --gguf "{first}"\n```\n\n'
        f"From a repository on the Hub: `{hub}`."
    )
    run_ja = bilingual("card.run_gguf", hub=hub).in_language("ja")
    if long_rope:
        limit = bilingual("card.long_rope", context=context_tokens)
        run += f"\n\n{limit.in_language('en')}"
        run_ja += limit.in_language("ja")
    if prompt:
        fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", prompt)), 0)
        run += f"\n\n## Prompt format\n\nThe template in the file, for one question:\n\n{fence}\n{prompt}\n{fence}"
    return _card(origin, name, files, version, (run, run_ja), library="gguf")


def with_verdict(card: str, report: Mapping[str, Any]) -> str:
    """Replace a card's last section with verify's result, the content of its report.json."""
    lines = [
        "| models | mean KL | 99 % | max | top-1 | max abs Δ | bound |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for step in report["steps"]:
        found, bound = step["found"], "-" if step["max_kl"] is None else f"{step['max_kl']:.0e}"
        lines.append(
            f"| {step['name']} | {found['mean_kl']:.2e} | {found['p99_kl']:.2e} | {found['max_kl']:.2e} "
            f"| {found['top1']:.2%} | {found['max_delta']:.4f} | {bound} |"
        )
    proven, *summary = card_texts.verdict(report, "en")
    values = ", ".join(f"{model} {value:.3f}" for model, value in report["perplexity"].items())
    parts = [proven, "\n".join(lines), f"Perplexity: {values}."]
    for found in report["retained"]:
        parts.append(
            f"On {_NOT_TRAINED_ON[found['text']]}: base {found['base']:.3f}, this model {found['result']:.3f}; each at "
            f"its best temperature: {found['base_tempered']:.3f}, {found['result_tempered']:.3f}; "
            f"mean KL {found['kl']:.2g}."
        )
    parts += summary
    if card_texts.JAPANESE in card:
        parts += card_texts.verdict(report, "ja")
    return card.partition(_VERIFIED)[0] + _VERIFIED + "\n" + "\n\n".join(parts) + "\n"


def with_answers(card: str, questions: Sequence[str], answers: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Add questions with the answers of the base and of this model, before verify's result.

    Args:
        answers: a name, and its answer to each question that was asked.
    """
    parts = []
    for number, question in enumerate(questions):
        shown = [(name, texts[number]) for name, texts in answers if number < len(texts)]
        lines = [f"**{_line(question)}**", *(f"{name}: {_line(text)}" for name, text in shown)]
        parts.append("\n".join(f"> {line}  " for line in lines))
    before, verified, after = card.partition(_VERIFIED)
    return f"{before}\n## Sample answers\n\n" + "\n\n".join(parts) + f"\n{verified}{after}" if parts else card


def _line(text: str) -> str:
    """Return untrusted text as plain words on one line of Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", " ".join(text.split()))


def ollama_name(name: str) -> str:
    """Return `name` with the characters that Ollama accepts."""
    return (
        "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name.lower()).strip("._-") or "aegis"
    )


def _card(
    origin: Provenance, name: str, files: Sequence[CardFile], version: str, run: tuple[str, str], library: str
) -> str:
    """Return a card; `run` says how to run the model, in English and in Japanese."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        **origin.metadata,
        base_model=origin.base if origin.on_hub else None,
        base_model_relation="finetune" if origin.on_hub else None,
        datasets=[origin.data["dataset"]] if origin.data.get("on_hub") else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=["aegis", "lora", *(["gguf"] if library == "gguf" else [])],
    )
    sections = [
        f"# {name}",
        card_texts.what(origin, version).english,
        "## Licence and attribution",
        card_texts.licence(origin).english,
        *_training(origin),
        "## Files",
        "\n".join(
            ["| file | bytes | sha256 |", "| --- | --- | --- |"]
            + [f"| {file.name} | {file.bytes} | `{file.sha256}` |" for file in files]
        ),
        "## Run it",
        run[0],
        *([card_texts.japanese(origin, version, run[1])] if card_texts.speaks_japanese(origin) else []),
    ]
    body = "\n\n".join(sections) + "\n" + _VERIFIED + _NOT_YET
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _training(origin: Provenance) -> list[str]:
    if not origin.settings:
        return []
    given = {name: value for name, value in sorted(origin.settings.items()) if value not in (None, "", [], ())}
    settings = "\n".join(f"{name} = {value}" for name, value in given.items())
    return [
        "## Training",
        card_texts.data(origin).english,
        f"```\n{settings}\n```",
    ]
