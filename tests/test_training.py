"""Training: the same weights after an interruption, losses that agree with the sampler, and doors that stay shut."""

import json
import shutil
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from lsda_fast.diffusion.prediction import to_clean
from lsda_fast.diffusion.schedule import Level, Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid
from lsda_fast.layout import StateLayout
from lsda_fast.models import AUTOENCODERS, FullWhitening, ZonalWhitening, build
from lsda_fast.package import Package
from lsda_fast.training import TrainingConfig, train
from lsda_fast.training.architectures import autoencoder_architecture, forecaster_architecture
from lsda_fast.training.autoencoder import reconstruction
from lsda_fast.training.config import PRESETS, DenoiserConfig, Optimization, load_config
from lsda_fast.training.data import calendar, load_states
from lsda_fast.training.loop import Log, fit
from lsda_fast.training.losses import denoiser_loss


def archive(latitude: np.ndarray, longitude: np.ndarray, days: int) -> xr.Dataset:
    """Daily states of an AR(1) process that remembers 90 % and is smooth in space."""
    rng = np.random.default_rng(0)
    H, W = len(latitude), len(longitude)
    row, column = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)[None]
    phases = [(m, n, *pair) for m, n in np.ndindex(4, 4) for pair in 6 * rng.random((2, 2))]
    waves = [np.cos(m * column + p) * np.cos(n * row + q) for m, n, p, q in phases]
    modes = np.stack(waves).reshape(-1, H * W)
    state = np.zeros((3, len(modes)))
    fields = np.empty((days, 3, H, W))
    for day in range(-50, days):
        kick = rng.standard_normal((3, len(modes)))
        kick[1] += kick[0]
        state = 0.9 * state + 0.19**0.5 * kick
        if day >= 0:
            fields[day] = (state @ modes / 4 + 0.02 * rng.standard_normal((3, H * W))).reshape(3, H, W)
    units = {"z500": ("m2 s-2", 5e4, 800.0), "t850": ("K", 280.0, 8.0), "msl": ("Pa", 1e5, 900.0)}
    dims = ("time", "latitude", "longitude")
    data = {
        name: (dims, (mean + std * fields[:, c]).astype(np.float32), {"units": unit})
        for c, (name, (unit, mean, std)) in enumerate(units.items())
    }
    coords = {"time": pd.date_range("2001-01-01", periods=days), "latitude": latitude, "longitude": longitude}
    return xr.Dataset(data, coords=coords)


REGION = archive(np.linspace(50.0, 36.0, 8), np.linspace(0.0, 18.0, 10), 300)
GLOBE = archive(90.0 - 22.5 * (np.arange(8) + 0.5), np.arange(16) * 22.5, 120)

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


def layout(H: int, W: int, south: float = -90.0, north: float = 90.0) -> StateLayout:
    latitude = north - (north - south) * (np.arange(H) + 0.5) / H
    return StateLayout(Grid(latitude, np.arange(W) * 360.0 / W), tuple(Channel(v, None, "") for v in "abc"))


def tiny(**changes: Any) -> TrainingConfig:
    return load_config("tiny", **changes)


def same_weights(one: Package, two: Package) -> bool:
    return all(
        torch.equal(value, two.modules[name].state_dict()[key])
        for name, module in one.modules.items()
        for key, value in module.state_dict().items()
    )


