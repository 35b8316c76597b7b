"""Modalities in a package: the same on disk and in memory, shown by inspect, refused where they do not fit."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lsda_fast.cli.describe import describe
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.modalities import Modality
from lsda_fast.models import build_autoencoder
from lsda_fast.package import Architecture, Package
from lsda_fast.trajectory import Window

OWN = Grid(np.linspace(80.0, -80.0, 9), np.arange(24) * 15.0)


def modality(name: str, kind: str, grid: Grid, channel: Channel, decoded: bool) -> Modality:
    return Modality(
        name, kind, StateLayout(grid, (channel,)), Normalization(np.array([240.0]), np.array([40.0])), decoded, 12.0
    )


@pytest.fixture(scope="module")
def package(tiny: ModuleType) -> Package:
    """State and rain on one grid, OLR on its own."""
    rain = modality("rain", "in-situ", tiny.GRID, Channel("precipitation", None, "kg m-2 s-1"), decoded=True)
    olr = modality("olr", "satellite", OWN, Channel("olr", None, "W m-2"), decoded=False)
    state = Modality("state", "state", tiny.LAYOUT, tiny.NORMALIZATION, decoded=True)
    spec = Architecture("linear", {"shape": [3, 12, 16], "latent_channels": 6, "patch": [4, 4]})
    return replace(
        tiny.package(),
        layout=StateLayout(tiny.GRID, (*tiny.LAYOUT.channels, *rain.layout.channels)),
        normalization=Normalization(np.array([5.5e4, 280.0, 240.0]), np.array([1e3, 8.0, 40.0])),
        modules={"autoencoder": build_autoencoder(spec.name, **spec.settings)},
        architectures={"autoencoder": spec},
        reconstruction_error=np.zeros(3, np.float32),
        whitened=False,
        modalities=(state, rain, olr),
        window=Window(5, 6.0),
    )


def test_modalities_and_window_come_back_from_disk(package: Package, tmp_path: Path) -> None:
    loaded = Package.load(package.save(tmp_path / "package"))
    assert loaded.modalities == package.modalities
    assert [m.shift_hours for m in loaded.modalities] == [0.0, 12.0, 12.0]
    assert loaded.window == package.window
    assert loaded.manifest() == package.manifest()


def test_a_manifest_of_before_has_none(package: Package, tmp_path: Path) -> None:
    file = package.save(tmp_path / "package") / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["modalities"], manifest["window"], manifest["block_errors"], manifest["prior_errors"]
    file.write_text(json.dumps(manifest))
    loaded = Package.load(file.parent)
    assert (loaded.modalities, loaded.window, loaded.block_errors, loaded.prior_errors) == ((), None, (), ())
    np.testing.assert_array_equal(loaded.errors, package.reconstruction_error[None])


def test_inspect_shows_them(package: Package) -> None:
    rows = describe(package)
    assert rows["modality rain"] == "in-situ, precipitation on 12 x 16 points, decoded"
    assert rows["modality olr"] == "satellite, olr on 9 x 24 points, not decoded"
    assert rows["trajectories"] == "windows of 5 states, 6 h apart"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "radar"}, "is of kind 'radar'; accepted are state, in-situ, satellite"),
    "normalisation": ({"normalization": Normalization(np.zeros(2), np.ones(2))}, "1 channels and a normalisation of 2"),
    "decoded": ({"decoded": True}, "'olr' is decoded, but olr is not among the package's channels"),
    "name": ({"name": "rain"}, "'rain' came twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_modality_that_does_not_fit_is_refused(package: Package, case: str) -> None:
    changes, message = REFUSED[case]
    *others, olr = package.modalities
    with pytest.raises(InputError, match=message):
        replace(package, modalities=(*others, replace(olr, **changes)))
