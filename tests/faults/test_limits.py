"""Tests of small input that would take all memory or never end: a case beyond each parser's bound and one at it.

The cases go through `watch` of hostile.py: at most 400 MB more memory, no traceback, and an exit code of the table.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import strategies as st

from aegis import limits
from aegis.data.files import READERS, FileSource
from aegis.data.rejects import Rejects
from aegis.errors import AegisError
from aegis.llama_cpp import GgufFile
from aegis.model.adapter import CONFIG, load_adapter
from aegis.model.base import find_base, load_tokenizer, peek_base
from aegis.model.families import check_family
from aegis.model.shards import SINGLE, read_header
from aegis.verification.export_sidecars import end_tokens
from tests.faults.hostile import MOST_BYTES, Target, Watched, watch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a process's peak is read from /proc")

Case = Callable[[Path], object]


def rows_of(name: str, content: bytes) -> Case:
    def read(place: Path) -> object:
        path = place / name
        path.write_bytes(content)
        rejects = Rejects(name, skip_bad=10**9)
        return sum(1 for _ in FileSource(path, READERS[path.suffix]).rows(rejects))

    return read


def parquet(text: str, rows: int) -> Case:
    """Return a Parquet file of a few kB that unpacks to `rows` times the text."""

    def read(place: Path) -> object:
        path = place / "data.parquet"
        packed = {"compression": "zstd", "write_statistics": False, "dictionary_pagesize_limit": 1 << 30}
        column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
        pa.parquet.write_table(pa.table({"text": column}), path, **packed)
        assert path.stat().st_size < 100_000
        return sum(1 for _ in FileSource(path, READERS[".parquet"]).rows(Rejects("", skip_bad=10**9)))

    return read


def packed(mebibytes: int) -> Case:
    """Return lines of a MiB each, packed to a few kB."""

    def read(place: Path) -> object:
        path = place / "data.jsonl.zst"
        line = b'{"text": "' + b"x" * ((1 << 20) - 13) + b'"}\n'
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            for _ in range(mebibytes):
                file.write(line)
        assert path.stat().st_size < 20_000
        return sum(1 for _ in FileSource(path, READERS[".jsonl"]).rows(Rejects("")))

    return read


def config_of(**values: object) -> Case:
    honest = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "vocab_size": 1000}
    return lambda _: check_family(honest | values)


def gguf(*values: bytes, keys: int | None = None, tensors: int = 0) -> Case:
    def read(place: Path) -> object:
        path = place / "model.gguf"
        path.write_bytes(
            b"GGUF" + struct.pack("<IQQ", 3, tensors, len(values) if keys is None else keys) + b"".join(values)
        )
        with GgufFile(path) as file:
            return len(file.metadata)

    return read


def key(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def strings(name: str, count: int) -> bytes:
    return key(name, 9, struct.pack("<IQ", 8, count) + bytes(8 * count))


def header(length: int) -> Case:
    def read(place: Path) -> object:
        record = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        text = json.dumps({"a": record}).encode().ljust(length)
        (place / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text)
        return read_header(place / SINGLE)

    return read


def adapter_config(length: int) -> Case:
    def read(place: Path) -> object:
        header(300)(place)
        (place / SINGLE).rename(place / "adapter_model.safetensors")
        (place / CONFIG).write_text(json.dumps({"peft_type": "LORA"}).ljust(length))
        return load_adapter(place)

    return read


# what is beyond the bound, and the key that it is refused by
BEYOND: dict[str, tuple[Case, str]] = {
    "JSON: one item that never ends": (rows_of("data.json", b"[[" + b"[]," * 4_000_000), "files.long_value"),
    "JSON: a text that never ends": (rows_of("data.json", b'[{"text": "' + b"x" * 15_000_000), "files.long_value"),
    "JSON: a member that never ends": (
        rows_of("data.json", b'{"a": 1,\n"x": [' + b"1,\n" * 4_000_000),
        "files.long_value",
    ),
    "JSON: brackets": (rows_of("data.json", b"[\n" + b"[" * 3_000_000), "files.broken_json"),
    "CSV: a row over millions of lines": (rows_of("data.csv", b"a,b\n" + b'"\n",' * 3_000_000), "files.broken_csv"),
    "CSV: a header of many columns": (
        rows_of("data.csv", b"a," * (limits.ROW_FIELDS + 1) + b"\n1\n"),
        "files.broken_csv",
    ),
    "packed: 100 MB in a few kB": (packed(100), "files.unpacked_too_far"),
    "config: layers": (config_of(num_hidden_layers=10**6), "families.too_large"),
    "config: layers below": (config_of(text_config={"n_layer": limits.LAYERS + 1}), "families.too_large"),
    "config: vocabulary": (config_of(vocab_size=2**40), "families.too_large"),
    "config: experts": (config_of(num_local_experts=limits.EXPERTS + 1), "families.too_large"),
    "config: experts of all layers": (config_of(num_hidden_layers=256, num_experts=257), "families.too_large"),
    "config: another number": (config_of(hidden_size=2**31 + 1), "families.too_large"),
    "config: less than none": (config_of(num_hidden_layers=-(10**30)), "families.too_large"),
    "GGUF: arrays together": (gguf(*(strings(f"k{n}", 1 << 18) for n in range(9))), "gguf_file.not_whole"),
    "GGUF: keys": (gguf(*(key(f"k{n}", 0, b"\0") for n in range(limits.GGUF_KEYS + 1))), "gguf_file.not_whole"),
    "GGUF: tensors": (gguf(bytes(1 << 22), keys=0, tensors=limits.GGUF_TENSORS + 1), "gguf_file.not_whole"),
    "GGUF: one long string": (
        gguf(key("k", 8, struct.pack("<Q", 1 << 25) + b"\xff" * (1 << 25))),
        "gguf_file.not_whole",
    ),
    "safetensors: a long header": (header(limits.INDEX_BYTES + 1), "shards.not_whole"),
    "adapter: a long config": (adapter_config(limits.CONFIG_BYTES + 1), "adapter.unreadable"),
}

# what is at the bound, and the key it is refused by for another reason, or None where it is taken
AT: dict[str, tuple[Case, str | None]] = {
    "JSON: many small items": (rows_of("data.json", b"[" + b"[]," * 100_000 + b"[]]"), None),
    "JSON: the largest item": (rows_of("data.json", b'[{"text": "' + b"x" * (limits.ROW_BYTES - 16) + b'"}]'), None),
    "JSON: an object that holds many": (
        rows_of("data.json", b'{"v": 1,\n "data": [' + b"{}," * 100_000 + b"{}]}"),
        None,
    ),
    "CSV: as many columns as there may be": (
        rows_of("data.csv", b",".join(b"a%d" % n for n in range(limits.ROW_FIELDS)) + b"\n1\n"),
        None,
    ),
    "CSV: a quoted text of many lines": (rows_of("data.csv", b'a,b\n"' + b"\n" * 1_000_000 + b'",x\n'), None),
    "packed: 64 MB in a few kB": (packed(64), None),
    "Parquet: rows": (parquet("桜" * 1000, 20_000), None),
    "Parquet: rows that are too long": (parquet("x" * (16 << 20), 100), None),
    "config: the largest": (
        config_of(num_hidden_layers=limits.LAYERS, vocab_size=limits.VOCABULARY, num_experts=256),
        None,
    ),
    "config: no number of modules": (
        config_of(max_position_embeddings=2**31, rope_theta=1e9, layer_norm_eps=1e-5),
        None,
    ),
    "GGUF: arrays together": (gguf(*(strings(f"k{n}", 1 << 18) for n in range(8))), None),
    "GGUF: keys": (gguf(*(key(f"k{n}", 0, b"\0") for n in range(limits.GGUF_KEYS))), None),
    "safetensors: the longest header": (header(limits.INDEX_BYTES), None),
    "adapter: the longest config": (adapter_config(limits.CONFIG_BYTES), "adapter.not_a_lora_matrix"),
}


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_loaded(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Feed honest input once: a reader imports its libraries at first use, and their memory is no case's."""
    for name, content in (("data.json", b'[{"text": "x"}]'), ("data.csv", b"text\nx\n")):
        rows_of(name, content)(tmp_path_factory.mktemp("honest"))
    config_of()(tmp_path_factory.mktemp("honest"))


