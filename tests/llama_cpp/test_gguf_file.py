"""Tests that a GGUF is read correctly, and a damaged one is refused without a traceback or much memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quantize

from aegis.errors import IntegrityError, UsageError
from aegis.llama_cpp import GgufFile, trained_context


def test_the_reader_agrees_with_the_gguf_package(q4_k_m: Path) -> None:
    reader = GGUFReader(q4_k_m)
    with GgufFile(q4_k_m) as file:
        expected = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert file.metadata == expected
        assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            info = file.tensors[tensor.name]
            assert info.type == tensor.tensor_type.name
            assert info.shape == tuple(reversed(tensor.shape.tolist()))
            assert (info.offset_bytes, info.size_bytes) == (tensor.data_offset, tensor.n_bytes)


def test_a_dequantized_tensor_is_close_to_its_source(f16: Path, q4_k_m: Path) -> None:
    """The control is another tensor of the same shape, which must be far away."""
    with GgufFile(f16) as before, GgufFile(q4_k_m) as after:
        original = before.tensor("blk.0.ffn_up.weight").astype(np.float32)
        stranger = before.tensor("blk.1.ffn_up.weight").astype(np.float32)
        quantized = after.tensor("blk.0.ffn_up.weight")
    assert quantized.dtype == np.float32
    assert quantized.shape == original.shape
    scale = np.linalg.norm(original)
    assert np.linalg.norm(quantized - original) / scale < 0.1
    assert np.linalg.norm(quantized - stranger) / scale > 1


def test_a_view_is_valid_after_closing_and_cannot_be_written(f16: Path) -> None:
    with GgufFile(f16) as file:
        view = file.tensor("output.weight")
    assert float(np.abs(view.astype(np.float32)).max()) > 0
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 0


def test_opening_takes_memory_for_the_header_only(f16: Path) -> None:
    tracemalloc.start()
    GgufFile(f16).close()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < f16.stat().st_size / 5


def test_the_context_is_the_original_one_before_the_long_factors(f16: Path, tmp_path: Path) -> None:
    assert trained_context(f16) == 256
    data = f16.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(data.replace(b"scaling.original_context_length", b"scaling.original_context_lengtH"))
    assert trained_context(other) == 4096
    other.write_bytes(data.replace(b"context_length", b"context_lengtH"))
    with pytest.raises(IntegrityError, match="how long a context"):
        trained_context(other)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.gguf"):
        GgufFile(tmp_path / "absent.gguf")
    with pytest.raises(UsageError):
        GgufFile(tmp_path)


def patched(data: bytes, at: int, code: str, value: int) -> bytes:
    patch = struct.pack("<" + code, value)
    return data[:at] + patch + data[at + len(patch) :]


FIRST_KEY, FIRST_VALUE = 24, 24 + 8 + len("general.architecture")
DAMAGE = {
    "empty": lambda data: b"",
    "three bytes": lambda data: data[:3],
    "another magic": lambda data: b"GGML" + data[4:],
    "big-endian": lambda data: patched(data, 4, "I", 3 << 24),
    "version 99": lambda data: patched(data, 4, "I", 99),
    "zero header": lambda data: bytes(4096) + data[4096:],
    "2^63 tensors": lambda data: patched(data, 8, "Q", 1 << 63),
    "a million tensors": lambda data: patched(data, 8, "Q", 1 << 20),
    "one tensor more": lambda data: patched(data, 8, "Q", struct.unpack_from("<Q", data, 8)[0] + 1),
    "one tensor less": lambda data: patched(data, 8, "Q", struct.unpack_from("<Q", data, 8)[0] - 1),
    "2^63 keys": lambda data: patched(data, 16, "Q", 1 << 63),
    "one key less": lambda data: patched(data, 16, "Q", struct.unpack_from("<Q", data, 16)[0] - 1),
    "endless key": lambda data: patched(data, FIRST_KEY, "Q", 1 << 62),
    "unknown value type": lambda data: patched(data, FIRST_VALUE, "I", 77),
    "endless array": lambda data: patched(patched(data, FIRST_VALUE, "I", 9), FIRST_VALUE + 8, "Q", 1 << 40),
    "last byte gone": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_an_integrity_error(damage, f16: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "damaged.gguf"
    # the last tensor ends the file, but for padding: cut that, so that one byte less is one byte too few
    with GgufFile(f16) as file:
        end = max(info.offset_bytes + info.size_bytes for info in file.tensors.values())
    path.write_bytes(damage(f16.read_bytes()[:end]))
    with pytest.raises(IntegrityError) as caught:
        GgufFile(path)
    assert caught.value.key == "gguf_file.not_whole"


def test_truncation_anywhere_is_found(q4_k_m: Path, tmp_path: Path) -> None:
    data = q4_k_m.read_bytes()
    path = tmp_path / "cut.gguf"
    for percent in range(1, 100):
        path.write_bytes(data[: len(data) * percent // 100])
        with pytest.raises(IntegrityError):
            GgufFile(path)


def test_random_bit_flips_in_the_header_give_a_file_or_an_integrity_error(q4_k_m: Path, tmp_path: Path) -> None:
    """A flip may go unseen (the manifest's sha256 is for that), but never escapes, hangs or eats memory."""
    data = q4_k_m.read_bytes()
    with GgufFile(q4_k_m) as file:
        header_bytes = min(info.offset_bytes for info in file.tensors.values())
    path = tmp_path / "flipped.gguf"
    rng = np.random.default_rng(48)
    refused = 0
    tracemalloc.start()
    for _ in range(400):
        flipped = bytearray(data)
        for at in rng.integers(0, header_bytes, size=rng.integers(1, 4)):
            flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            with GgufFile(path) as file:
                for name in list(file.tensors)[:2]:
                    file.tensor(name)
        except IntegrityError:
            refused += 1
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 40
    assert peak_bytes < 200e6


def test_a_quantized_tensor_of_one_dimension_is_read(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32)
    writer = GGUFWriter(tmp_path / "x.gguf", "test")
    writer.add_tensor("x", quantize(values, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(tmp_path / "x.gguf") as file:
        assert file.tensors["x"].shape == (64,)
        assert np.abs(file.tensor("x") - values).max() < 0.01
