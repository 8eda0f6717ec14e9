"""Tests of the base in memory with adapter and soul: every forward pass uses the soul, as in training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aegis.doctor import gpu
from aegis.doctor.cures import install_torch_for_card
from aegis.doctor.gpu import Card, Driver
from aegis.errors import AegisError, EnvironmentFault, IntegrityError, UsageError
from aegis.model.base import find_base
from aegis.model.device import choose_device, require_device
from aegis.model.live_model import live_model
from aegis.model.load import footprint, load_base
from aegis.model.lora_targets import attach_lora, resolve_targets
from aegis.model.soul_hook import decoder_of, soul_hook
from aegis.soul.file import SoulRecord, save_soul
from aegis.soul.module import Soul

CPU = torch.device("cpu")
TOKENS = torch.randint(3, 1200, (2, 24), generator=torch.Generator().manual_seed(9))


def new_soul(width: int, *, alpha: float = 1.618) -> Soul:
    """Return a soul that differs from its start, with g = 0.83."""
    soul = Soul(width, init="random", seed=11, alpha=alpha)
    with torch.no_grad():
        soul.skew.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return soul


def with_adapter(model: Any, dropout: float = 0.0) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = attach_lora(
            model, resolve_targets(model), rank=4, alpha=8, dropout=dropout, base_name="x", revision=None
        )
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.1)
    return model


@dataclass(frozen=True)
class Loaded:
    model: Any
    soul: Soul


@pytest.fixture(scope="module")
def base16(quick_base: Path) -> Any:
    return load_base(quick_base, "16bit", CPU)


@pytest.fixture
def live(quick_base: Path) -> Iterator[Loaded]:
    model = with_adapter(load_base(quick_base, "4bit", CPU))
    soul = new_soul(model.config.hidden_size)
    with soul_hook(model, soul):
        yield Loaded(model, soul)


def by_hand(model: Any, soul: Soul, tokens: Tensor) -> Tensor:
    """Return W(h + gRh)/(1 + g), computed without a hook."""
    hidden = decoder_of(model)(input_ids=tokens).last_hidden_state
    rotation = torch.block_diag(*soul.rotation())
    gate = torch.sigmoid(soul.alpha)
    return (hidden + gate * hidden @ rotation.T) / (1 + gate) @ model.get_output_embeddings().weight.T


def test_a_forward_pass_uses_the_soul_only_inside_the_block(base16: Any) -> None:
    soul = new_soul(base16.config.hidden_size)
    with torch.no_grad():
        plain = base16(input_ids=TOKENS).logits
        wanted = by_hand(base16, soul, TOKENS)
        with soul_hook(base16, soul):
            mixed = base16(input_ids=TOKENS).logits
        after = base16(input_ids=TOKENS).logits
    assert torch.allclose(mixed, wanted, atol=1e-4, rtol=1e-4)
    assert (mixed - plain).norm() > 0.3 * plain.norm()
    assert torch.equal(after, plain)


def test_generate_uses_the_soul(base16: Any) -> None:
    """Greedy generation, with the cache it uses, gives the tokens that W(h + gRh) gives one by one."""
    soul = new_soul(base16.config.hidden_size)
    tokens = TOKENS[:1, :8]
    ends = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        wanted = tokens
        for _ in range(12):
            wanted = torch.cat([wanted, by_hand(base16, soul, wanted)[:, -1:].argmax(-1)], dim=1)
        with soul_hook(base16, soul):
            found = base16.generate(tokens, attention_mask=torch.ones_like(tokens), use_cache=True, **ends)
        plain = base16.generate(tokens, attention_mask=torch.ones_like(tokens), use_cache=True, **ends)
    assert found.tolist() == wanted.tolist()
    assert found.tolist() != plain.tolist()


def test_the_hook_is_removed_if_the_block_raises(base16: Any) -> None:
    with torch.no_grad():
        plain = base16(input_ids=TOKENS).logits
        with pytest.raises(KeyError), soul_hook(base16, new_soul(base16.config.hidden_size)):
            raise KeyError
        assert torch.equal(base16(input_ids=TOKENS).logits, plain)


def test_a_soul_of_another_hidden_size_is_refused(base16: Any) -> None:
    with (
        pytest.raises(UsageError, match="the soul is 64 wide and the base's hidden state 256"),
        soul_hook(base16, new_soul(64)),
    ):
        pytest.fail("attached")


def test_the_decoder_of_a_peft_model_is_found(quick_base: Path) -> None:
    model = load_base(quick_base, "16bit", CPU)
    bare = decoder_of(model)
    assert decoder_of(with_adapter(model)) is bare


def gradients(loaded: Loaded) -> dict[str, Tensor]:
    parameters = {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}
    parameters |= {n: p for n, p in loaded.soul.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.grad = None
    logits = loaded.model(input_ids=TOKENS, use_cache=False).logits
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), TOKENS[:, 1:].flatten())
    loss.backward()
    return {"loss": loss.detach().clone()} | {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}


def test_activation_checkpointing_does_not_change_a_gradient(live: Loaded) -> None:
    """Loss and every gradient, the soul's among them, are the same with activations recomputed."""
    live.model.train()
    plain = gradients(live)
    enable = getattr(live.model, "activation_checkpointing_enable", None) or live.model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    again = gradients(live)
    assert plain.keys() == again.keys()
    assert {"loss", "skew"} <= plain.keys()
    assert len(plain) == 2 + 4
    for name, value in plain.items():
        assert value.abs().max() > 0, name
        assert torch.allclose(value, again[name], rtol=1e-5, atol=1e-7), name


