"""The stand-in for the decoder's derivative, and Gauss-Newton preconditioned with it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lsda_fast.diffusion import Level, Schedule
from lsda_fast.diffusion.noise import Key
from lsda_fast.errors import InputError
from lsda_fast.guidance import Context, GaussNewton, LatentOptimization, Likelihood
from lsda_fast.kernels.geo_pad import geo_pad
from lsda_fast.models.tangent import Increments, PatchTangent
from lsda_fast.observations import ObservationOperator
from lsda_fast.prior import Prior
from lsda_fast.sampler import Sampler

K, H, W = 4, 6, 8  # latent channels and places; patches of 2 x 3, 5 channels


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def to_patches(z, weight, periodic=True):
    """A 3 x 3 convolution from latent places to patches of the state."""
    patches = F.conv2d(geo_pad(z, 1, periodic), weight)
    return patches.reshape(len(z), 5, 2, 3, H, W).permute(0, 1, 4, 2, 5, 3).reshape(len(z), 5, 2 * H, 3 * W)


@pytest.mark.parametrize("periodic", [True, False])
def test_a_convolution_to_patches_is_its_own_tangent(periodic):
    weight, bias = randn(5 * 6, K, 3, 3), randn(5, 1, 1, seed=1)
    evaluations: Counter[str] = Counter()
    tangent = PatchTangent(
        lambda z: to_patches(z, weight, periodic) + bias,
        randn(1, K, H, W, seed=2),
        Increments(randn(8, K, H, W, seed=3), periodic=periodic, ridge=1e-14),
        evaluations,
    )
    dz = randn(3, K, H, W, seed=4)
    torch.testing.assert_close(tangent.decode(dz), to_patches(dz, weight, periodic), rtol=1e-8, atol=1e-8)
    assert evaluations["decoder_jvp"] == 8


@pytest.fixture(scope="module")
def case():
    """A decoder that is a convolution and a little curvature, and accurate observations of every third point."""
    linear, curved = randn(5 * 6, K, 3, 3, seed=1) / 6, randn(5 * 6, K, 3, 3, seed=2) / 6
    decode = lambda z: to_patches(z, linear) + 0.1 * torch.tanh(to_patches(z, curved))  # noqa: E731
    made = []

    def tangent(evaluations):
        if not made:
            zero = torch.zeros(1, K, H, W, dtype=torch.float64)
            increments = Increments(randn(16, K, H, W), periodic=True)
            made.append(PatchTangent(decode, zero, increments, evaluations).decode)
        return made[0]

    prior = Prior(
        Schedule("edm"),
        (K, H, W),
        lambda z, level: z / (1 + level.rho**2),
        decode,
        tangent=tangent,
        dtype=torch.float64,
    )
    operator = lambda x: x.flatten(1)[:, ::3]  # noqa: E731
    y = operator(decode(randn(1, K, H, W, seed=5)))[0]
    likelihood = Likelihood(operator, y, torch.full_like(y, 1e-4), torch.ones_like(y))
    return Context(prior, likelihood, Level(0, 1.0, 1.0, 3.0), False, Key.of(0, (0, 1)))


def optimum(case, **settings):
    case.prior.evaluations.clear()
    guidance = LatentOptimization(GaussNewton(halvings=0, **settings), randomize=False)
    z = guidance.guide(torch.zeros(2, K, H, W, dtype=torch.float64), case).z0
    residual = case.likelihood.residual(case.prior)(z)
    r2 = case.level.rho**2 / (1 + case.level.rho**2)
    return z, float(0.5 * (residual.square().sum(1) + z.square().flatten(1).sum(1) / r2)[0])


def test_preconditioning_finds_the_same_optimum_with_fewer_derivatives(case):
    exact, lowest = optimum(case, outer=8, cg=200)
    _, high = optimum(case, outer=3, cg=8)
    z, cost = optimum(case, outer=3, cg=8, precondition=60)
    assert case.prior.evaluations["decoder_jvp"] == 2 * 24 + 16
    assert cost - lowest < 0.01 * (high - lowest)
    z, _ = optimum(case, outer=8, cg=20, precondition=60)
    torch.testing.assert_close(z, exact, rtol=1e-3, atol=1e-3)


def test_without_a_tangent_there_is_one_sentence(case):
    bare = replace(case, prior=replace(case.prior, tangent=None))
    with pytest.raises(InputError, match=r"no tangent of its decoder; accepted is precondition=0"):
        optimum(bare, precondition=5)


@pytest.mark.parametrize("kind", ["linear", "speed"])
def test_a_users_function_is_preconditioned_by_its_derivative_at_the_state(tiny, kind):
    """Where it is linear it does what the same matrix does as a stencil; where it is not, its slope at the climate's
    mean may be none."""
    package = tiny.package()
    matrix = np.zeros((5, 2 * 12 * 16))
    matrix[np.arange(5), [3, 50, 200, 201, 380]] = [1.0, 2.0, 1.0, -1.0, 0.5]
    by_matrix = torch.tensor(matrix.T, dtype=torch.float32)
    anomaly = lambda x: (x - tiny.NORMALIZATION.mean[0]).flatten(1) @ by_matrix  # noqa: E731
    functions = {"linear": lambda x: x.flatten(1) @ by_matrix, "speed": lambda x: (anomaly(x).square() + 1e-30).sqrt()}
    operators = [ObservationOperator.function(functions[kind], 5, tiny.NORMALIZATION)]
    if kind == "linear":
        operators.append(ObservationOperator.linear(matrix, tiny.LAYOUT, tiny.NORMALIZATION))
    guidance = LatentOptimization(GaussNewton(outer=1, cg=4, halvings=0, precondition=3))
    found = []
    for operator in operators:
        y = operator(torch.ones(1, *tiny.SHAPE))[0]
        likelihood = Likelihood(operator, y, torch.full_like(y, 1e4), torch.full_like(y, 1e3))
        prior = package.prior(0.1 * torch.ones(tiny.SHAPE), fused=True)
        assert prior.tangent_dtype == torch.float64
        found.append(Sampler(guidance, steps=2)(prior, likelihood, members=2).z)
    assert found[0].isfinite().all()
    if kind == "linear":
        torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)
