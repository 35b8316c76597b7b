"""Trajectories: the composed score against closed forms, the covariance in space and time, and their posterior."""

from functools import partial

import numpy as np
import pytest
import torch

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
from lsda_fast.models.window_input import window_input
from lsda_fast.observations.affine import SparseAffine
from lsda_fast.package import Architecture, Package
from lsda_fast.package.trajectory_decoder import TrajectoryDecoder
from lsda_fast.prior import Derivative
from lsda_fast.sampler import Sampler
from lsda_fast.trajectory import Composed, Window

PHI = {1: [0.9], 2: [1.3, -0.5]}


def chain(order: int, T: int) -> torch.Tensor:
    """Covariance (T, T) of T states of a stationary autoregression of unit innovations."""
    phi = PHI[order]
    spectrum = (
        1 / np.abs(1 - sum(f * np.exp(-2j * np.pi * np.arange(4096) / 4096 * (j + 1)) for j, f in enumerate(phi))) ** 2
    )
    g = torch.from_numpy(np.fft.ifft(spectrum).real)
    lag = torch.arange(T)
    return g[(lag[:, None] - lag).abs()]


def score(S: torch.Tensor, sigma: float, z_t: torch.Tensor) -> torch.Tensor:
    """Of N(0, S + sigma^2) at z_t (..., T)."""
    return -torch.linalg.solve(S + sigma**2 * torch.eye(len(S)), z_t[..., None])[..., 0]


