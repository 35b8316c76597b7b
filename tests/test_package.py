"""A package: the same on disk and in memory, refused in one sentence when not whole, optimal interpolation inside."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsda_fast.baselines import OptimalInterpolation
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.guidance import DPS, GaussNewton, LatentOptimization, Likelihood
from lsda_fast.models import (
    DiagonalWhitening,
    Forecaster,
    FullWhitening,
    LinearAutoencoder,
    TransformerDenoiser,
    ZonalWhitening,
)
from lsda_fast.package import Architecture, Package, files
from lsda_fast.sampler import Sampler

SHAPE = (3, 8, 10)
SIZE = 240
LAYOUT = StateLayout(
    Grid(np.linspace(50.0, 36.0, 8), np.linspace(0.0, 18.0, 10)),
    (Channel("z", 500.0, "m2 s-2"), Channel("t", 850.0, "K"), Channel("msl", None, "Pa")),
)
NORMALIZATION = Normalization(np.array([5e4, 280.0, 1e5]), np.array([1e3, 10.0, 1e3]))


def correlated(count: int, length: float, seed: int) -> Tensor:
    """Fields (count, 3, 8, 10) of unit variance, correlated over ``length`` grid points and between channels."""
    place = np.stack(np.meshgrid(np.arange(8.0), np.arange(10.0), indexing="ij"), axis=-1).reshape(-1, 2)
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    covariance = np.kron(0.5 + 0.5 * np.eye(3), np.exp(-distance / length))
    noise = np.random.default_rng(seed).standard_normal((count, SIZE))
    return torch.tensor(noise @ np.linalg.cholesky(covariance).T, dtype=torch.float32).reshape(-1, *SHAPE)


CLIMATE = correlated(400, 6.0, 0)
ERRORS = 0.3 * correlated(400, 2.0, 1)


def trained(latents: int = 24, **changes: Any) -> Package:
    """A linear package of these errors, its denoiser untrained."""
    torch.manual_seed(0)
    specifications = {
        "autoencoder": Architecture("linear", {"shape": list(SHAPE), "latent_channels": latents}),
        "whitening": Architecture("full", {"latent_shape": [latents, 1, 1]}),
        "forecaster": Architecture("unet", {"shape": list(SHAPE), "modes": 4, "width": 0}),
        "denoiser": Architecture("transformer", {"latent_shape": [latents, 1, 1], "width": 16, "depth": 1, "heads": 2}),
    }
    autoencoder = LinearAutoencoder(SHAPE, latents)
    autoencoder.fit(CLIMATE)
    whitening = FullWhitening((latents, 1, 1))
    whitening.fit(autoencoder.encode(ERRORS) - autoencoder.encode(torch.zeros_like(ERRORS)))
    values: dict[str, Any] = {
        "layout": LAYOUT,
        "normalization": NORMALIZATION,
        "schedule": Schedule.edm(sigma_max=2000.0),
        "prediction": "wiener",
        "modules": {
            "autoencoder": autoencoder,
            "whitening": whitening,
            "forecaster": Forecaster(SHAPE, modes=4, width=0),
            "denoiser": TransformerDenoiser((latents, 1, 1), width=16, depth=1, heads=2),
        },
        "architectures": specifications,
        "reconstruction_error": np.array([0.1, 0.2, 1.0 / 3.0], np.float32),
        "block_errors": (np.array([0.1, 0.1, 1.0 / 7.0], np.float32), np.array([0.1, 0.0, 0.1], np.float32)),
        "observation_std": {"z500": 100.0, "t850": 1.0, "msl": 0.1},
        "provenance": {"train": ["2000", "2001"], "note": "ü"},
    }
    return Package(**(values | changes))


def shaken(package: Package) -> Package:
    """The same with random weights in the denoiser."""
    generator = torch.Generator().manual_seed(3)
    for parameter in package.modules["denoiser"].parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return package


def observed(places: int = 40) -> tuple[Likelihood, Tensor, Tensor, Tensor]:
    """Observations of the normalised state at random numbers of it: likelihood, H, y, R."""
    generator = torch.Generator().manual_seed(5)
    where = torch.randperm(SIZE, generator=generator)[:places]
    H = torch.eye(SIZE)[where]
    y = torch.randn(places, generator=generator)
    R = 0.02 + 0.1 * torch.rand(places, generator=generator)
    return Likelihood(lambda x: x.flatten(1)[:, where], y, R, torch.ones(places)), H, y, R


def analysed(package: Package, background: Tensor, *, correction: bool) -> Tensor:
    """Mean of 16 recentred members of one level, as a state."""
    prior = package.prior(background, correction=correction)
    sampler = Sampler(LatentOptimization(GaussNewton(outer=1, cg=60, halvings=0)), steps=1, block=16)
    samples = sampler(prior, observed()[0], members=16, seed=0)
    return prior.decode(samples.z.mean(0, keepdim=True))[0]


def test_round_trip_is_the_same_to_the_bit(tmp_path: Path) -> None:
    package = shaken(trained())
    loaded = Package.load(package.save(tmp_path / "deep" / "package"))
    assert loaded.manifest() == package.manifest()
    assert loaded.layout == package.layout
    np.testing.assert_array_equal(loaded.errors, [package.reconstruction_error, *package.block_errors])
    for name, module in package.modules.items():
        weights = loaded.modules[name].state_dict()
        assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items())
    one, two = (analysed(p, CLIMATE[0], correction=True) for p in (package, loaded))
    assert torch.equal(one, two)
    assert not any(p.requires_grad for m in loaded.modules.values() for p in m.parameters())


def test_the_folder_holds_no_pickle(tmp_path: Path) -> None:
    folder = trained().save(tmp_path / "package")
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    assert [p.name for p in tmp_path.iterdir()] == ["package"]


def test_half_precision_is_close_and_loads_as_single(tmp_path: Path) -> None:
    package = shaken(trained())
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
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained().save(tmp_path_factory.mktemp("saved") / "package")


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_a_package_that_is_not_whole_is_refused_in_one_sentence(saved: Path, tmp_path: Path, case: str) -> None:
    corrupt, message = CORRUPTIONS[case]
    folder = Path(shutil.copytree(saved, tmp_path / "package"))
    corrupt(folder)
    with pytest.raises(InputError, match=message) as error:
        Package.load(folder)
    assert "\n" not in str(error.value)


def test_an_interrupted_save_leaves_the_old_package(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        trained(12).save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_exchange_brings_the_old_package_back(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        trained(12).save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_saving_replaces_packages_and_nothing_else(tmp_path: Path) -> None:
    package = trained(12)
    (tmp_path / "empty").mkdir()
    package.save(tmp_path / "empty")
    trained(16).save(tmp_path / "empty")
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
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained(4, **changes)


class Network(nn.Module):
    """A user's eps network, double precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.mix = nn.Linear(13, 6).double()

    def forward(self, z_t: Tensor, t: Tensor, z_b: Tensor) -> Tensor:
        inputs = torch.cat([z_t.flatten(1), z_b.flatten(1), t[:, None]], dim=1)
        return torch.tanh(self.mix(inputs)).reshape(z_t.shape)


