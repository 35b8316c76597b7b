"""Training with modalities: published layouts, times matched by rule, gaps by seed, the same after a break."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from lsda_fast.errors import InputError
from lsda_fast.models import build_autoencoder
from lsda_fast.package import Package
from lsda_fast.training import TrainingConfig, train
from lsda_fast.training.architectures import autoencoder_architecture
from lsda_fast.training.autoencoder import inputs, latents
from lsda_fast.training.config import GapConfig, Optimization, load_config
from lsda_fast.training.data import States, load_states
from lsda_fast.training.gaps import with_gaps
from lsda_fast.training.loop import Log, fit

LATITUDE, LONGITUDE = 78.75 - 22.5 * np.arange(8), np.arange(16) * 22.5
TIMES = pd.date_range("2001-01-01", periods=80, freq="6h")


def waves(latitude: np.ndarray, longitude: np.ndarray, times: pd.DatetimeIndex) -> np.ndarray:
    """Something that moves round the globe, (T, H, W)."""
    days = (times - TIMES[0]).total_seconds().to_numpy()[:, None, None] / 86400
    east, north = np.deg2rad(longitude)[None, None], np.deg2rad(latitude)[None, :, None]
    return np.cos(2 * east - days) * np.cos(north) + 0.5 * np.sin(east + 2 * north + 0.7 * days)


def variable(values: np.ndarray, units: str, dims: str = "time latitude longitude", **encoding: Any) -> xr.DataArray:
    array = xr.DataArray(values.astype(np.float32), dims=dims.split(), attrs={"units": units})
    array.encoding = encoding
    return array


def temperature() -> xr.Dataset:
    """As ERA5 is published: one variable on pressure levels, latitudes from the north."""
    field = waves(LATITUDE, LONGITUDE, TIMES)
    rng = np.random.default_rng(0)
    levels = np.stack([250 + a * field + 0.1 * rng.standard_normal(field.shape) for a in (4.0, 6.0, 5.0)], 1)
    data = {"t": variable(levels, "K", "time level latitude longitude")}
    coords = {"time": TIMES, "level": [850, 500, 200], "latitude": LATITUDE, "longitude": LONGITUDE}
    return xr.Dataset(data, coords=coords)


def nature() -> xr.Dataset:
    """Everything in one data set and on one grid, as the nature run has it."""
    field = waves(LATITUDE, LONGITUDE, TIMES)
    rain = variable(1e-4 * np.maximum(field, 0), "kg m-2 s-1")
    return temperature().assign(precipitation=rain, olr=variable(230 - 20 * field**2, "W m-2"))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[xr.Dataset, dict[str, Any], dict[str, np.ndarray]]:
    """ERA5 as Zarr; daily CPC and NOAA files on their grids; a configuration of them, and the fields that are known."""
    folder = tmp_path_factory.mktemp("published")
    temperature().to_zarr(folder / "era5.zarr", consolidated=False)
    days = pd.date_range("2001-01-02", periods=15)  # the first day is not there
    north, east = 87.5 - 5.0 * np.arange(36), 2.5 + 5.0 * np.arange(72)
    rain = 3 + 2 * waves(north, east, days + pd.Timedelta("12h"))
    rain[:, :, 30:40] = np.nan  # the sea
    rain[3] = np.nan
    fill = {"_FillValue": -9.96921e36, "dtype": "float32"}
    coords = {"time": days, "lat": north, "lon": east}
    cpc = xr.Dataset({"precip": variable(rain, "mm", "time lat lon", **fill)}, coords=coords)
    cpc.to_netcdf(folder / "precip.2001.nc")
    south, west = 90 - 7.5 * np.arange(25), 7.5 * np.arange(48)
    olr = 230 + 20 * waves(south, west, days + pd.Timedelta("12h"))
    packed = {"scale_factor": 0.01, "add_offset": 300.0, "dtype": "int16", "_FillValue": np.int16(32766)}
    coords = {"time": days, "lat": south, "lon": west}
    noaa = xr.Dataset({"olr": variable(olr, "W/m^2", "time lat lon", **packed)}, coords=coords)
    noaa["time"].encoding = {"units": "hours since 1800-01-01"}
    noaa.to_netcdf(folder / "olr.day.mean.nc")
    daily = {"tolerance_hours": 12, "shift_hours": 12}
    config = {
        "variables": ["t"],
        "lead_hours": 6,
        "modalities": {
            "cpc": {"kind": "in-situ", "variables": ["precip"], "source": str(folder / "precip.*.nc"), **daily},
            "noaa": {"kind": "satellite", "variables": ["olr"], "source": str(folder / "olr.day.mean.nc"), **daily},
        },
    }
    config["modalities"]["noaa"]["decoded"] = False  # type: ignore[index]
    return xr.open_zarr(folder / "era5.zarr", consolidated=False), config, {"rain": rain, "olr": olr}


def multimodal(**changes: Any) -> dict[str, Any]:
    tiny = load_config("slams_tiny").autoencoder.model_dump()
    return {**tiny, **changes}


def test_published_layouts_are_read_by_configuration(published: Any) -> None:
    dataset, config, fields = published
    states = load_states(dataset, TrainingConfig(**config))
    assert states.layout.names == ("t850", "t500", "t200", "precip")
    assert [(m.name, m.kind, m.decoded) for m in states.modalities] == [
        ("state", "state", True),
        ("cpc", "in-situ", True),
        ("noaa", "satellite", False),
    ]
    cpc, noaa = states.modalities[1:]
    assert cpc.layout.grid.shape == (36, 72)
    assert noaa.layout.grid.shape == (25, 48)
    assert states.x.shape == (80, 4, 8, 16)
    assert states.x[:, 3].isnan().all()  # on a grid of its own, beside the channels
    rain = cpc.normalization.denormalize(states.others["cpc"].numpy())[:, 0]
    olr = noaa.normalization.denormalize(states.others["noaa"].numpy())[:, 0]
    # A day's noon serves the states of its 00, 06, 12 and 18 h, and the midnight after the last.
    day = np.minimum((TIMES - pd.Timestamp("2001-01-02")).days, 14)
    known = (TIMES >= "2001-01-02") & (TIMES <= "2001-01-17")
    assert np.isnan(rain[~known]).all()
    assert np.isnan(olr[~known]).all()
    np.testing.assert_allclose(rain[known], fields["rain"][day[known]], atol=1e-5)
    np.testing.assert_allclose(olr[known], fields["olr"][day[known]], atol=0.006)


def test_a_sounders_units_are_not_the_states(published: Any) -> None:
    dataset, config, _ = published
    sounder = {"kind": "satellite", "variables": ["t"], "decoded": False, "unit": 4.0}
    settings = TrainingConfig(**{**config, "modalities": {"sounder": sounder}}, autoencoder=multimodal())
    states = load_states(dataset, settings)
    assert autoencoder_architecture(settings, states.layout, states.modalities).settings["units"] == [1.0] * 3


def test_inputs_are_on_the_grid_of_the_state_and_missing_where_the_source_is(published: Any, tmp_path: Path) -> None:
    dataset, config, _ = published
    settings = TrainingConfig(**config, autoencoder=multimodal())
    states = load_states(dataset, settings)
    architecture = autoencoder_architecture(settings, states.layout, states.modalities)
    module: Any = build_autoencoder(architecture.name, **architecture.settings)
    fields = inputs(module, states, np.arange(80))
    assert fields.shape == (80, 5, 8, 16)
    assert torch.equal(fields[:, :3], states.x[:, :3])
    noon = (TIMES.hour == 12) & (TIMES > "2001-01-02") & (TIMES < "2001-01-16") & (TIMES.day != 5)
    mean, std = (float(v[0]) for v in (states.modalities[1].normalization.mean, states.modalities[1].normalization.std))
    rain = fields[:, 3].numpy() * std + mean
    truth = 3 + 2 * waves(LATITUDE, LONGITUDE, TIMES)
    sea = np.isnan(rain[noon]).any((0, 1))
    assert sea.sum() == 2
    assert np.isnan(rain[TIMES.day == 5]).all()
    inland = ~(sea | np.roll(sea, 1) | np.roll(sea, -1))
    assert np.abs(rain[noon] - truth[noon])[..., inland].max() < 0.2  # means over cells of 22.5 degrees
    z = latents(module, states, torch.device("cpu"))
    assert z.shape == (80, 12, 2, 4)
    assert z.isfinite().all()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other times": ({"cpc": {"shift_hours": 2400}}, "'cpc' has nothing at the times of training: it reaches from"),
    "none to validate": ({"cpc": {"shift_hours": -36}}, "'cpc' has nothing at the times of validation"),
    "no such variable": ({"cpc": {"variables": ["rain"]}}, "The data set has no rain; it has precip"),
    "no such file": ({"noaa": {"source": "nowhere.nc"}}, "Nothing found at 'nowhere.nc'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sources_that_do_not_fit_are_refused(published: Any, case: str) -> None:
    dataset, config, _ = published
    changes, message = REFUSED[case]
    modalities = {name: {**section, **changes.get(name, {})} for name, section in config["modalities"].items()}
    with pytest.raises(InputError, match=message):
        load_states(dataset, TrainingConfig(**{**config, "modalities": modalities}))


def test_a_network_without_modalities_refuses_them(published: Any, tmp_path: Path) -> None:
    dataset, config, _ = published
    with pytest.raises(InputError, match="'linear' takes neither modalities nor gaps; multimodal and slams do"):
        train(dataset, TrainingConfig(**{**config, "lead_hours": 24.0, "window": {}}), tmp_path / "package")
    with pytest.raises(InputError, match="gaps or grids of their own, which a forecast model does not take"):
        train(dataset, TrainingConfig(**config, autoencoder=multimodal()), tmp_path / "other")
    assert not (tmp_path / "other.work").exists()  # before anything was trained


# Gaps

GROUPS = [[0, 1, 2], [3], [4]]


def gappy(seed: int, **config: float) -> Tensor:
    return with_gaps(
        torch.ones(200, 5, 8, 16), GROUPS, GapConfig(**config), torch.Generator().manual_seed(seed)
    ).isnan()


def test_gaps_are_a_function_of_the_seed() -> None:
    config = {"samples": 0.5, "modality": 0.4, "channel": 0.1, "points": 0.3}
    assert torch.equal(gappy(1, **config), gappy(1, **config))
    assert not torch.equal(gappy(1, **config), gappy(2, **config))


def test_gaps_come_as_often_as_asked_and_never_take_everything() -> None:
    gone = gappy(3, samples=0.5, modality=0.4)
    whole = gone.flatten(2).all(2)
    assert torch.equal(whole, gone.flatten(2).any(2))  # modalities go whole
    assert torch.equal(whole[:, 0], whole[:, 1])
    touched = 0.5 * (0.4 - 0.4**3 / 3)  # one that is drawn at random stays
    assert abs(float(whole[:, [0, 3, 4]].float().mean()) - touched) < 0.05
    assert not gappy(3, samples=1, modality=1)[:, [0, 3, 4], 0, 0].all(1).any()
    assert not gappy(4).any()
    points = gappy(5, samples=1, modality=0, points=1)[:, [0, 3, 4]].float()
    assert abs(float(points.mean()) - 0.5) < 0.05
    assert points.flatten(2).std(2).max() > 0.4


# Training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Package, States]:
    config = load_config("slams_tiny")
    folder = tmp_path_factory.mktemp("slams") / "package"
    return folder, train(nature(), config, folder), load_states(nature(), config)


def test_a_trained_package_takes_any_subset(trained: tuple[Path, Package, States]) -> None:
    folder, package, states = trained
    loaded = Package.load(folder)
    assert loaded.modalities == states.modalities
    errors = np.array(loaded.prior_errors)  # of precipitation and radiation, none of the state
    assert errors.shape == (1 + len(loaded.block_errors), 5)
    assert (errors[:, :3] == 0).all()
    scores = package.provenance["scores"]
    x = states.x[states.validation]
    truth = x[:, :3]

    def error(given: Tensor) -> float:
        return float(
            (loaded.autoencoder.decode(loaded.autoencoder.encode(given))[:, :3] - truth).square().mean().sqrt()
        )

    without = x.clone()
    without[:, 3] = torch.nan
    assert error(x) == pytest.approx(scores["reconstruction_rmse_state"], rel=1e-3)
    assert error(without) == pytest.approx(scores["reconstruction_rmse_without_precipitation"], rel=1e-3)
    assert scores["reconstruction_rmse_state"] < scores["reconstruction_rmse_without_state"] < 1


def test_training_with_gaps_goes_on_to_the_same_weights(trained: tuple[Path, Package, States], tmp_path: Path) -> None:
    _, package, _ = trained
    config = load_config("slams_tiny")
    often = config.model_copy(update={"checkpoint_minutes": 1e-9})

    def stop(stage: str, done: int, total: int, values: dict[str, Any]) -> None:
        if (stage, done) == ("autoencoder", 13):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(nature(), often, tmp_path / "package", progress=stop)
    again = train(nature(), often, tmp_path / "package", resume=True)
    weights = again.autoencoder.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in package.autoencoder.state_dict().items())


def test_the_published_network_is_trained_with_its_statistics(tmp_path: Path) -> None:
    few = {"steps": 6, "batch": 8, "validate_every": 2, "ema": 0}
    changes = {
        "autoencoder": {"kind": "slams", "latent_channels": 5, "gaps": {"samples": 0.5}, "optimization": few},
    }
    values = load_config("slams_tiny").model_dump(by_alias=True) | changes
    package = train(nature(), TrainingConfig(**values), tmp_path / "package")
    assert package.latent_shape == (5, 8, 16)
    states = load_states(nature(), TrainingConfig(**values))
    z = latents(package.autoencoder, states, torch.device("cpu"))[states.train]
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(5), rtol=0, atol=1e-3)


def test_batch_statistics_are_kept_with_the_weights_they_belong_to() -> None:
    """The best of validation is the first: its running mean comes back with it."""
    module = nn.Sequential(nn.BatchNorm2d(1))
    seen: list[float] = []

    def validate(m: Any) -> float:
        seen.append(float(m[0].running_mean))
        return float(len(seen))

    x = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 3
    settings = Optimization(steps=9, batch=8, validate_every=3, ema=0, warmup=0)
    fit(
        module,
        lambda m, i, g: m(x[i]).square().mean(),
        64,
        settings,
        stage="s",
        seed=0,
        log=Log(None),
        validate=validate,
    )
    assert float(module[0].running_mean) == seen[0] == 0.0  # type: ignore[arg-type]
    assert len(set(seen)) == 4
