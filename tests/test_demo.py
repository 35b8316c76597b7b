"""The demonstration: the built-in package, its states, its page; skipped where the package is not in place."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lsda_fast
from lsda_fast import demo
from lsda_fast.errors import InputError
from lsda_fast.guidance import GaussNewton, LatentOptimization
from lsda_fast.package import Package
from lsda_fast.verification import rmse

DATA = Path(lsda_fast.__file__).parent / "data" / "demo"

built_in = pytest.mark.skipif(
    not (DATA / "package" / "manifest.json").is_file(), reason=f"no built-in package in {DATA}: see bench/pack_demo.py"
)


@pytest.fixture(scope="module")
def package() -> Package:
    """The built-in package."""
    return demo.built_in_package()


@built_in
def test_the_package_is_small_and_global(package: Package) -> None:
    size = sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file())
    assert size < 15e6
    assert package.layout.shape == (33, 48, 96)
    assert package.layout.grid.periodic
    assert set(demo.SHOWN) <= set(package.layout.names)
    assert set(package.modules) == {"autoencoder", "forecaster", "whitening", "denoiser"}
    assert set(package.observation_std) == set(package.layout.names)
    # What the autoencoder cannot draw is a fraction of the climate's variability.
    assert 0 < package.reconstruction_error.max() < 1


@built_in
def test_the_states_are_truths_one_lead_apart_from_a_period_not_trained_on(package: Package) -> None:
    states = demo.built_in_states()
    times = states["time"].values.reshape(-1, 2)
    lead = np.timedelta64(round(package.lead_hours), "h")
    assert (times[:, 0] - times[:, 1] == lead).all()
    for period in ("train", "validation"):
        last = np.datetime64(package.provenance[period][1])
        assert states["time"].values.min() > last
    x = package.layout.to_array(states)
    assert np.isfinite(x).all()
    truth, background = demo.demo_case(package, seed=1)
    assert truth["time"].values == background["time"].values == times[1 % len(times), 0]


@built_in
def test_the_maps_are_of_the_errors_in_the_table(package: Package, tmp_path: Path) -> None:
    """The built-in states and an analysis have their latitudes in opposite orders."""
    truth, background = demo.demo_case(package, seed=0)
    layout, panels = package.layout, []
    x, x_b = layout.to_array(truth), layout.to_array(background)
    states = [layout.to_dataset(values, dims=dims) for values, dims in ((x_b, ()), (np.stack([x_b, x]), ("member",)))]
    places = pd.DataFrame({"latitude": [0.0], "longitude": [0.0], "used": [True]})
    result: Any = SimpleNamespace(before=states[0], analysis=states[1], departures=places)
    demo._maps(tmp_path, result, truth, layout, 0.01, lambda fields, *_, **__: panels.append(fields) or tmp_path)
    for name, fields in zip(("z500", "t850"), panels, strict=True):
        error = rmse(x_b, x, layout.grid.area_weights)[layout.index(name)]
        for panel, share in (("background error", 1.0), ("analysis error", 0.5)):
            shown = np.average(fields[panel] ** 2, axis=0, weights=layout.grid.area_weights).mean() ** 0.5
            assert shown == pytest.approx(share * error, rel=1e-5)


@built_in
def test_the_demonstration_writes_tables_and_a_page_and_beats_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less work than shown, to save time.
    few = {name: (guidance, min(steps, 6)) for name, (guidance, steps) in demo.METHODS.items()}
    quick = LatentOptimization(GaussNewton(outer=1, cg=4, halvings=0))
    monkeypatch.setattr(demo, "METHODS", few | {"LO-SDA": (quick, few["LO-SDA"][1])})
    steps: list[tuple[int, int]] = []
    result = demo.run(
        tmp_path / "demo", members=2, seed=0, progress=lambda stage, done, total, values: steps.append((done, total))
    )
    total = len(demo.FRACTIONS) * len(demo.METHODS)
    assert steps == [(i + 1, total) for i in range(total)]
    assert len(result.tables) == len(demo.FRACTIONS)
    for table in result.tables.values():
        assert list(table.index) == ["background", *demo.METHODS]
        assert np.isfinite(table.drop(columns="spread/skill").to_numpy(float)).all()
        assert np.isfinite(table.loc[list(demo.METHODS)].to_numpy(float)).all()
        error = table["normalised RMSE"]
        assert error["LO-SDA"] < error["background"]
        assert error["DPS"] < error["background"]
    sparse, dense = (table.loc["LO-SDA", "normalised RMSE"] for table in result.tables.values())
    assert dense < sparse
    page = result.page.read_text()
    assert result.page == tmp_path / "demo" / "index.html"
    assert page.count("<img") == 2 * len(demo.FRACTIONS)
    assert page.count("<table") == len(demo.FRACTIONS) + 1


def test_without_the_package_there_is_one_sentence_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.resources, "files", lambda _: tmp_path)
    with pytest.raises(InputError, match=r"no manifest.json there; accepted is the folder of a package"):
        demo.run(tmp_path / "output")
    assert list(tmp_path.iterdir()) == []
