"""Hostile and damaged input for every parser of AEGIS, and the conditions that must hold for each case.

hypothesis generates a case: a sound file with one part changed (its bytes, or a value inside its JSON), or arbitrary
content. Feeding it must end in an AegisError with an exit code of the table, or without an error; never in another
exception, after more than five seconds, with 400 MB more memory, or with a file outside its folder.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import tarfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from safetensors.torch import save as save_tensors

from aegis.cli.screens.plan import planned
from aegis.config.resolve import resolve
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.train_settings import TrainConfig
from aegis.data.chat import Encoder
from aegis.data.dataset import prepare
from aegis.data.records import Chat
from aegis.data.rejects import Rejects
from aegis.errors import AegisError
from aegis.llama_cpp import GgufFile, trained_context
from aegis.llama_cpp.ollama.probing import dialogue_of
from aegis.model.adapter import load_adapter
from aegis.model.base import find_base, load_tokenizer
from aegis.model.shards import INDEX, SINGLE, ShardSet
from aegis.runs.manifest import Manifest, verify_directory
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from aegis.soul.file import SoulRecord, load_soul, save_soul
from aegis.soul.rotation import random_rotation
from aegis.stages.import_soul import import_soul
from aegis.stages.plan import plan
from tests.faults import served
from vendor_llama_cpp import VendorError
from vendor_llama_cpp.pin import load_pin
from vendor_llama_cpp.unpack import read_tree

MOST_SECONDS = 5.0
"""Processor time: other work on the machine does not lengthen it."""
MOST_BYTES = 400 << 20
"""A row of the greatest length, full of empty lists, takes 300 MB as Python's objects."""
CODES = frozenset({2, 3, 4, 5, 7})

_TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "..", "../../x", "/etc/passwd", "a/b", "\x00", "\ud800", "日本", "{{ 1 }}", "NaN", "1e999", "F16"]
    ),
)
_NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from(
        [-1, 0, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan")]
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXT, inner, max_size=3)),
    max_leaves=6,
)


@dataclass(frozen=True)
class Target:
    """A parser, with its cases and how to feed them.

    Attributes:
        seeds: sound content, from which guided.py starts; none if it is not bytes.
        case: makes a case from guided.py's bytes.
        seconds: the maximum for a case.
    """

    name: str
    cases: st.SearchStrategy[Any]
    feed: Callable[[Any, Path], object]
    seeds: tuple[bytes, ...] = ()
    case: Callable[[bytes], Any] = bytes
    seconds: float = MOST_SECONDS


@dataclass(frozen=True)
class Watched:
    """The result of a case; `fault` is empty if every condition holds."""

    accepted: bool
    seconds: float
    more_bytes: int
    fault: str


