"""Tests of soul.safetensors: a saved soul is loaded unchanged, and anything else is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from aegis.errors import IntegrityError, UsageError
from aegis.soul import rotation as so
from aegis.soul.file import SoulRecord, load_soul, save_soul
from aegis.soul.kind import Kind, block_shape


def record(kind: Kind = "so8") -> SoulRecord:
    shape = block_shape(kind, 32)
    return SoulRecord(so.random_rotation(*shape, torch.Generator().manual_seed(4)), 1.5, 100, "ab" * 32, True)


@pytest.mark.parametrize(("kind", "shape"), [("so8", (4, 8, 8)), ("so16", (2, 16, 16)), ("dense", (32, 32))])
def test_a_saved_soul_is_loaded_unchanged(tmp_path: Path, kind: Kind, shape: tuple[int, ...]) -> None:
    """The file has the documented shape and metadata, and gives back the same soul to the bit."""
    path = tmp_path / "soul.safetensors"
    save_soul(path, record(kind))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "format": "aegis-soul",
            "version": "2",
            "kind": kind,
            "hidden_size": "32",
            "step": "100",
            "base_hash": "ab" * 32,
            "counter_scale": "true",
        }
        assert file.get_tensor("rotation").shape == shape
        assert file.get_tensor("alpha").shape == ()
    found = load_soul(path)
    assert torch.equal(found.rotation, record(kind).rotation)
    assert (found.alpha, found.step, found.base_hash, found.kind) == (1.5, 100, "ab" * 32, kind)


def spoiled(rotation: torch.Tensor, how: str) -> torch.Tensor:
    rotation = rotation.clone()
    if how == "stretched":
        rotation[0] *= 1.001
    elif how == "reflected":
        rotation[0, :, 0] *= -1
    elif how == "nan":
        rotation[0, 0, 0] = torch.nan
    return rotation


@pytest.mark.parametrize(
    ("how", "message"), [("stretched", "not orthogonal"), ("reflected", "reflection"), ("nan", "NaN")]
)
def test_only_rotations_are_saved_or_loaded(tmp_path: Path, how: str, message: str) -> None:
    path = tmp_path / "soul.safetensors"
    good = record()
    bad = SoulRecord(spoiled(good.rotation, how), 1.5, 100, "", True)
    with pytest.raises(IntegrityError, match=message):
        save_soul(path, bad)
    assert not path.exists()
    metadata = {"format": "aegis-soul", "version": "1", "kind": "so8", "hidden_size": "32", "step": "1"}
    save_file({"rotation": bad.rotation, "alpha": torch.tensor(1.0)}, path, metadata=metadata)
    with pytest.raises(IntegrityError, match=message):
        load_soul(path)


def test_a_reflection_must_be_recorded_as_one(tmp_path: Path) -> None:
    """Recorded, it is loaded unchanged; a rotation with that flag, or another value of it, is refused."""
    path = tmp_path / "soul.safetensors"
    good = SoulRecord(so.random_rotation(1, 32, torch.Generator().manual_seed(4)), 1.5, 100, "", True)
    mirrored = SoulRecord(spoiled(good.rotation, "reflected"), 1.5, 100, "", True, reflection=True)
    save_soul(path, mirrored)
    found = load_soul(path)
    assert found.reflection
    assert torch.equal(found.rotation, mirrored.rotation)
    with pytest.raises(IntegrityError) as caught:
        save_soul(path, SoulRecord(good.rotation, 1.5, 100, "", True, reflection=True))
    assert caught.value.key == "soul.no_reflection"
    metadata = {"format": "aegis-soul", "version": "1", "kind": "dense", "hidden_size": "32", "step": "1"}
    tensors = {"rotation": mirrored.rotation[0].contiguous(), "alpha": torch.tensor(1.0)}
    save_file(tensors, path, metadata=metadata | {"determinant": "1"})
    with pytest.raises(IntegrityError, match="is a reflection"):
        load_soul(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no soul at"):
        load_soul(tmp_path / "absent.safetensors")
    path = tmp_path / "soul.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(IntegrityError, match="not a readable"):
        load_soul(path)
    save_file({"rotation": record().rotation, "alpha": torch.tensor(1.0)}, path, metadata={"format": "other"})
    with pytest.raises(IntegrityError, match="not a soul of version 2"):
        load_soul(path)
    save_soul(path, record())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(IntegrityError, match="not a readable"):
        load_soul(path)


def test_a_file_of_version_1_has_no_counter_scale(tmp_path: Path) -> None:
    """What was trained as h + g·R h is folded as that; a version 2 file must say which it is."""
    path = tmp_path / "soul.safetensors"
    save_soul(path, record())
    assert load_soul(path).counter_scale
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in ("rotation", "alpha")}
        metadata = {key: value for key, value in file.metadata().items() if key != "counter_scale"}
    save_file(tensors, path, metadata | {"version": "1"})
    found = load_soul(path)
    assert (found.counter_scale, found.scale) == (False, 1.0)
    save_file(tensors, path, metadata)
    with pytest.raises(IntegrityError) as refused:
        load_soul(path)
    assert refused.value.args[0] == "soul.counter_scale"


@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor([255], dtype=torch.uint8).view(torch.float8_e8m0fnu),  # its NaN, which torch calls finite
        torch.tensor(float("nan")),
        torch.tensor(float("-inf")),
        torch.tensor(1.0).half(),
        torch.tensor(1.0 + 1.0j),
        torch.tensor(1),
        torch.tensor(True),
        torch.zeros(0),
        torch.zeros(2),
    ],
    ids=lambda alpha: f"{alpha.dtype} {tuple(alpha.shape)}",
)
def test_a_soul_whose_alpha_is_not_one_finite_float32_is_refused(tmp_path: Path, alpha: torch.Tensor) -> None:
    with pytest.raises(IntegrityError) as refused:
        load_soul(rewritten(tmp_path, {"alpha": alpha}, {}))
    assert refused.value.key in ("soul.alpha", "soul.incomplete")
    assert load_soul(rewritten(tmp_path, {"alpha": torch.tensor([0.5])}, {})).alpha == 0.5


@pytest.mark.parametrize("step", ["-5", "", " 5", "1_0", "5.0", "９", "9" * 19, "9" * 5000, "+5"])
def test_a_step_below_zero_or_without_a_number_is_refused(tmp_path: Path, step: str) -> None:
    with pytest.raises(IntegrityError) as refused:
        load_soul(rewritten(tmp_path, {}, {"step": step}))
    assert refused.value.key == "soul.step"
    assert load_soul(rewritten(tmp_path, {}, {"step": "0"})).step == 0


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"rotation": torch.eye(8).repeat(4, 1, 1).double()}, {}),
        ({"rotation": torch.eye(8, dtype=torch.complex64).repeat(4, 1, 1)}, {}),
        ({"rotation": torch.zeros(0, 8, 8)}, {"hidden_size": "0"}),
        ({"rotation": torch.zeros(1, 0, 0)}, {"hidden_size": "0"}),
        ({"rotation": torch.eye(4).repeat(8, 1, 1)}, {}),
        ({}, {"kind": "dense"}),
        ({}, {"kind": "so4"}),
        ({}, {"hidden_size": "032"}),
    ],
)
def test_a_rotation_of_another_dtype_or_shape_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    with pytest.raises(IntegrityError) as refused:
        load_soul(rewritten(tmp_path, tensors, metadata))
    assert refused.value.key in ("soul.shape", "soul.incomplete")
    assert load_soul(rewritten(tmp_path, {}, {})).kind == "so8"


@pytest.mark.parametrize(("change", "key"), [({"alpha": 1e39}, "soul.alpha"), ({"step": -1}, "soul.step")])
def test_a_soul_that_could_not_be_loaded_is_not_saved(tmp_path: Path, change: dict[str, float], key: str) -> None:
    with pytest.raises(IntegrityError) as refused:
        save_soul(tmp_path / "soul.safetensors", replace(record(), **change))
    assert refused.value.key == key
    assert not (tmp_path / "soul.safetensors").exists()


def rewritten(folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    """Write a sound soul with other tensors and metadata, as `save_soul` would never do."""
    path = folder / "soul.safetensors"
    save_soul(path, record())
    with safe_open(path, "pt") as file:
        known = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        shown = file.metadata()
    save_file(known | tensors, path, shown | metadata)
    return path
