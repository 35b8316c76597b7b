"""A package on disk: the same to the bit, replaced whole or not at all, refused in one sentence when not whole."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.models.stationary import StationaryTrajectories
from lsda_fast.package import Package, files


def test_round_trip_is_the_same_to_the_bit(linear: ModuleType, tmp_path: Path) -> None:
    package = linear.shaken(linear.trained(lead_hours=6.0))
    loaded = Package.load(package.save(tmp_path / "deep" / "package"))
    assert loaded.manifest() == package.manifest()
    assert loaded.lead_hours == 6.0
    assert loaded.layout == package.layout
    np.testing.assert_array_equal(loaded.errors, [package.reconstruction_error, *package.block_errors])
    for name, module in package.modules.items():
        weights = loaded.modules[name].state_dict()
        assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items())
    one, two = (linear.analysed(p, linear.CLIMATE[0], correction=True) for p in (package, loaded))
    assert torch.equal(one, two)
    assert not any(p.requires_grad for m in loaded.modules.values() for p in m.parameters())


def test_the_folder_holds_no_pickle(linear: ModuleType, tmp_path: Path) -> None:
    folder = linear.trained().save(tmp_path / "package")
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    assert [p.name for p in tmp_path.iterdir()] == ["package"]


def test_half_precision_is_close_and_loads_as_single(linear: ModuleType, tmp_path: Path) -> None:
    package = linear.shaken(linear.trained())
    package.modules["whitening"].variance[-1] = 1e-9  # below the smallest float16
    loaded = Package.load(package.save(tmp_path / "half", dtype=torch.float16))
    full = package.save(tmp_path / "full")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.modules["whitening"].variance, package.modules["whitening"].variance)
    size = lambda p: sum(file.stat().st_size for file in p.glob("*.safetensors"))  # noqa: E731
    assert size(tmp_path / "half") < 0.6 * size(full)
    level = package.schedule.level(0.5)
    z_t, z_b = torch.randn(2, 4, 24, 1, 1, generator=torch.Generator().manual_seed(0))
    one, two = (p.modules["denoiser"](z_t, level, z_b) for p in (package, loaded))
    assert 0 < (one - two).abs().max() < 5e-3 * one.abs().max()


def test_half_precision_leaves_autocovariances_as_they_are(linear: ModuleType, tmp_path: Path) -> None:
    """What rounding leaves of them need not be one."""
    package = linear.trained()
    model = StationaryTrajectories((3, 4, 8), rank=6, lags=3)
    model.fit(torch.randn(60, 3, 4, 8, generator=torch.Generator().manual_seed(0)), [torch.arange(60)])
    package.modules["trajectory"] = model
    package.save(tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "trajectory.safetensors")
    assert stored["real"].dtype == torch.float16
    for name in ("std", "lag_real", "lag_imaginary", "rest_real", "rest_imaginary"):
        assert torch.equal(stored[name], getattr(model, name))


def manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def corrupt(folder: Path) -> None:
        file = folder / "manifest.json"
        values = json.loads(file.read_text())
        change(values)
        file.write_text(json.dumps(values))

    return corrupt


def changed_byte(folder: Path) -> None:
    file = folder / "denoiser.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def linked_out(folder: Path) -> None:
    file = folder / "denoiser.safetensors"
    outside = folder.parent / "stolen.safetensors"
    file.rename(outside)
    file.symlink_to(outside)


def append(folder: Path) -> None:
    with (folder / "denoiser.safetensors").open("ab") as file:
        file.write(b"0")


CORRUPTIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "no manifest.json there"),
    "no folder": (shutil.rmtree, "no manifest.json there"),
    "not JSON": (lambda p: (p / "manifest.json").write_text("{"), "not JSON"),
    "a list": (lambda p: (p / "manifest.json").write_text("[]"), "format 'list'; accepted is 1"),
    "other format": (manifest(lambda m: m.update(format=2)), "format 2; accepted is 1"),
    "block errors of words": (manifest(lambda m: m.update(block_errors=["x"])), "not understood"),
    "missing key": (manifest(lambda m: m.pop("schedule")), "without schedule"),
    "unknown module": (manifest(lambda m: m["architectures"].update(virus={"name": "x", "settings": {}})), "'virus'"),
    "unknown architecture": (
        manifest(lambda m: m["architectures"]["denoiser"].update(name="unet")),
        "'unet' is unknown; accepted: ensemble, transformer",
    ),
    "unknown setting": (
        manifest(lambda m: m["architectures"]["denoiser"]["settings"].update(colour=1)),
        "does not take these settings: .*colour",
    ),
    "architecture without a name": (
        manifest(lambda m: m["architectures"]["denoiser"].pop("name")),
        "not understood: KeyError",
    ),
    "unknown schedule key": (manifest(lambda m: m["schedule"].update(gamma=1)), "not understood: .*gamma"),
    "normalisation of words": (manifest(lambda m: m["normalization"].update(mean="x")), "not understood"),
    "changed byte": (changed_byte, "SHA-256 is not the manifest's"),
    "other size": (append, "bytes; the manifest says"),
    "missing file": (lambda p: (p / "denoiser.safetensors").unlink(), "denoiser.safetensors: missing"),
    "unlisted file": (manifest(lambda m: m["files"].pop("denoiser.safetensors")), "lists no denoiser.safetensors"),
    "file elsewhere": (manifest(lambda m: m["files"].update({"../x": {}})), "'../x' lies outside the package"),
    "absolute file": (manifest(lambda m: m["files"].update({"/etc/passwd": {}})), "lies outside the package"),
    "linked file": (linked_out, "lies outside the package"),
    "other weights": (
        manifest(lambda m: m["architectures"]["denoiser"]["settings"].update(width=32)),
        "do not fit the manifest: .*size mismatch",
    ),
}


@pytest.fixture(scope="module")
def saved(linear: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear.trained().save(tmp_path_factory.mktemp("saved") / "package")


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_a_package_that_is_not_whole_is_refused_in_one_sentence(saved: Path, tmp_path: Path, case: str) -> None:
    corrupt, message = CORRUPTIONS[case]
    folder = Path(shutil.copytree(saved, tmp_path / "package"))
    corrupt(folder)
    with pytest.raises(InputError, match=message) as error:
        Package.load(folder)
    assert "\n" not in str(error.value)


def test_an_interrupted_save_leaves_the_old_package(
    linear: ModuleType, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "package"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    written = []

    def fail(weights: dict[str, Tensor], file: Path) -> None:
        written.append(file)
        if len(written) == 2:
            raise KeyboardInterrupt
        file.write_bytes(b"half")

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        linear.trained(12).save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_exchange_brings_the_old_package_back(
    linear: ModuleType, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "package"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    calls, replace = [], os.replace

    def fail(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        linear.trained(12).save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_saving_replaces_packages_and_nothing_else(linear: ModuleType, tmp_path: Path) -> None:
    package = linear.trained(12)
    (tmp_path / "empty").mkdir()
    package.save(tmp_path / "empty")
    linear.trained(16).save(tmp_path / "empty")
    assert Package.load(tmp_path / "empty").latent_shape == (16, 1, 1)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("here")
    for path in (tmp_path / "home", tmp_path / "file"):
        with pytest.raises(InputError, match="is not a package"):
            package.save(path)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": "noise"}, "prediction 'noise' is unknown"),
        ({"reconstruction_error": np.zeros(2)}, r"shape \(2,\); accepted is \(3,\)"),
        ({"block_errors": (np.zeros(3), np.zeros(1))}, r"block_errors has shape \(1,\); accepted is \(3,\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(linear: ModuleType, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        linear.trained(4, **changes)
