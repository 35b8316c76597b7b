"""A package of a user's own modules: any prediction type, saved with its weights, loaded into fresh callables."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.guidance import DPS, Likelihood
from lsda_fast.models import DiagonalWhitening, FullWhitening, LinearAutoencoder, ZonalWhitening
from lsda_fast.package import Package
from lsda_fast.sampler import Sampler


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


def users(linear: ModuleType, denoiser: nn.Module, prediction: str, schedule: Schedule, **rest: Any) -> Package:
    torch.manual_seed(2)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(linear.SIZE, 6), nn.Unflatten(1, (6, 1, 1))).double()
    decoder = nn.Sequential(nn.Flatten(), nn.Linear(6, linear.SIZE), nn.Tanh(), nn.Unflatten(1, linear.SHAPE)).double()
    return Package.from_modules(
        encoder=encoder,
        decoder=decoder,
        denoiser=denoiser,
        latent_shape=(6, 1, 1),
        prediction=prediction,
        schedule=schedule,
        layout=linear.LAYOUT,
        normalization=linear.NORMALIZATION,
        **rest,
    )


@pytest.mark.parametrize("schedule", [Schedule.vp_cosine(), Schedule.vp_linear(), Schedule.edm()])
@pytest.mark.parametrize("prediction", ["x0", "v", "score"])
def test_the_prediction_type_of_a_users_model_does_not_matter(
    linear: ModuleType, schedule: Schedule, prediction: str
) -> None:
    network = Network()
    one = users(linear, network, "eps", schedule)
    two = users(linear, Converted(network, schedule, prediction), prediction, schedule)
    background = linear.CLIMATE[0].double()
    z_t = torch.randn(3, 6, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0.1, 0.5, 1.0):
        first, second = (p.prior(background).denoise(z_t, schedule.level(t)) for p in (one, two))
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8)
    likelihood, *_ = linear.observed(10)
    likelihood = Likelihood(
        likelihood.operator, likelihood.y.double(), likelihood.variance.double(), likelihood.scale.double()
    )
    sampler = Sampler(DPS(), steps=3, block=2)
    first, second = (sampler(p.prior(background), likelihood, members=2).z for p in (one, two))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_a_users_model_is_saved_and_loaded_into_fresh_modules(linear: ModuleType, tmp_path: Path) -> None:
    whitening = FullWhitening((6, 1, 1)).double()
    whitening.fit(torch.randn(50, 6, 1, 1, dtype=torch.float64))
    package = users(linear, Network(), "eps", Schedule.vp_cosine(), whitening=whitening)
    folder = package.save(tmp_path / "users")
    with pytest.raises(InputError, match="the autoencoder is external; pass encoder and decoder in"):
        Package.load(folder)
    fresh = users(linear, Network(), "eps", Schedule.vp_cosine())
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
    background, level = linear.CLIMATE[0].double(), package.schedule.level(0.5)
    z_t = torch.randn(3, 6, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    priors = [p.prior(background) for p in (package, loaded)]
    one, two = (prior.denoise(z_t, level) for prior in priors)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)  # float32 on disk
    covariances = [prior.covariance for prior in priors]
    assert all(c is not None for c in covariances)
    torch.testing.assert_close(priors[0].origin, priors[1].origin, rtol=1e-5, atol=1e-5)


def test_methods_of_a_module_bring_its_weights(linear: ModuleType, tmp_path: Path) -> None:
    def wrapped(autoencoder: LinearAutoencoder) -> Package:
        return Package.from_modules(
            encoder=autoencoder.encode,
            decoder=autoencoder.decode,
            denoiser=lambda z_t, t, z_b: z_b,
            latent_shape=(6, 1, 1),
            prediction="x0",
            schedule=Schedule.vp_cosine(),
            layout=linear.LAYOUT,
            normalization=linear.NORMALIZATION,
        )

    fitted, empty = LinearAutoencoder(linear.SHAPE, 6), LinearAutoencoder(linear.SHAPE, 6)
    fitted.fit(linear.CLIMATE)
    folder = wrapped(fitted).save(tmp_path / "users")
    Package.load(
        folder, modules={"encoder": empty.encode, "decoder": empty.decode, "denoiser": lambda z_t, t, z_b: z_b}
    )
    assert torch.equal(empty.encode(linear.CLIMATE[:2]), fitted.encode(linear.CLIMATE[:2]))


@pytest.mark.parametrize("kind", ["diagonal", "zonal"])
def test_whitenings_of_users_are_rebuilt_with_their_settings(linear: ModuleType, tmp_path: Path, kind: str) -> None:
    whitening = DiagonalWhitening((6, 1, 1)) if kind == "diagonal" else ZonalWhitening((3, 8, 10), 5, 2.5)
    whitening.fit(torch.randn(20, 6, 1, 1) if kind == "diagonal" else linear.ERRORS)
    shape = (6, 1, 1) if kind == "diagonal" else linear.SHAPE
    package = Package.from_modules(
        encoder=lambda x: x,
        decoder=lambda z: z,
        denoiser=lambda z_t, t, z_b: z_b,
        latent_shape=shape,
        prediction="x0",
        schedule=Schedule.vp_cosine(),
        layout=linear.LAYOUT,
        normalization=linear.NORMALIZATION,
        whitening=whitening,
    )
    modules = {name: lambda x, *_: x for name in ("encoder", "decoder", "denoiser")}
    loaded = Package.load(package.save(tmp_path / "users"), modules=modules).modules["whitening"]
    u = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.color(u), whitening.color(u))


def test_backgrounds_that_do_not_fit_are_refused(linear: ModuleType) -> None:
    with pytest.raises(InputError, match=r"\(3, 10, 8\); accepted is the state's \(3, 8, 10\) or the latent's"):
        linear.trained(4).prior(torch.zeros(3, 10, 8))
    with pytest.raises(InputError, match="correction=False needs a whitened package"):
        users(linear, Network(), "eps", Schedule.vp_cosine()).prior(linear.CLIMATE[0].double(), correction=False)
