"""Rehearse the whole way of a Phi-3.5-mini, at full size, where its weights are not available.

    PYTHONPATH=pipeline:. python tools/rehearse_full_size.py --template FOLDER [--layers 2] [--out results.json]

FOLDER is the base without weights: config.json and tokenizer files. Everything up to the weights is real; the weights
are random numbers of the real shapes and dtype, in two shards. They are merged and exported by `aegis merge` and
`aegis export-gguf` in processes of their own, so that time and peak memory are theirs, and what comes out is compared
with what the formulas say. At 3.8 B parameters this takes 27 GB of disk and about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from full_size import LORA_ALPHA, RANK, copy_template, meta_model, write_adapter_and_soul, write_base
from watched_steps import Record, folder_bytes

from aegis.errors import AegisError
from aegis.llama_cpp import GgufFile, Runtime, convert, fallback_tensors
from aegis.model.adapter import load_adapter
from aegis.model.base import hash_weights, load_tokenizer, read_config
from aegis.model.lora_targets import coverage, resolve_targets
from aegis.model.shards import HEAD, ShardSet
from aegis.runs import disk
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import load_soul

Chat = tuple[tuple[str, str], ...]

ADAPTER_PARAMETERS = 9_437_184  # of rank 16 on the attention of all 32 layers
DISK_PER_BASE = 3.5  # base, a copy or the merged folder, the f16 GGUF, and Q4_K_M's third
QKV, ROWS = "model.layers.0.self_attn.qkv_proj.weight", 256
ATTENTION_FACTOR = 1.190238
TYPES = {
    "output.weight": {"Q6_K"},
    "token_embd.weight": {"Q4_K"},
    "attn_qkv.weight": {"Q4_K", "Q5_K", "Q6_K"},
    "attn_output.weight": {"Q4_K"},
    "ffn_up.weight": {"Q4_K"},
    "ffn_down.weight": {"Q4_K", "Q6_K"},
}  # fmt: skip
TEXTS = (
    "", "桃", "こんにちは。", "吾輩は猫である。名前はまだ無い。", "ひらがなとカタカナと漢字", "ｶﾞｷﾞｸﾞ", "１２３ＡＢＣ",
    "髙﨑𠮷野家", "全角　スペース", "　行頭の全角スペース", "全角の行末　", "　　", "「括弧」、句読点。…―～！？",
    "が" + "か\u3099", "😀", "🇯🇵", "👩\u200d👩\u200d👧\u200d👦 家族", "👍🏽です", "hello world", " one leading space",
    "  two", "    four", " ", "   ", "trailing  ", "\n", "\n\n\n", "line\nline", "line\r\nline\r\n",
    "\n改行\n\nと\tタブ\t", "\t", "don't / it's", "3.14159, 1e-5, 0x1F", "def f(x):\n    return x ** 2\n",
    '{"key": ["値", null]}', "naïve café Ünïcödé", "Привет, мир", "한국어", "العربية", "zero\u200bwidth", "\ufeffBOM",
    "nb\u00a0sp", "<|user|>\nはい<|end|>\n<|assistant|>\n", "a <|end|> b", "<|end|>\n\n<|end|>", "<s>text</s> x",
    "<|unknown|>",
)  # fmt: skip
CHATS: tuple[Chat, ...] = (
    (("user", "こんにちは"),),
    (("user", "  二つの空白\n"),),
    (("system", "親切に。"), ("user", "一番高い山は？"), ("assistant", "富士山です。"), ("user", "では　北岳は？")),
    (("user", "Hi 😀"), ("assistant", "\n\nHello!\n"), ("user", "日本語\nで"), ("assistant", "はい"), ("user", "🇯🇵")),
    (("system", ""), ("user", "def f():\n\treturn 1"), ("assistant", "    indented"), ("user", "全　角")),
)  # fmt: skip
# after a role tag transformers drops every white space of Unicode, llama.cpp that of ASCII only
KNOWN_TO_DIFFER: tuple[Chat, ...] = ((("user", "　行頭の全角スペース"),), (("user", "\u00a0no-break space"),))


def check_parity(record: Record, name: str, tokenizer: Any, runtime: Runtime) -> None:
    """Compare token ids of transformers and llama.cpp, with and without the BOS flag, and in chats."""

    def chat_agrees(turns: Chat) -> bool:
        messages = [{"role": role, "content": content} for role, content in turns]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return bool(ids == runtime.chat_tokens(messages))

    differ: list[object] = [
        text
        for text in TEXTS
        if any(
            tokenizer(text, add_special_tokens=flag).input_ids != runtime.tokenize(text, add_bos=flag)
            for flag in (False, True)
        )
    ]
    differ += [turns for turns in CHATS if not chat_agrees(turns)]
    total = len(TEXTS) + len(CHATS)
    record.check(f"{name}: strings with the same ids", f"{total - len(differ)} of {total} {differ or ''}", not differ)
    record.facts[f"{name}: known to differ"] = [turns for turns in KNOWN_TO_DIFFER if not chat_agrees(turns)]


def run_stage(record: Record, name: str, *arguments: str | Path) -> None:
    """Run an aegis command in a process of its own, and watch it."""
    child = subprocess.Popen(
        [sys.executable, "-m", "aegis", "--quiet", *map(str, arguments)], stdout=subprocess.DEVNULL
    )
    try:
        with record.step(name, child.pid):
            code = child.wait()
    finally:
        child.kill()
    if code:
        raise RuntimeError(f"aegis {arguments[0]} ended with code {code}; its output is above")


def check_weights(record: Record, base: Path, trained: Path, merged: Path, gguf: GgufFile) -> None:
    """Compare rows of two weights, at both ends, with W(I + gR) and W + 2BA in float64, and with what they are not."""
    soul, update = load_soul(trained / SOUL_FILE), load_adapter(trained).updates[QKV]
    before, after = ShardSet.open(base).entries, ShardSet.open(merged).entries
    head, qkv = (before[name].read(0, ROWS).double() for name in (HEAD, QKV))
    rotation = torch.block_diag(*soul.rotation.double())
    folded = head + soul.gate * head @ rotation
    delta = LORA_ALPHA / RANK * update.b[:ROWS].double() @ update.a.double()
    for name, tensor, right, wrong in (
        (HEAD, "output.weight", folded, {"unfolded": head, "transposed": head + soul.gate * head @ rotation.T}),
        (QKV, "blk.0.attn_qkv.weight", qkv + delta, {"without the adapter": qkv}),
    ):
        ends = {
            "merged": (after[name].read(0, ROWS).double(), 1e-3),
            "GGUF": (torch.from_numpy(np.array(gguf.tensor(tensor)[:ROWS])).double(), 0.08),
        }
        for end, (values, bound) in ends.items():
            error = float((values - right).norm() / right.norm())
            missed = {what: round(float((values - other).norm() / other.norm()), 3) for what, other in wrong.items()}
            good = error < bound and all(miss > 0.25 for miss in missed.values())
            record.check(f"{end}: {name}", f"relative error {error:.1e} {missed}", good)


def check_gguf(record: Record, path: Path, merged: Path, gguf: GgufFile) -> None:
    """Compare the GGUF's types and metadata with FACTS of llama.cpp and of the base."""
    config, tokenizer = read_config(merged), load_tokenizer(merged)
    fallbacks = fallback_tensors(gguf, "Q4_K_M")
    record.check("fallback tensors", len(fallbacks), not fallbacks)
    kinds: dict[str, Counter[str]] = {}
    for name, info in gguf.tensors.items():
        kinds.setdefault(name.split(".", 2)[-1] if name.startswith("blk.") else name, Counter())[info.type] += 1
    for kind, wanted in TYPES.items():
        record.check(f"types of {kind}", dict(kinds[kind]), set(kinds[kind]) <= wanted)
    meta = gguf.metadata
    factor = meta.get("phi3.rope.scaling.attn_factor")
    known = isinstance(factor, float) and math.isclose(factor, ATTENTION_FACTOR, abs_tol=1e-6)
    record.check("attn_factor", factor, known)
    for length in ("long", "short"):
        wanted_factors = np.asarray(config["rope_scaling"][f"{length}_factor"], np.float32)
        stored = gguf.tensor(f"rope_factors_{length}.weight").ravel()
        record.check(f"rope factors, {length}", len(stored), np.array_equal(stored, wanted_factors))
    adds_bos = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    stored_bos = meta.get("tokenizer.ggml.add_bos_token")
    record.check("add_bos_token", stored_bos, stored_bos == adds_bos)
    record.check("chat template", "the base's", meta.get("tokenizer.chat_template") == tokenizer.chat_template)
    record.check("general.name", meta["general.name"], "phi-3" in str(meta["general.name"]).lower())
    files = sorted(file.name for file in path.parent.iterdir())
    record.check("published", files, files == sorted([path.name, "Modelfile", "manifest.json"]))


