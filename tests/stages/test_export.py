"""Tests of export-gguf: its files are named, checked and complete, or there are none."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aegis import llama_cpp
from aegis.background import stop_if_asked
from aegis.config.settings import ExportConfig
from aegis.errors import EnvironmentFault, IntegrityError, ToolError, UnsupportedModelError, UsageError
from aegis.llama_cpp import GgufFile, Runtime
from aegis.model.base import load_tokenizer
from aegis.model.shards import ShardSet
from aegis.runs.disk import file_stem
from aegis.runs.facts import ExportFacts, MergeFacts
from aegis.runs.manifest import Manifest, verify_directory
from aegis.runs.publish import publishing
from aegis.stages import export
from aegis.stages.export import export_gguf, general_name
from aegis.verification import gguf_checks
from aegis.verification.gguf_checks import files_bytes, same_as_f16
from aegis.verification.run_checks import Checks
from aegis.verification.sidecar_checks import check_export_sidecars
from tests.conftest import MakeRandom
from tests.gguf_edit import GgufEdit
from tests.recorded import merge_facts

BESIDE = ["Modelfile", "README.md", "params", "template"]
NASTY = '-x ../"quoted"\n$(touch pwned) ;日本\u3000語'


@pytest.fixture(scope="module")
def exported(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> export.ExportReport:
    """Return two types and the f16 file, made by the real converter and quantizer, in a folder with an awkward name."""
    out = tmp_path_factory.mktemp("export") / "out $(touch pwned) 'q' 日本"
    return export_gguf(quick_base, out, ExportConfig(quant=("q4_k_m", "Q8_0", "Q4_K_M"), keep_f16=True, name=NASTY))


@pytest.fixture
def converted(exported: export.ExportReport, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace conversion by a copy of an existing f16 file, which saves seconds per test."""
    names: list[str] = []

    def copy(_model: Path, out: Path, *, model_name: str, tree: Path | None = None, prepared: object = None) -> None:
        names.append(model_name)
        shutil.copyfile(exported.files[-1], out)

    monkeypatch.setattr(export, "convert", copy)
    return names


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_requested_file_is_exported(exported: export.ExportReport) -> None:
    """One file a type, asked for twice or in small letters; f16 last; each of its type; the manifest knows all."""
    stem = file_stem(exported.name)
    assert [file.name for file in exported.files] == [f"{stem}-{t}.gguf" for t in ("Q4_K_M", "Q8_0", "F16")]
    manifest = verify_directory(exported.out)
    assert set(manifest.files) == {
        *(file.name for file in exported.files),
        "Modelfile",
        "README.md",
        "params",
        "template",
    }
    facts = ExportFacts.of(manifest)
    assert list(facts.files.values()) == [file.name for file in exported.files]
    assert facts.fallback_tensors == {"Q4_K_M": [], "Q8_0": []}
    assert manifest.config["quant"] == ["Q4_K_M", "Q8_0"]
    types = {}
    for file in exported.files:
        with GgufFile(file) as gguf:
            types[file.name.rpartition("-")[2]] = gguf.tensors["output.weight"].type
            assert gguf.metadata["general.name"] == exported.name == f"Phi-3-{NASTY}"
    assert types == {"Q4_K_M.gguf": "Q6_K", "Q8_0.gguf": "Q8_0", "F16.gguf": "F16"}
    assert names(exported.out.parent) == [exported.out.name]
    assert not Path("pwned").exists()
    assert not (exported.out / "pwned").exists()


def test_the_announced_disk_space_is_enough_and_close(exported: export.ExportReport, quick_base: Path) -> None:
    """All files exist at the end; a K-quant counts as the largest of its kind."""
    output = files_bytes(quick_base, ShardSet.open(quick_base), ["F16", "Q4_K_M", "Q8_0"])
    stood = sum(file.stat().st_size for file in exported.files)
    assert stood <= output < 2 * stood + (8 << 20)


