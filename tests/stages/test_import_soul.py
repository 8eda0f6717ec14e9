"""Tests of import-soul: the original's file becomes a soul that folds exactly, reflections too, and runs no code."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from aegis.config.settings import MergeConfig
from aegis.errors import IntegrityError, UsageError
from aegis.runs.facts import MergeFacts
from aegis.soul.file import load_soul
from aegis.soul.fold import fold_head
from aegis.soul.gate import gate
from aegis.stages.import_soul import import_soul
from aegis.stages.merge import MergeInputs, merge
from tests.conftest import MakeRandom, Recorder
from tests.trained import MakeTrained, tokens_for

ALPHA = 1.2


def original(seed: int, width: int = 32) -> nn.Module:
    """Return the original's rotation after some training."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        rotation = nn.utils.parametrizations.orthogonal(nn.Linear(width, width, bias=False))
        with torch.no_grad():
            rotation.parametrizations.weight.original.add_(torch.randn(width, width), alpha=0.3)
    return rotation


def saved(path: Path, rotation: nn.Module, **changes: Any) -> Path:
    """Write soul.pt as the original's save_checkpoint does."""
    state = {"alpha": torch.tensor(ALPHA), "so8_rotation": rotation.state_dict(), "step": 500}
    torch.save(state | changes, path)
    return path


def a_seed(determinant: int, width: int = 32) -> int:
    return next(s for s in range(40) if torch.det(original(s, width).weight.detach().double()).sign() == determinant)


@pytest.mark.parametrize("determinant", [1, -1])
def test_the_imported_rotation_is_the_trained_one(tmp_path: Path, determinant: int) -> None:
    """It is rebuilt without torch's module and equals the module's; a reflection is recorded as one."""
    rotation = original(a_seed(determinant))
    report = import_soul(saved(tmp_path / "soul.pt", rotation), tmp_path / "new" / "soul.safetensors")
    soul = load_soul(tmp_path / "new" / "soul.safetensors")
    assert torch.allclose(soul.rotation[0], rotation.weight, atol=1e-6)
    assert not torch.allclose(soul.rotation[0], rotation.weight.mT, atol=0.1)
    assert (soul.kind, soul.step, soul.base_hash) == ("dense", 500, "")
    assert soul.alpha == report.alpha == pytest.approx(ALPHA)
    assert soul.reflection == report.reflection == (determinant == -1)
    with safe_open(tmp_path / "new" / "soul.safetensors", "pt") as file:
        assert file.metadata().get("determinant") == ("-1" if determinant == -1 else None)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["soul.safetensors"]


@pytest.mark.parametrize("determinant", [1, -1])
def test_an_imported_soul_folds_exactly(
    tmp_path: Path, make_random: MakeRandom, make_trained: MakeTrained, reporter: Recorder, determinant: int
) -> None:
    """Merged with a peft adapter that has no soul beside it, the stock model gives what the original's forward gave."""
    trained = make_trained(make_random("llama"))
    (trained.adapter / "soul.safetensors").unlink()
    rotation = original(a_seed(determinant, 256), 256)
    import_soul(saved(tmp_path / "soul.pt", rotation), tmp_path / "soul.safetensors")
    inputs = MergeInputs(str(trained.base), trained.adapter, tmp_path / "soul.safetensors")
    merge(inputs, tmp_path / "merged", MergeConfig(dtype="float32"))
    assert MergeFacts.read(tmp_path / "merged").determinant == determinant
    assert any("reflection" in text for text in reporter.warned) == (determinant == -1)

    tokens = tokens_for(trained.model)
    inner = trained.model.get_base_model()
    with torch.no_grad():
        hidden = inner.model(input_ids=tokens).last_hidden_state
        wanted = inner.lm_head(hidden + torch.sigmoid(torch.tensor(ALPHA)) * rotation(hidden))
    merged = stock(tmp_path / "merged")
    with torch.no_grad():
        assert relative_error(merged(input_ids=tokens).logits, wanted) < 1e-5
        # the controls: no soul, Rᵀ, and the rotation that a reflection is not
        mirrored = rotation.weight.clone()
        mirrored[:, 0] *= -1
        head = inner.lm_head.weight
        for wrong in (head, *(fold_head(head, r[None], gate(ALPHA)) for r in (rotation.weight.mT, mirrored))):
            merged.lm_head.weight.copy_(wrong)
            assert relative_error(merged(input_ids=tokens).logits, wanted) > 0.01