def composition_error(order: int, k: int, sigma: float, T: int = 24) -> float:
    """Largest error of the composed score of a chain, at random points of the noised trajectory."""
    S, size = chain(order, T), 2 * k + 1
    noise = torch.randn(4, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z_t = noise @ torch.linalg.cholesky(S + sigma**2 * torch.eye(T)).T
    composed = Composed(lambda windows, _: score(chain(order, size), sigma, windows), size, chunk=12)
    return float((composed(z_t) - score(S, sigma, z_t)).abs().max())


@pytest.mark.parametrize("order", PHI)
def test_composed_score_of_a_chain_is_exact_without_noise_from_its_order_on(order):
    assert composition_error(order, order, 1e-6) < 1e-9
    assert composition_error(order, order + 1, 1e-6) < 1e-9
    if order > 1:
        assert composition_error(order, order - 1, 1e-6) > 0.1


@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0])
def test_composed_score_improves_with_the_window_and_is_exact_when_that_is_all(sigma):
    errors = [composition_error(1, k, sigma, T=15) for k in (1, 3, 5, 7)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert errors[3] < 1e-12


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_composition_and_its_derivative_do_not_depend_on_the_chunks(chunk):
    torch.manual_seed(0)
    W = torch.randn(5 * 3, 5 * 3, dtype=torch.float64)

    def estimate(windows: torch.Tensor, first: int) -> torch.Tensor:
        return torch.sin(windows.flatten(2) @ W).unflatten(2, (5, 3)) + first

    z, v, u = torch.randn(3, 2, 9, 3, dtype=torch.float64)
    whole = Composed(lambda windows, _: estimate(windows, 0), 5, 1000)
    parts = Composed(lambda windows, _: estimate(windows, 0), 5, chunk)
    want, got = Derivative.of(whole.__call__, z), parts.derivative(z)
    torch.testing.assert_close(got.value, parts(z))
    for a, b in ((got.value, want.value), (got.jvp(v), want.jvp(v)), (got.vjp(u), want.vjp(u))):
        torch.testing.assert_close(a, b)
    # Each part is told where it begins.
    numbers = Composed(lambda windows, first: torch.zeros_like(windows) + first, 5, chunk)(z)[0, 2:-2, 0]
    assert (numbers.diff() >= 0).all()
    assert numbers[-1] == {1: 4, 4: 4, 64: 0}[chunk]


def test_windows_say_what_they_accept():
    with pytest.raises(InputError, match="odd size"):
        Window(4, 6.0)
    with pytest.raises(InputError, match="a trajectory of 4 states; accepted are at least the window's 5"):
        Window(5, 6.0).check(4)


# Latents (2, 3, 8): waves that travel east, an autoregression, and noise; the same at every longitude.
SHAPE = (2, 3, 8)


def waves(N: int, seed: int = 0) -> torch.Tensor:
    """Latents (N, 2, 3, 8)."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.zeros(4, dtype=torch.complex128)
    turn = torch.tensor([0.95, 0.9 * np.exp(-0.7j), 0.9 * np.exp(-1.2j), 0.7 * np.exp(0.4j)])
    shape = torch.randn(4, 6, dtype=torch.complex128, generator=generator)
    longitude = torch.exp(2j * torch.pi * torch.arange(4).double()[:, None] * torch.arange(8) / 8)
    z = []
    for _ in range(N):
        a = turn * a + torch.randn(4, dtype=torch.complex128, generator=generator) * (1 - turn.abs() ** 2).sqrt()
        z.append(torch.einsum("w,wn,wx->nx", a, shape, longitude).real)
    noise = 0.3 * torch.randn(N, 6, 8, dtype=torch.float64, generator=generator)
    return (torch.stack(z) + noise + 2.0).reshape(N, *SHAPE)


@pytest.fixture(scope="module")
def fitted():
    z = waves(4000)
    model = StationaryTrajectories(SHAPE, rank=2, lags=3).double()
    model.fit(z, [torch.arange(1500), torch.arange(1500, 4000)])
    return model, model.standardize(z)


def dense(covariance, T: int, shape=SHAPE) -> torch.Tensor:
    """S as a matrix, (T n, T n)."""
    n = T * int(np.prod(shape))
    return covariance.apply(torch.eye(n, dtype=torch.float64).reshape(n, T, *shape), lambda s: s).reshape(n, n)


@pytest.mark.parametrize("zonal", [True, False])
def test_covariance_is_that_of_the_trajectories(zonal, fitted):
    z = waves(4000)
    model = StationaryTrajectories(SHAPE, zonal=zonal, rank=48, lags=3).double()
    model.fit(z, [torch.arange(4000)])
    v = model.standardize(z)
    T = 4
    sample = v.unfold(0, T, 1).movedim(-1, 1).flatten(1)
    S = dense(model.covariance(T), T)
    torch.testing.assert_close(S, S.T)
    sampled = torch.cov(sample.T)
    if zonal:  # the same at every longitude
        blocks = sampled.reshape(T * 6, 8, T * 6, 8)
        sampled = torch.stack([blocks.roll((s, s), (1, 3)) for s in range(8)]).mean(0).reshape(S.shape)
    n = 48
    assert (S[:n, :n] - sampled[:n, :n]).abs().max() < 0.02
    # Modes have nothing in common at lag 0; at others the model leaves it out, and in one block that is much.
    if zonal:
        assert (S - sampled).norm() < 0.15 * sampled.norm()
    torch.testing.assert_close(S.diagonal()[:n].reshape(SHAPE), model.variance())


@pytest.mark.parametrize("T", [1, 3, 12])
def test_covariance_is_positive_consistent_and_its_functions_are_matrix_functions(fitted, T):
    model, _ = fitted
    S = dense(model.covariance(T), T)
    assert torch.linalg.eigvalsh(S).min() > 0
    # A shorter trajectory is a part of a longer one.
    torch.testing.assert_close(S, dense(model.covariance(T + 2), T + 2)[: len(S), : len(S)])
    v_t = torch.randn(2, T, *SHAPE, dtype=torch.float64)
    alpha, sigma = 0.8, 0.6
    want = alpha * S @ torch.linalg.solve(alpha**2 * S + sigma**2 * torch.eye(len(S)), v_t.flatten(1).T)
    torch.testing.assert_close(model.covariance(T).wiener(v_t, alpha, sigma).flatten(1), want.T)
    rho2 = torch.tensor([0.1, 4.0], dtype=torch.float64)
    left = [(torch.linalg.inv(torch.linalg.inv(S) + torch.eye(len(S)) / r)).trace() / len(S) for r in rho2]
    torch.testing.assert_close(model.covariance(T).spread(rho2), torch.stack(left).sqrt())


def test_units_are_what_the_modes_leave():
    """Numbers of unlike noise: the rest is alike in their units, and the covariance is theirs."""
    generator = torch.Generator().manual_seed(3)
    shape, N = (1, 6, 1), 20_000
    pattern, noise = (
        torch.randn(6, 1, generator=generator).double(),
        torch.tensor([0.3, 0.3, 0.6, 1.0, 1.5, 3.0]).double(),
    )
    z = torch.randn(N, 1, generator=generator).double() @ pattern.T
    z = z + noise * torch.randn(N, 6, generator=generator).double()
    truth = pattern @ pattern.T + noise.square().diag()
    off = []
    for floor in (1.0, 0.01):
        model = StationaryTrajectories(shape, zonal=False, rank=1, lags=1, floor=floor).double()
        model.fit(z.reshape(N, *shape), [torch.arange(N)])
        S = dense(model.covariance(1), 1, shape) * (std := model.std.flatten()) * std[:, None]
        off.append(float((S - truth).norm() / truth.norm()))
        torch.testing.assert_close(model.variance().flatten() * std**2, truth.diag(), rtol=0.3, atol=0.05)
    assert off[1] < 0.05 < off[0]
    with pytest.raises(InputError, match="floor 2; accepted are at least 1, and a floor above 0"):
        StationaryTrajectories(shape, floor=2.0)


def test_covariance_knows_travelling_waves(fitted):
    """The lagged covariance is not symmetric in space: east is not west."""
    model, _ = fitted
    S = dense(model.covariance(2), 2).reshape(2, 6, 8, 2, 6, 8)
    east, west = S[1, :, 1, 0, :, 0].diagonal().sum(), S[1, :, -1 % 8, 0, :, 0].diagonal().sum()
    assert east > west + 0.5


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


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("unet", {"hidden": [8, 16, 24], "blocks": 2}),
        ("unet", {"hidden": [8, 16], "circular": False}),
        ("transformer", {"width": 16, "depth": 1, "heads": 2}),
    ],
)
@pytest.mark.parametrize("prediction", ["eps", "wiener"])
@pytest.mark.parametrize("shape", [(2, 6, 8), (1, 1, 20), (3, 5, 7)])
def test_window_networks(name, settings, prediction, shape):
    """The published starts anywhere, the correction at zero; the circular one knows no place."""
    network = build(WINDOWS, name, {"latent_shape": shape, "size": 3, "prediction": prediction, **settings})
    z_t, level = torch.randn(4, 3, *shape), torch.rand(4)
    model = StationaryTrajectories(shape).covariance(3) if prediction == "wiener" else None
    given = window_input(z_t, 1 - 0.5 * level, level, model)
    F = network.predict(given.scaled, given.log_rho)
    assert F.shape == z_t.shape
    assert (F.abs().max() == 0) == (prediction == "wiener" or name == "transformer")
    if name == "unet" and settings.get("circular", True) and prediction == "eps" and shape == (2, 6, 8):
        steps = 2 ** (len(settings["hidden"]) - 1)
        roll = partial(torch.roll, shifts=steps, dims=-1)
        torch.testing.assert_close(network.predict(roll(given.scaled), given.log_rho), roll(F), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", [1, 4])
def test_kernels_that_have_no_margin_on_both_sides_are_refused(kernel):
    with pytest.raises(InputError, match="accepted is an odd one of at least 3"):
        WindowUNet(SHAPE, kernel=kernel)


@pytest.mark.parametrize("chunk", [3, 1000])
def test_stencils_see_trajectories_through_the_heads_as_they_do_through_states(chunk):
    """Value, products and departures, with times that are not observed and points of no weight."""
    torch.manual_seed(0)
    shape, latent = (2, 6, 8), (5, 3, 4)
    residual = {"name": "convolutional", "shape": shape, "latent_channels": 5, "patch": 2, "width": 8, "depth": 1}
    linear = {"shape": shape, "latent_channels": 5, "patch": (2, 2)}
    model = StationaryTrajectories(latent).double()
    model.std.uniform_(0.5, 2.0)
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