class Converted(nn.Module):
    """The same model under another prediction."""

    def __init__(self, network: Network, schedule: Schedule, prediction: str) -> None:
        super().__init__()
        self.network, self.schedule, self.prediction = network, schedule, prediction

    def forward(self, z_t: Tensor, t: Tensor, z_b: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha(float(t[0])), self.schedule.sigma(float(t[0]))
        eps = self.network(z_t, t, z_b)
        z0 = (z_t - sigma * eps) / alpha
        return {"x0": z0, "v": (alpha * z_t - (alpha**2 + sigma**2) * z0) / sigma, "score": -eps / sigma}[
            self.prediction
        ]


def users(denoiser: nn.Module, prediction: str, schedule: Schedule, **rest: Any) -> Package:
    torch.manual_seed(2)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 6), nn.Unflatten(1, (6, 1, 1))).double()
    decoder = nn.Sequential(nn.Flatten(), nn.Linear(6, SIZE), nn.Tanh(), nn.Unflatten(1, SHAPE)).double()
    return Package.from_modules(
        encoder=encoder,
        decoder=decoder,
        denoiser=denoiser,
        latent_shape=(6, 1, 1),
        prediction=prediction,
        schedule=schedule,
        layout=LAYOUT,
        normalization=NORMALIZATION,
        **rest,
    )


