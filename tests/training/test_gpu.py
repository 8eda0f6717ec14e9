"""Tests on a real GPU: every execution option gives the plain losses and gradients, and a step never waits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.data.packing import IGNORED, Batch
from aegis.errors import DivergedError
from aegis.merging.shipped_weights import FileRecipe, ShippedWeights
from aegis.model.base import Base
from aegis.model.cuda_graphs import own_stream
from aegis.model.load import compute_dtype, load_base
from aegis.model.lora_targets import attach_lora, resolve_targets
from aegis.model.soul_hook import soul_hook
from aegis.soul.module import Soul
from aegis.soul.retraction import _one_step
from aegis.soul.rotation import ORTHOGONALITY_BOUND, orthogonality_defect, skew_matrix
from aegis.soul.tf32 import allow_tf32
from aegis.training import step as step_module
from aegis.training.answers import next_tokens
from aegis.training.batch import BatchShape, MicroBatch
from aegis.training.execution.activation_bytes import activation_bytes
from aegis.training.execution.allocator import reset_peak
from aegis.training.execution.apply_options import apply_options, host_embeddings
from aegis.training.execution.options import PLAIN, ExecutionOptions
from aegis.training.keep.batches import KeptShare
from aegis.training.kernels.lora_layers import LoraLayers
from aegis.training.optimizer import make_optimizer
from aegis.training.state import TrainState
from aegis.training.step import Stepper

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # older torch's own
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTH, VOCABULARY, LAYERS = 256, 512, 3
CONFIG = TrainConfig(lora_r=8, max_length=LENGTH, warmup_steps=0, annealing_steps=1, learning_rate=1e-3)
STILL = CONFIG.model_copy(update={"learning_rate": 1e-30})
_FAST = ExecutionOptions(varlen_attention=True, nf4_kernel=True, cpu_embeddings=True)
_SPARED = replace(_FAST, checkpointed_layers=LAYERS, offload_checkpoints=True, keep_attention=True)
WAYS = {
    "packed": ExecutionOptions(varlen_attention=True),
    "dequantized": _FAST,
    "checkpointed": replace(_FAST, checkpointed_layers=LAYERS),
    "some checkpointed": replace(_FAST, checkpointed_layers=2),
    "offloaded": replace(_FAST, checkpointed_layers=LAYERS, offload_checkpoints=True),
    "captured": replace(_FAST, cuda_graphs=True),
    "captured, offloaded": replace(_FAST, cuda_graphs=True, checkpointed_layers=LAYERS, offload_checkpoints=True),
    "compiled": replace(_FAST, compiled=True),
    "compiled, some checkpointed": replace(_FAST, compiled=True, checkpointed_layers=2),
    "compiled, offloaded": replace(_FAST, compiled=True, checkpointed_layers=LAYERS, offload_checkpoints=True),
    "compiled, attention spared": replace(_SPARED, compiled=True),
    "compiled, offloaded layers": replace(_FAST, compiled=True, offloaded_layers=2),
    "all": replace(_FAST, compiled=True, cuda_graphs=True),
    "all, checkpointed": replace(_FAST, compiled=True, cuda_graphs=True, checkpointed_layers=LAYERS),
    "all, some offloaded": replace(
        _FAST, compiled=True, cuda_graphs=True, checkpointed_layers=2, offload_checkpoints=True
    ),
    "all, offloaded": replace(
        _FAST, compiled=True, cuda_graphs=True, checkpointed_layers=LAYERS, offload_checkpoints=True
    ),
    "all, attention spared": replace(_SPARED, compiled=True, cuda_graphs=True),
    "all, offloaded layers": replace(_FAST, compiled=True, cuda_graphs=True, offloaded_layers=2),
}

Make = Callable[..., TrainState]


def known(*ways: str) -> list[str]:
    """The names as given; one that WAYS has no more fails where tests are collected, also without a GPU."""
    assert set(ways) <= set(WAYS)
    return list(ways)


@pytest.fixture(scope="module", params=["phi3", "llama"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model with LongRoPE whose switch is inside the window, or with grouped heads."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if request.param == "phi3" else 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
    }
    if request.param == "phi3":
        half = 256 // 4 // 2
        shape |= {
            "original_max_position_embeddings": 100,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0 + i / 50 for i in range(half)],
                "long_factor": [2.0 + i for i in range(half)],
            },
        }
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **shape))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.06)
    model.bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def make(base: Path) -> Iterator[Make]:
    device = torch.device("cuda")
    with ExitStack() as stack:

        def build(way: ExecutionOptions, config: TrainConfig = CONFIG) -> TrainState:
            torch._dynamo.reset()
            model = load_base(base, "4bit", device)
            torch.manual_seed(1)
            model = attach_lora(
                model, resolve_targets(model), rank=8, alpha=16, dropout=0.1, base_name="tiny", revision=None
            )
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(0, 0.05)
            adapters = LoraLayers(model, compute_dtype(device), 0.1)
            apply_options(way, model, LENGTH)
            soul = Soul(256, kind=config.rotation, init="random", seed=1).to(device)
            stack.enter_context(soul_hook(model, soul))
            scaler = torch.amp.GradScaler("cuda", enabled=False)
            return TrainState(model.train(), soul, adapters, make_optimizer(model, soul, config), scaler, way)

        yield build


def batch(state: TrainState, seed: int, cuts: tuple[int, ...] = (40, 170)) -> MicroBatch:
    """Return one window of three documents, the second longer than the original context; half the labels count."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, VOCABULARY, (1, LENGTH))
    labels = np.where(np.arange(LENGTH) % 2 == 0, ids, IGNORED)
    positions = np.concatenate([np.arange(end - start) for start, end in zip((0, *cuts), (*cuts, LENGTH), strict=True)])
    shape = BatchShape(rows=140, documents=5, longest=LENGTH) if cuts else BatchShape(140, None, LENGTH)
    embed = host_embeddings(state.model)
    return MicroBatch.make(Batch(ids, labels, positions[None]), shape, pinned=True, embed=embed)


