"""Training from states to a package: the same weights after an interruption, and folders that belong to one run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.models import WINDOWS, FullWhitening, ZonalWhitening
from lsda_fast.package import Architecture, Package
from lsda_fast.training import TrainingConfig, backgrounds, train
from lsda_fast.training.background_prior import _Run
from lsda_fast.training.config import load_config
from lsda_fast.training.data import load_states
from lsda_fast.training.loop import Log
from lsda_fast.training.work import Work

FEW: dict[str, Any] = {"steps": 6, "batch": 8, "warmup": 2, "validate_every": 3, "ema": 0.9}
GLOBAL: dict[str, Any] = {
    "checkpoint_minutes": 1e-9,  # every step
    "autoencoder": {
        "kind": "residual_convolutional",
        "latent_channels": 8,
        "patch": 4,
        "latent_noise": 0.1,
        "settings": {"width": 16, "depth": 1, "fine_width": 8, "fine_depth": 1},
        "optimization": FEW,
    },
    "forecaster": {"settings": {"width": 8, "depth": 1, "patch": 2, "scales": 2}, "optimization": FEW},
    "background": {"perturbation": 0.2, "draws": 2},
    "whitening": {"kind": "zonal", "settings": {"rank": 8, "reach": 4.0}},
    "denoiser": {
        "condition_noise": 0.1,
        "settings": {"width": 16, "depth": 1, "heads": 2, "dropout": 0.2, "calendar": 4},
        "optimization": FEW,
    },
}


def same_weights(one: Package, two: Package) -> bool:
    return all(
        torch.equal(value, two.modules[name].state_dict()[key])
        for name, module in one.modules.items()
        for key, value in module.state_dict().items()
    )


@pytest.fixture(scope="module")
def globe(daily: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Package]:
    folder = tmp_path_factory.mktemp("globe") / "package"
    return folder, train(daily.GLOBE, TrainingConfig(**GLOBAL), folder)


def test_tiny_region_from_states_to_package(daily: ModuleType, tmp_path: Path) -> None:
    config = load_config("tiny", forecaster={"modes": 12, "folds": 3, "settings": {"width": 0}})
    package = train(daily.REGION, config, tmp_path / "package")
    scores = package.provenance["scores"]
    assert np.isfinite([*scores.values()]).all()
    states = load_states(daily.REGION, config)
    # Climatology's error is the spread about the mean; one day's memory of 0.9 leaves 0.19^1/2 of it.
    climatology = float((states.x[states.validation] - states.x[states.train].mean(0)).square().mean().sqrt())
    for kind in ("train", "validation"):
        assert scores[f"background_rmse_{kind}"] < 0.75 * climatology
    assert scores["reconstruction_rmse"] < 0.75 * climatology
    assert isinstance(package.modules["whitening"], FullWhitening)
    assert package.provenance["train"] == ["2001-01-01 00:00:00", "2001-08-28 00:00:00"]
    assert package.provenance["states"] == {"train": 240, "validation": 30}
    assert load_config("tiny").model_dump(by_alias=True).keys() == package.provenance["configuration"].keys()
    loaded = Package.load(tmp_path / "package")
    assert same_weights(package, loaded)
    x = states.x[states.validation]
    error = (package.autoencoder.decode(package.autoencoder.encode(x)) - x).square().mean((0, 2, 3)).sqrt()
    np.testing.assert_allclose(package.reconstruction_error, error, rtol=1e-5)
    assert loaded.errors.shape == (3, 3)
    np.testing.assert_array_equal(loaded.errors, package.errors)
    assert package.observation_std == pytest.approx(
        {name: 0.1 * float(s) for name, s in zip(package.layout.names, package.normalization.std)}
    )


def test_small_globe_from_states_to_package(daily: ModuleType, globe: tuple[Path, Package]) -> None:
    _, package = globe
    scores = package.provenance["scores"]
    assert np.isfinite([*scores.values()]).all()
    assert scores["denoiser_validation_at_start"] != scores["denoiser_validation"]
    assert isinstance(package.modules["whitening"], ZonalWhitening)
    assert package.latent_shape == (8, 2, 4)
    states = load_states(daily.GLOBE, TrainingConfig(**GLOBAL))
    climatology = float((states.x[states.validation] - states.x[states.train].mean(0)).square().mean().sqrt())
    assert scores["background_rmse_validation"] < 0.8 * climatology


@pytest.mark.parametrize("calibrate", [True, False])
def test_calibrated_statistics_have_the_variance_of_the_validation_errors(
    daily: ModuleType, tmp_path: Path, calibrate: bool
) -> None:
    config = load_config("tiny", whitening={"calibrate": calibrate}, denoiser={"optimization": {"steps": 0}})
    package = train(daily.REGION, config, tmp_path / "package")
    states = load_states(daily.REGION, config)
    targets = states.pairs(states.validation)
    before = states.before[targets]
    x_b = package.modules["forecaster"](states.x[before], states.calendar[before])
    errors = package.autoencoder.encode(states.x[targets]) - package.autoencoder.encode(x_b)
    variance = float(package.modules["whitening"].whiten(errors).square().mean())
    expected = 1.0 if calibrate else package.provenance["scores"]["whitened_validation_variance"]
    assert variance == pytest.approx(expected, rel=1e-4)
    assert expected == 1.0 or abs(expected - 1.0) > 0.02


def test_backgrounds_of_a_fold_come_from_a_model_that_has_not_seen_it(
    monkeypatch: pytest.MonkeyPatch, daily: ModuleType, tmp_path: Path
) -> None:
    config = load_config("tiny", forecaster={"modes": 12, "folds": 3, "settings": {"width": 0}})
    states = load_states(daily.REGION, config)
    run = _Run(states, config, Work(tmp_path, config, torch.device("cpu"), Log(None)))
    monkeypatch.setattr(run, "_one_forecaster", lambda architecture, pairs, name: SimpleNamespace(pairs=pairs))
    whole, _, folds = run._forecaster()
    pairs = states.pairs(states.train)
    np.testing.assert_array_equal(whole.pairs, pairs)
    np.testing.assert_array_equal(np.concatenate([block for block, _ in folds]), pairs)
    for block, model in folds:
        assert not np.intersect1d(block, model.pairs).size
        assert len(block) + len(model.pairs) == len(pairs)


def test_backgrounds_are_of_their_own_times_and_perturbed_by_states_of_training(
    monkeypatch: pytest.MonkeyPatch, daily: ModuleType, tmp_path: Path
) -> None:
    config = load_config("tiny", background={"perturbation": 0.5, "draws": 1})
    states = load_states(daily.REGION, config)
    hours = np.arange(len(states.times)) * 5 % 24  # times of day that differ from state to state
    states = replace(states, times=states.times + pd.to_timedelta(hours, "h"))
    others: list[np.ndarray] = []

    def spy(module: Any, x: Tensor, source: Any, pair: Any, season: Tensor, scale: float, device: Any) -> Tensor:
        others.extend(pair)
        assert torch.equal(season, states.calendar[source])
        return x[source]

    monkeypatch.setattr(backgrounds, "perturbed_forecast", spy)
    autoencoder: Any = SimpleNamespace(encode=lambda x: x)
    targets = states.pairs(states.train)
    work = Work(tmp_path, config, torch.device("cpu"), Log(None))
    pairs, _ = backgrounds.background_pairs(states, autoencoder, [(targets, None)], None, config, work)
    before = states.before[targets]
    for found, expected in zip(pairs["train"], (states.x[before], states.x[targets], states.calendar[targets])):
        assert torch.equal(found, expected)
    assert np.isin(np.concatenate(others), states.train).all()


def test_networks_begin_by_the_seed_of_the_run(tmp_path: Path) -> None:
    architecture = Architecture("unet", {"latent_shape": (1, 2, 4), "hidden": [8], "blocks": 1})
    one, again, other = (
        Work(tmp_path, config, torch.device("cpu"), Log(None)).build(WINDOWS, architecture, 3).state_dict()
        for config in (SimpleNamespace(seed=seed, checkpoint_minutes=1) for seed in (0, 0, 1))
    )
    assert all(torch.equal(again[name], value) for name, value in one.items())
    assert any(not torch.equal(other[name], value) for name, value in one.items())


def test_an_interrupted_training_goes_on_to_the_same_bits(
    interrupted: Any, daily: ModuleType, globe: tuple[Path, Package], tmp_path: Path
) -> None:
    _, expected = globe
    output, config = tmp_path / "package", TrainingConfig(**GLOBAL)
    for stage in ("autoencoder", "forecaster", "denoiser"):
        interruption = interrupted(stage, 5)
        with pytest.raises(KeyboardInterrupt):
            train(daily.GLOBE, config, output, resume=True, progress=interruption)
        assert not output.exists()
    last = interrupted("", 0)
    package = train(daily.GLOBE, config, output, resume=True, progress=last)
    assert [step for step in last.seen if step[0] != "backgrounds"] == [("denoiser", 5), ("denoiser", 6)]
    assert same_weights(package, expected)
    assert package.manifest() == expected.manifest()


def test_a_working_folder_belongs_to_one_run(daily: ModuleType, globe: tuple[Path, Package]) -> None:
    folder, package = globe
    with pytest.raises(InputError, match="holds an earlier run; go on with --resume, or remove it"):
        train(daily.GLOBE, TrainingConfig(**GLOBAL), folder)
    with pytest.raises(InputError, match="holds a run of another configuration"):
        train(daily.GLOBE, TrainingConfig(**GLOBAL, seed=1), folder, resume=True)
    # A setting that has come since the record counts as its default.
    record = Path(f"{folder}.work") / "config.json"
    earlier = json.loads(record.read_text())
    del earlier["denoiser"]["networks"]
    record.write_text(json.dumps(earlier))
    again = train(daily.GLOBE, TrainingConfig(**GLOBAL), folder, resume=True)
    assert again.manifest() == package.manifest()


def moved(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign_coords(time=dataset["time"] + np.timedelta64(1, "D"))


def warmer(dataset: xr.Dataset) -> xr.Dataset:
    other = dataset.copy(deep=True)
    other["t850"][-1, 0, 0] += 1.0
    return other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved, "inputs with other times; accepted are the same inputs, or another output"),
        (warmer, "inputs with other values;"),
        (lambda d: d[["msl", "z500", "t850"]], "inputs with other layout, values;"),
        (lambda d: d.isel(time=slice(1, None)), "inputs with other times, values;"),
    ],
)
def test_a_run_does_not_go_on_with_other_states(
    daily: ModuleType, globe: tuple[Path, Package], tmp_path: Path, change: Any, message: str
) -> None:
    work = tmp_path / "package.work"
    shutil.copytree(f"{globe[0]}.work", work)
    before = {file: file.read_bytes() for file in work.iterdir()}
    with pytest.raises(InputError, match=message) as error:
        train(change(daily.GLOBE), TrainingConfig(**GLOBAL), tmp_path / "package", resume=True)
    assert "\n" not in str(error.value)
    assert {file: file.read_bytes() for file in work.iterdir()} == before


def test_a_run_from_before_states_were_recorded_goes_on_and_records_them(
    daily: ModuleType, globe: tuple[Path, Package], tmp_path: Path
) -> None:
    output, record = tmp_path / "package", tmp_path / "package.work" / "states.json"
    shutil.copytree(f"{globe[0]}.work", record.parent)
    expected = record.read_text()
    record.unlink()
    assert train(daily.GLOBE, TrainingConfig(**GLOBAL), output, resume=True).manifest() == globe[1].manifest()
    assert record.read_text() == expected


def test_bad_data_leave_no_working_folder(daily: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="accepted are states with `time`"):
        train(daily.REGION.isel(time=0), load_config("tiny"), tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("section", "settings", "sentence"),
    [
        ("autoencoder", {"patch": 5}, "does not divide the grid"),
        ("autoencoder", {"settings": {"widht": 16}}, "does not take these settings"),
        ("forecaster", {"settings": {"widht": 16}}, "does not take these settings"),
        ("whitening", {"settings": {"rang": 16}}, "does not take these settings"),
        ("denoiser", {"settings": {"widht": 16}}, "does not take these settings"),
        ("schedule", {"sigma_max": -1.0}, "sigma"),
    ],
)
def test_a_mistake_in_the_settings_leaves_no_working_folder(
    daily: ModuleType, tmp_path: Path, section: str, settings: dict[str, Any], sentence: str
) -> None:
    """And is found before anything was trained."""
    config = TrainingConfig(**{**GLOBAL, section: GLOBAL.get(section, {}) | settings})
    reported: list[Any] = []
    with pytest.raises(InputError) as error:
        train(daily.GLOBE, config, tmp_path / "package", progress=lambda *done: reported.append(done))
    assert sentence in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert not reported


def test_an_output_that_is_something_else_is_refused_before_the_work(daily: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="package is not a package; accepted is a package, an empty folder"):
        train(daily.REGION, load_config("tiny"), f"{tmp_path / 'package'}/")
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_zonal_statistics_need_a_grid_that_goes_round(daily: ModuleType, tmp_path: Path) -> None:
    config = load_config("tiny", whitening={"kind": "zonal"})
    with pytest.raises(InputError, match="'zonal' came for a grid that does not go round"):
        train(daily.REGION, config, tmp_path / "package")


def test_states_of_no_period_are_not_read(daily: ModuleType, tmp_path: Path) -> None:
    """Later states may come, and be incomplete."""
    times = daily.REGION["time"].values
    period = lambda a, b: tuple(np.datetime_as_string(times[[a, b]], unit="D").tolist())  # noqa: E731
    settings: dict[str, Any] = {"train": period(0, 99), "validate": period(100, 119)}
    config = load_config("tiny", forecaster={"modes": 12, "folds": 3, "settings": {"width": 0}}, **settings)
    later = daily.REGION.copy(deep=True)
    later["t850"][150:] = np.nan
    few, all_ = (load_states(data, config) for data in (daily.REGION.isel(time=slice(0, 120)), later))
    assert few.fingerprint == all_.fingerprint
    assert torch.equal(few.x, all_.x)