def watch(target: Target, case: Any, folder: Path) -> Watched:
    """Feed a case in a separate folder."""
    place = folder / "case"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    beside = _names(folder)
    idle_bytes = _start_peak()
    began = time.process_time()
    accepted, fault = False, ""
    try:
        target.feed(case, place)
        accepted = True
    except AegisError as error:
        if error.exit_code not in CODES or not error.what:
            fault = f"exit code {error.exit_code}: {error}"
    except VendorError:
        pass
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    seconds = time.process_time() - began
    if seconds > target.seconds:
        fault = fault or f"{seconds:.1f} s"
    more_bytes = _resident("VmHWM") - idle_bytes
    if more_bytes > MOST_BYTES:
        fault = fault or f"{more_bytes / 1e6:.0f} MB more"
    if _names(folder) != beside:
        fault = fault or f"wrote {sorted(_names(folder) - beside)}"
    return Watched(accepted, seconds, more_bytes, fault)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _start_peak() -> int:
    """Reset this process's peak memory, and return its current memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _resident("VmRSS")


def _resident(which: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(which + ":")[2].split()[0]) * 1024


# ---- how honest content is spoiled --------------------------------------------------------------------------------


@st.composite
def spoiled_bytes(draw: st.DrawFn, honest: bytes, near: int | None = None) -> bytes:
    """Bytes with bits flipped, or parts replaced, removed, repeated or appended, mostly in the first `near` bytes."""
    data = bytearray(honest)
    for _ in range(draw(st.integers(1, 3))):
        end = max(1, min(len(data), near or len(data)))
        at = draw(st.integers(0, end - 1))
        how = draw(st.sampled_from(["flip", "byte", "number", "cut", "end", "twice", "more"]))
        if how == "flip" and data:
            data[at % len(data)] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte" and data:
            data[at % len(data)] = draw(st.sampled_from([0, 0x22, 0x2C, 0x30, 0x5B, 0x7B, 0x7D, 0x80, 0xFF]))
        elif how == "number":
            data[at : at + 8] = struct.pack(
                "<Q", draw(st.sampled_from([0, 1, 255, 2**31, 2**32, 2**40, 2**63, 2**64 - 1]))
            )
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "end":
            del data[at:]
        elif how == "twice":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            data += draw(st.binary(max_size=32))
    return bytes(data)


@st.composite
def spoiled_json(draw: st.DrawFn, honest: Any) -> Any:
    """The document with a value at any depth replaced, removed or added."""
    document = json.loads(json.dumps(honest))
    for _ in range(draw(st.integers(1, 2))):
        here = document
        while isinstance(here, (dict, list)) and here:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            key = draw(st.sampled_from(keys))
            if isinstance(here[key], (dict, list)) and here[key] and draw(st.booleans()):
                here = here[key]
                continue
            how = draw(st.sampled_from(["replace", "remove", "join"]))
            if how == "replace":
                here[key] = draw(JSON)
            elif how == "remove":
                del here[key]
            elif isinstance(here, dict):
                here[draw(_TEXT)] = draw(JSON)
            else:
                here.append(draw(JSON))
            break
    return document


def spoiled_text(honest: Any) -> st.SearchStrategy[bytes]:
    """JSON text with a changed value or changed bytes, or arbitrary text."""
    text = json.dumps(honest).encode()
    nested = st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"\xff\xfe{\x00}\x00", b"", b"null"])
    return st.one_of(
        spoiled_json(honest).map(lambda value: json.dumps(value).encode(errors="surrogatepass")),
        spoiled_bytes(text),
        JSON.map(lambda value: json.dumps(value).encode(errors="surrogatepass")),
        nested,
    )


# ---- the targets ---------------------------------------------------------------------------------------------------


def targets(base: Path, gguf: Path, work: Path) -> list[Target]:
    """Return every parser with sound files made from a base and its GGUF; `work` is for source files."""
    tensors = {"model.embed_tokens.weight": torch.zeros(4, 8), "lm_head.weight": torch.ones(4, 8).half()}
    weights = save_tensors(tensors, {"format": "pt"})
    soul_path = work / "soul.safetensors"
    save_soul(soul_path, SoulRecord(random_rotation(2, 8, torch.Generator().manual_seed(0)), 1.5, 3, "0" * 64, True))
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["o_proj"], "rank_pattern": {}}
    module = "base_model.model.model.layers.0.self_attn.o_proj"
    matrices = save_tensors({f"{module}.lora_A.weight": torch.ones(2, 8), f"{module}.lora_B.weight": torch.ones(8, 2)})
    with publishing(
        work / "published", Manifest("merge", {"dtype": "float16"}, {"base": "1"}, {"x": [1]}), overwrite=True
    ) as s:
        (s.path / "file").write_bytes(b"content")
    manifest = json.loads((work / "published" / "manifest.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(base)
    template_of_base = str(tokenizer.chat_template)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    vocabulary, tokenizer_config = (
        json.loads((base / name).read_text(encoding="utf-8")) for name in ("tokenizer.json", "tokenizer_config.json")
    )
    soul_pt = _soul_pt(work / "soul.pt")
    header = gguf.read_bytes()
    honest_archive = _archive([("llama/PKG-INFO", b"x"), ("llama/vendor/llama.cpp/convert_hf_to_gguf.py", b"y")])

    def feed_shards(data: bytes, place: Path) -> None:
        (place / SINGLE).write_bytes(data)
        for entry in ShardSet.open(place).entries.values():
            for start, stop in entry.slabs(1 << 20):
                entry.read(start, stop)

    def feed_index(data: bytes, place: Path) -> None:
        (place / INDEX).write_bytes(data)
        (place / "model-1.safetensors").write_bytes(weights)
        ShardSet.open(place)

    def feed_soul(data: bytes, place: Path) -> None:
        (place / "soul.safetensors").write_bytes(data)
        load_soul(place / "soul.safetensors")

    def feed_adapter(case: tuple[bytes, bytes], place: Path) -> None:
        (place / "adapter_config.json").write_bytes(case[0])
        (place / "adapter_model.safetensors").write_bytes(case[1])
        load_adapter(place)

    def feed_manifest(data: bytes, place: Path) -> None:
        (place / "file").write_bytes(b"content")
        (place / "manifest.json").write_bytes(data)
        verify_directory(place)

    def feed_toml(data: bytes, place: Path) -> None:
        (place / "run.toml").write_bytes(data)
        for model in (TrainConfig, MergeConfig, ExportConfig, VerifyConfig):
            resolve(model, file=place / "run.toml", environment={})

    def feed_environment(case: dict[str, str], place: Path) -> None:
        for model in (TrainConfig, MergeConfig, ExportConfig, VerifyConfig):
            resolve(model, environment=case)

    def feed_rows(case: tuple[str, bytes], place: Path) -> None:
        (place / f"data{case[0]}").write_bytes(case[1])
        prepare(place / f"data{case[0]}", tokenizer, max_length=32, cache_dir=place / "cache", skip_bad=1)

    def feed_template(template: str, place: Path) -> None:
        tokenizer.chat_template = template
        chat = Chat([{"role": "user", "content": "春は"}, {"role": "assistant", "content": "桜でござる。"}], "row 1")
        rejects = Rejects("data")
        try:
            Encoder(tokenizer, seconds=0.3).encode([chat], rejects)
            dialogue_of(tokenizer)
        finally:
            tokenizer.chat_template = template_of_base
        rejects.check()

    def feed_config(data: bytes, place: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(base / name, place / name)
        (place / "model.safetensors").write_bytes(weights)
        (place / "config.json").write_bytes(data)
        found = find_base(str(place))
        _ = found.tied, found.weights_hash

    def feed_plan(data: bytes, place: Path) -> None:
        (place / "config.json").write_bytes(data)
        train = TrainConfig(base_model=str(place), dataset="owner/name", device="cpu", max_length=32)
        # rows and tokenizer are read after the config, and have targets and tests of their own
        with (
            mock.patch("aegis.stages.plan._vocabulary", return_value=nullcontext()),
            mock.patch("aegis.stages.plan._data", return_value=(None, "")),
        ):
            report = plan(train, MergeConfig(), ExportConfig(), VerifyConfig(device="cpu"), Run(place / "run"))
        planned(report, train, 80)

    def feed_tokenizer(case: tuple[bytes, bytes], place: Path) -> None:
        shutil.copyfile(base / "config.json", place / "config.json")
        (place / "tokenizer.json").write_bytes(case[0])
        (place / "tokenizer_config.json").write_bytes(case[1])
        load_tokenizer(place)

    def feed_soul_pt(data: bytes, place: Path) -> None:
        (place / "soul.pt").write_bytes(data)
        import_soul(place / "soul.pt", place / "soul.safetensors")

    def feed_gguf(data: bytes, place: Path) -> None:
        (place / "model.gguf").write_bytes(data)
        trained_context(place / "model.gguf")
        with GgufFile(place / "model.gguf") as file:
            for name in list(file.tensors)[:2]:
                file.tensor(name)

    def feed_archive(data: bytes, place: Path) -> None:
        read_tree(io.BytesIO(data), replace(load_pin(), root="llama/vendor/llama.cpp/"))

    (work / "plan").mkdir()
    feed_plan(_text_of(config), work / "plan")  # the first of all loads the libraries
    index = _index(tensors)
    soul = soul_path.read_bytes()
    return [
        Target("safetensors headers", spoiled_bytes(weights, near=260), feed_shards, (weights,)),
        Target("safetensors indexes", spoiled_text(index), feed_index, (_text_of(index),)),
        Target("soul files", spoiled_bytes(soul, near=400), feed_soul, (soul,)),
        Target(
            "adapters",
            st.tuples(spoiled_text(adapter), st.one_of(st.just(matrices), spoiled_bytes(matrices))),
            feed_adapter,
            (_text_of(adapter),),
            lambda data: (data, matrices),
        ),
        Target("run manifests", spoiled_text(manifest), feed_manifest, (_text_of(manifest),)),
        Target("TOML", _toml(), feed_toml, (_HONEST_TOML,)),
        Target("environment", _environment(), feed_environment),
        # the first byte says which kind of file it is
        Target("data rows", _rows(), feed_rows, _honest_rows(), lambda data: (_KINDS[sum(data[:1]) % 4], data[1:])),
        Target("chat templates", _templates(template_of_base), feed_template),
        Target("model configs", spoiled_text(config), feed_config, (_text_of(config),)),
        # a model of 256 layers, the most that a config may name, is built and planned in 8 s
        Target("plan", st.one_of(spoiled_text(config), _unlikely(config)), feed_plan, seconds=20.0),
        Target("tokenizers", _either_spoiled(vocabulary, tokenizer_config), feed_tokenizer),
        Target("soul.pt", spoiled_bytes(soul_pt), feed_soul_pt, (soul_pt,)),
        Target("GGUF headers", spoiled_bytes(header, near=30_000), feed_gguf, (_small_gguf(),)),
        # guided, it is the archive inside gzip that is changed: a checksum would stop all else
        Target("archives", _archives(honest_archive), feed_archive, (gzip.decompress(honest_archive),),
            lambda data: gzip.compress(data, 1)),
        Target("requests to serve", served.requests(spoiled_text(served.HONEST)), served.feed_to(gguf)),
    ]  # fmt: skip


def _unlikely(config: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """The config with one of its numbers changed to an unlikely one."""
    keys = [key for key, value in config.items() if isinstance(value, int | float)]
    numbers = st.one_of(_NUMBERS, st.sampled_from([7, 10**3, 10**6, 2**32 - 1, 2**40, 1e-30]))
    return st.tuples(st.sampled_from(keys), numbers).map(lambda one: _text_of({**config, one[0]: one[1]}))


def _either_spoiled(one: Any, other: Any) -> st.SearchStrategy[tuple[bytes, bytes]]:
    return st.one_of(
        st.tuples(spoiled_text(one), st.just(_text_of(other))), st.tuples(st.just(_text_of(one)), spoiled_text(other))
    )


def _soul_pt(path: Path) -> bytes:
    """Return a soul as the original saved it."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        rotation = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(8, 8, bias=False))
    torch.save({"alpha": torch.tensor(1.5), "so8_rotation": rotation.state_dict(), "step": 3}, path)
    return path.read_bytes()