def course(state: TrainState, config: TrainConfig = CONFIG, cuts: tuple[int, ...] = (40, 170), steps: int = 6) -> Any:
    """Return the losses of some steps with two micro-batches each, and the last gradients."""
    stepper = Stepper(state, config)
    with own_stream(torch.device("cuda")):
        losses = [
            stepper.take(step, [batch(state, 2 * step, cuts), batch(state, 2 * step + 1, cuts)]).task_loss
            for step in range(steps)
        ]
        torch.cuda.synchronize()
    return losses, stepper._update.gradients.clone()


def kept_batch(state: TrainState, seed: int) -> MicroBatch:
    """Return a batch like `batch` of kept text: every position counts, and the base's states are random."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, VOCABULARY, (1, LENGTH))
    cuts = (90, 200)
    positions = np.concatenate([np.arange(end - start) for start, end in zip((0, *cuts), (*cuts, LENGTH), strict=True)])
    states = torch.randn(1, LENGTH, 256, generator=torch.Generator().manual_seed(seed)).bfloat16()
    shape = BatchShape(rows=LENGTH, documents=5, longest=LENGTH)
    made = Batch(ids, ids, positions[None])
    return MicroBatch.make(made, shape, pinned=True, embed=host_embeddings(state.model), base_states=states)


def kept_course(state: TrainState, steps: int = 7, config: TrainConfig = CONFIG) -> Any:
    """Return the KL of the kept passes, one per two steps, and the last gradients; the third step is recorded."""
    stepper, device = Stepper(state, config, kept_example=kept_batch(state, 99)), torch.device("cuda")
    found = []
    with own_stream(device):
        for step in range(steps):
            kept = kept_batch(state, step)
            share = KeptShare([kept], kept.trained) if step % 2 == 0 else KeptShare()
            found.append(stepper.take(step, [batch(state, step)], share).keep_kl)
        torch.cuda.synchronize()
    return found, stepper._update.gradients.clone()


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / one.norm()).item()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cuts", [(40, 170), ()], ids=["three documents", "one document"])
def test_every_execution_option_gives_the_plain_losses_and_gradients(
    make: Make, way: str, cuts: tuple[int, ...]
) -> None:
    """To bfloat16's rounding, dropout and all; another dropout, and documents that see each other, miss."""
    if WAYS[way].compiled and find_spec("triton") is None:
        pytest.skip("needs triton")
    plain_losses, plain = course(make(PLAIN), cuts=cuts)
    losses, gradients = course(make(WAYS[way]), cuts=cuts)
    print(way, cuts, gap(plain, gradients), max(abs(a - b) for a, b in zip(losses, plain_losses, strict=True)))
    assert losses == pytest.approx(plain_losses, rel=4e-3)
    assert gap(plain, gradients) < 0.08
    reseeded = CONFIG.model_copy(update={"seed": 7})
    assert gap(plain, course(make(PLAIN, reseeded), reseeded, cuts=cuts)[1]) > 0.2
    if cuts:
        assert gap(plain, course(make(PLAIN), cuts=())[1]) > 0.2