def stock(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


class _Payload:
    """Runs a command if it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.command = f"touch '{sentinel}'"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["torch", "old torch", "plain pickle", "inside a good soul"])
def test_a_hostile_pickle_never_runs(tmp_path: Path, form: str) -> None:
    """The control shows that the payload would run; through import-soul it does not, and nothing is written."""
    sentinel, path = tmp_path / "ran", tmp_path / "soul.pt"
    payload = _Payload(sentinel)
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(payload))
    elif form == "inside a good soul":
        saved(path, original(0), step=payload)
    else:
        torch.save({"alpha": payload}, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(IntegrityError, match="cannot be read as tensors alone") as caught:
        import_soul(path, tmp_path / "soul.safetensors")
    assert "nothing in it was run" in caught.value.fix
    assert not sentinel.exists()
    assert not (tmp_path / "soul.safetensors").exists()
    if form == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert sentinel.exists()


def state_with(**changes: Any) -> dict[str, Any]:
    names = {"original": "parametrizations.weight.original", "base": "parametrizations.weight.0.base"}
    return original(1).state_dict() | {names.get(name, name): value for name, value in changes.items()}


EYE = torch.eye(32)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"alpha": torch.tensor(float("nan"))}, "alpha is nan"),
        ({"alpha": torch.zeros(2)}, "alpha is"),
        ({"alpha": "1.6"}, "alpha is '1.6'"),
        ({"step": 1.5}, "step is 1.5"),
        ({"step": -1}, "step is -1"),
        ({"so8_rotation": EYE}, "not the state of an orthogonal"),
        ({"so8_rotation": {"weight": EYE}}, "not the state of an orthogonal"),
        ({"so8_rotation": state_with(bias=EYE[0])}, "without bias"),
        ({"so8_rotation": state_with(base=EYE[:16])}, "is not a square matrix"),
        ({"so8_rotation": state_with(base=torch.eye(16))}, r"is \(32, 32\) and"),
        ({"so8_rotation": state_with(base=EYE.int())}, "is torch.int32"),
        ({"so8_rotation": state_with(base=torch.zeros(1).expand(9999, 9999))}, "does not match its data"),
        ({"so8_rotation": state_with(base=EYE.to("meta"))}, "."),
        ({"so8_rotation": state_with(base=1.01 * EYE)}, "not orthogonal"),
        ({"so8_rotation": state_with(original=torch.full((32, 32), torch.inf))}, "NaN or Inf"),
        ({"so8_rotation": {k: v.half() for k, v in original(1).state_dict().items()}}, "not orthogonal"),
    ],
)
def test_a_file_that_is_no_soul_is_refused(tmp_path: Path, changes: dict[str, Any], shown: str) -> None:
    saved(tmp_path / "soul.pt", original(1), **changes)
    with pytest.raises(IntegrityError, match=shown) as refused:
        import_soul(tmp_path / "soul.pt", tmp_path / "soul.safetensors")
    assert "soul.pt" in str(refused.value), "the user's file, not one that would have been written"
    assert ".part" not in str(refused.value)
    assert not (tmp_path / "soul.safetensors").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 1e39},
        {"alpha": -(10**400)},
        {"alpha": 10**5000},
        {"alpha": torch.tensor(1e300, dtype=torch.float64)},
        {"alpha": torch.tensor(1.0 + 1.0j)},
        {"alpha": torch.ones(1).to_sparse()},
        {"alpha": torch.ones(1, device="meta")},
        {"step": -5},
        {"step": 10**400},
        {"step": torch.tensor(5)},
        {"so8_rotation": state_with(original=torch.eye(32).to_sparse())},
        {"so8_rotation": state_with(base=torch.eye(32, device="meta"))},
        {"so8_rotation": state_with(original=torch.eye(32, dtype=torch.complex64))},
        {"so8_rotation": state_with(original=torch.full((32, 32), 1e300, dtype=torch.float64))},
    ],
)
def test_invalid_values_are_refused_and_not_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError) as refused:
        import_soul(saved(tmp_path / "soul.pt", original(1), **changes), tmp_path / "out" / "soul.safetensors")
    assert refused.value.key.startswith(("import_soul.", "soul."))
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_an_archive_that_is_larger_unpacked_is_never_unpacked(tmp_path: Path) -> None:
    """torch.save packs nothing; the control is the same soul, repacked without packing."""
    honest = saved(tmp_path / "honest.pt", original(1))
    for how, refused in ((zipfile.ZIP_STORED, False), (zipfile.ZIP_DEFLATED, True)):
        path = tmp_path / f"{how}.pt"
        with zipfile.ZipFile(honest) as source, zipfile.ZipFile(path, "w", how) as target:
            for name in source.namelist():
                target.writestr(name, source.read(name))
            target.writestr("honest/data/99", bytes(1 << 24))
        if refused:
            with pytest.raises(IntegrityError, match="larger unpacked"):
                import_soul(path, tmp_path / "soul.safetensors")
        else:
            import_soul(path, tmp_path / "good.safetensors")
    assert not (tmp_path / "soul.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no pickle", bytes(4096)])
def test_damage_is_an_integrity_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "soul.pt").write_bytes(content)
    with pytest.raises(IntegrityError):
        import_soul(tmp_path / "soul.pt", tmp_path / "soul.safetensors")
    whole = saved(tmp_path / "whole.pt", original(1)).read_bytes()
    for part in range(1, 10):
        (tmp_path / "soul.pt").write_bytes(whole[: len(whole) * part // 10])
        with pytest.raises(IntegrityError):
            import_soul(tmp_path / "soul.pt", tmp_path / "soul.safetensors")


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    source, out = saved(tmp_path / "soul.pt", original(1)), tmp_path / "soul.safetensors"
    with pytest.raises(UsageError, match="no soul at"):
        import_soul(tmp_path / "absent.pt", out)
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        import_soul(source, out)
    assert out.read_text() == "mine"
    import_soul(source, out, overwrite=True)
    assert load_soul(out).step == 500
