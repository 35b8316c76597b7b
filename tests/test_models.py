"""The networks: symmetries of the sphere, closed forms, exact derivatives, and what each begins as."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.kernels.geo_pad import geo_pad
from lsda_fast.models import (
    AUTOENCODERS,
    ConvolutionalAutoencoder,
    EnsembleDenoiser,
    Forecaster,
    LinearAutoencoder,
    ResidualAutoencoder,
    TransformerDenoiser,
    ViTAutoencoder,
    build,
    build_autoencoder,
)
from lsda_fast.models.layers import GeoConv2d, GroupNorm
from lsda_fast.training.config import DenoiserConfig
from lsda_fast.training.losses import denoiser_loss

SHAPE = (3, 8, 16)
LEVEL = Schedule.edm().level(0.5)


def shaken(module: nn.Module, scale: float = 0.3) -> Any:
    """Double precision, and every zero gone: an initial zero would hide a mistake."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module.double().eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sphere(rows: int, columns: int, margin: int) -> Tensor:
    """A smooth function of the place on the sphere, on a grid between the poles that goes on beyond its edges."""
    lat = np.deg2rad(90.0 - (np.arange(-margin, rows + margin) + 0.5) * 180.0 / rows)[:, None]
    lon = np.deg2rad(np.arange(-margin, columns + margin) * 360.0 / columns)[None]
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat) + 0.0 * lon
    return torch.tensor(x + 2.0 * y * z + z**3 - x * y)[None, None]


@pytest.mark.parametrize("margin", [1, 2, 3])
def test_padding_continues_a_smooth_function_over_poles_and_date_line(margin: int) -> None:
    padded = geo_pad(sphere(8, 16, 0), margin, periodic=True)
    torch.testing.assert_close(padded, sphere(8, 16, margin), rtol=0, atol=1e-12)


def test_padding_of_a_region_repeats_its_edge() -> None:
    x = random(2, 3, 5, 7)
    expected = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    assert torch.equal(geo_pad(x, 2, periodic=False), expected)
    assert geo_pad(x, 0, periodic=True) is x


@pytest.mark.parametrize("poles", [(False, False), (True, False), (False, True)])
def test_padding_of_a_band_wraps_in_longitude_and_goes_over_its_own_poles_alone(poles: tuple[bool, bool]) -> None:
    x, n = random(2, 3, 5, 8), 2
    repeated = torch.nn.functional.pad(x, (0, 0, n, n), mode="replicate")
    expected = torch.nn.functional.pad(repeated, (n, n, 0, 0), mode="circular")
    globe, padded = geo_pad(x, n, periodic=True), geo_pad(x, n, True, poles)
    north, south = (globe if pole else expected for pole in poles)
    assert torch.equal(padded[..., n:-n, :], expected[..., n:-n, :])
    assert torch.equal(padded[..., :n, :], north[..., :n, :])
    assert torch.equal(padded[..., -n:, :], south[..., -n:, :])
    assert not torch.equal(globe[..., :n, :], expected[..., :n, :])


@pytest.mark.parametrize(
    "make",
    [
        lambda **edges: ConvolutionalAutoencoder(SHAPE, 5, width=16, depth=1, fine_width=8, **edges),
        lambda **edges: Forecaster(SHAPE, width=8, patch=2, scales=2, **edges),
    ],
)
def test_every_convolution_of_a_network_has_the_grids_edges(make: Any) -> None:
    for edges in ((True, (True, False)), (True, (False, False)), (False, (True, True))):
        model = make(periodic=edges[0], poles=list(edges[1]))
        found = [(m.periodic, m.poles) for m in model.modules() if isinstance(m, GeoConv2d)]
        assert len(found) > 5
        assert set(found) == {edges}