@pytest.mark.parametrize("way", known("captured", "compiled, some checkpointed", "all", "all, offloaded layers"))
def test_answers_between_the_steps_compile_nothing_and_leave_the_steps_alone(make: Make, way: str) -> None:
    """The model answers before every step but the first; each step gives what it gives without answers."""
    if WAYS[way].compiled and find_spec("triton") is None:
        pytest.skip("needs triton")
    wanted, _ = course(make(WAYS[way]))
    state = make(WAYS[way])
    stepper, losses, answers = Stepper(state, CONFIG), [], []
    torch._dynamo.utils.counters.clear()
    with own_stream(torch.device("cuda")):
        for step in range(6):
            losses.append(stepper.take(step, [batch(state, 2 * step), batch(state, 2 * step + 1)]).task_loss)
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            answers.append(next_tokens(state, [[5, 6, 7, 8, 9], [11, 12]], 8, ()))
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    print(way, max(abs(a - b) for a, b in zip(losses, wanted, strict=True)), answers[-1])
    assert losses == pytest.approx(wanted, rel=1e-5)
    assert [len(ids) for found in answers for ids, _ in found] == [8] * 12
    assert answers[0] != answers[-1]


@pytest.mark.parametrize(
    "way", known("captured", "captured, offloaded", "compiled", "all", "all, checkpointed", "all, offloaded layers")
)
def test_every_execution_option_gives_the_plain_keep_loss(make: Make, way: str) -> None:
    """Divergence and gradients, also with a recorded step; a step without kept text differs."""
    if WAYS[way].compiled and find_spec("triton") is None:
        pytest.skip("needs triton")
    # heavy enough that kept text moves the gradients by more than another way of computing them does
    heavy = CONFIG.model_copy(update={"keep_weight": 8.0})
    plain_kl, plain = kept_course(make(PLAIN), config=heavy)
    kl, gradients = kept_course(make(WAYS[way]), config=heavy)
    assert [value is None for value in kl] == [False, True] * 3 + [False]
    assert kl[::2] == pytest.approx(plain_kl[::2], rel=2e-2)
    assert gap(plain, gradients) < 0.08
    off = CONFIG.model_copy(update={"keep_weight": 1e-6})
    assert gap(plain, kept_course(make(PLAIN), config=off)[1]) > 0.2


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(9216, 3072), (96, 64), (1000, 320)], ids=str)
def test_our_kernel_reads_nf4_as_bitsandbytes_does(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """To the bit, whole blocks of zeros and outliers among them; another offset misses."""
    from bitsandbytes import functional

    from aegis.training.kernels.nf4_triton import dequantize

    weight = torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(1)) * 0.02
    weight[1, :64] = 0
    weight[2, 3] = 40.0
    codes, quantized = functional.quantize_4bit(weight.to(dtype), quant_type="nf4", compress_statistics=True)
    second = quantized.state2
    rows, columns = shape

    def ours(offset: torch.Tensor) -> torch.Tensor:
        scales = quantized.absmax, second.code, second.absmax, offset
        return dequantize(codes.view(-1), *scales, quantized.code, rows=rows, columns=columns, dtype=dtype)

    theirs = functional.dequantize_4bit(codes, quantized)
    assert torch.equal(ours(quantized.offset), theirs)
    assert not torch.equal(ours(quantized.offset * 1.01), theirs)


