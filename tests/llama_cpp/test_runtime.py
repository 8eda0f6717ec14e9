"""Tests of logits, tokens and answers of llama.cpp through the class that runs it."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import sentencepiece
from llama_cpp import llama_cpp as binding

from aegis.errors import DataError, IntegrityError, UsageError
from aegis.llama_cpp import GgufFile, Runtime, _log, convert

from .conftest import ADDED, PIECES, VOCABULARY, MakeModel

USER, ASSISTANT, END = (PIECES + ADDED.index(f"<|{name}|>") for name in ("user", "assistant", "end"))
PROMPT = "むかしむかし、あるところに猫とfoxがいました。"


@pytest.fixture(scope="module")
def runtime(f16: Path) -> Iterator[Runtime]:
    with Runtime(f16, n_ctx=256, threads=1, logits=True) as opened:
        yield opened


def test_the_logits_equal_those_of_transformers(runtime: Runtime, model: Path) -> None:
    """transformers' Phi-3 in float32 on the same weights; the control is the same prompt one token off."""
    torch = pytest.importorskip("torch")
    from transformers import Phi3ForCausalLM

    tokens = runtime.tokenize(PROMPT, add_bos=False)
    ours = runtime.logits(tokens)
    assert ours.dtype == np.float32
    assert ours.shape == (len(tokens), VOCABULARY)
    live = Phi3ForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        theirs = live(torch.tensor([tokens])).logits[0].numpy()
    scale = float(np.abs(theirs).max())
    assert np.abs(ours - theirs).max() / scale < 5e-3
    assert np.abs(ours[1:] - theirs[:-1]).max() / scale > 0.3


def test_each_call_is_independent_of_earlier_ones(runtime: Runtime) -> None:
    tokens = runtime.tokenize(PROMPT, add_bos=False)
    first = runtime.logits(tokens)
    list(runtime.complete("別の話", max_tokens=5))
    runtime.logits(tokens[:3])
    np.testing.assert_array_equal(runtime.logits(tokens), first)


def test_a_prompt_longer_than_a_batch_is_evaluated_in_chunks(f16: Path) -> None:
    """600 tokens are two batches of llama.cpp's 512; what the first gave must not depend on the second."""
    with Runtime(f16, n_ctx=1024, threads=1, logits=True) as runtime:
        tokens = (runtime.tokenize(PROMPT, add_bos=False) * 60)[:600]
        logits = runtime.logits(tokens)
        assert logits.shape == (600, VOCABULARY)
        np.testing.assert_allclose(runtime.logits(tokens[:100]), logits[:100], atol=0.05)
        assert np.isfinite(logits).all()
        assert np.abs(logits[-1]).max() > 0


def test_a_context_above_the_original_length_changes_a_short_prompt(f16: Path, runtime: Runtime) -> None:
    """Why num_ctx is shipped: llama.cpp picks LongRoPE's factors by the context's size, not by position."""
    tokens = runtime.tokenize(PROMPT, add_bos=False)
    with Runtime(f16, n_ctx=512, threads=1, logits=True) as larger:
        assert np.abs(larger.logits(tokens) - runtime.logits(tokens)).max() > 0.5


STRINGS = [
    "",
    "桃",
    "hello world",
    "  two spaces",
    "改行\n\nと\tタブ",
    "全角　スペース",
    "😀🇯🇵",
    "ZWJ 👩‍👩‍👧",
    "𠮷野家",
    "a\0b",
]