def rehearse(record: Record, template: Path, layers: int | None) -> None:
    """Go the whole way, in order of what is cheap to find out."""
    work = record.work
    base, trained, merged, exported = (work / name for name in ("base", "trained", "merged", "gguf"))
    copy_template(template, base, layers)
    model = meta_model(base)
    targets = resolve_targets(model)
    table = coverage(model, targets, RANK)
    count = sum(row.parameters for row in table)
    expected = ADAPTER_PARAMETERS * read_config(base)["num_hidden_layers"] // 32
    record.facts["coverage"] = [asdict(row) for row in table]
    record.check(f"adapter parameters on {', '.join(targets)}", count, count == expected)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    record.facts["parameters"] = weights // 2
    disk.require_space(work, int(weights * DISK_PER_BASE), "the rehearsal")

    tokenizer = load_tokenizer(base)
    with record.step("vocab-only convert"):
        convert(template, work / "vocab.gguf", model_name="Phi-3.5 vocabulary", vocab_only=True)
    with Runtime(work / "vocab.gguf", n_ctx=64, threads=1, vocab_only=True) as runtime:
        check_parity(record, "vocabulary", tokenizer, runtime)

    with record.step("write base"):
        write_base(model, base)
    with record.step("hash base"):
        base_hash = hash_weights(ShardSet.open(base))
    with record.step("write adapter"):
        saved = write_adapter_and_soul(model, targets, trained, base_hash)
    record.check("adapter parameters on disk", saved, saved == count)
    with record.step("copy base"):
        shutil.copytree(base, work / "copy")
        for path in (work / "copy").iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    shutil.rmtree(work / "copy")
    run_stage(record, "merge", "merge", "--base-model", base, "--adapter", trained, "--out", merged)
    seconds = {row.step: row.seconds for row in record.rows if not row.role}
    record.facts["merge time / copy time"] = round(seconds["merge"] / max(0.1, seconds["copy base"]), 1)
    run_stage(record, "export", "export-gguf", "--model", merged, "--out", exported, "--preset", "borea-12gb")

    [path] = exported.glob("*.gguf")
    record.facts["bytes"] = {"base": weights, "merged": folder_bytes(merged), "gguf": path.stat().st_size}
    with GgufFile(path) as gguf:
        check_weights(record, base, trained, merged, gguf)
        check_gguf(record, path, merged, gguf)
    with record.step("load and generate"), Runtime(path, n_ctx=256, threads=2) as runtime:
        check_parity(record, "GGUF", tokenizer, runtime)
        text = "".join(runtime.complete(runtime.chat_tokens([{"role": "user", "content": "桃"}]), 8, temperature=0))
        record.check("generated", text, bool(text))


