"""Defects of a GGUF's weights: in the f16 file, or in the quantized one alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from gguf import GGMLQuantizationType

from aegis.llama_cpp import dequantize_rows, file_type_of, quantize, quantize_rows
from aegis.runs.run import Run
from tests.gguf_edit import GgufEdit
from tests.planted.finished import Defect, Finished, edit, f16_path, put, quantized_path, reseal

Plant = Callable[[Finished, Run], None]
O_PROJ, DOWN, EMBEDDINGS, NORM = (
    "blk.0.attn_output.weight",
    "blk.0.ffn_down.weight",
    "token_embd.weight",
    "output_norm.weight",
)


def quantized_from(source_of: Callable[[Finished], Path], quant: str = "Q4_K_M", head: str | None = None) -> Plant:
    """Replace the file by another one whose general.file_type says Q4_K_M."""

    def plant(finished: Finished, run: Run) -> None:
        with TemporaryDirectory() as scratch:
            other = Path(scratch) / "other.gguf"
            quantize(source_of(finished), other, quant, output_tensor_type=head)
            put(quantized_path(run), other.read_bytes())
        edit(quantized_path(run), lambda gguf: gguf.keys.update({"general.file_type": [4, file_type_of("Q4_K_M")]}))

    return plant


def own_f16(finished: Finished) -> Path:
    return f16_path(finished.run)


def called(quant: str) -> Plant:
    """Replace the file by one of another type; only its general.file_type shows it."""

    def plant(finished: Finished, run: Run) -> None:
        path = quantized_path(run)
        path.unlink()
        quantize(own_f16(finished), path, quant)
        reseal(run.gguf)

    return plant


def in_quantized(change: Callable[[GgufEdit], None]) -> Plant:
    return lambda _finished, run: edit(quantized_path(run), change)


def in_f16(change: Callable[[GgufEdit], None]) -> Plant:
    return lambda _finished, run: edit(f16_path(run), change)


def some_bytes(gguf: GgufEdit) -> None:
    data = gguf.rows(O_PROJ).reshape(-1)
    data[::50] ^= 0x55


def rows_zeroed(count: int) -> Callable[[GgufEdit], None]:
    def change(gguf: GgufEdit) -> None:
        gguf.rows(EMBEDDINGS)[200 : 200 + count] = 0

    return change


def rows_swapped(gguf: GgufEdit) -> None:
    rows = gguf.rows(EMBEDDINGS)
    rows[[210, 211]] = rows[[211, 210]]


def scale_of_a_block(gguf: GgufEdit) -> None:
    """Change the 16-bit scale of one Q4_K block of 256 weights by one eighth."""
    scale = gguf.rows(EMBEDDINGS)[222, :2].view(np.float16)
    scale *= np.float16(1.125)


def norm_scaled(gguf: GgufEdit) -> None:
    values = gguf.values(NORM, np.float32)
    values *= np.float32(1.01)


def one_norm_value(gguf: GgufEdit) -> None:
    values = gguf.values(NORM, np.float32)
    values[17] = np.nextafter(values[17], np.float32(np.inf))


def tensors_swapped(gguf: GgufEdit) -> None:
    one, other = "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"
    gguf.tensors[one][2], gguf.tensors[other][2] = gguf.tensors[other][2], gguf.tensors[one][2]


def tensor_renamed(gguf: GgufEdit) -> None:
    gguf.tensors = {name.replace(O_PROJ, "blk.0.attn_outpux.weight"): parts for name, parts in gguf.tensors.items()}


def tensor_added(gguf: GgufEdit) -> None:
    gguf.tensors["blk.0.attn_output.scale"] = [(1,), 0, bytearray(np.float32([1.5]).tobytes())]


def tensor_in_a_larger_type(gguf: GgufEdit) -> None:
    """Keep the same weights, but closer to those of the f16 file than they should be."""
    shape, kind, data = gguf.tensors[EMBEDDINGS]
    raw = np.frombuffer(data, np.uint8).reshape(shape[0], -1)
    values = dequantize_rows(raw, GGMLQuantizationType(kind).name, shape[1])
    wider = GGMLQuantizationType.Q6_K
    gguf.tensors[EMBEDDINGS] = [shape, int(wider), bytearray(quantize_rows(values, wider.name).tobytes())]


def row_of_the_base(finished: Finished, run: Run) -> None:
    """Replace one row of a projection by the base's, without the adapter."""
    values = GgufEdit(finished.f16_of_the_base).values(O_PROJ)[33:34].astype(np.float32)

    def change(gguf: GgufEdit) -> None:
        _, kind, _ = gguf.tensors[O_PROJ]
        gguf.rows(O_PROJ)[33:34] = quantize_rows(values, GGMLQuantizationType(kind).name)

    edit(quantized_path(run), change)