def test_a_compiled_layer_keeps_the_counted_bytes(make: Make) -> None:
    """Within 5 % of `activation_bytes`, which plans go by; a layer that is not compiled keeps more."""
    assert one_layer_keeps(make(WAYS["compiled"])) == pytest.approx(counted := layer_bytes(make), rel=0.05)
    assert one_layer_keeps(make(WAYS["packed"])) > 1.3 * counted


def test_offloaded_layers_have_left_when_the_forward_pass_ends(make: Make) -> None:
    """The GPU has two layers less, within 5 % of the counted bytes.

    The first layer's input, which is the batch's, stays.
    """
    kept, one = layers_keep(make(WAYS["compiled"]), LAYERS), layer_bytes(make)
    given = LENGTH * 256 * 2
    some = layers_keep(make(WAYS["compiled, offloaded layers"]), LAYERS)
    assert kept - some == pytest.approx(2 * one - given, rel=0.05)


def layer_bytes(make: Make) -> int:
    return activation_bytes(make(PLAIN).model.config, LENGTH, 2)


def one_layer_keeps(state: TrainState) -> int:
    """Return the bytes that the third layer keeps in addition to the first two."""
    return layers_keep(state, 3) - layers_keep(state, 2)


def layers_keep(state: TrainState, layers: int) -> int:
    """Return the bytes that a number of layers keep on the GPU after the forward pass."""
    decoder = state.model.get_base_model().get_decoder()
    window = batch(state, 0, ()).to(torch.device("cuda"))
    start = {"input_ids": window.input_ids} if window.embedded is None else {"inputs_embeds": window.embedded}
    step_module.summed_loss(state, window).backward()  # compiles
    whole, decoder.layers = decoder.layers, decoder.layers[:layers]
    before = torch.cuda.memory_allocated()
    hidden = decoder(**start, position_ids=window.position_ids, use_cache=False)
    kept = torch.cuda.memory_allocated() - before
    decoder.layers = whole
    del hidden
    return kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 70, 8192), (3, 1500)], ids=str)
