"""Tests of verify PATH: one part is reported sound or its damage is named, without a crash or a hang."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aegis.config.settings import ExportConfig, MergeConfig
from aegis.errors import AegisError, UsageError
from aegis.llama_cpp import GgufFile
from aegis.runs.manifest import MANIFEST, Manifest
from aegis.runs.publish import publishing
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import SoulRecord, load_soul, save_soul
from aegis.stages.export import export_gguf
from aegis.stages.merge import MergeInputs, merge
from aegis.stages.verify_file import FileReport, verify_file
from aegis.verification.verdict import SCHEMA, SCHEMA_VERSION
from tests.conftest import MakeRandom
from tests.gguf_edit import GgufEdit
from tests.trained import MakeTrained


@pytest.fixture(scope="module")
def gguf(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a published export with its f16 file kept."""
    out = tmp_path_factory.mktemp("exported") / "gguf"
    export_gguf(quick_base, out, ExportConfig(keep_f16=True, name="tiny phi-3"))
    return out


@pytest.fixture
def stray(gguf: Path, tmp_path: Path) -> Path:
    """Return its f16 file without a manifest, as from elsewhere."""
    return Path(shutil.copyfile(next(gguf.glob("*-F16.gguf")), tmp_path / "stray.gguf"))


@pytest.fixture(scope="module")
def base(make_random: MakeRandom) -> Path:
    return make_random("llama", num_hidden_layers=3)


@pytest.fixture
def adapter(base: Path, make_trained: MakeTrained) -> Path:
    return make_trained(base).adapter


@pytest.fixture
def merged(base: Path, adapter: Path, tmp_path: Path) -> Path:
    merge(MergeInputs(str(base), adapter), tmp_path / "model", MergeConfig())
    return tmp_path / "model"


def failures(found: FileReport) -> list[str]:
    return [f"{check.name.english}: {check.detail.english}" for check in found.checks if not check.ok]