@pytest.mark.parametrize("schedule", [Schedule.vp_cosine(), Schedule.vp_linear(), Schedule.edm()])
@pytest.mark.parametrize("prediction", ["x0", "v", "score"])
def test_the_prediction_type_of_a_users_model_does_not_matter(schedule: Schedule, prediction: str) -> None:
    network = Network()
    one = users(network, "eps", schedule)
    two = users(Converted(network, schedule, prediction), prediction, schedule)
    background = CLIMATE[0].double()
    z_t = torch.randn(3, 6, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0.1, 0.5, 1.0):
        first, second = (p.prior(background).denoise(z_t, schedule.level(t)) for p in (one, two))
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8)
    likelihood, *_ = observed(10)
    likelihood = Likelihood(
        likelihood.operator, likelihood.y.double(), likelihood.variance.double(), likelihood.scale.double()
    )
    sampler = Sampler(DPS(), steps=3, block=2)
    first, second = (sampler(p.prior(background), likelihood, members=2).z for p in (one, two))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_a_users_model_is_saved_and_loaded_into_fresh_modules(tmp_path: Path) -> None:
    whitening = FullWhitening((6, 1, 1)).double()
    whitening.fit(torch.randn(50, 6, 1, 1, dtype=torch.float64))
    package = users(Network(), "eps", Schedule.vp_cosine(), whitening=whitening)
    folder = package.save(tmp_path / "users")
    with pytest.raises(InputError, match="the autoencoder is external; pass encoder and decoder in"):
        Package.load(folder)
    fresh = users(Network(), "eps", Schedule.vp_cosine())
    modules = {
        "encoder": fresh.autoencoder._encode,
        "decoder": fresh.autoencoder._decode,
        "denoiser": fresh.modules["denoiser"]._call,
    }
    with torch.no_grad():
        for module in modules.values():
            for parameter in module.parameters():
                parameter.zero_()
    with pytest.raises(InputError, match="the denoiser is external; pass denoiser in"):
        Package.load(folder, modules={k: v for k, v in modules.items() if k != "denoiser"})
    loaded = Package.load(folder, modules=modules)
    assert loaded.manifest() == package.manifest()
    assert isinstance(loaded.modules["whitening"], FullWhitening)
    background, level = CLIMATE[0].double(), package.schedule.level(0.5)
    z_t = torch.randn(3, 6, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    priors = [p.prior(background) for p in (package, loaded)]
    one, two = (prior.denoise(z_t, level) for prior in priors)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)  # float32 on disk
    covariances = [prior.covariance for prior in priors]
    assert all(c is not None for c in covariances)
    torch.testing.assert_close(priors[0].origin, priors[1].origin, rtol=1e-5, atol=1e-5)


def test_methods_of_a_module_bring_its_weights(tmp_path: Path) -> None:
    def wrapped(autoencoder: LinearAutoencoder) -> Package:
        return Package.from_modules(
            encoder=autoencoder.encode,
            decoder=autoencoder.decode,
            denoiser=lambda z_t, t, z_b: z_b,
            latent_shape=(6, 1, 1),
            prediction="x0",
            schedule=Schedule.vp_cosine(),
            layout=LAYOUT,
            normalization=NORMALIZATION,
        )

    fitted, empty = LinearAutoencoder(SHAPE, 6), LinearAutoencoder(SHAPE, 6)
    fitted.fit(CLIMATE)
    folder = wrapped(fitted).save(tmp_path / "users")
    Package.load(
        folder, modules={"encoder": empty.encode, "decoder": empty.decode, "denoiser": lambda z_t, t, z_b: z_b}
    )
    assert torch.equal(empty.encode(CLIMATE[:2]), fitted.encode(CLIMATE[:2]))