def refusal(case: Case, place: Path) -> tuple[str | None, Watched]:
    """Return the key of the refusal, and the watched result."""
    keys: list[str] = []

    def feed(_: object, place: Path) -> None:
        try:
            case(place)
        except AegisError as error:
            keys.append(error.key)
            raise

    seen = watch(Target("", st.none(), feed), None, place)
    return (keys or [None])[0], seen  # type: ignore[list-item]


@pytest.mark.parametrize("name", BEYOND)
def test_a_parser_refuses_input_beyond_its_bound_with_little_memory(tmp_path: Path, name: str) -> None:
    case, expected = BEYOND[name]
    found, seen = refusal(case, tmp_path)
    assert found == expected, seen.fault
    assert seen.more_bytes <= MOST_BYTES


@pytest.mark.parametrize("name", AT)
def test_a_parser_accepts_input_at_its_bound(tmp_path: Path, name: str) -> None:
    case, expected = AT[name]
    found, seen = refusal(case, tmp_path)
    assert found == expected, seen.fault
    assert seen.accepted == (expected is None), seen.fault
    assert seen.more_bytes <= MOST_BYTES


@pytest.mark.parametrize(("values", "refused"), [(40_000_000, True), (1000, False)])
def test_a_parquet_file_that_needs_more_memory_than_its_reader_may_take_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: int, refused: bool
) -> None:
    """The reader is another process, whose end is not this one's."""
    monkeypatch.setattr("aegis.data.files.PARQUET_BYTES", 512 << 20)
    zeros = pa.array(np.zeros(values, np.int8))
    lists = pa.ListArray.from_arrays(pa.array([0, values], pa.int32()), zeros)
    pa.parquet.write_table(pa.table({"text": lists}), tmp_path / "data.parquet", compression="zstd")
    assert (tmp_path / "data.parquet").stat().st_size < 100_000
    rows = FileSource(tmp_path / "data.parquet", READERS[".parquet"]).rows(Rejects(""))
    if refused:
        with pytest.raises(AegisError) as caught:
            list(rows)
        assert caught.value.key == "files.broken_parquet"
    else:
        assert [len(row.value["text"]) for row in rows] == [values]