@pytest.mark.parametrize("text", STRINGS)
def test_token_ids_equal_those_of_sentencepiece(text: str, runtime: Runtime, model: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto((model / "tokenizer.model").read_bytes())
    tokens = runtime.tokenize(text, add_bos=False)
    assert tokens == processor.encode(text)


def test_special_tokens_are_parsed_only_on_request(runtime: Runtime) -> None:
    assert runtime.tokenize("<|end|>", add_bos=False) == [END]
    letters = runtime.tokenize("<|end|>", add_bos=False, special=False)
    assert END not in letters


def test_a_bos_is_added_only_if_the_file_says_so(runtime: Runtime, f16: Path, tmp_path: Path) -> None:
    assert 1 not in runtime.tokenize("桃", add_bos=True)
    flag = b"tokenizer.ggml.add_bos_token" + (7).to_bytes(4, "little")
    data = f16.read_bytes()
    assert flag + b"\0" in data
    (tmp_path / "bos.gguf").write_bytes(data.replace(flag + b"\0", flag + b"\1"))
    with Runtime(tmp_path / "bos.gguf", n_ctx=64, threads=1) as other:
        assert other.tokenize("桃", add_bos=True) == [1, *other.tokenize("桃", add_bos=False)]
        assert other.chat_tokens([{"role": "user", "content": "桃"}])[:2] == [1, USER]


def test_a_conversation_is_rendered_with_the_files_own_template(runtime: Runtime) -> None:
    """And the white space after a role's tag goes, which llama.cpp does for a name with "phi-3" only."""
    tokens = runtime.chat_tokens(
        [{"role": "user", "content": "桃"}, {"role": "assistant", "content": "猫"}, {"role": "user", "content": "川"}]
    )
    content = [runtime.tokenize(text, add_bos=False) for text in ("桃", "猫", "川")]
    # a tag is followed by the content as at the start of a text
    expected = [USER, *content[0], END, ASSISTANT, *content[1], END, USER, *content[2], END, ASSISTANT]
    assert tokens == expected


def test_white_space_is_stripped_because_of_the_familys_name(model: Path, runtime: Runtime, tmp_path: Path) -> None:
    """The control of the test above."""
    convert(model, tmp_path / "nameless.gguf", model_name="tiny phi 3")
    with Runtime(tmp_path / "nameless.gguf", n_ctx=64, threads=1) as nameless:
        messages = [{"role": "user", "content": "桃"}]
        assert len(nameless.chat_tokens(messages)) > len(runtime.chat_tokens(messages))


def test_a_missing_template_and_a_template_that_raises_are_errors(f16: Path, tmp_path: Path) -> None:
    data = f16.read_bytes()
    (tmp_path / "plain.gguf").write_bytes(data.replace(b"tokenizer.chat_template", b"tokenizer.chat_templatE"))
    with (
        Runtime(tmp_path / "plain.gguf", n_ctx=64, threads=1) as runtime,
        pytest.raises(IntegrityError, match="no chat template"),
    ):
        runtime.chat_tokens([{"role": "user", "content": "桃"}])
    # the same length, so that the file stays whole
    (tmp_path / "refuses.gguf").write_bytes(data.replace(b"message['content']", b"raise_exception(1)"))
    with (
        Runtime(tmp_path / "refuses.gguf", n_ctx=64, threads=1) as runtime,
        pytest.raises(DataError, match="refuses this conversation"),
    ):
        runtime.chat_tokens([{"role": "user", "content": "桃"}])
    (tmp_path / "broken.gguf").write_bytes(data.replace(b"message['content']", b"message|no_filter_"))
    with pytest.raises(DataError, match="no_filter_"):
        Runtime(tmp_path / "broken.gguf", n_ctx=64, threads=1)


def test_a_completion_is_repeatable_and_bounded_and_has_no_broken_character(runtime: Runtime) -> None:
    """Random weights give many single bytes of characters; the completion is still text."""
    first = list(runtime.complete(PROMPT, max_tokens=40, seed=7))
    assert first == list(runtime.complete(PROMPT, max_tokens=40, seed=7))
    assert first != list(runtime.complete(PROMPT, max_tokens=40, seed=8))
    assert all(first)
    assert len(first) <= 40
    greedy = "".join(runtime.complete(PROMPT, max_tokens=10, temperature=0))
    assert greedy == "".join(runtime.complete(PROMPT, max_tokens=10, temperature=0, seed=99))


def test_greedy_text_has_the_likeliest_tokens(runtime: Runtime, model: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto((model / "tokenizer.model").read_bytes())
    tokens = runtime.tokenize(PROMPT, add_bos=False)
    likeliest = int(runtime.logits(tokens)[-1].argmax())
    assert "".join(runtime.complete(tokens, max_tokens=1, temperature=0)) == processor.decode(
        [*tokens, likeliest]
    ).removeprefix(PROMPT)


def test_a_chat_ends_at_the_models_end_token(make_model: MakeModel, tmp_path: Path) -> None:
    """A head that always says <|end|>: nothing comes, and the tag is not shown."""
    head = np.zeros((VOCABULARY, 256), np.float16)
    embeddings = np.ones((VOCABULARY, 256), np.float16)
    head[END] = 1
    zeros = {
        f"model__layers__{layer}__{name}__weight": np.zeros(shape, np.float16)
        for layer in range(2)
        for name, shape in (("self_attn__o_proj", (256, 256)), ("mlp__down_proj", (256, 512)))
    }
    folder = make_model(tmp_path / "model", lm_head__weight=head, model__embed_tokens__weight=embeddings, **zeros)
    convert(folder, tmp_path / "end.gguf", model_name="phi-3")
    with Runtime(tmp_path / "end.gguf", n_ctx=64, threads=1, logits=True) as runtime:
        assert int(runtime.logits([5])[0].argmax()) == END
        assert list(runtime.chat([{"role": "user", "content": "桃"}], max_tokens=20)) == []


def test_a_prompt_that_exceeds_the_context_is_refused(runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="257 tokens do not fit a context of 256"):
        runtime.logits([5] * 257)
    with pytest.raises(UsageError, match="do not fit"):
        runtime.complete([5] * 256)
    with pytest.raises(UsageError, match="outside of the vocabulary"):
        runtime.logits([VOCABULARY])
    with pytest.raises(UsageError, match="nothing to continue"):
        runtime.complete("")
    assert len(list(runtime.complete([5] * 250, max_tokens=100, temperature=0))) <= 6
    assert runtime.logits([5] * 256).shape == (256, VOCABULARY)


def test_the_time_per_token_is_measured_one_token_at_a_time(f16: Path, runtime: Runtime) -> None:
    """Each token after the first is evaluated alone, and the cache of earlier calls is cleared."""
    with Runtime(f16, n_ctx=64, threads=1, logits=True) as opened:
        calls: list[int] = []
        real = opened._llama.eval

        def counted(tokens: list[int]) -> None:
            calls.append(len(tokens))
            real(tokens)

        opened._llama.eval = counted
        assert opened.seconds_a_token(range(3, 20)) > 0
        assert calls == [1] * 17
        with pytest.raises(UsageError, match="do not fit"):
            opened.seconds_a_token([5] * 65)


def test_a_non_ascii_path_loads(f16: Path, tmp_path: Path) -> None:
    path = tmp_path / "魂　{x}" / "模型.gguf"
    path.parent.mkdir()
    shutil.copy(f16, path)
    with Runtime(path, n_ctx=64, threads=1) as runtime:
        assert runtime.tokenize("桃", add_bos=False)


@pytest.mark.parametrize("damage", ["truncated", "not a model", "wrong architecture"])
def test_a_bad_file_is_an_integrity_error_and_nothing_is_printed(
    damage: str, f16: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = f16.read_bytes()
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "not a model":
        data = b"GGUF" + bytes(1000)
    else:
        with GgufFile(f16) as file:
            assert file.metadata["general.architecture"] == "phi3"
        data = data.replace(b"phi3", b"phi9")
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        Runtime(tmp_path / "bad.gguf", n_ctx=64)
    if damage == "wrong architecture":
        assert "phi9" in caught.value.why
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_loading_a_good_file_prints_nothing(f16: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Runtime(f16, n_ctx=64, threads=1) as runtime:
        list(runtime.complete("桃", max_tokens=3))
    with Runtime(f16, vocab_only=True) as runtime:
        runtime.tokenize("桃", add_bos=False)
    assert capfd.readouterr() == ("", "")


def test_what_is_printed_while_a_file_loads_arrives(
    f16: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another thread's progress and results: a load may take a minute."""
    load = binding.llama_model_load_from_file

    def loaded(*arguments: object) -> object:
        print("a result")
        print("progress", file=sys.stderr, flush=True)
        os.write(1, b"a child's result\n")
        return load(*arguments)

    monkeypatch.setattr(binding, "llama_model_load_from_file", loaded)
    for vocab_only in (False, True):
        Runtime(f16, n_ctx=64, threads=1, vocab_only=vocab_only).close()
        out, err = capfd.readouterr()
        assert (set(out.splitlines()), err) == ({"a result", "a child's result"}, "progress\n")


def test_two_threads_that_begin_together_have_one_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a lock, the second begins while the first waits for it here."""
    set_by: list[str] = []
    second = threading.Event()
    found: list[object] = []

    def waits(*_: object) -> None:
        set_by.append(threading.current_thread().name)
        if len(set_by) == 1:
            second.wait(0.5)
        else:
            second.set()

    monkeypatch.setattr(llama_cpp, "llama_log_set", waits)
    monkeypatch.setattr(_log, "_captured", cache(_log._captured.__wrapped__))
    threads = [threading.Thread(target=lambda: found.append(_log.captured_log())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set_by) == 1
    assert found[0] is found[1]


class _Mallinfo2(ctypes.Structure):
    """The memory in use by glibc's allocator; resident memory would include freed memory that it keeps."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def _handed_out() -> int:
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's allocator")
def test_closing_frees_the_memory(f16: Path) -> None:
    """A context of 16384 tokens holds some 33 MB."""
    Runtime(f16, n_ctx=16384, threads=1).close()
    before = _handed_out()
    for _ in range(3):
        with Runtime(f16, n_ctx=16384, threads=1):
            assert _handed_out() - before > 30e6
    assert _handed_out() - before < 1e6