def main() -> int:
    """Run it; 0 if every check held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=Path, required=True, help="config.json and tokenizer files of the base")
    parser.add_argument("--layers", type=int, help="a smaller model, for a quick look")
    parser.add_argument("--work", type=Path, help="where to write; a temporary directory if not given")
    parser.add_argument("--keep", action="store_true", help="leave what was written")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    # the libraries' advice would run through the table
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    parent = arguments.work and arguments.work.absolute()
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    record = Record(Path(tempfile.mkdtemp(prefix="rehearsal-", dir=parent)))
    print(f"{'step':<20}{'process':<11}{'seconds':>9}{'peak GB':>9}{'its own':>9}{'disk GB':>9}")
    try:
        rehearse(record, arguments.template, arguments.layers)
    except (AegisError, RuntimeError) as error:
        record.failed.append(str(error))
        print(f"stopped: {error}", file=sys.stderr)
    finally:
        if not arguments.keep:
            shutil.rmtree(record.work, ignore_errors=True)
    if arguments.out:
        document = {"rows": [asdict(row) for row in record.rows], "facts": record.facts, "failed": record.failed}
        arguments.out.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{len(record.failed)} checks failed" if record.failed else "\nall checks held")
    return 1 if record.failed else 0


if __name__ == "__main__":
    sys.exit(main())