def test_the_encoder_of_a_band_does_not_look_over_the_poles() -> None:
    """Where all rows are the same, a repeated edge leaves them the same; a row half way round does not."""
    x = random(2, 3, 1, 16).expand(-1, -1, 8, -1)
    for poles in ((True, True), (False, False)):
        model = shaken(ConvolutionalAutoencoder(SHAPE, 5, width=16, depth=1, fine_width=8, poles=poles))
        z = model.encode(x)
        assert ((z - z[:, :, :1]).abs().max() < 1e-10) == (not any(poles))


def test_group_norm_is_torchs_own_and_has_forward_derivatives_in_every_layout() -> None:
    ours, theirs = shaken(GroupNorm(4, 8)), shaken(nn.GroupNorm(4, 8))
    x, v = random(3, 8, 2, 5), random(3, 8, 2, 5, seed=1)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    expected = torch.func.jvp(ours, (x,), (v,))[1]
    for layout in (torch.contiguous_format, torch.channels_last):
        tangent = v.to(memory_format=layout)
        jv = torch.func.jvp(ours, (x.to(memory_format=layout),), (tangent,))[1]
        torch.testing.assert_close(jv, expected, rtol=0, atol=1e-12)
    rolled = torch.func.jvp(ours, (x,), (v.roll(2, -1).mT.contiguous().mT.roll(-2, -1),))[1]
    torch.testing.assert_close(rolled, expected, rtol=0, atol=1e-12)


def test_a_rolled_globe_rolls_the_latent_by_whole_patches() -> None:
    model = shaken(ConvolutionalAutoencoder(SHAPE, 5, patch=4, width=16, depth=1, fine_width=8, zero_head=True))
    x = random(2, *SHAPE)
    z = model.encode(x)
    assert z.shape == (2, *model.latent_shape)
    torch.testing.assert_close(model.encode(x.roll(4, -1)), z.roll(1, -1), rtol=0, atol=1e-10)
    torch.testing.assert_close(model.decode(z.roll(-1, -1)), model.decode(z).roll(-4, -1), rtol=0, atol=1e-10)
    assert z.std() > 0.1
    assert model.decode(z).std() > 0.1


@pytest.mark.parametrize("scales", [1, 2])
def test_a_rolled_globe_rolls_the_forecast_by_whole_coarse_places(scales: int) -> None:
    model = shaken(Forecaster(SHAPE, width=8, patch=2, scales=scales))
    x, calendar = random(2, *SHAPE), random(2, 4, seed=1)
    step = 2 * 2 ** (scales - 1)
    y = model(x, calendar)
    torch.testing.assert_close(model(x.roll(step, -1), calendar), y.roll(step, -1), rtol=0, atol=1e-10)
    assert (y - x).std() > 0.1