def sealed(folder: Path, stage: str) -> Path:
    """Return the folder as if it had just been published."""
    out = folder.with_name(folder.name + "-sealed")
    with publishing(out, Manifest(stage, {}, {}, {})) as staging:
        shutil.copytree(folder, staging.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    return out


def test_undamaged_parts_pass(gguf: Path, stray: Path, adapter: Path, merged: Path) -> None:
    """Each kind of part is recognized, and no problem is found."""
    for path, kind in (
        (gguf, "gguf_folder"),
        (next(gguf.glob("*-Q4_K_M.gguf")), "gguf"),
        (stray, "gguf"),
        (adapter, "adapter"),
        (sealed(adapter, "train"), "adapter"),
        (adapter / SOUL_FILE, "soul"),
        (merged, "model_folder"),
    ):
        found = verify_file(path)
        assert (found.kind, failures(found), found.failed_stage) == (kind, [], None)
    assert "sha256 as published" in verify_file(next(gguf.glob("*.gguf"))).checks[0].detail.english
    assert "cannot be detected" in verify_file(stray).checks[0].detail.english


def test_an_unsupported_path_is_a_usage_error(tmp_path: Path, adapter: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "adapter")
    for path, shown in (
        (tmp_path / "absent", "nothing at"),
        (run, "run directory"),
        (run.parent / "empty", "can't be verified"),
        (adapter / "adapter_config.json", "can't be verified"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=shown):
            verify_file(path)


# -- folders: each defect with no manifest, so that a hash does not give it away ---------------------------------


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def defect(folder: Path) -> None:
        loaded = load_file(folder / file)
        change(loaded)
        save_file(loaded, folder / file, metadata={"format": "pt"})

    return defect


def config(**values: object) -> Callable[[Path], None]:
    def defect(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")

    return defect


def soul_stretched(folder: Path) -> None:
    path = folder / SOUL_FILE
    soul = load_file(path)
    soul["rotation"] *= 1.01
    metadata = {"format": "aegis-soul", "version": "1", "kind": "so8", "hidden_size": "256", "step": "1"}
    save_file(soul, path, metadata=metadata)


A_LORA = "base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight"
ADAPTER_DEFECTS = {
    "NaN": (tensors("adapter_model.safetensors", lambda t: t[A_LORA].fill_(torch.nan)), "NaN or Inf"),
    "an A without its B": (tensors("adapter_model.safetensors", lambda t: t.pop(A_LORA)), "lacks one of"),
    "a layer's module lost": (
        tensors("adapter_model.safetensors", lambda t: [t.pop(A_LORA), t.pop(A_LORA.replace("_A.", "_B."))]),
        "layer 1 has no self_attn.o_proj",
    ),
    "soul stretched": (soul_stretched, "not orthogonal"),
    "file cut": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(
            (folder / "adapter_model.safetensors").read_bytes()[:-9]
        ),
        "not a complete safetensors file",
    ),
    "config cut": (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("defect", ADAPTER_DEFECTS)
def test_damaged_adapters_are_reported(adapter: Path, defect: str) -> None:
    make, shown = ADAPTER_DEFECTS[defect]
    make(adapter)
    found = verify_file(adapter)
    assert found.failed_stage == "train"
    assert shown in "\n".join(failures(found))


def test_a_reflection_is_accepted_only_in_an_imported_soul(adapter: Path) -> None:
    """A recorded one passes beside an adapter without a manifest, and not in a published folder."""
    soul = load_soul(adapter / SOUL_FILE)
    soul.rotation[:, :, 0] *= -1
    mirrored = SoulRecord(soul.rotation, soul.alpha, soul.step, "", soul.counter_scale, reflection=True)
    save_soul(adapter / SOUL_FILE, mirrored)
    assert failures(verify_file(adapter)) == []
    assert "AEGIS did not train it" in "\n".join(failures(verify_file(sealed(adapter, "train"))))


MERGED_DEFECTS = {
    "no head": (tensors("model.safetensors", lambda t: t.pop("lm_head.weight")), "no soul was folded"),
    "head cut": (
        tensors("model.safetensors", lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:-8].clone()})),
        "which is not what config.json says",
    ),
    "Inf": (tensors("model.safetensors", lambda t: t["model.norm.weight"].fill_(torch.inf)), "NaN or Inf"),
    "a soul's tensor": (
        tensors("model.safetensors", lambda t: t.update({"soul.alpha": torch.zeros(1)})),
        "which no stock model has",
    ),
    "tied flag left": (config(tie_word_embeddings=True), "leaves the head tied"),
    "code": (config(auto_map={"AutoModelForCausalLM": "x.Y"}), "contains code"),
    "a refused family": (config(model_type="gemma2"), "is not supported"),
    "no config": (lambda folder: (folder / "config.json").write_text("[1"), "cannot be read"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer"),
}


@pytest.mark.parametrize("defect", MERGED_DEFECTS)
def test_damaged_model_folders_are_reported(merged: Path, defect: str) -> None:
    (merged / MANIFEST).unlink()
    make, shown = MERGED_DEFECTS[defect]
    make(merged)
    found = verify_file(merged)
    assert found.failed_stage == "merge"
    assert shown in "\n".join(failures(found))


def test_one_flipped_bit_is_found_by_the_hash(merged: Path) -> None:
    """In the middle of a weight: every number is finite, and only the manifest knows."""
    path = merged / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "content changed" in "\n".join(failures(verify_file(merged)))
    (merged / MANIFEST).unlink()
    assert failures(verify_file(merged)) == []


# -- GGUF ----------------------------------------------------------------------------------------------------------


def test_a_stock_tied_gguf_is_reported_as_having_no_soul(
    make_random: MakeRandom, tmp_path: Path, knowing_tree: Path
) -> None:
    """A sound file from elsewhere: the missing head is reported."""
    model = make_random("qwen2", pre="qwen2", tie_word_embeddings=True)
    report = export_gguf(model, tmp_path / "out", ExportConfig(quant=("F16",), llama_cpp_dir=knowing_tree))
    (shown,) = failures(verify_file(report.files[0]))
    assert "no output.weight" in shown
    assert "the embeddings are its LM head" in shown


def test_a_layer_without_the_tensors_of_the_others_is_reported(merged: Path, tmp_path: Path) -> None:
    report = export_gguf(merged, tmp_path / "out", ExportConfig(quant=("F16",)))
    path = Path(shutil.copyfile(report.files[0], tmp_path / "stray.gguf"))
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_dowx.weight"))
    (shown,) = failures(verify_file(path))
    assert "layer 1 has no ffn_down.weight" in shown


def renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)
    return lambda data: data.replace(old, new)


def stored(key: bytes, code: str, value: int) -> Callable[[bytes], bytes]:
    """Change the number of a metadata key in the file."""

    def change(data: bytes) -> bytes:
        at = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
        return data[:at] + struct.pack(f"<{code}", value) + data[at + struct.calcsize(code) :]

    return change


GGUF_DEFECTS = {
    "head lost": (renamed(b"output.weight", b"outpux.weight"), "no output.weight"),
    "vocabulary lost": (renamed(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"), "has no vocabulary"),
    "no end of text": (renamed(b"ggml.eos_token_id", b"ggml.eoz_token_id"), "no end-of-text token"),
    "eos out of range": (stored(b"tokenizer.ggml.eos_token_id", "I", 1 << 20), "eos is token 1048576"),
    "another width": (stored(b"phi3.embedding_length", "I", 512), "but the metadata gives"),
    "layers it has not": (stored(b"phi3.block_count", "I", 4_000_000_000), "does not hold the 4000000000 layers"),
    "rope factors lost": (renamed(b"rope_factors_long", b"rope_factors_lonx"), "rope_factors_long.weight"),
    "architecture lost": (renamed(b"general.architecture", b"general.architecturx"), "does not name an architecture"),
    "not a GGUF": (lambda data: b"GGML" + data[4:], "not a complete GGUF"),
    "empty": (lambda data: b"", "not a complete GGUF"),
}


@pytest.mark.parametrize("defect", GGUF_DEFECTS)
def test_damaged_ggufs_are_reported(stray: Path, defect: str) -> None:
    change, shown = GGUF_DEFECTS[defect]
    before = stray.read_bytes()
    after = change(before)
    assert after != before
    stray.write_bytes(after)
    found = verify_file(stray)
    assert found.failed_stage == "convert"
    assert shown in "\n".join(failures(found))


@pytest.mark.parametrize("pattern", ["*-F16.gguf", "*-Q4_K_M.gguf"])
def test_a_value_that_is_not_finite_is_reported(gguf: Path, tmp_path: Path, pattern: str) -> None:
    """An Inf in float16, and an Inf for the scale of a block of 256."""
    path = Path(shutil.copyfile(next(gguf.glob(pattern)), tmp_path / "stray.gguf"))
    with GgufFile(path) as file:
        info = file.tensors["token_embd.weight"]
    data = bytearray(path.read_bytes())
    data[info.offset_bytes : info.offset_bytes + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(data)
    assert failures(verify_file(path)) == [f"finite tensors: token_embd.weight of {path} holds NaN or Inf"]


def test_a_gguf_that_is_cut_anywhere_is_reported(gguf: Path, tmp_path: Path) -> None:
    data = next(gguf.glob("*-Q4_K_M.gguf")).read_bytes()
    path = tmp_path / "cut.gguf"
    for percent in range(100):
        path.write_bytes(data[: len(data) * percent // 100])
        assert "not a complete GGUF" in "\n".join(failures(verify_file(path)))


def test_flipped_bits_never_crash_or_hang_the_check(gguf: Path, tmp_path: Path) -> None:
    """Half of them in the header. A flip may go unseen without a manifest, but never escapes, hangs or eats memory."""
    published = next(gguf.glob("*-Q4_K_M.gguf"))
    data = published.read_bytes()
    with GgufFile(published) as file:
        header_bytes = min(info.offset_bytes for info in file.tensors.values())
    path = tmp_path / "flipped.gguf"
    rng = np.random.default_rng(48)
    refused = 0
    tracemalloc.start()
    for number in range(60):
        flipped = bytearray(data)
        for at in rng.integers(0, header_bytes if number % 2 else len(data), size=3):
            flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        refused += verify_file(path).failed_stage is not None
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 8
    assert peak_bytes < 200e6

    copy = shutil.copytree(gguf, tmp_path / "published")
    (copy / published.name).write_bytes(flipped)
    assert "content changed" in "\n".join(failures(verify_file(copy / published.name)))


# -- reports ---------------------------------------------------------------------------------------------------------


KNOWN = {"schema": SCHEMA, "version": SCHEMA_VERSION}


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (KNOWN | {"ok": True, "failed_stage": None, "tokens": 9}, ""),
        (KNOWN | {"ok": False, "failed_stage": "merge"}, "fault is in merge"),
        (KNOWN | {"ok": True, "version": SCHEMA_VERSION + 1}, "by another version"),
        (KNOWN | {"ok": True, "schema": "other"}, "by another version"),
        (KNOWN, "does not record"),
        ([], "not a report"),
        ("text", "not a report"),
    ],
)
def test_a_report_is_checked(tmp_path: Path, content: object, shown: str) -> None:
    (tmp_path / "report.json").write_text(json.dumps(content))
    for path in (tmp_path, tmp_path / "report.json"):
        found = verify_file(path)
        assert shown in "\n".join(failures(found))
        assert (found.failed_stage is None) == (not shown)


def test_checking_parts_raises_only_usage_errors(tmp_path: Path) -> None:
    """Files of the right name and the wrong content are findings, not failures of the command."""
    for name, content in (("a.gguf", b"GGUF"), ("soul.safetensors", bytes(20)), ("report.json", b"\xff")):
        (tmp_path / name).write_bytes(content)
        assert verify_file(tmp_path / name).failed_stage is not None
    assert issubclass(UsageError, AegisError)


def test_a_chat_template_that_cannot_be_compiled_is_reported(stray: Path) -> None:
    edited = GgufEdit(stray)
    edited["tokenizer.chat_template"] = "{% for message in messages %}{{ message"
    edited.save(stray)
    (shown,) = failures(verify_file(stray))
    assert "chat template cannot be used" in shown
