"""The published degradations and way of observing: what is seen, how often, and the published sampler step by step."""

import numpy as np
import pytest
import torch

from lsda_fast.degradations import Degradation
from lsda_fast.diffusion import Schedule
from lsda_fast.diffusion.noise import Key
from lsda_fast.errors import InputError
from lsda_fast.grid import Normalization
from lsda_fast.guidance.base import STREAMS
from lsda_fast.latent_observations import degraded_latents, in_latent
from lsda_fast.likelihood import likelihood_of
from lsda_fast.presets import sampler_preset
from lsda_fast.prior import Prior
from lsda_fast.sampler import Sampler

F64 = torch.float64
T, C, H, W = 5, 2, 6, 8
NORMALIZATION = Normalization(np.array([250.0, 10.0]), np.array([8.0, 2.0]))
TRUTH = NORMALIZATION.denormalize(np.random.default_rng(0).standard_normal((T, C, H, W)))


@pytest.mark.parametrize(("degradation", "blocks", "times"), [
    (Degradation(), 48, 5),
    (Degradation(coarsen=4), 4, 5),
    (Degradation(gap=4), 48, 2),
    (Degradation(coarsen=3, gap=2, noise=0.5), 6, 3),
])  # fmt: skip
def test_what_is_observed(degradation, blocks, times):
    seen = degradation(TRUTH, NORMALIZATION, seed=1)
    assert seen.size == times * C * blocks
    assert seen.shape == (T * C, H, W)
    np.testing.assert_allclose(
        seen.std.reshape(times, C, blocks)[:, :, 0], [degradation.noise * np.array([8.0, 2.0])] * times
    )
    x = torch.from_numpy(NORMALIZATION.normalize(TRUTH)).flatten(0, 1)[None]
    error = (seen.values - seen(x)[0].numpy()) / seen.std
    assert abs(error.mean()) < 5 / len(error) ** 0.5
    assert len(error) < 50 or abs(error.std() - 1) < 0.3


def test_the_same_seed_draws_the_same_and_a_missing_pixel_takes_its_block():
    one, other = (Degradation(coarsen=4)(TRUTH, NORMALIZATION, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.values, other.values)
    gappy = TRUTH.copy()
    gappy[0, 1, 5, 7] = np.nan
    seen = Degradation(coarsen=4)(gappy, NORMALIZATION, seed=3)
    assert np.flatnonzero(~seen.used).tolist() == [7]
    np.testing.assert_array_equal(seen.values, np.delete(one.values, 7))


def test_a_channel_has_its_noise_in_any_company():
    both, one = (Degradation(coarsen=4, gap=2)(TRUTH, NORMALIZATION, seed=3, channels=c) for c in (None, [1]))
    np.testing.assert_array_equal(both.values.reshape(3, C, 4)[:, 1].ravel(), one.values)


def test_degradations_that_are_none():
    for bad in ({"coarsen": 0}, {"gap": 0}, {"noise": 0.0}):
        with pytest.raises(InputError, match="accepted are coarsen and gap"):
            Degradation(**bad)


def trajectory_prior():
    """Latents (T, 1, H, W), independent standard normal ones, of states that are three times as large."""
    return Prior(
        Schedule.vp_cosine(),
        (T, 1, H, W),
        lambda z, level: z * level.alpha / (level.alpha**2 + level.sigma**2),
        lambda z: 3.0 * z.flatten(1, 2),
        encode=lambda x: (x / 3.0).reshape(len(x), T, 1, H, W),
        dtype=F64,
    )


def test_latents_are_observed_as_states_are():
    prior = trajectory_prior()
    x = 3.0 * torch.randn(T, H, W, dtype=F64)
    seen = degraded_latents(prior.encode(x[None])[0], Degradation(coarsen=2, gap=2, noise=1e-6), seed=0)
    means = torch.nn.functional.avg_pool2d((x / 3.0)[::2, None], 2).flatten()
    np.testing.assert_allclose(seen.values, means.numpy(), atol=1e-5)
    likelihood = likelihood_of(seen, dtype=F64)
    assert set(likelihood.scale.tolist()) == {1.0}
    z = torch.randn(2, T, 1, H, W, dtype=F64)
    torch.testing.assert_close(in_latent(prior).observe(likelihood.operator)(z), likelihood.operator(z[:, :, 0]))
    torch.testing.assert_close(in_latent(prior).encode(z.flatten(1, 2)), z)


def test_the_published_preset_takes_the_steps_of_sda():
    prior = in_latent(trajectory_prior())
    seen = degraded_latents(torch.randn(T, 1, H, W, dtype=F64), Degradation(2, 2, 0.5), seed=0)
    likelihood, steps, gamma, tau = likelihood_of(seen, dtype=F64), 8, 1e-2, 0.5
    published = sampler_preset("slams_published")
    assert published["steps"] == 512
    sampler = Sampler(**{**published, "steps": steps}, block=2)
    z = sampler(prior, likelihood, members=2, seed=5, recenter=False).z

    def eps(z_t, level):
        z_t = z_t.detach().requires_grad_()
        with torch.enable_grad():
            own = (z_t - level.alpha * prior.denoise(z_t, level)) / level.sigma
            error = likelihood.y - likelihood.operator((z_t - level.sigma * own)[:, :, 0] / level.alpha)
            log_p = -0.5 * (error**2 / (likelihood.variance + gamma * level.rho**2)).sum()
        return (own - level.sigma * torch.autograd.grad(log_p, z_t)[0]).detach()

    levels, key = sampler.levels(prior), Key.of(5, (0, 1))
    noise = lambda step, stream: key.normal(prior.latent_shape, step=step, stream=stream, dtype=F64)  # noqa: E731
    first = levels[0]
    x = (first.alpha**2 + first.sigma**2) ** 0.5 * noise(0, STREAMS.start)
    for t, s in zip(levels, [*levels[1:], None]):
        if s is None:
            x = (x - t.sigma * eps(x, t)) / t.alpha
            break
        r = s.alpha / t.alpha
        x = r * x + (s.sigma - r * t.sigma) * eps(x, t)
        guided = eps(x, s)
        delta = tau / guided.square().mean(dim=(1, 2, 3, 4), keepdim=True)
        stream = STREAMS.corrector + STREAMS.count
        x = x - s.sigma * (delta * guided + (2 * delta).sqrt() * noise(s.index, stream))
    torch.testing.assert_close(z, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["lo_sda", "slams", "slams_published"])
def test_a_preset_is_what_a_sampler_takes_and_nobody_changes_it(name):
    settings = sampler_preset(name)
    assert Sampler(**settings).guidance == settings["guidance"]
    settings.clear()
    assert sampler_preset(name)["steps"] in (2, 3, 512)


def test_an_unknown_preset():
    with pytest.raises(InputError, match="preset 'sda' is unknown; accepted: lo_sda, slams, slams_published"):
        sampler_preset("sda")