def _text_of(document: Any) -> bytes:
    return json.dumps(document).encode()


def _small_gguf() -> bytes:
    """Return a GGUF of version 3 with values of some types and one float32 tensor."""

    def text(words: str) -> bytes:
        return struct.pack("<Q", len(words)) + words.encode()

    values = [
        text("general.architecture") + struct.pack("<I", 8) + text("phi3"),
        text("phi3.context_length") + struct.pack("<II", 4, 4096),
        text("general.alignment") + struct.pack("<II", 4, 32),
        text("tokenizer.ggml.add_bos_token") + struct.pack("<I?", 7, True),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
    ]
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 4, 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(values)) + b"".join(values) + tensor
    return header + bytes(-len(header) % 32) + bytes(8 * 4 * 4)


def _index(tensors: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"total_size": 160}, "weight_map": dict.fromkeys(tensors, "model-1.safetensors")}


_HONEST_TOML = (
    b'[train]\nmax_steps = 3\nlora_targets = ["o_proj"]\npacking = true\n[export]\nquant = ["Q4_K_M"]\nname = "x"\n'
)


def _toml() -> st.SearchStrategy[bytes]:
    keys = st.sampled_from(sorted(TrainConfig.model_fields))
    values = JSON.map(lambda value: json.dumps(value, ensure_ascii=True))
    lines = st.lists(st.tuples(keys, values).map(" = ".join), max_size=4)
    return st.one_of(
        spoiled_bytes(_HONEST_TOML),
        lines.map(lambda given: ("[train]\n" + "\n".join(given)).encode()),
        st.binary(max_size=40),
    )