@pytest.mark.parametrize("patch", [None, (2, 3)])
def test_linear_autoencoder_is_principal_components(patch: tuple[int, int] | None) -> None:
    C, H, W = 2, 4, 6
    p, q = patch or (H, W)
    mixing = random(C * H * W, C * H * W, seed=1) / 7.0
    x = (random(300, C * H * W) @ mixing + random(C * H * W, seed=2)).reshape(300, C, H, W)
    model = LinearAutoencoder((C, H, W), 5, patch).double()
    model.fit(x, batch=77)
    patches = (x - x.mean(0)).numpy().reshape(300, C, H // p, p, W // q, q).transpose(0, 2, 4, 1, 3, 5)
    rows = patches.reshape(-1, C * p * q)
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    z = model.encode(x)
    assert z.shape == (300, 5, H // p, W // q)
    error = float((model.decode(z) - x).square().sum(dim=1).mean()) * p * q
    assert error == pytest.approx(values[:-5].sum(), rel=1e-6)  # the weights are rounded to single precision
    leading = vectors[:, -5:]
    expected = torch.tensor(rows @ leading @ leading.T).reshape(300, H // p, W // q, C, p, q)
    expected = expected.permute(0, 3, 1, 4, 2, 5).reshape(x.shape) + x.mean(0)
    torch.testing.assert_close(model.decode(z), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(z.square().mean((0, 2, 3)), torch.ones(5).double(), rtol=1e-5, atol=0)


def test_all_components_lose_nothing() -> None:
    model = LinearAutoencoder((2, 4, 6), 12, (2, 3)).double()
    x = random(60, 2, 4, 6)
    model.fit(x)
    torch.testing.assert_close(model.decode(model.encode(x)), x, rtol=0, atol=1e-5)


RESIDUALS: dict[str, dict[str, Any]] = {
    "convolutional": {"patch": 4, "width": 8, "depth": 1, "fine_width": 8},
    "vit": {
        "patch": [4, 4],
        "width": 8,
        "depth": 2,
        "heads": 2,
        "windows": [[2, 2]],
        "global_every": 2,
        "periodic": True,
    },
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_residual_autoencoder_begins_as_its_linear_part(name: str) -> None:
    linear = {"shape": list(SHAPE), "latent_channels": 5, "patch": [4, 4]}
    residual = {"name": name, "shape": list(SHAPE), "latent_channels": 5, "zero_head": True, **RESIDUALS[name]}
    model = ResidualAutoencoder(linear, residual)
    x = random(50, *SHAPE).float()
    model.linear.fit(x)
    z = model.encode(x)
    assert torch.equal(z, model.linear.encode(x))
    assert torch.equal(model.decode(z), model.linear.decode(z))
    with pytest.raises(InputError, match=r"latents \(5, 2, 4\), the residual \(6, 2, 4\)"):
        ResidualAutoencoder(linear, residual | {"latent_channels": 6})


SMALL: dict[str, dict[str, Any]] = {
    "linear": {"shape": SHAPE, "latent_channels": 4, "patch": (4, 4)},
    "convolutional": {"shape": SHAPE, "latent_channels": 4, "patch": 4, "width": 8, "depth": 1, "fine_width": 8},
    "vit": {
        "shape": SHAPE,
        "latent_channels": 4,
        "patch": (2, 4),
        "width": 8,
        "depth": 2,
        "heads": 2,
        "windows": [[2, 2]],
        "global_every": 2,
        "periodic": True,
    },
}
SMALL["residual"] = {"linear": SMALL["linear"], "residual": {"name": "convolutional", **SMALL["convolutional"]}}
SMALL["multimodal"] = {**SMALL["residual"], "modalities": {"state": {"channels": [0, 1]}, "rain": {"channels": [2]}}}
SMALL["slams"] = SMALL["identity"] = {"shape": SHAPE}


def test_every_autoencoder_is_built_by_name() -> None:
    assert set(SMALL) == set(AUTOENCODERS)
    for name, settings in SMALL.items():
        assert type(build_autoencoder(name, **settings)) is AUTOENCODERS[name]


@pytest.mark.parametrize("name", SMALL)
def test_derivatives_of_the_decoder_are_each_others_transpose(name: str) -> None:
    model = shaken(build_autoencoder(name, **SMALL[name]))
    z = random(2, *model.latent_shape)
    assert_derivatives(model.decode, z)
    x = model.decode(z)
    assert x.shape == (2, *SHAPE)
    alone = model.decode(z[1:])
    torch.testing.assert_close(alone, x[1:], rtol=0, atol=1e-12)  # members do not mix


def assert_derivatives(function: Any, point: Tensor) -> None:
    v = random(*point.shape, seed=3)
    out, jv = torch.func.jvp(function, (point,), (v,))
    w = random(*out.shape, seed=4)
    (jtw,) = torch.func.vjp(function, point)[1](w)
    torch.testing.assert_close((jv * w).sum(), (v * jtw).sum(), rtol=1e-10, atol=1e-10)
    eps = 1e-5
    difference = (function(point + eps * v) - function(point - eps * v)) / (2 * eps)
    assert (jv - difference).norm() < 1e-6 * jv.norm()


CONDITIONINGS = ("concatenate", "cross_attention", "none")


def denoiser(**changes: Any) -> TransformerDenoiser:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"latent_shape": (4, 2, 6), "width": 16, "depth": 2, "heads": 2}
    return TransformerDenoiser(**(settings | changes))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("shape", [(4, 2, 6), (12, 1, 1)])
def test_derivatives_of_the_denoiser_are_each_others_transpose(conditioning: str, shape: tuple[int, ...]) -> None:
    model = shaken(denoiser(latent_shape=shape, conditioning=conditioning))
    z_b = random(2, *shape, seed=5)
    assert_derivatives(lambda z: model(z, LEVEL, z_b), random(2, *shape))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("patch", [1, 2])
def test_the_denoiser_sees_the_background_if_and_only_if_conditioned(conditioning: str, patch: int) -> None:
    model = denoiser(conditioning=conditioning, patch=patch)
    z, z_b, other = random(2, 4, 2, 6).float(), random(2, 4, 2, 6, seed=1).float(), random(2, 4, 2, 6, seed=2).float()
    assert not model(z, LEVEL, z_b).any()  # the head begins at zero
    model = shaken(model)
    z, z_b, other = z.double(), z_b.double(), other.double()
    change = (model(z, LEVEL, z_b) - model(z, LEVEL, other)).abs().max()
    assert (change > 1e-2) == (conditioning != "none")
    assert (model(z, LEVEL, z_b) - model(z, Schedule.edm().level(0.9), z_b)).abs().max() > 1e-2
    torch.testing.assert_close(model(z[1:], LEVEL, z_b[1:]), model(z, LEVEL, z_b)[1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("conditioning", ["concatenate", "cross_attention"])
def test_one_background_conditions_every_member_and_level(conditioning: str) -> None:
    model = shaken(denoiser(conditioning=conditioning, calendar=2))
    z, z_b, day = random(3, 4, 2, 6), random(1, 4, 2, 6, seed=1), random(1, 2, seed=2)
    given = model.condition(z_b, day)
    for level in (LEVEL, Schedule.edm().level(0.1)):
        expected = model(z, level, z_b.expand_as(z), day.expand(3, -1))
        torch.testing.assert_close(model.given(z, level, given), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["wiener", "eps"])
def test_training_and_sampling_read_the_same_input(prediction: str) -> None:
    model = shaken(denoiser(prediction=prediction))
    z, z_b = random(2, 4, 2, 6), random(2, 4, 2, 6, seed=1)
    norm2 = LEVEL.alpha**2 + LEVEL.sigma**2
    scaled = z * (LEVEL.alpha / norm2 if prediction == "wiener" else norm2**-0.5)
    log_rho = torch.full((2,), math.log(LEVEL.rho), dtype=torch.float64)
    torch.testing.assert_close(model(z, LEVEL, z_b), model.predict(scaled, log_rho, z_b), rtol=0, atol=1e-12)


def test_only_leading_latents_are_corrected() -> None:
    model = shaken(denoiser(leading=3))
    F = model(random(2, 4, 2, 6), LEVEL, random(2, 4, 2, 6, seed=1))
    assert F[:, :3].abs().min() > 0
    assert not F[:, 3:].any()


def test_the_denoiser_reads_as_much_of_the_calendar_as_it_was_built_for() -> None:
    z, z_b, calendar = random(2, 4, 2, 6), random(2, 4, 2, 6, seed=1), random(2, 4, seed=2)
    later = calendar + torch.tensor([0.0, 0.0, 1.0, 1.0])
    season, day = (shaken(denoiser(calendar=n)) for n in (2, 4))
    assert torch.equal(season(z, LEVEL, z_b, calendar), season(z, LEVEL, z_b, later))
    assert not torch.equal(season(z, LEVEL, z_b, calendar), season(z, LEVEL, z_b, -calendar))
    assert not torch.equal(day(z, LEVEL, z_b, calendar), day(z, LEVEL, z_b, later))


@pytest.mark.parametrize("calendar", [0, 2, 4])
def test_forecaster_recovers_a_linear_map(calendar: int) -> None:
    shape, n = (2, 3, 4), 24
    A, B = 0.2 * random(n, n, seed=1), random(4, n, seed=2)
    B[calendar:] = 0
    before, season = random(200, *shape) + 1.0, random(200, 4, seed=3)
    mean = before.mean(0)

    def truth(x: Tensor, c: Tensor) -> Tensor:
        return x + ((x - mean).flatten(1) @ A + c @ B).reshape(x.shape)

    model = Forecaster(shape, modes=n + 100, width=0, calendar=calendar).double()  # there are no more than n
    model.fit_linear(before, truth(before, season), season, ridge=0.0)
    x, c = random(5, *shape, seed=4), random(5, 4, seed=5)
    torch.testing.assert_close(model(x, c), truth(x, c), rtol=0, atol=1e-5)
    assert (model(x, c) - x).abs().max() > 1.0


def test_forecaster_begins_as_its_linear_part_and_that_as_persistence() -> None:
    x, calendar = random(2, *SHAPE).float(), random(2, 4, seed=1).float()
    assert torch.equal(Forecaster(SHAPE, modes=0, width=0)(x, calendar), x)
    linear, both = Forecaster(SHAPE, modes=6, width=0), Forecaster(SHAPE, modes=6, width=8)
    for model in (linear, both):
        states = random(40, *SHAPE, seed=2).float()
        model.fit_linear(states[:-1], states[1:], random(39, 4, seed=3).float(), ridge=1e-3)
    assert torch.equal(both(x, calendar), linear(x, calendar))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build(AUTOENCODERS, "pca", {}), "'pca' is unknown; accepted: linear, convolutional"),
        (lambda: build_autoencoder("vit", colour=1), "'vit' does not take these settings"),
        (lambda: build_autoencoder("vit", **(SMALL["vit"] | {"heads": 3})), "3 heads came for width 8"),
        (lambda: ViTAutoencoder(**(SMALL["vit"] | {"patch": (3, 4)})), "patch 3 x 4 came for grid 8 x 16"),
        (lambda: LinearAutoencoder(SHAPE, 4, (3, 4)), "does not divide the grid 8 x 16"),
        (lambda: LinearAutoencoder(SHAPE, 49, (4, 4)), "accepted is at most 48"),
        (lambda: ConvolutionalAutoencoder(SHAPE, 4, patch=3), "patch 3 does not divide"),
        (lambda: Forecaster(SHAPE, width=8, patch=2, scales=4), "patch 2 and 4 scales does not divide"),
        (lambda: denoiser(conditioning="film"), "conditioning 'film' is unknown"),
        (lambda: denoiser(patch=4), "patch 4 does not divide the latent grid 2 x 6"),
        (lambda: denoiser(heads=3), "width 16 and heads 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


SETTINGS: dict[str, Any] = {"latent_shape": (4, 2, 3), "width": 16, "depth": 1, "heads": 2, "leading": 3}


def test_an_ensemble_predicts_the_average_of_its_networks() -> None:
    module = shaken(EnsembleDenoiser(2, **SETTINGS))
    z, z_b = random(2, 5, 4, 2, 3)
    first, second = (network(z, LEVEL, z_b) for network in module.networks)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(module(z, LEVEL, z_b), (first + second) / 2)


def test_networks_of_an_ensemble_learn_each_on_their_own() -> None:
    """In training the loss is the average of the networks' losses; validated is the loss of their average."""
    module, n = shaken(EnsembleDenoiser(2, **SETTINGS)).float(), 8
    z, z_b = random(2, n, 4, 2, 3).float()
    loss = denoiser_loss(z, z_b, torch.zeros(n, 1), Schedule.edm(), DenoiserConfig(), nn.Identity(), z.device)

    def value(m: nn.Module) -> Tensor:
        return loss(m, torch.arange(n), torch.Generator().manual_seed(1))

    alone = torch.stack([value(network) for network in module.networks])
    torch.testing.assert_close(value(module.train()), alone.mean())
    assert value(module.eval()) < alone.mean()