@pytest.mark.parametrize("where", ["added", "vocabulary", "none"])
def test_a_token_id_beyond_every_vocabulary_is_refused(quick_base: Path, tmp_path: Path, where: str) -> None:
    """A list of all ids up to 2³² − 1 would have 34 GB."""
    base = tmp_path / "base"
    shutil.copytree(quick_base, base)
    document = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    if where == "added":
        document["added_tokens"].append({**document["added_tokens"][-1], "content": "<far>", "id": 2**32 - 1})
    elif where == "vocabulary":
        document["model"]["vocab"][next(iter(document["model"]["vocab"]))] = 2**32 - 1
    (base / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    if where != "vocabulary":  # an added token gets the next id, whatever it says of itself
        assert max(load_tokenizer(base).get_vocab().values()) < limits.VOCABULARY
    else:
        with pytest.raises(AegisError) as refused:
            load_tokenizer(base)
        assert refused.value.key in ("base.token_id", "base.no_tokenizer")


@pytest.mark.parametrize("end", [2**32 - 1, -1, True, 2.5, "2", [1, 2**40], [[1]], {"a": 1}])
def test_an_end_token_outside_every_vocabulary_is_refused(quick_base: Path, tmp_path: Path, end: object) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": end}), encoding="utf-8")
    with pytest.raises(AegisError) as refused:
        end_tokens(tmp_path, {})
    assert refused.value.key == "export.end_tokens"
    assert end_tokens(quick_base, {})


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("config.json", limits.CONFIG_BYTES),
        ("generation_config.json", limits.CONFIG_BYTES),
        ("model.safetensors.index.json", limits.INDEX_BYTES),
        ("tokenizer.json", limits.TOKENIZER_BYTES),
        ("README.md", limits.TOKENIZER_BYTES),
        ("LICENSE", limits.TOKENIZER_BYTES),
    ],
)
def test_no_text_of_a_model_folder_is_read_beyond_its_bound(
    quick_base: Path, tmp_path: Path, name: str, most: int
) -> None:
    """Blanks at the end of JSON are allowed, so that it is the size alone that is refused."""
    base = tmp_path / "base"
    shutil.copytree(quick_base, base)
    honest = (base / name).read_bytes() if (base / name).is_file() else b""
    for size, refused in ((most, False), (most + 1, True)):
        with (base / name).open("wb") as file:
            file.write(honest)
            file.truncate(size)  # no disk is used for it
        try:
            with peek_base(str(base)):
                pass
        except AegisError as error:
            assert (error.key == "base.too_large") == refused  # noqa: PT017
        else:
            assert not refused
    (base / name).write_bytes(honest)
    if honest:
        find_base(str(base))