@pytest.mark.parametrize("kind", ["diagonal", "zonal"])
def test_whitenings_of_users_are_rebuilt_with_their_settings(tmp_path: Path, kind: str) -> None:
    whitening = DiagonalWhitening((6, 1, 1)) if kind == "diagonal" else ZonalWhitening((3, 8, 10), 5, 2.5)
    whitening.fit(torch.randn(20, 6, 1, 1) if kind == "diagonal" else ERRORS)
    shape = (6, 1, 1) if kind == "diagonal" else SHAPE
    package = Package.from_modules(
        encoder=lambda x: x,
        decoder=lambda z: z,
        denoiser=lambda z_t, t, z_b: z_b,
        latent_shape=shape,
        prediction="x0",
        schedule=Schedule.vp_cosine(),
        layout=LAYOUT,
        normalization=NORMALIZATION,
        whitening=whitening,
    )
    modules = {name: lambda x, *_: x for name in ("encoder", "decoder", "denoiser")}
    loaded = Package.load(package.save(tmp_path / "users"), modules=modules).modules["whitening"]
    u = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.color(u), whitening.color(u))


def test_the_centre_of_a_whitened_prior_is_the_background() -> None:
    package = trained()
    autoencoder = package.autoencoder
    z_b = autoencoder.encode(CLIMATE[:1])
    for background in (CLIMATE[0], z_b[0]):
        prior = package.prior(background, correction=False)
        assert torch.equal(prior.decode(torch.zeros(1, 24, 1, 1))[0], autoencoder.decode(z_b)[0])
    u = torch.randn(2, 24, 1, 1, generator=torch.Generator().manual_seed(0))
    assert prior.encode is not None
    torch.testing.assert_close(prior.encode(prior.decode(u)), u, rtol=1e-3, atol=1e-3)


def test_backgrounds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(3, 10, 8\); accepted is the state's \(3, 8, 10\) or the latent's"):
        trained(4).prior(torch.zeros(3, 10, 8))
    with pytest.raises(InputError, match="correction=False needs a whitened package"):
        users(Network(), "eps", Schedule.vp_cosine()).prior(CLIMATE[0].double(), correction=False)


def test_without_correction_it_is_optimal_interpolation_in_the_latent() -> None:
    package, (_, H, y, R) = trained(24), observed()
    autoencoder, whitening = package.autoencoder, package.modules["whitening"]
    z_b = autoencoder.encode(CLIMATE[:1])
    x_b = autoencoder.decode(z_b)[0].flatten().double()
    # The columns of D S^1/2, and the posterior mean of u ~ N(0, I).
    G = (autoencoder.decode(z_b + whitening.color(torch.eye(24)[..., None, None])).flatten(1).double() - x_b).T
    A = H.double() @ G
    u = torch.linalg.solve(torch.eye(24) + A.T @ (A / R.double()[:, None]), A.T @ ((y - H.double() @ x_b) / R))
    expected = (x_b + G @ u).reshape(SHAPE).float()
    result = analysed(package, CLIMATE[0], correction=False)
    assert (result - expected).abs().max() < 1e-3
    assert (expected - x_b.reshape(SHAPE)).abs().max() > 0.1


def test_without_truncation_it_is_optimal_interpolation() -> None:
    _, H, y, R = observed()
    x_a, _ = OptimalInterpolation(ERRORS).analysis(CLIMATE[0], H, y, R)
    analyses = {k: analysed(trained(k), CLIMATE[0], correction=False) for k in (15, 60, 150, SIZE)}
    assert (analyses[SIZE] - x_a).abs().max() < 1e-3
    assert (x_a - CLIMATE[0]).abs().max() > 0.1
    differences = [float((analysis - x_a).square().mean().sqrt()) for analysis in analyses.values()]
    assert all(more < 0.8 * less for less, more in itertools.pairwise(differences))
    # What 15 components cannot draw is bounded by what they discard of the background and of the increment.
    autoencoder = trained(15).autoencoder
    discarded = autoencoder.decode(autoencoder.encode(x_a[None]))[0] - x_a
    assert differences[0] < 3 * float(discarded.square().mean().sqrt())


def test_an_untrained_denoiser_changes_nothing() -> None:
    package = trained()
    one, two = (analysed(package, CLIMATE[0], correction=correction) for correction in (True, False))
    assert torch.equal(one, two)
    assert not torch.equal(analysed(shaken(package), CLIMATE[0], correction=True), two)