@pytest.mark.filterwarnings("ignore:bitsandbytes.*autograd kernel was not registered:UserWarning")  # the control's
def test_training_after_an_evaluation_has_the_right_gradients(live: Loaded) -> None:
    """With AVX512-BF16, bitsandbytes would repack the NF4 weights at that look, and gradients after it be wrong."""
    live.model.train()
    before = gradients(live)
    live.model.eval()
    with torch.no_grad():
        live.model(input_ids=TOKENS)
    live.model.train()
    after = gradients(live)
    assert all(torch.equal(value, after[name]) for name, value in before.items())

    from bitsandbytes.functional import has_avx512bf16  # the control: where it can, it does

    if has_avx512bf16():
        for module in live.model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = True
        live.model.eval()
        with torch.no_grad():
            live.model(input_ids=TOKENS)
        live.model.train()
        repacked = gradients(live)
        assert not all(torch.equal(value, repacked[name]) for name, value in before.items())


def test_nf4_quantizes_the_linear_layers_and_not_the_head(live: Loaded, base16: Any) -> None:
    """Every projection is packed with double quantization; head, embeddings and norms are as they were."""
    import bitsandbytes as bnb

    packed = {n: m for n, m in live.model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert {name.rpartition(".")[2] for name in packed} >= {"gate_up_proj", "down_proj"}
    for module in packed.values():
        assert module.weight.quant_state.quant_type == "nf4"
        assert module.weight.quant_state.nested
        assert not module.support_avx512bf16_for_cpu
    head = live.model.get_output_embeddings()
    assert type(head) is nn.Linear
    assert torch.equal(head.weight, base16.get_output_embeddings().weight)
    assert head.weight.dtype == torch.float32
    trained = [name for name, p in live.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained)
    assert len(trained) == 4


def test_the_footprint_counts_the_bytes_of_nf4(quick_base: Path, base16: Any) -> None:
    """Four bits a weight and their constants: what footprint says is between 4 and 5 bits for the packed part."""
    four = load_base(quick_base, "4bit", CPU)
    packed = [name for name, p in base16.named_parameters() if "_proj" in name]
    weights = sum(base16.get_parameter(name).numel() for name in packed)
    others = sum(p.nbytes for name, p in base16.named_parameters() if name not in packed)
    others += sum(buffer.nbytes for buffer in base16.buffers())
    assert footprint(base16) == others + 4 * weights
    assert 4.0 < 8 * (footprint(four) - others) / weights < 5.0


def save(live: Loaded, folder: Path, quick_base: Path) -> None:
    live.model.save_pretrained(folder, save_embedding_layers=False)
    with torch.no_grad():
        rotation = live.soul.rotation().clone()
    save_soul(folder / "soul.safetensors", SoulRecord(rotation, live.soul.alpha.item(), 8, "", live.soul.counter_scale))


def test_the_live_model_equals_the_trained_one(tmp_path: Path, live: Loaded, quick_base: Path) -> None:
    """Same logits from disk as in memory; without its soul, or on the 16-bit base, it is another model."""
    save(live, tmp_path / "adapter", quick_base)
    with torch.no_grad():
        wanted = live.model.eval()(input_ids=TOKENS).logits
        base = find_base(str(quick_base))
        with live_model(base, tmp_path / "adapter", "4bit", CPU) as model:
            found = model(input_ids=TOKENS).logits
            assert not any(p.requires_grad for p in model.parameters())
        bare = model(input_ids=TOKENS).logits
        with live_model(base, tmp_path / "adapter", "16bit", CPU) as model:
            wide = model(input_ids=TOKENS).logits
    assert torch.allclose(found, wanted, atol=1e-5, rtol=1e-5)
    assert (bare - wanted).norm() > 0.3 * wanted.norm()
    assert (wide - wanted).norm() > 1e-3 * wanted.norm()


def test_an_adapter_of_another_shape_or_with_missing_matrices_is_refused(
    tmp_path: Path, live: Loaded, quick_base: Path
) -> None:
    folder = tmp_path / "adapter"
    save(live, folder, quick_base)
    weights = load_file(folder / "adapter_model.safetensors")
    first = next(name for name in weights if "lora_B" in name)
    pair = first, first.replace("lora_B", "lora_A")
    base = find_base(str(quick_base))
    for other in (
        weights | {first: torch.zeros(7, 4)},
        {name: matrix for name, matrix in weights.items() if name not in pair},
    ):
        save_file(other, folder / "adapter_model.safetensors")
        with pytest.raises(IntegrityError, match="does not fit"), live_model(base, folder, "16bit", CPU):
            pytest.fail("loaded")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def rank_in_words(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": "four"}))


def target_number(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": 3}))


@pytest.mark.parametrize(
    ("name", "damage", "error"),
    [
        ("adapter_model.safetensors", cut_off, IntegrityError),
        ("adapter_model.safetensors", lambda path: path.write_bytes(b""), IntegrityError),
        ("adapter_model.safetensors", Path.unlink, UsageError),
        ("adapter_config.json", cut_off, IntegrityError),
        ("adapter_config.json", lambda path: path.write_text("[]"), IntegrityError),
        ("adapter_config.json", rank_in_words, IntegrityError),
        ("adapter_config.json", target_number, IntegrityError),
        ("adapter_config.json", Path.unlink, UsageError),
        ("soul.safetensors", cut_off, IntegrityError),
        ("soul.safetensors", Path.unlink, UsageError),
    ],
)
def test_a_damaged_adapter_folder_is_no_bug_of_ours(
    tmp_path: Path,
    live: Loaded,
    quick_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: Callable[[Path], object],
    error: type[AegisError],
) -> None:
    """Nor is what is missing asked for on the Hub, where folder/adapter could be someone's repository."""
    monkeypatch.chdir(tmp_path)
    asked: list[object] = []
    monkeypatch.setattr("socket.socket.connect", lambda *_: asked.append(1))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: asked.append(1) or [])
    folder = Path("folder", "adapter")
    save(live, folder, quick_base)
    damage(folder / name)
    with pytest.raises(error), live_model(find_base(str(quick_base)), folder, "16bit", CPU):
        pytest.fail("loaded")
    assert asked == []


def test_a_base_that_lacks_a_tensor_is_refused(tmp_path: Path, quick_base: Path) -> None:
    """transformers would go on with random numbers in its place."""
    folder = shutil.copytree(quick_base, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    lost = "model.layers.0.mlp.down_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != lost}, folder / "model.safetensors", metadata={"format": "pt"})
    for load_in in ("4bit", "16bit"):
        with pytest.raises(IntegrityError, match="lacks 1 tensors") as caught:
            load_base(folder, load_in, CPU)
        assert lost in caught.value.why


def test_a_base_of_another_shape_is_refused(tmp_path: Path, quick_base: Path) -> None:
    folder = shutil.copytree(quick_base, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(IntegrityError, match="cannot load the base"):
        load_base(folder, "16bit", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_environment_fault() -> None:
    with pytest.raises(EnvironmentFault, match="no CUDA device") as caught:
        choose_device("cuda")
    assert "--device cpu" in caught.value.fix
    assert choose_device("auto") == choose_device("cpu") == CPU


@pytest.fixture
def idle_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a driver that sees a GPU, and a torch built for the CPU."""
    card = Card("NVIDIA GeForce RTX 3060", (8, 6), 12 * 10**9, 11 * 10**9, ())
    monkeypatch.setattr(gpu, "seen_by_driver", lambda: Driver("580.65", (13, 0), (card,)))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("idle_gpu")
def test_long_work_does_not_fall_back_to_the_cpu_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentFault, match="does not use the GPU") as caught:
        require_device("auto")
    assert caught.value.exit_code == 3
    assert "RTX 3060" in caught.value.why
    assert install_torch_for_card() in caught.value.fix
    assert "--device cpu" in caught.value.fix
    assert require_device("cpu") == CPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert require_device("auto") == CPU


def test_long_work_runs_on_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "seen_by_driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert require_device("auto") == CPU


def test_each_launched_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert choose_device("auto") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(EnvironmentFault, match="no GPU for process 2"):
        choose_device("auto")
