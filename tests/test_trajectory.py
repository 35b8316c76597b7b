"""Priors of trajectories from a package: their posterior, what it is composed of, and their files."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from lsda_fast.diffusion import Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, Normalization
from lsda_fast.guidance import DPS, MMPS, GaussNewton, LatentOptimization, Likelihood
from lsda_fast.layout import StateLayout
from lsda_fast.models import (
    AUTOENCODERS,
    WINDOWS,
    IdentityAutoencoder,
    ResidualAutoencoder,
    StationaryTrajectories,
    WindowUNet,
    build,
)
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.package import Architecture, Package
from lsda_fast.package.trajectory_decoder import TrajectoryDecoder
from lsda_fast.prior import Derivative, Linearization
from lsda_fast.sampler import Sampler
from lsda_fast.trajectory import Window
from tests.travelling_waves import SHAPE, dense, waves

GRID = Grid(np.array([60.0, 0.0, -60.0]), np.arange(8) * 45.0)
LAYOUT = StateLayout(GRID, (Channel("z", 500.0, "m2 s-2"), Channel("t", 850.0, "K")))
UNITS = Normalization(np.zeros(2), np.ones(2))
SMALL = {"latent_shape": list(SHAPE), "hidden": [8, 16], "blocks": 1}


def package_of(model, network=None, prediction="wiener") -> Package:
    """States (2, 3, 8) that are their own latents, and an untrained network of windows of 5."""
    network = network or build(WINDOWS, "unet", SMALL | {"prediction": prediction}).to(model.std.dtype)
    modules = {"autoencoder": IdentityAutoencoder(SHAPE), "trajectory": model, "window": network}
    schedule = Schedule.vp_cosine()
    return Package(LAYOUT, UNITS, schedule, prediction, modules, {}, np.zeros(2), window=Window(5, 6.0))


def observed(T: int, P: int, v: torch.Tensor) -> Likelihood:
    """P numbers of the trajectory v (T, *SHAPE), in units of the latents, with R = 0.04."""
    generator = torch.Generator().manual_seed(1)
    index = torch.randperm(T * 48, generator=generator)[:P, None]
    operator = SparseAffine(index, torch.ones(P, 1, dtype=v.dtype), torch.zeros(P, dtype=v.dtype), (T * 2, 3, 8))
    y = operator(v.reshape(1, T * 2, 3, 8))[0] + 0.2 * torch.randn(P, dtype=v.dtype, generator=generator)
    return Likelihood(operator, y, torch.full_like(y, 0.04), torch.ones_like(y))


def test_without_the_correction_samples_are_of_optimal_interpolation_in_space_and_time(fitted, tolerances):
    model, _ = fitted
    T = 5
    prior = package_of(model).trajectory(T, correction=False, chunk=10**6)
    likelihood = observed(T, 8, waves(T, seed=5))
    S, n = dense(prior.covariance, T), T * 48
    std, mean = (t.expand(SHAPE).flatten().repeat(T) for t in (model.std, model.mean))
    G = (torch.eye(n, dtype=torch.float64) * std)[likelihood.operator.index[:, 0]]
    gain = S @ G.T @ torch.linalg.inv(G @ S @ G.T + torch.diag(likelihood.variance))
    want, covariance = gain @ (likelihood.y - mean[likelihood.operator.index[:, 0]]), S - gain @ G @ S
    guidance = LatentOptimization(
        GaussNewton(outer=1, cg=9, halvings=0), prior_covariance="stationary", antithetic=False
    )
    some = torch.randperm(n, generator=torch.Generator().manual_seed(2))[:20]
    for steps in (1, 2):
        z = Sampler(guidance, steps=steps, block=1024)(prior, likelihood, members=1024, recenter=False).z
        tolerances.assert_samples(z.flatten(1)[:, some], want[some], covariance[some][:, some])


def test_a_correction_that_is_zero_changes_nothing_and_members_are_the_same_in_any_chunk(fitted):
    model, _ = fitted
    package, likelihood = package_of(model), observed(7, 20, waves(7))
    guidance = LatentOptimization(GaussNewton(outer=1, cg=5), prior_covariance="stationary")
    run = lambda **how: Sampler(guidance)(package.trajectory(7, **how), likelihood, members=2).z  # noqa: E731
    torch.testing.assert_close(run(), run(correction=False))
    torch.testing.assert_close(run(), run(chunk=1))


def test_one_tangent_of_the_decoder_preconditions_every_state(fitted):
    model, _ = fitted
    package, likelihood = package_of(model), observed(7, 60, waves(7))
    found, products = {}, {}
    for cg, precondition in ((30, 0), (5, 12)):
        inner = GaussNewton(outer=1, cg=cg, halvings=0, precondition=precondition)
        prior = package.trajectory(7, correction=False)
        guidance = LatentOptimization(inner, prior_covariance="stationary")
        found[precondition] = Sampler(guidance, steps=1, block=2)(prior, likelihood, members=2).z
        products[precondition] = prior.evaluations["decoder_jvp"]
    assert products[12] < products[0] / 4
    torch.testing.assert_close(found[12], found[0], atol=3e-4, rtol=0)


def test_above_the_noise_of_training_no_network_is_asked(fitted):
    """There the clean estimate and its derivative are the linear-Gaussian ones; below, the network's."""
    model, _ = fitted
    network = build(WINDOWS, "unet", SMALL | {"prediction": "wiener"}).double()
    torch.nn.init.normal_(network.tails[0].conv.weight)
    package, z_t = package_of(model, network), torch.randn(2, 5, *SHAPE, dtype=torch.float64)
    learned, linear = (package.trajectory(5, correction=correction) for correction in (True, False))
    for t, asked in ((1.0, False), (0.98, False), (0.95, True)):
        level = learned.schedule.level(t)
        assert (level.rho < 100) == asked
        got, want = (prior.clean(level).derivative(z_t) for prior in (learned, linear))
        assert torch.equal(got.value, want.value) != asked
        assert torch.equal(got.vjp(z_t), want.vjp(z_t)) != asked