def scaled(name: str) -> Callable[[GgufEdit], None]:
    def change(gguf: GgufEdit) -> None:
        values = gguf.values(name)
        values *= np.float16(1.01)

    return change


def noise(gguf: GgufEdit) -> None:
    values = gguf.values(DOWN)
    values += (0.01 * values.astype(np.float32).std() * np.random.default_rng(5).standard_normal(values.shape)).astype(
        np.float16
    )


def one_unit_in_the_last_place(gguf: GgufEdit) -> None:
    values = gguf.values(DOWN)
    values[3, 5] = np.nextafter(values[3, 5], np.float16(np.inf))


def through_q8(gguf: GgufEdit) -> None:
    values = gguf.values(DOWN)
    values[:] = dequantize_rows(quantize_rows(values.astype(np.float32), "Q8_0"), "Q8_0", values.shape[1])


def rope_factors(gguf: GgufEdit) -> None:
    gguf.values("rope_factors_long.weight", np.float32)[:] = 1


def head_of_the_base(finished: Finished, run: Run) -> None:
    head = GgufEdit(finished.f16_of_the_base).tensors["output.weight"]
    edit(f16_path(run), lambda gguf: gguf.tensors.update({"output.weight": head}))


def key_of_another_number_type(gguf: GgufEdit) -> None:
    """Write the same value as a 64-bit number: readers give the same, and the bytes differ."""
    gguf.keys["tokenizer.ggml.eos_token_id"][0] = 10


def another_f16(source_of: Callable[[Finished], Path]) -> Plant:
    """Replace both files by those of other weights."""

    def plant(finished: Finished, run: Run) -> None:
        put(f16_path(run), source_of(finished).read_bytes())
        quantized_from(source_of)(finished, run)

    return plant


WEIGHT_DEFECTS = (
    Defect("Q4_K_M of the plain base", "quantize", quantized_from(lambda finished: finished.f16_of_the_base)),
    Defect("Q4_K_M of an earlier step", "quantize", quantized_from(lambda finished: finished.f16_of_an_earlier_step)),
    *(
        Defect(f"{quant} under the name Q4_K_M", "quantize", quantized_from(own_f16, quant))
        for quant in ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_S", "Q5_K_M", "Q8_0")
    ),
    Defect("a Q4_0 that says so under the name Q4_K_M", "quantize", called("Q4_0")),
    Defect("head in Q8_0 that nobody asked for", "quantize", quantized_from(own_f16, head="q8_0")),
    Defect("2 % of a tensor's bytes", "quantize", in_quantized(some_bytes)),
    Defect("one embedding row zeroed", "quantize", in_quantized(rows_zeroed(1))),
    Defect("forty embedding rows zeroed", "quantize", in_quantized(rows_zeroed(40))),
    Defect("two embedding rows swapped", "quantize", in_quantized(rows_swapped)),
    Defect("one block's scale", "quantize", in_quantized(scale_of_a_block)),
    Defect("one row without the adapter", "quantize", row_of_the_base),
    Defect("final norm × 1.01 in Q4_K_M", "quantize", in_quantized(norm_scaled)),
    Defect("one value of the norm by one unit in Q4_K_M", "quantize", in_quantized(one_norm_value)),
    Defect("two norms swapped in Q4_K_M", "quantize", in_quantized(tensors_swapped)),
    Defect("a tensor renamed in Q4_K_M", "quantize", in_quantized(tensor_renamed)),
    Defect("a tensor more in Q4_K_M", "quantize", in_quantized(tensor_added)),
    Defect("embeddings in Q6_K", "quantize", in_quantized(tensor_in_a_larger_type)),
    Defect("f16 of the plain base", "convert", another_f16(lambda finished: finished.f16_of_the_base)),
    Defect("f16 of an earlier step", "convert", another_f16(lambda finished: finished.f16_of_an_earlier_step)),
    Defect("o_proj × 1.01 in f16", "convert", in_f16(scaled(O_PROJ))),
    Defect("final norm × 1.01 in f16", "convert", in_f16(norm_scaled)),
    Defect("1 % of noise on a down_proj in f16", "convert", in_f16(noise)),
    Defect("one value by one unit in f16", "convert", in_f16(one_unit_in_the_last_place)),
    Defect("a tensor through Q8_0 in f16", "convert", in_f16(through_q8)),
    Defect("embedding rows zeroed in f16", "convert", in_f16(rows_zeroed(40))),
    Defect("rope factors gone from f16", "convert", in_f16(rope_factors), ("phi3",)),
    Defect("head of the base in f16", "convert", head_of_the_base),
    Defect("a number of another type in f16", "convert", in_f16(key_of_another_number_type)),
    Defect("a tensor more in f16", "convert", in_f16(tensor_added)),
)