def test_an_exported_file_answers_in_llama_cpp(exported: export.ExportReport, quick_base: Path) -> None:
    """Stock llama.cpp loads the first file and cuts a chat into the ids the folder's tokenizer gives."""
    tokenizer = load_tokenizer(quick_base)
    asked = [{"role": "user", "content": "春の花は何ですか。"}]
    wanted = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    with Runtime(exported.files[0], n_ctx=64, threads=1) as runtime:
        assert runtime.chat_tokens(asked) == wanted
        assert "".join(runtime.chat(asked, 8, temperature=0))


def test_the_modelfile_is_beside_the_gguf(exported: export.ExportReport) -> None:
    text = (exported.out / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith(f"FROM ./{exported.files[0].name}\n")
    for line in (
        'PARAMETER stop "<|end|>"',
        'PARAMETER stop "<|endoftext|>"',
        'PARAMETER stop "<|user|>"',
        'PARAMETER stop "<|assistant|>"',
        "PARAMETER num_ctx 4096",
    ):
        assert line in text.splitlines()
    assert '{{ "<|user|>\\n" }}{{ .Content }}{{ "<|end|>\\n" }}' in text
    # what `ollama run hf.co/...` reads, which knows no Modelfile
    template = (exported.out / "template").read_text(encoding="utf-8")
    assert f'TEMPLATE """{template}"""' in text
    params = json.loads((exported.out / "params").read_text(encoding="utf-8"))
    stops = [line.split('"')[1] for line in text.splitlines() if line.startswith("PARAMETER stop")]
    assert params == {"num_ctx": 4096, "stop": stops}
    assert exported.context_tokens == 4096


def test_the_f16_file_is_removed_unless_it_was_requested(
    quick_base: Path, tmp_path: Path, converted: list[str]
) -> None:
    report = export_gguf(quick_base, tmp_path / "out", ExportConfig(quant=("Q8_0",)))
    assert names(tmp_path / "out") == sorted(
        ["Modelfile", "README.md", "params", "template", report.files[0].name, "manifest.json"]
    )
    report = export_gguf(quick_base, tmp_path / "f16", ExportConfig(quant=("F16",)))
    assert names(tmp_path / "f16") == sorted(
        ["Modelfile", "README.md", "params", "template", report.files[0].name, "manifest.json"]
    )
    assert report.files[0].name.endswith("-F16.gguf")


def test_the_f16_file_is_checked_while_it_is_quantized(
    quick_base: Path, tmp_path: Path, converted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check waits here for the quantizer: before it, it would wait in vain. A fault that it finds is raised."""
    quantizing, waited = threading.Event(), []
    check, quantize = export.check_f16, export.quantize

    def patient(*arguments: Any) -> None:
        waited.append(quantizing.wait(120))
        check(*arguments)

    def starting(*arguments: Any, **options: Any) -> None:
        quantizing.set()
        quantize(*arguments, **options)

    monkeypatch.setattr(export, "check_f16", patient)
    monkeypatch.setattr(export, "quantize", starting)
    export_gguf(quick_base, tmp_path / "out", ExportConfig(quant=("Q8_0",)))
    assert waited == [True]

    def faulty(*_: Any) -> None:
        raise IntegrityError("gguf.differs", wrong="something")

    monkeypatch.setattr(export, "check_f16", faulty)
    with pytest.raises(IntegrityError) as caught:
        export_gguf(quick_base, tmp_path / "faulty", ExportConfig(quant=("Q8_0",)))
    assert caught.value.key == "gguf.differs"
    assert names(tmp_path) == ["out"]


def test_a_fault_of_the_f16_file_comes_before_the_quantizers_failure(
    quick_base: Path, tmp_path: Path, converted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantizer refuses NaN too, as a failure of the tool. A failure that has no such cause is raised as it is."""
    convert, name = export.convert, "blk.0.ffn_down.weight"

    def spoiled(model: Path, out: Path, **options: Any) -> None:
        convert(model, out, **options)
        edit = GgufEdit(out)
        edit.values(name)[0, 0] = float("nan")
        edit.save(out)

    def failing(*_: Any, **__: Any) -> None:
        raise ToolError("tensor_types.no_answer", source="F16.gguf", quant="Q8_0")

    with monkeypatch.context() as patch:
        patch.setattr(export, "convert", spoiled)
        with pytest.raises(IntegrityError, match=f"{name} holds NaN"):
            export_gguf(quick_base, tmp_path / "out", ExportConfig(quant=("Q8_0",)))
    monkeypatch.setattr(export, "quantize", failing)
    with pytest.raises(ToolError):
        export_gguf(quick_base, tmp_path / "out", ExportConfig(quant=("Q8_0",)))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("module", "fails"), [(gguf_checks, "quantize"), (export, "check_answers")], ids=["the check", "the hashes"]
)
def test_what_runs_beside_a_failure_is_ended(
    quick_base: Path,
    tmp_path: Path,
    converted: list[str],
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    fails: str,
) -> None:
    """The failure does not wait for the rest of the files: here the first look lasts until the end is asked for."""
    looking, asked = threading.Event(), []

    def looked(stop: threading.Event | None) -> None:
        looking.set()
        asked.append(stop is not None and stop.wait(60))
        stop_if_asked(stop)

    def failing(*_: Any, **__: Any) -> None:
        assert looking.wait(60)
        raise KeyError

    monkeypatch.setattr(module, "stop_if_asked", looked)
    monkeypatch.setattr(export, fails, failing)
    with pytest.raises(KeyError):
        export_gguf(quick_base, tmp_path / "out", ExportConfig(quant=("Q8_0",), keep_f16=True))
    assert asked == [True]


def test_new_types_are_added_to_existing_files(quick_base: Path, tmp_path: Path, converted: list[str]) -> None:
    """Neither a second command nor `run` without --quant takes a file away; what stood is the same file, byte by byte.

    The control is --overwrite, which leaves what it was asked for alone.
    """
    out = tmp_path / "out"
    export_gguf(quick_base, out, ExportConfig(quant=("Q8_0",), name="mine"))
    (first,) = out.glob("*-Q8_0.gguf")
    before = first.stat()

    added = export_gguf(quick_base, out, ExportConfig(quant=("Q4_0", "q8_0")))
    assert [file.name for file in added.files] == ["Phi-3-mine-Q8_0.gguf", "Phi-3-mine-Q4_0.gguf"]
    assert (first.stat().st_size, first.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert ExportFacts.of(verify_directory(out)).fallback_tensors == {"Q8_0": [], "Q4_0": []}
    assert "Q4_0.gguf" in (out / "README.md").read_text(encoding="utf-8")

    again = export_gguf(quick_base, out, ExportConfig(), overwrite=True, reuse=True)
    assert len(again.files) == 3
    assert export_gguf(quick_base, out, ExportConfig(), overwrite=True, reuse=True) == again
    assert len(converted) == 3

    with pytest.raises(UsageError) as caught:
        export_gguf(quick_base, out, ExportConfig(name="other"))
    assert caught.value.key == "export.other_settings"
    assert "name Phi-3-mine → Phi-3-other" in caught.value.why

    only = export_gguf(quick_base, out, ExportConfig(quant=("Q4_0",)), overwrite=True)
    assert sorted(out.glob("*.gguf")) == list(only.files)


def test_a_system_message_and_a_temperature_are_handed_to_ollama_and_checked(
    quick_base: Path, tmp_path: Path, converted: list[str]
) -> None:
    """They stay when a type is added, and verify's check of the files knows them; another message is another export."""
    out, system = tmp_path / "out", "侍として話す。"
    export_gguf(quick_base, out, ExportConfig(quant=("Q8_0",), name="mine", system=system, temperature=0.5))
    export_gguf(quick_base, out, ExportConfig(quant=("Q4_0",)))
    text = (out / "Modelfile").read_text(encoding="utf-8")
    assert text.endswith(f'PARAMETER temperature 0.5\nSYSTEM """{system}"""\n')
    assert json.loads((out / "params").read_text(encoding="utf-8"))["temperature"] == 0.5
    assert (out / "system").read_text(encoding="utf-8") == system
    manifest, found = verify_directory(out), Checks()
    check_export_sidecars(found, quick_base, out, manifest)
    assert found.done[-1].ok
    (out / "Modelfile").write_text(text.replace(system, "忍者として話す。"), encoding="utf-8")
    check_export_sidecars(found, quick_base, out, manifest)
    assert not found.done[-1].ok, "the control"

    for config, key in (
        (ExportConfig(system="忍者として話す。"), "export.other_settings"),
        (ExportConfig(system='"""\nFROM x'), "export.system_text"),
    ):
        with pytest.raises(UsageError) as caught:
            export_gguf(quick_base, out, config)
        assert caught.value.key == key


def test_an_export_of_other_settings_is_made_again_with_all_its_types(
    quick_base: Path, tmp_path: Path, converted: list[str]
) -> None:
    out = tmp_path / "out"
    export_gguf(quick_base, out, ExportConfig(quant=("Q8_0",)))
    report = export_gguf(quick_base, out, ExportConfig(quant=("Q4_0",), head_quant="q8_0"), overwrite=True, reuse=True)
    assert [file.stem.rpartition("-")[2] for file in report.files] == ["Q8_0", "Q4_0"]
    with GgufFile(report.files[1]) as gguf:
        assert gguf.tensors["output.weight"].type == "Q8_0"


def test_the_head_can_have_its_own_type(quick_base: Path, tmp_path: Path, converted: list[str]) -> None:
    report = export_gguf(quick_base, tmp_path / "out", ExportConfig(head_quant="q8_0"))
    with GgufFile(report.files[0]) as gguf:
        assert gguf.tensors["output.weight"].type == "Q8_0"
        assert gguf.tensors["token_embd.weight"].type == "Q4_K"


def test_existing_output_is_kept_until_the_new_one_is_complete(
    quick_base: Path, tmp_path: Path, converted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused without overwrite; with it, a failed quantizer leaves the old output, else the new one replaces it."""
    out = tmp_path / "out"
    with publishing(out, Manifest("merge", {}, {}, {})) as staging:
        (staging.path / "old").touch()
    with pytest.raises(UsageError, match="exists"):
        export_gguf(quick_base, out, ExportConfig())
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"did not write: mine\.txt"):
        export_gguf(quick_base, out, ExportConfig(), overwrite=True)
    (out / "mine.txt").unlink()
    assert converted == []

    worker = tmp_path / "worker.py"
    worker.write_text("import sys\nopen(sys.argv[2], 'wb').write(b'GGUF' + bytes(999))\nprint('cannot')\nsys.exit(3)\n")
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["aegis.llama_cpp.quantize"], "_WORKER", worker)
        with pytest.raises(ToolError, match="cannot"):
            export_gguf(quick_base, out, ExportConfig(), overwrite=True)
    assert names(out) == ["manifest.json", "old"]
    assert names(tmp_path) == ["out", "worker.py"]

    report = export_gguf(quick_base, out, ExportConfig(), overwrite=True)
    assert names(out) == sorted([*BESIDE, report.files[0].name, "manifest.json"])


def test_a_finished_export_is_kept(quick_base: Path, tmp_path: Path, converted: list[str]) -> None:
    """With reuse, the same request does nothing; another type or a damaged file makes a new export."""
    again = {"overwrite": True, "reuse": True}
    first = export_gguf(quick_base, tmp_path / "out", ExportConfig(quant=("Q8_0",)), **again)
    assert export_gguf(quick_base, tmp_path / "out", ExportConfig(quant=("Q8_0",)), **again) == first
    assert len(converted) == 1
    export_gguf(quick_base, tmp_path / "out", ExportConfig(quant=("Q4_0",)), **again)
    assert len(converted) == 2
    (tmp_path / "out" / "Modelfile").write_text("changed")
    export_gguf(quick_base, tmp_path / "out", ExportConfig(quant=("Q4_0",)), **again)
    assert len(converted) == 3
    verify_directory(tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"quant": ("Q4_K_N",)}, "Q4_K_N"),
        ({"quant": ("Q4_K_M", "zz")}, "zz"),
        ({"head_quant": "q9_9"}, "q9_9"),
    ],
)
def test_unknown_types_are_refused_before_any_work(
    tmp_path: Path, quick_base: Path, converted: list[str], settings: dict[str, object], shown: str
) -> None:
    with pytest.raises(UsageError, match=shown):
        export_gguf(quick_base, tmp_path / "out", ExportConfig(**settings))
    assert converted == []
    assert names(tmp_path) == []


def test_too_little_disk_space_is_an_error_before_the_work(
    tmp_path: Path, quick_base: Path, converted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(EnvironmentFault, match="not enough disk space for the GGUF files"):
        export_gguf(quick_base, tmp_path / "out", ExportConfig())
    assert converted == []


def test_a_folder_that_changed_after_its_manifest_is_refused(
    tmp_path: Path, exported: export.ExportReport, converted: list[str]
) -> None:
    """A merged folder carries hashes; one that no longer fits them is not exported."""
    from aegis.runs.manifest import Manifest
    from aegis.runs.publish import publishing

    model = tmp_path / "merged"
    with publishing(model, Manifest("merge", {}, {}, merge_facts(base_model="owner/Some-Phi-3-Base"))) as staging:
        (staging.path / "config.json").write_text('{"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}')
        (staging.path / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    with pytest.raises(IntegrityError):
        export_gguf(model, tmp_path / "out", ExportConfig())
    assert converted == []


def test_families_that_lose_their_head_are_refused_before_the_work(tmp_path: Path, converted: list[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}')
    with pytest.raises(UnsupportedModelError):
        export_gguf(tmp_path, tmp_path / "out", ExportConfig())
    assert converted == []


@pytest.mark.parametrize("text", ["[]", "{", '{"eos_token_id": "x"}', '{"eos_token_id": {"a": 1}}'])
def test_a_damaged_generation_config_is_refused_before_the_work(
    tmp_path: Path, quick_base: Path, converted: list[str], text: str
) -> None:
    model = shutil.copytree(quick_base, tmp_path / "model")
    (model / "generation_config.json").write_text(text)
    with pytest.raises(IntegrityError):
        export_gguf(model, tmp_path / "out", ExportConfig())
    assert converted == []


def test_a_gguf_of_another_model_is_never_published(
    make_random: MakeRandom, tmp_path: Path, converted: list[str]
) -> None:
    """The converter's word is not taken: here it hands over the file of another model."""
    with pytest.raises(IntegrityError, match=r"output\.weight is not lm_head\.weight"):
        export_gguf(make_random("llama"), tmp_path / "out", ExportConfig())
    assert names(tmp_path) == []


def test_a_gguf_that_llama_cpp_cannot_load_is_never_published(
    quick_base: Path, tmp_path: Path, converted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every type and row is as asked for, but a tensor has a name that llama.cpp does not look for."""
    quantize = export.quantize

    def renamed(source: Path, target: Path, *args: Any, **more: Any) -> None:
        quantize(source, target, *args, **more)
        data = target.read_bytes()
        assert data.count(b"blk.0.attn_norm.weight") == 1
        target.write_bytes(data.replace(b"blk.0.attn_norm.weight", b"blk.0.attn_nose.weight"))

    monkeypatch.setattr(export, "quantize", renamed)
    with pytest.raises(IntegrityError) as refused:
        export_gguf(quick_base, tmp_path / "out", ExportConfig())
    assert refused.value.key == "runtime.cannot_load"
    assert names(tmp_path) == []


def test_a_separate_head_is_exported_though_the_config_is_tied(make_random: MakeRandom, tmp_path: Path) -> None:
    """The GGUF has the separate head, and not the embeddings instead."""
    model = make_random("llama")
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    report = export_gguf(model, tmp_path / "out", ExportConfig(quant=("F16",)))
    entries = ShardSet.open(model).entries
    with GgufFile(report.files[0]) as gguf:
        assert same_as_f16(gguf.tensor("output.weight"), entries["lm_head.weight"])
        assert not same_as_f16(gguf.tensor("output.weight"), entries["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("wanted", "folder", "model_type", "name"),
    [
        (None, "Borea-Phi-3.5-mini", "phi3", "Borea-Phi-3.5-mini-AEGIS"),
        (None, "tiny", "phi3", "Phi-3-tiny-AEGIS"),
        (None, "tiny", "llama", "tiny-AEGIS"),
        ("My Model", "tiny", "phi3", "Phi-3-My Model"),
        ("My PHI3 Model", "tiny", "phi3", "My PHI3 Model"),
        ("日本語", "tiny", "phi3", "Phi-3-日本語"),
        ("日本語", "tiny", "llama", "日本語"),
        ("", "tiny", "llama", "tiny-AEGIS"),
    ],
)
def test_the_general_name_has_the_family(
    tmp_path: Path, wanted: str | None, folder: str, model_type: str, name: str
) -> None:
    """llama.cpp reads the family off general.name: without phi-3 in it, every chat prompt would gain tokens."""
    assert general_name(wanted, tmp_path / folder, model_type) == name


def test_a_byte_level_phi_3_is_not_named_phi_3(tmp_path: Path) -> None:
    """Phi-4-mini is model_type phi3: llama.cpp would look for Phi-3's tokens in it and could not load the file."""
    (tmp_path / "merges.txt").touch()
    assert general_name("Phi-4-mini", tmp_path, "phi3") == "Phi-4-mini"


def test_a_merged_folder_is_named_after_its_base(tmp_path: Path) -> None:
    from aegis.runs.manifest import Manifest
    from aegis.runs.publish import publishing

    with publishing(tmp_path / "merged", Manifest("merge", {}, {}, merge_facts(base_model="owner/Llama-3"))):
        pass
    assert MergeFacts.read(tmp_path / "merged").base_model == "owner/Llama-3"
    assert general_name(None, tmp_path / "merged", "llama") == "Llama-3-AEGIS"


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("AEGIS-Phi-3.5", "AEGIS-Phi-3.5"),
        ("a b  c", "a-b-c"),
        ("-x", "x"),
        ("--outfile=/etc/passwd", "outfile-etc-passwd"),
        ('"quoted"', "quoted"),
        ("two\nlines", "two-lines"),
        ("..", "model"),
        ("../../up", "up"),
        ("日本語　モデル", "日本語-モデル"),
        ("$(touch pwned)", "touch-pwned"),
        (".hidden", "hidden"),
        ("C:\\x|y*?", "C-x-y"),
        ("", "model"),
        ("{name}-{ftype}", "name---ftype"),
        ("n" * 300, "n" * 200),
        ("日" * 300, "日" * 66),
    ],
)
def test_a_file_name_is_safe_and_short(name: str, stem: str) -> None:
    """Letters of any script, digits, dots, dashes; never an option, a path, hidden, or too long for a file system."""
    assert file_stem(name) == stem
    assert len(f"{file_stem(name)}-Q4_K_M.gguf".encode()) < 255


def test_every_type_that_needs_no_matrix_is_known() -> None:
    assert {"Q4_K_M", "Q8_0", "Q6_K", "F16"} <= set(llama_cpp.QUANT_TYPES)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_folder_whose_description_changed_is_exported_again(
    quick_base: Path, tmp_path: Path, converted: list[str], name: str
) -> None:
    """A folder without a manifest: not only its weights make the file."""
    again = {"overwrite": True, "reuse": True}
    model = Path(shutil.copytree(quick_base, tmp_path / "model"))
    for _ in range(2):
        export_gguf(model, tmp_path / "out", ExportConfig(quant=("Q8_0",)), **again)
    assert len(converted) == 1
    (model / name).write_text((model / name).read_text(encoding="utf-8") + "\n", encoding="utf-8")
    export_gguf(model, tmp_path / "out", ExportConfig(quant=("Q8_0",)), **again)
    assert len(converted) == 2


@pytest.mark.parametrize("length", ["abc", [1], -5, 0.5, True])
def test_a_context_length_that_is_no_number_is_refused(
    quick_base: Path, tmp_path: Path, converted: list[str], length: object
) -> None:
    model = Path(shutil.copytree(quick_base, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    changed = config | {"max_position_embeddings": length, "original_max_position_embeddings": length}
    changed["rope_parameters"] = changed["rope_scaling"] = None
    (model / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(IntegrityError) as caught:
        export_gguf(model, tmp_path / "out", ExportConfig(quant=("Q8_0",)))
    assert caught.value.key == "base.context"
    assert not converted