def test_networks_of_the_published_kind_are_guided_through(fitted):
    """DPS and MMPS go through windows, decoder and operator; parts are as good as the whole."""
    model, _ = fitted
    torch.manual_seed(0)
    package = package_of(model, WindowUNet(SHAPE, hidden=(8, 16), blocks=1, calendar=4).double(), "eps")
    likelihood, season = observed(7, 20, waves(7)), torch.randn(7, 4, dtype=torch.float64)
    for guidance in (DPS(), MMPS(iterations=2)):
        runs = [
            Sampler(guidance, steps=4)(package.trajectory(7, season=season, chunk=chunk), likelihood, members=2).z
            for chunk in (3, 1000)
        ]
        torch.testing.assert_close(*runs)
    with pytest.raises(InputError, match="no prior around a background"):
        package.prior(torch.zeros(SHAPE))


def test_a_window_is_told_the_season_of_its_middle():
    seen = []

    class Spy(nn.Module):
        size = 5

        def predict(self, scaled, log_rho, season):
            seen.append(season)
            return torch.zeros_like(scaled)

    seasons = torch.arange(36.0).reshape(9, 4)
    package = package_of(StationaryTrajectories(SHAPE, rank=2), Spy(), "eps")
    prior = package.trajectory(9, season=seasons, chunk=1000)
    prior.denoise(torch.randn(2, 9, *SHAPE), prior.schedule.level(0.5))
    assert torch.equal(seen[0], seasons[2:7].repeat(2, 1))


def test_the_origin_is_in_the_samplers_variable(fitted):
    model, v = fitted
    z = model.restore(v[:5])
    prior = package_of(model).trajectory(5, origin=z)
    torch.testing.assert_close(prior.origin, v[:5])
    torch.testing.assert_close(prior.decode(prior.origin[None])[0], z.flatten(0, 1))


def test_a_user_s_window_modules_and_the_file_on_disk(tmp_path):
    """An exact denoiser of white windows: E[v | v_t] is known."""
    modules = {"encoder": lambda x: x, "decoder": lambda z: z, "window": lambda z_t, t: torch.zeros_like(z_t) * t[0]}
    package = Package.from_modules(
        encoder=modules["encoder"],
        decoder=modules["decoder"],
        denoiser=modules["window"],
        latent_shape=SHAPE,
        prediction="x0",
        schedule=Schedule.vp_cosine(),
        layout=LAYOUT,
        normalization=UNITS,
        window=Window(3, 6.0),
    )
    package.save(tmp_path / "package")
    loaded = Package.load(tmp_path / "package", modules=modules)
    assert loaded.window == Window(3, 6.0)
    prior = loaded.trajectory(4)
    assert prior.denoise(torch.randn(2, 4, *SHAPE), prior.schedule.level(0.5)).abs().max() == 0
    x = torch.randn(2, 4 * 2, 3, 8)
    torch.testing.assert_close(prior.decode(prior.encode(x)), x)
    with pytest.raises(InputError, match="accepted are at least the window's 3"):
        loaded.trajectory(2)