def test_our_kernel_has_the_gradient_of_gate_and_up(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """To the last place of the dtype; with gate and up exchanged it misses."""
    if find_spec("triton") is None:
        pytest.skip("needs triton")
    generator = torch.Generator("cuda").manual_seed(0)
    outer, gate, up = (torch.randn(shape, device="cuda", generator=generator, dtype=dtype) for _ in range(3))
    wide = torch.cat([gate, up], -1).double().requires_grad_()
    left, right = wide.chunk(2, -1)
    (torch.nn.functional.silu(left) * right).backward(outer.double())
    assert wide.grad is not None
    found = torch.ops.aegis.gated_backward(outer, torch.cat([gate, up], -1))
    torch.testing.assert_close(found, wide.grad.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    exchanged = torch.ops.aegis.gated_backward(outer, torch.cat([up, gate], -1))
    assert gap(wide.grad, exchanged.double()) > 0.1


def test_a_dense_souls_gradient_is_as_exact_as_its_16_bit_inputs() -> None:
    """In products of 10 bits, against float64 throughout; bfloat16's own rounding, 8 bits, is the control."""
    size = 512
    soul = Soul(size, kind="dense", init="random", seed=1, alpha=1.0).to("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    hidden, outer = (torch.randn(64, size, device="cuda", generator=generator, dtype=torch.bfloat16) for _ in range(2))
    before = torch.backends.cuda.matmul.fp32_precision
    soul.skew.grad = torch.zeros_like(soul.skew)
    soul.cache_rotation()
    soul(hidden).backward(outer)
    norm, defect = soul.release()
    assert torch.backends.cuda.matmul.fp32_precision == before
    assert norm > 0
    assert 0 < defect < 1e-8
    entries = torch.zeros_like(soul.skew, dtype=torch.float64, requires_grad=True)
    turned = soul.start.double() @ torch.linalg.matrix_exp(skew_matrix(entries, size))
    turned = torch.nn.functional.linear(hidden.double(), turned[0])
    gate = torch.sigmoid(soul.alpha.double())
    (wanted,) = torch.autograd.grad(gate / (1 + gate) * turned, entries, outer.double())
    assert gap(wanted, soul.skew.grad.double()) < 2e-3
    assert gap(wanted, wanted.bfloat16().double()) > 1e-3  # what 8 bits would cost, were they one rounding only
    assert gap(wanted, wanted.roll(1)) > 0.5


def test_a_dense_rotation_stays_a_rotation() -> None:
    """At Phi-3.5's width, after steps that move every entry by the same amount, and after far too large ones."""
    soul = Soul(3072, kind="dense", init="identity").to("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    for size in (2e-4, 2e-4, 2e-3, 2e-2, 0.5, 2e-4):
        soul.cache_rotation()
        soul.release()
        before = soul.start.double()
        with torch.no_grad():
            soul.skew.copy_(torch.randn(soul.skew.shape, device="cuda", generator=generator).sign() * size)
        turned = before @ torch.linalg.matrix_exp(_one_step(skew_matrix(soul.skew.detach(), 3072)).double())
        soul.retract()
        assert orthogonality_defect(soul.start.double()).abs().max().item() < ORTHOGONALITY_BOUND
        # the products' 10 bits, beside the step
        assert gap(turned - before, soul.start.double() - before) < 2e-3
        assert gap(turned - before, turned.mT - before) > 0.5


def test_the_gram_matrix_of_halves_has_float32s_accuracy_on_a_gpu() -> None:
    """RᵀR on tensor cores, against float64; of one coarse product the error is ten times as much."""
    rotation = Soul(1024, kind="dense", init="random", seed=1).to("cuda").start
    exact = orthogonality_defect(rotation.double())
    assert (orthogonality_defect(rotation) - exact).abs().max().item() < 4e-6
    with allow_tf32(rotation):
        coarse = rotation.mT @ rotation - torch.eye(1024, device="cuda")
    assert (coarse - exact).abs().max().item() > 4e-5


@pytest.mark.parametrize(
    ("way", "rotation"),
    [
        ("all", "so8"),
        ("all", "dense"),
        ("all, offloaded", "so8"),
        ("all, offloaded layers", "so8"),
        ("compiled, offloaded layers", "so8"),
        ("packed", "dense"),
        ("checkpointed", "so8"),
    ],
)
def test_a_step_never_waits_for_the_gpu(make: Make, way: str, rotation: str) -> None:
    """No synchronizing call from launch to launch, eager or replayed; reading a value does wait, and is caught."""
    state = make(WAYS[way], CONFIG.model_copy(update={"rotation": rotation}))
    stepper = Stepper(state, CONFIG)
    with own_stream(torch.device("cuda")):
        for step in range(4):
            stepper.take(step, [batch(state, step)])
        batches = [batch(state, step) for step in range(4)]
        torch.cuda.set_sync_debug_mode("error")
        try:
            pending = [stepper.launch(4 + step, [batches[step]]) for step in range(4)]
            with pytest.raises(RuntimeError, match="synchronizing"):
                stepper._update.numbers[0].item()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(np.isfinite(step.read().task_loss) for step in pending)


@pytest.mark.parametrize("way", known("all", "packed"))
def test_an_update_with_nan_is_held_back_on_the_device(make: Make, way: str) -> None:
    """A NaN in a replayed step: neither it nor the step launched behind it moves anything."""
    state = make(WAYS[way])
    stepper = Stepper(state, CONFIG)
    with own_stream(torch.device("cuda")):
        for step in range(4):
            stepper.take(step, [batch(state, step)])
        before = {name: p.detach().clone() for name, p in state.parameters().items()}
        with torch.no_grad():
            norm = state.model.get_base_model().get_decoder().norm.weight
            kept = norm.clone()
            norm.fill_(torch.nan)
        bad = stepper.launch(4, [batch(state, 4)])
        with torch.no_grad():
            norm.copy_(kept)
        stepper.launch(5, [batch(state, 5)])
        with pytest.raises(DivergedError, match="step 5"):
            bad.read()
        for name, parameter in state.parameters().items():
            if name != "soul.alpha":
                assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("way", "rotation"),
    [
        ("all", "so8"),
        ("all", "dense"),
        ("all, offloaded", "so8"),
        ("all, attention spared", "so8"),
        ("all, offloaded layers", "so8"),
    ],
)
def test_a_replayed_step_equals_the_eager_step_bit_for_bit(
    make: Make, way: str, rotation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resuming starts with eager steps where the undisturbed run replayed: their numbers must be the same."""
    config = CONFIG.model_copy(update={"rotation": rotation})
    losses, gradients = course(make(WAYS[way], config), config)
    monkeypatch.setattr(step_module, "_EAGER_STEPS", 99)
    eager_losses, eager = course(make(WAYS[way], config), config)
    assert eager_losses == losses
    assert torch.equal(eager, gradients)


@pytest.mark.parametrize("way", known("all", "all, offloaded", "all, offloaded layers"))
def test_a_step_that_cannot_be_recorded_stays_eager(make: Make, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = course(make(replace(WAYS[way], cuda_graphs=False)))
    original = step_module.summed_loss

    def asking(state: TrainState, batch: MicroBatch) -> torch.Tensor:
        loss = original(state, batch)
        loss.item()  # what a base with a question to the GPU in its forward pass does
        return loss

    monkeypatch.setattr(step_module, "summed_loss", asking)
    losses, gradients = course(make(WAYS[way]))
    assert losses == plain[0]
    assert torch.equal(gradients, plain[1])
    torch.rand(1, device="cuda")  # the generator does not believe that the recording still goes on


def test_the_peak_can_be_reset_before_anything_has_used_the_gpu() -> None:
    asked = f"import torch; from {reset_peak.__module__} import reset_peak; reset_peak(torch.device('cuda', 0))"
    finished = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def finish_course(state: TrainState, folder: Path, kind: str, grown: float = 1.5) -> Any:
    """Return the losses of some steps, the later ones with weights rounded to a type, and the last gradients.

    `STILL` lets no parameter change: the last bits of a weight choose among fits that are as good, and
    so move a fortieth of Q4_K's values by a step. Instead the adapter grows once, in the middle of the finish, when
    the step is recorded already.
    """
    stepper, base = Stepper(state, STILL), Base("base", folder, None)
    types = {name: kind for name, entry in base.shards.entries.items() if len(entry.shape) == 2}
    losses = []
    with own_stream(torch.device("cuda")):
        for step in range(13):
            if step == 4:
                recipe = FileRecipe("any", types, torch.float16, "norm")
                stepper.ship(ShippedWeights(state.model, state.soul, base, recipe, torch.bfloat16))
            if step == 8:
                with torch.no_grad():
                    for name, parameter in state.model.named_parameters():
                        if "lora_B" in name:
                            parameter.mul_(grown)
            losses.append(stepper.take(step, [batch(state, step)]).task_loss)
        torch.cuda.synchronize()
    return losses, stepper._update.gradients.clone()


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q5_0"])
@pytest.mark.parametrize("way", known("packed", "captured", "all", "all, checkpointed", "all, offloaded layers"))
def test_every_execution_option_gives_the_plain_losses_in_a_finish(make: Make, base: Path, way: str, kind: str) -> None:
    """Compiled and recorded anew; an adapter that did not grow, and another type, miss."""
    if WAYS[way].compiled and find_spec("triton") is None:
        pytest.skip("needs triton")
    plain_losses, plain = finish_course(make(PLAIN, STILL), base, kind)
    losses, gradients = finish_course(make(WAYS[way], STILL), base, kind)
    print(way, kind, gap(plain, gradients), max(abs(a - b) for a, b in zip(losses, plain_losses, strict=True)))
    assert losses == pytest.approx(plain_losses, rel=4e-3)
    assert gap(plain, gradients) < 0.1
    assert gap(plain, finish_course(make(PLAIN, STILL), base, kind, grown=1.0)[1]) > 0.2
    assert gap(plain, finish_course(make(PLAIN, STILL), base, "Q2_K")[1]) > 0.2