def _environment() -> st.SearchStrategy[dict[str, str]]:
    known = st.sampled_from([f"AEGIS_TRAIN_{key.upper()}" for key in TrainConfig.model_fields])
    names = st.one_of(known, st.sampled_from(["AEGIS_", "AEGIS_TRAIN_", "AEGIS_EXPORT_QUANT", "AEGIS_MERGE_DTYPE"]))
    return st.dictionaries(names, st.one_of(_TEXT, JSON.map(str)), max_size=4)


_KINDS = (".jsonl", ".json", ".txt", ".csv", ".parquet")


def _honest_rows() -> tuple[bytes, ...]:
    rows = ('{"text": "a"}\n{"prompt": "b", "completion": "c"}\n', '[{"text": "a"}]', "a\n\nb\n", "text\na\nb\n")
    return tuple(bytes([number]) + kind.encode() for number, kind in enumerate(rows))


def _rows() -> st.SearchStrategy[tuple[str, bytes]]:
    chat = {"messages": [{"role": "user", "content": "春の花は。"}, {"role": "assistant", "content": "桜でござる。"}]}
    shapes = [
        chat,
        {"text": "海は青い。"},
        {"prompt": "海は", "completion": "青い"},
        {"instruction": "a", "input": "", "output": "b"},
    ]
    honest = "".join(json.dumps(chat, ensure_ascii=False) + "\n" for _ in range(3)).encode()
    row = st.one_of(*(spoiled_text(shape) for shape in shapes))
    lines = st.lists(row, min_size=1, max_size=4).map(lambda rows: b"\n".join([honest.strip(), *rows]))
    kinds = st.sampled_from(_KINDS)
    encoded = st.sampled_from(["cp932", "utf-16", "utf-8-sig", "euc_jp", "utf-32"]).map(
        lambda name: honest.decode().encode(name)
    )
    return st.tuples(kinds, st.one_of(lines, spoiled_bytes(honest), encoded, st.binary(max_size=60)))