def test_packages_with_windows_come_back_from_disk(fitted, tmp_path):
    model, _ = fitted
    settings = SMALL | {"prediction": "wiener"}
    package = package_of(model, build(WINDOWS, "unet", settings).double())
    package.architectures = {
        "autoencoder": Architecture("identity", {"shape": list(SHAPE)}),
        "trajectory": Architecture("stationary", {"latent_shape": list(SHAPE), "rank": 2, "lags": 3}),
        "window": Architecture("unet", settings),
    }
    package.save(tmp_path / "package")
    prior = Package.load(tmp_path / "package").trajectory(6)
    z_t = torch.randn(1, 6, *SHAPE)
    want = package.trajectory(6).denoise(z_t.double(), prior.schedule.level(0.5))
    torch.testing.assert_close(prior.denoise(z_t, prior.schedule.level(0.5)), want.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_stencils_see_trajectories_through_the_heads_as_they_do_through_states(chunk):
    """Value, products and departures, with times that are not observed and points of no weight."""
    torch.manual_seed(0)
    shape, latent = (2, 6, 8), (5, 3, 4)
    residual = {"name": "convolutional", "shape": shape, "latent_channels": 5, "patch": 2, "width": 8, "depth": 1}
    linear = {"shape": shape, "latent_channels": 5, "patch": (2, 2)}
    model = StationaryTrajectories(latent).double()
    model.std.uniform_(0.5, 2.0)
    model.lag_real[..., 1], model.rest_real[..., 1] = 0.4, -0.3
    autoencoder = ResidualAutoencoder(linear, residual | {"fine_width": 8}).double().requires_grad_(False)
    T, P = 6, 12
    index = torch.randint(2 * 96, (P, 3)) + 96 * torch.tensor([1, 4]).repeat(P // 2)[:, None]
    weight = torch.rand(P, 3, dtype=torch.float64)
    index[0, 1], weight[0, 1] = 0, 0.0
    operator = SparseAffine(index, weight, torch.rand(P, dtype=torch.float64), (T * 2, 6, 8))
    plain, headed = (TrajectoryDecoder(autoencoder, model, shape, T, chunk, headed) for headed in (False, True))
    v, d = torch.randn(2, 2, T, *latent, dtype=torch.float64)
    r, y = torch.randn(2, P, dtype=torch.float64), torch.randn(P, dtype=torch.float64)
    states = torch.stack([autoencoder.decode(model.restore(v[:, t])) for t in range(T)], dim=1)
    whole = Derivative.of(lambda v: operator(plain(v)), v)
    torch.testing.assert_close(whole.value, operator(states.flatten(1, 2)))
    for decode in (plain, headed):
        observed = decode.observe(operator)
        assert observed is decode.observe(operator)
        got = Derivative.of(observed, v)
        for a, b in (
            (observed(v), whole.value),
            (got.value, whole.value),
            (got.jvp(d), whole.jvp(d)),
            (got.vjp(r), whole.vjp(r)),
        ):
            torch.testing.assert_close(a, b)
    (departures, *_), (jvp, _) = headed.observe(operator).departures(
        v, y, precision=torch.full_like(y, 2.0), noise=None, robust=None
    )
    torch.testing.assert_close(departures, 2.0 * (whole.value - y))
    torch.testing.assert_close(jvp(d), whole.jvp(d))
    # With a covariance between, which goes from the times that are observed to these alone.
    S, ways = model.covariance(T), []
    for function in (headed.observe(operator), lambda v: operator(plain(v))):
        of = Linearization.of(function, v, Counter(), "decoder")
        scaled = of.scaled(torch.arange(P).double())
        after = scaled.after(S.of(torch.sqrt), S.of(lambda s: s))
        ways.append((after.jvp(d), after.vjp(r), after.gram(r)))
    ways.append((scaled.jvp(S.apply(d, torch.sqrt)), S.apply(scaled.vjp(r), torch.sqrt), after.jvp(after.vjp(r))))
    for a, b, c in zip(*ways):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    longer = SparseAffine(index, weight, torch.zeros(P, dtype=torch.float64), (2 * T * 2, 6, 8))
    with pytest.raises(
        InputError, match=r"an operator on \(24, 6, 8\) came; accepted is one on the trajectory, \(12, "
    ):
        plain.observe(longer)


def test_a_lower_precision_is_of_the_matrix_products_of_both_networks():
    torch.manual_seed(0)
    latent, edges = (4, 3, 8), {"patch": 1, "width": 8, "depth": 1}
    package = package_of(StationaryTrajectories(latent, rank=2))
    network = build(WINDOWS, "transformer", {"latent_shape": latent, "width": 16, "depth": 1, "heads": 2})
    torch.nn.init.normal_(network.network.head.weight)
    autoencoder = build(AUTOENCODERS, "convolutional", {"shape": (2, 3, 8), "latent_channels": 4, **edges})
    package.modules |= {"window": network, "autoencoder": autoencoder.requires_grad_(False)}
    operator = SparseAffine(torch.arange(9)[:, None], torch.ones(9, 1), torch.zeros(9), (6 * 2, 3, 8))
    z = torch.randn(2, 6, *latent)
    found = []
    for precision in (None, torch.float32, torch.bfloat16):
        prior = package.trajectory(6, fused=True, precision=precision)
        found.append((prior.denoise(z, prior.schedule.level(0.5)), prior.observe(operator)(z), prior.decode(z)))
    for own, full, low in zip(*found):
        assert torch.equal(own, full)
        torch.testing.assert_close(low, full, atol=0.03 * float(full.std()), rtol=0)
    differ = [not torch.equal(full, low) for _, full, low in zip(*found)]
    assert differ == [True, True, False]
    with pytest.raises(InputError, match=r"precision torch.bfloat16 came without fused=True"):
        package.trajectory(6, precision=torch.bfloat16)