class Interruption:
    """Progress that is interrupted at one step of one stage, and counts the steps it saw."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step, self.seen = stage, step, []  # type: ignore[var-annotated]

    def __call__(self, stage: str, done: int, total: int, values: dict[str, Any]) -> None:
        self.seen.append((stage, done))
        if (stage, done) == (self.stage, self.step):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def globe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Package]:
    folder = tmp_path_factory.mktemp("globe") / "package"
    return folder, train(GLOBE, TrainingConfig(**GLOBAL), folder)


def test_tiny_region_from_states_to_package(tmp_path: Path) -> None:
    config = tiny(forecaster={"modes": 12, "folds": 3, "settings": {"width": 0}})
    package = train(REGION, config, tmp_path / "package")
    scores = package.provenance["scores"]
    assert np.isfinite([*scores.values()]).all()
    states = load_states(REGION, config)
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


class Lossy(nn.Module):
    """An autoencoder that adds known errors."""

    def __init__(self, errors: Tensor) -> None:
        super().__init__()
        self.errors, self.shape = errors, tuple(errors.shape[1:])

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, x: Tensor) -> Tensor:
        return x.nan_to_num() + self.errors


def test_reconstruction_errors_of_means() -> None:
    """White ones, some that are the same everywhere, and white ones of a state that is known in few whole blocks."""
    errors = torch.randn(64, 3, 17, 32, generator=torch.Generator().manual_seed(0))
    errors[:, 1] = errors[:, 1, :1, :1]
    x = torch.zeros_like(errors)
    x[:, 2, ::4, ::4] = torch.nan
    states: Any = SimpleNamespace(x=x, validation=np.arange(len(x)), modalities=())
    found, scores = reconstruction(Lossy(errors), states, torch.device("cpu"))
    white = 1.0 / np.array([1, 2, 4, 8])
    np.testing.assert_allclose(found[:, 0], white, rtol=0.05)
    np.testing.assert_allclose(found[:, 1], found[0, 1], rtol=1e-5)
    np.testing.assert_allclose(found[:, 2], white[[0, 1, 1, 1]], rtol=0.05)
    assert scores["reconstruction_rmse"] == pytest.approx(np.sqrt(np.mean(found[0] ** 2)))


def test_small_globe_from_states_to_package(globe: tuple[Path, Package]) -> None:
    _, package = globe
    scores = package.provenance["scores"]
    assert np.isfinite([*scores.values()]).all()
    assert scores["denoiser_validation_at_start"] != scores["denoiser_validation"]
    assert isinstance(package.modules["whitening"], ZonalWhitening)
    assert package.latent_shape == (8, 2, 4)
    states = load_states(GLOBE, TrainingConfig(**GLOBAL))
    climatology = float((states.x[states.validation] - states.x[states.train].mean(0)).square().mean().sqrt())
    assert scores["background_rmse_validation"] < 0.8 * climatology


@pytest.mark.parametrize("calibrate", [True, False])
def test_calibrated_statistics_have_the_variance_of_the_validation_errors(tmp_path: Path, calibrate: bool) -> None:
    config = tiny(whitening={"calibrate": calibrate}, denoiser={"optimization": {"steps": 0}})
    package = train(REGION, config, tmp_path / "package")
    states = load_states(REGION, config)
    targets = states.pairs(states.validation)
    before = states.before[targets]
    x_b = package.modules["forecaster"](states.x[before], states.calendar[before])
    errors = package.autoencoder.encode(states.x[targets]) - package.autoencoder.encode(x_b)
    variance = float(package.modules["whitening"].whiten(errors).square().mean())
    expected = 1.0 if calibrate else package.provenance["scores"]["whitened_validation_variance"]
    assert variance == pytest.approx(expected, rel=1e-4)
    assert expected == 1.0 or abs(expected - 1.0) > 0.02


def test_an_interrupted_training_goes_on_to_the_same_bits(globe: tuple[Path, Package], tmp_path: Path) -> None:
    _, expected = globe
    output, config = tmp_path / "package", TrainingConfig(**GLOBAL)
    for stage in ("autoencoder", "forecaster", "denoiser"):
        interruption = Interruption(stage, 5)
        with pytest.raises(KeyboardInterrupt):
            train(GLOBE, config, output, resume=True, progress=interruption)
        assert not output.exists()
    last = Interruption("", 0)
    package = train(GLOBE, config, output, resume=True, progress=last)
    assert [step for step in last.seen if step[0] != "backgrounds"] == [("denoiser", 5), ("denoiser", 6)]
    assert same_weights(package, expected)
    assert package.manifest() == expected.manifest()


def test_a_working_folder_belongs_to_one_run(globe: tuple[Path, Package]) -> None:
    folder, package = globe
    with pytest.raises(InputError, match="holds an earlier run; go on with --resume, or remove it"):
        train(GLOBE, TrainingConfig(**GLOBAL), folder)
    with pytest.raises(InputError, match="holds a run of another configuration"):
        train(GLOBE, TrainingConfig(**GLOBAL, seed=1), folder, resume=True)
    # A setting that has come since the record counts as its default.
    record = Path(f"{folder}.work") / "config.json"
    earlier = json.loads(record.read_text())
    del earlier["denoiser"]["networks"]
    record.write_text(json.dumps(earlier))
    again = train(GLOBE, TrainingConfig(**GLOBAL), folder, resume=True)
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
    globe: tuple[Path, Package], tmp_path: Path, change: Any, message: str
) -> None:
    work = tmp_path / "package.work"
    shutil.copytree(f"{globe[0]}.work", work)
    before = {file: file.read_bytes() for file in work.iterdir()}
    with pytest.raises(InputError, match=message) as error:
        train(change(GLOBE), TrainingConfig(**GLOBAL), tmp_path / "package", resume=True)
    assert "\n" not in str(error.value)
    assert {file: file.read_bytes() for file in work.iterdir()} == before


def test_a_run_from_before_states_were_recorded_goes_on_and_records_them(
    globe: tuple[Path, Package], tmp_path: Path
) -> None:
    output, record = tmp_path / "package", tmp_path / "package.work" / "states.json"
    shutil.copytree(f"{globe[0]}.work", record.parent)
    expected = record.read_text()
    record.unlink()
    assert train(GLOBE, TrainingConfig(**GLOBAL), output, resume=True).manifest() == globe[1].manifest()
    assert record.read_text() == expected


def test_bad_data_leave_no_working_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="accepted are states with `time`"):
        train(REGION.isel(time=0), tiny(), tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


# --- the loop ---


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def distance(self) -> float:
        return float((self.w.detach() - 1.0).square().sum())


def quadratic(module: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
    return (module.w - 1.0).square().sum()


def test_the_best_averaged_weights_are_kept_whatever_comes_after() -> None:
    held: list[float] = []

    def validate(module: Any) -> float:
        held.append(module.distance())
        return [4.0, 3.0, 1.0, float("nan"), 2.0][len(held) - 1]

    module: Any = Point()
    optimization = Optimization(steps=40, lr=0.1, warmup=0, weight_decay=0.0, ema=0.5, validate_every=10, batch=1)
    fit(module, quadratic, 4, optimization, stage="x", seed=0, log=Log(None), validate=validate)
    assert module.distance() == pytest.approx(held[2])
    assert len(set(held)) == 5
    last = Point()
    fit(last, quadratic, 4, optimization, stage="x", seed=0, log=Log(None))
    assert last.distance() == pytest.approx(held[4])


def test_a_training_that_only_does_harm_leaves_the_network_as_it_began() -> None:
    calls: list[float] = []

    def validate(module: Any) -> float:
        calls.append(module.distance())
        return float(len(calls))

    module: Any = Point()
    begun = module.distance()
    optimization = Optimization(steps=20, lr=0.1, warmup=0, batch=1, validate_every=10)
    fit(module, quadratic, 4, optimization, stage="x", seed=0, log=Log(None), validate=validate)
    assert module.distance() == begun
    assert calls[-1] != begun


def test_a_batch_in_parts_takes_the_same_steps() -> None:
    def loss(module: Any, indices: Tensor, generator: torch.Generator) -> Tensor:
        return (indices[:, None] * (module.w - 1.0).square()).sum(1).mean()

    whole, parts = Point(), Point()
    for module, accumulate in ((whole, 1), (parts, 3)):
        settings = Optimization(steps=7, batch=8, lr=0.05, warmup=0, accumulate=accumulate)
        fit(module, loss, 24, settings, stage="x", seed=0, log=Log(None))
    assert whole.distance() > 0
    torch.testing.assert_close(parts.w, whole.w)


def test_patience_ends_a_training_and_a_resume_does_not_go_on(tmp_path: Path) -> None:
    calls: list[float] = []

    def validate(module: Any) -> float:
        calls.append(module.distance())
        return abs(len(calls) - 3.0)  # the third is the best

    steps: list[int] = []
    log = Log(None, lambda stage, done, total, values: steps.append(done))
    settings = Optimization(steps=100, batch=1, lr=0.1, warmup=0, validate_every=2, patience=2)
    for _ in range(2):
        module = Point()
        fit(module, quadratic, 4, settings, stage="x", seed=0, log=log, validate=validate,
            checkpoint=tmp_path / "x.checkpoint", checkpoint_minutes=0.0)  # fmt: skip
        assert steps == list(range(1, 9))
        assert module.distance() == calls[2]
    assert len(calls) == 5


def test_every_sample_is_seen_once_an_epoch() -> None:
    seen: list[list[int]] = []

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(indices.tolist())
        return module.w.sum()

    fit(Point(), loss, 12, Optimization(steps=6, batch=4), stage="x", seed=0, log=Log(None))
    first, second = (list(chain(*epoch)) for epoch in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_products_have_the_precision_that_is_asked_for_and_weights_stay_float32(
    precision: str, dtype: torch.dtype
) -> None:
    module: Any = nn.Linear(8, 8)
    seen: set[torch.dtype] = set()

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
        y = module(torch.ones(4, 8))
        seen.add(y.dtype)
        return (y - 1).square().mean()

    optimization = Optimization(steps=60, batch=1, lr=0.05, warmup=0, ema=0.0, precision=precision)
    fit(module, loss, 4, optimization, stage="x", seed=0, log=Log(None))
    assert seen == {dtype}
    assert module.weight.dtype is torch.float32
    assert float((module(torch.ones(4, 8)) - 1).square().mean()) < 1e-3


# --- the losses ---


class Perfect(nn.Module):
    """The network that knows the one latent there is."""

    leading = 3

    def __init__(self, prediction: str, z: Tensor) -> None:
        super().__init__()
        self.prediction, self.z, self.calls = prediction, z, []  # type: ignore[var-annotated]

    def predict(self, scaled: Tensor, log_rho: Tensor, z_b: Tensor, calendar: Tensor) -> Tensor:
        rho = log_rho.exp().reshape(-1, 1, 1, 1)
        alpha, sigma = (1 + rho**2).rsqrt(), rho * (1 + rho**2).rsqrt()
        z_t = scaled / alpha if self.prediction == "wiener" else scaled
        eps = (z_t - alpha * self.z) / sigma
        F = {
            "wiener": (self.z - alpha * z_t) / sigma,
            "x0": self.z.expand_as(z_t),
            "eps": eps,
            "v": alpha * eps - sigma * self.z,
            "score": -eps / sigma,
        }[self.prediction]
        self.calls.append((F, z_t, alpha, sigma, calendar))
        return F


@pytest.mark.parametrize("prediction", ["wiener", "x0", "eps", "v", "score"])
def test_the_network_that_is_right_for_the_sampler_has_no_loss(prediction: str) -> None:
    z = torch.tensor([0.5, -1.0, 2.0]).reshape(1, 3, 1, 1).double()
    network = Perfect(prediction, z)
    seasons = torch.rand(20, 4)
    loss = denoiser_loss(
        z.expand(20, -1, -1, -1),
        z.expand(20, -1, -1, -1),
        seasons,
        Schedule.vp_linear(),  # alpha^2 + sigma^2 = 1
        DenoiserConfig(prediction=prediction),
        FullWhitening((3, 1, 1)),
        torch.device("cpu"),
    )
    indices = torch.arange(0, 20, 2)
    assert float(loss(network, indices, torch.Generator().manual_seed(0))) < 1e-4
    ((F, z_t, alpha, sigma, calendar),) = network.calls
    assert torch.equal(calendar, seasons[indices])
    for i in range(10):
        level = Level(0, 0.0, float(alpha[i]), float(sigma[i]))
        torch.testing.assert_close(to_clean(prediction, F[i], z_t[i], level), z[0], rtol=1e-4, atol=1e-4)


def test_no_correction_costs_one_for_a_gaussian_latent() -> None:
    class Nothing(nn.Module):
        leading = 3

        def predict(self, scaled: Tensor, *_: Tensor) -> Tensor:
            return torch.zeros_like(scaled)

    z = torch.randn(4000, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    loss = denoiser_loss(
        z, z, torch.zeros(4000, 4), Schedule.edm(), DenoiserConfig(), FullWhitening((3, 1, 1)), torch.device("cpu")
    )
    value = float(loss(Nothing(), torch.arange(4000), torch.Generator().manual_seed(1)))
    assert value == pytest.approx(1.0, abs=5 * (2 / 12000) ** 0.5)


# --- configuration ---


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_configuration(preset: str) -> None:
    config = load_config(preset)
    architecture = autoencoder_architecture(config, layout(96, 192))
    assert architecture.name in AUTOENCODERS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: 1", "colour: Extra inputs are not permitted"),
        ("denoiser: {settings: {}, steps: 3}", r"denoiser\.steps: Extra inputs"),
        ("autoencoder: {latent_channels: many}", r"autoencoder\.latent_channels: .*integer.*'many'"),
        ("autoencoder: {kind: pca}", r"autoencoder\.kind: .*'linear'"),
        ("lead_hours: -6", "lead_hours: .*greater than 0"),
        ("train: [2001]", "train"),
        ("a: [", "not YAML"),
        ("- 1", "a list came; accepted are keys with values"),
    ],
)
def test_bad_configurations_are_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        load_config(file)
    assert "\n" not in str(error.value)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(InputError, match="'huge': no such file; presets are tiny, small, nature, paper"):
        load_config("huge")
    assert tiny(seed=4, lead_hours=None).model_copy(update={"seed": 0}) == tiny()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "convolutional"}, "'convolutional' needs a patch"),
        ({"kind": "linear", "kl": 1e-6}, "'linear' has no moments"),
        ({"kind": "residual_vit", "patch": 4, "kl": 1e-6}, "'residual_vit' has no moments"),
    ],
)
def test_autoencoders_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        autoencoder_architecture(TrainingConfig(autoencoder=settings), layout(8, 16))


VIT = {"width": 8, "depth": 2, "heads": 2, "windows": [[2, 2]], "global_every": 2}
CONVOLUTIONAL = {"width": 8, "depth": 1, "fine_width": 8}


@pytest.mark.parametrize(("kind", "settings"), [("residual_vit", VIT), ("residual_convolutional", CONVOLUTIONAL)])
def test_a_network_on_principal_components_begins_as_these(kind: str, settings: dict[str, Any]) -> None:
    config = TrainingConfig(autoencoder={"kind": kind, "latent_channels": 5, "patch": 4, "settings": settings})
    architecture = autoencoder_architecture(config, layout(8, 16))
    model: Any = build(AUTOENCODERS, architecture.name, architecture.settings)
    x = torch.randn(50, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    model.linear.fit(x)
    z = model.encode(x)
    assert torch.equal(z, model.linear.encode(x))
    assert torch.equal(model.decode(z), model.linear.decode(z))


@pytest.mark.parametrize(
    ("rows", "poles"),
    [((-90, 90), [True, True]), ((-30, 30), [False, False]), ((0, 90), [True, False]), ((-90, 0), [False, True])],
)
def test_networks_are_told_where_the_grid_ends(rows: tuple[int, int], poles: list[bool]) -> None:
    kind = {"kind": "residual_convolutional", "patch": 4}
    here, config = layout(8, 16, *rows), TrainingConfig(autoencoder=kind)
    for settings in (
        autoencoder_architecture(config, here).settings["residual"],
        forecaster_architecture(config, here).settings,
    ):
        assert (settings["periodic"], settings["poles"]) == (True, poles)


# --- data ---


def test_states_are_sorted_split_paired_and_normalised_by_training_alone() -> None:
    shuffled = REGION.isel(time=np.random.default_rng(0).permutation(300)).rename(latitude="lat", time="valid_time")
    states = load_states(shuffled, tiny())
    assert states.times.is_monotonic_increasing
    assert (len(states.train), len(states.validation)) == (240, 30)
    held = states.x[states.train].double()
    assert held.mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(held.square().mean((0, 2, 3)), torch.ones(3).double(), rtol=1e-4, atol=0)
    np.testing.assert_allclose(
        states.normalization.denormalize(states.x.numpy())[:, 1], REGION["t850"].values, rtol=1e-6
    )
    # A validation state whose forecast would begin in the training period is no pair.
    assert states.pairs(states.validation).tolist() == list(range(241, 270))
    assert (states.times[states.before[1:]] + pd.Timedelta("1D") == states.times[1:]).all()
    assert states.before[0] == -1


def test_anomaly_normalisation_has_unit_anomalies() -> None:
    zonal = REGION.copy()
    zonal["t850"] = zonal["t850"] + 5.0 * zonal["latitude"]
    states = load_states(zonal, tiny(normalization="anomaly"))
    held = states.x[states.train].double()
    spread = (held - held.mean(0)).square().mean((0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(3).double(), rtol=1e-4, atol=0)
    assert held[:, 1].square().mean() > 2


def test_dates_choose_the_periods() -> None:
    config = tiny(train=("2001-02-01", "2001-03"), validate=("2001-05-01", "2001-05-03"))
    states = load_states(REGION, config)
    assert str(states.times[states.train[0]]) == "2001-02-01 00:00:00"
    assert str(states.times[states.train[-1]]) == "2001-03-31 00:00:00"
    assert len(states.validation) == 3


def holes() -> xr.Dataset:
    broken = REGION.copy(deep=True)
    broken["t850"][10, 2, 3] = np.nan
    return broken


def test_states_with_missing_values_are_left_out_when_asked() -> None:
    with pytest.raises(InputError, match="t850 has 1"):
        load_states(holes(), tiny())
    states = load_states(holes(), tiny(missing="mask"))
    assert len(states.times) == 299
    assert torch.isfinite(states.x).all()
    assert 9 in states.pairs(states.train)
    assert 10 not in states.pairs(states.train)  # its forecast would begin at the state that is missing


BAD: dict[str, tuple[xr.Dataset, dict[str, Any], str]] = {
    "no time": (REGION.isel(time=0), {}, "accepted are states with `time`"),
    "members": (REGION.expand_dims(number=2), {}, "without `member`"),
    "time twice": (xr.concat([REGION, REGION.isel(time=[4])], "time"), {}, "time 2001-01-05 00:00:00 twice"),
    "constant": (REGION.assign(t850=REGION["t850"] * 0 + 273.3), {}, "channels t850 do not vary in training"),
    "no pairs": (REGION, {"lead_hours": 7.0}, "no training states lie 7 h apart"),
    "no validation pairs": (
        REGION,
        {"train": ("2001-02-01", "2001-03"), "validate": ("2001-05-01", "2001-05-01")},
        "no validation states lie 24 h apart",
    ),
    "nothing in the period": (
        REGION,
        {"train": ("1999-01-01", "1999-02-01"), "validate": ("2001-05-01", "2001-05-03")},
        "the training period holds no states; the data reach from 2001-01-01",
    ),
    "no validation": (REGION, {"train": ("2001-02-01", "2001-03")}, "the validation period holds no states"),
    "validation alone": (REGION, {"validate": ("2001-02-01", "2001-03")}, "`validate` came without `train`"),
    "overlap": (REGION, {"train": ("2001-02", "2001-03"), "validate": ("2001-03-31", "2001-04")}, "overlap"),
    "no dates": (REGION, {"train": ("spring", "autumn"), "validate": ("2001-03-31", "2001-04")}, "not dates"),
    "no variable": (REGION, {"variables": ["q700"]}, "q700"),
    "all missing": (REGION.where(REGION["latitude"] > 40), {"missing": "mask"}, "no state without missing values"),
    "one state": (REGION.isel(time=[0]), {}, "the training period holds no states"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_in_one_sentence(case: str) -> None:
    dataset, changes, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        load_states(dataset, tiny(**changes))
    assert "\n" not in str(error.value)


def test_calendar_is_the_angle_of_year_and_day() -> None:
    angles = calendar(np.array(["2001-01-01T00", "2001-07-02T18"], "datetime64[ns]"))
    np.testing.assert_allclose(angles[0], [0, 1, 0, 1], atol=1e-7)
    np.testing.assert_allclose(angles[1], [0, -1, -1, 0], atol=0.02)