def _templates(honest: str) -> st.SearchStrategy[str]:
    evil = [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ cycler.__init__.__globals__.os.popen('touch pwned').read() }}",
        "{{ raise_exception.__globals__ }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ 'a' * 100000000000 }}",
        "{{ ('a' * 100000).join(['b'] * 100000) }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ messages | tojson(indent=999999999) }}",
        "{{ undefined.attribute }}",
        "{% if %}",
        "",
    ]
    return st.one_of(
        st.sampled_from(evil),
        st.tuples(st.sampled_from(evil), st.just(honest)).map("".join),
        spoiled_bytes(honest.encode()).map(lambda data: data.decode(errors="replace")),
        st.text(alphabet="{}% |.'\"[]()abmessagefori0123_-+*~\n", max_size=60),
    )


def _archive(members: list[tuple[str, bytes]], **changes: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in changes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def _archives(honest: bytes) -> st.SearchStrategy[bytes]:
    wanted = "llama/vendor/llama.cpp/conversion/"
    names = st.one_of(
        st.text(alphabet="ab./\\:", min_size=1, max_size=12),
        st.sampled_from(
            ["../x", "/etc/x", wanted + "../../../../x.py", wanted + "a:b.py", "C:/x", "x\\..\\..\\y", wanted + "a.py"]
        ),
    )
    kinds = st.sampled_from(
        [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
    )
    links = st.sampled_from(["", "/etc/passwd", "../../x", "PKG-INFO"])
    one = st.tuples(names, kinds, links).map(
        lambda made: _archive([("llama/PKG-INFO", b"x"), (made[0], b"")], type=made[1], linkname=made[2])
    )
    return st.one_of(one, spoiled_bytes(honest))
