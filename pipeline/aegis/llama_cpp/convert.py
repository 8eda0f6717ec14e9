"""Converts a folder of safetensors to one GGUF with llama.cpp's converter."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aegis.errors import IntegrityError, ToolError, UsageError
from aegis.limits import TOKENIZER_BYTES, read_json
from aegis.llama_cpp.converter_tree import CONVERTER, converter_at_hand, find_converter
from aegis.llama_cpp.gguf_file import GgufFile
from aegis.llama_cpp.prepared_tool import PreparedTool
from aegis.llama_cpp.process import published, run_tool
from aegis.messages import Bilingual, bilingual, phrase
from aegis.runs import disk

_NO_ROOM_BYTES = 1 << 20
_WRITING = re.compile(r"Writing:\s+(\d+)%")
_LIBRARIES = (
    "torch",
    "transformers.models.auto.configuration_auto",
    "transformers.models.auto.tokenization_auto",
)
"""What the converter imports, which takes seconds."""
_ENVIRONMENT: dict[str, str | None] = {
    # Everything it needs is in the folder; it must not use the network or find something newer there.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    # With this variable it would import PyPI's gguf, which has the same version but lacks what this converter uses.
    "NO_LOCAL_GGUF": None,
}


def convert(
    model_dir: Path,
    out: Path,
    *,
    model_name: str,
    tree: Path | None = None,
    vocab_only: bool = False,
    prepared: PreparedTool | None = None,
) -> None:
    """Convert `model_dir` to an f16 GGUF at `out`, which appears only when it is complete.

    Args:
        model_dir: a folder with config.json, tokenizer files and safetensors of a stock architecture, and no code.
        out: the file to write; an existing file is replaced at the end.
        model_name: becomes `general.name`. llama.cpp decides by this name (a Phi-3 without "phi-3" in its name keeps
            white space after its role tags), so it is never guessed from the folder.
        tree: a llama.cpp checkout to use instead of LLAMA_CPP_DIR's or the pinned one.
        vocab_only: write the tokenizer without weights, which takes seconds and needs no weights.
        prepared: see `prepared_converter`.

    Raises:
        UsageError: an argument is wrong.
        IntegrityError: the folder has code, which the converter would run.
        ToolError: the converter failed; the error has its last lines.
        EnvironmentFault: there is no converter, no space or no permission.
    """
    out = out.absolute()
    options = ["--outtype=f16", f"--model-name={model_name}", *(["--vocab-only"] if vocab_only else [])]
    with published(out) as part:
        _run(model_dir, part, options, tree, prepared=prepared)
        refuse_damaged(part, bilingual("process.converter"))


@contextmanager
def prepared_converter(tree: Path | None = None) -> Iterator[PreparedTool | None]:
    """Start the converter's process, which loads its libraries; the block gives it to `convert`, or it ends unused.

    Args:
        tree: as in `convert`.

    Yields:
        The process; None if the converter is not on this machine yet.
    """
    found = converter_at_hand(tree)
    if found is None:
        yield None
        return
    with PreparedTool(found / CONVERTER, _LIBRARIES, import_from=found, environment=_ENVIRONMENT) as prepared:
        yield prepared


def try_conversion(model_dir: Path, tree: Path | None = None) -> None:
    """Check that the converter knows every tensor of a folder; nothing is written.

    Raises:
        UsageError, IntegrityError, ToolError, EnvironmentFault: as in `convert`.
    """
    _run(model_dir, model_dir.absolute() / "nothing.gguf", ["--dry-run"], tree, writes=False)


def _run(
    model_dir: Path,
    part: Path,
    options: Sequence[str],
    tree: Path | None,
    *,
    writes: bool = True,
    prepared: PreparedTool | None = None,
) -> None:
    model_dir = model_dir.absolute()
    if not (model_dir / "config.json").is_file():
        raise UsageError("convert.no_model_folder", model_dir=model_dir)
    refuse_code(model_dir)
    tree = find_converter(tree)
    run_tool(
        bilingual("process.converter"),
        tree / CONVERTER,
        [str(model_dir), f"--outfile={part}", *options],
        part=part,
        title=phrase("process.converting"),
        fraction=_fraction,
        import_from=tree,
        environment=_ENVIRONMENT,
        writes=writes,
        begin=prepared.begin if prepared and prepared.script == tree / CONVERTER else None,
    )


def refuse_code(model_dir: Path) -> None:
    """Refuse a folder with code: the converter loads the tokenizer with trust_remote_code=True and would run it.

    Raises:
        IntegrityError: it has code; the message names the files.
    """
    found = [Bilingual.same(name) for name in sorted(path.name for path in model_dir.rglob("*.py"))]
    for name in ("config.json", "tokenizer_config.json"):
        path = model_dir / name
        if not path.is_file():
            continue
        try:
            settings = read_json(path, TOKENIZER_BYTES)
        except ValueError as error:
            raise IntegrityError("convert.not_json", path=path, error=str(error)) from error
        if not isinstance(settings, dict):
            raise IntegrityError("base.not_an_object", path=path)
        if "auto_map" in settings:
            found.append(bilingual("convert.auto_map", name=name))
    if found:
        raise IntegrityError("convert.foreign_code", model_dir=model_dir, found=Bilingual.joined(", ", found))


def refuse_damaged(part: Path, tool: Bilingual) -> None:
    """Check that a tool's output is a complete GGUF; its exit code alone is not enough.

    Raises:
        ToolError: it is not.
        EnvironmentFault: it is not, and the disk is full: the quantizer does not check that its last bytes, which
            include the header, reach the disk.
    """
    try:
        GgufFile(part).close()
    except IntegrityError as error:
        if shutil.disk_usage(part.parent).free < _NO_ROOM_BYTES:
            raise disk.full(part, error) from error
        raise ToolError("convert.damaged_output", tool=tool, why=error.texts.why, fix=error.texts.fix) from error


def _fraction(line: str) -> float | None:
    match = _WRITING.search(line)
    return int(match[1]) / 100 if match else None
