"""Writes the model card: origin, licence, training, files, how to run the model, and verify's result.

A card is a pure function of its arguments, without date, machine or path, so the same run gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aegis.messages import Bilingual

if TYPE_CHECKING:  # it loads pydantic, which `aegis doctor` must do without where it is missing
    from aegis.runs.facts import Provenance

_VERIFIED = "\n## Verified\n"
_NOT_TRAINED_ON = {"kept": "kept text never trained on", "other": "text nobody trained on"}
_NOT_YET = """
Not in this file, which was sealed before `aegis verify` could run: `aegis card` prints it with what was found, and
`aegis push` uploads it so.
"""
_HUB = "https://huggingface.co"


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
    return _card(origin, name, files, version, run, library="transformers")


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
    run = (
        f"```\nollama create {ollama_name(name)} -f Modelfile\nollama run {ollama_name(name)}\n"
        f'llama-server -m "{first}" -c {context_tokens} --jinja\n'
        f'aegis chat --gguf "{first}"\n```\n\n'
        f"From a repository on the Hub: `ollama run hf.co/OWNER/NAME:{first.rpartition('-')[2].removesuffix('.gguf')}`."
    )
    if long_rope:
        run += (
            f"\n\nRun it with a context of {context_tokens} (`-c {context_tokens}`; the Modelfile says so): above it "
            "llama.cpp uses\nthe long rope factors for every token, short prompts included, and the answers change."
        )
    if prompt:
        fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", prompt)), 0)
        run += f"\n\n## Prompt format\n\nThe template in the file, for one question:\n\n{fence}\n{prompt}\n{fence}"
    return _card(origin, name, files, version, run, library="gguf")


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
    verdict = (
        f"What was trained is what runs: proven on {report['tokens']} tokens. KL in nats per token."
        if report["ok"]
        else f"NOT proven: the fault is in {report['failed_stage']}."
    )
    values = ", ".join(f"{model} {value:.3f}" for model, value in report["perplexity"].items())
    parts = [verdict, "\n".join(lines), f"Perplexity: {values}."]
    for found in report["retained"]:
        parts.append(
            f"On {_NOT_TRAINED_ON[found['text']]}: base {found['base']:.3f}, this model {found['result']:.3f}; each at "
            f"its best temperature: {found['base_tempered']:.3f}, {found['result_tempered']:.3f}; "
            f"mean KL {found['kl']:.2g}."
        )
    if summary := report["summary"]:
        parts.append(f"{Bilingual.from_record(summary).capitalised().english}.")
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


def _card(origin: Provenance, name: str, files: Sequence[CardFile], version: str, run: str, library: str) -> str:
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
        _what(origin, version),
        "## Licence and attribution",
        _attribution(origin),
        *_training(origin),
        "## Files",
        "\n".join(
            ["| file | bytes | sha256 |", "| --- | --- | --- |"]
            + [f"| {file.name} | {file.bytes} | `{file.sha256}` |" for file in files]
        ),
        "## Run it",
        run,
    ]
    body = "\n\n".join(sections) + "\n" + _VERIFIED + _NOT_YET
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _what(origin: Provenance, version: str) -> str:
    made = f"{_base(origin)} with a LoRA adapter merged into its weights"
    if origin.soul:
        made += (
            " and a soul folded into its LM head: a rotation R and a gate g on\nthe final hidden state h, which "
            "becomes h + g·R h, so that W' = W(I + gR); "
            f"α = {origin.soul['alpha']:.3f}, g = {origin.soul['gate']:.4f}, R is {origin.soul['rotation']}"
        )
    elif not origin.settings:
        made = f"{_base(origin)}, converted"
    return f"{made}.\nMade with AEGIS {version}. It is a stock model: nothing of AEGIS is needed to run it."


def _base(origin: Provenance) -> str:
    if not origin.on_hub:
        return f"`{origin.base}`"
    at = f" at `{origin.revision}`" if origin.revision else ""
    return f"[{origin.base}]({_HUB}/{origin.base}){at}"


def _attribution(origin: Provenance) -> str:
    licence = origin.metadata.get("license_name") or origin.metadata.get("license")
    by = f", by {origin.base.partition('/')[0]}" if origin.on_hub else ""
    if not licence:
        return f"The base is {_base(origin)}{by}. It names no licence: ask its author before you pass this model on."
    return (
        f"The base is {_base(origin)}{by}, under the licence `{licence}`, which holds for this model too. Licence and "
        "notice files\nof the base stand beside this card where it has any."
    )


def _training(origin: Provenance) -> list[str]:
    if not origin.settings:
        return []
    data = origin.data
    given = {name: value for name, value in sorted(origin.settings.items()) if value not in (None, "", [], ())}
    settings = "\n".join(f"{name} = {value}" for name, value in given.items())
    return [
        "## Training",
        f"Data: `{data['dataset']}`, {data['train_rows']} rows to train on and {data['heldout_rows']} held out, "
        f"sha256 `{data['content_sha256']}`.",
        f"```\n{settings}\n```",
    ]
