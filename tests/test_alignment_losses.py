"""Preference losses: closed forms, gradients, and a model that stays where it was when there is nothing to prefer."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsda_fast.alignment.config import AlignmentConfig, ObjectiveConfig
from lsda_fast.alignment.losses import LOSSES, Answers, Errors, PairLatents, compare, objective, preference_loss
from lsda_fast.alignment.train import Validation
from lsda_fast.diffusion.prediction import PREDICTIONS, to_clean
from lsda_fast.diffusion.schedule import Level, Schedule
from lsda_fast.models import DiagonalWhitening, TransformerDenoiser, ZonalWhitening
from lsda_fast.training.config import Optimization
from lsda_fast.training.loop import Log, fit
from lsda_fast.training.noising import Levels, draw_levels, eps_weight, noised

COSINE = Schedule.vp_cosine()
EPS = Errors(COSINE, "eps")


class Scalar(nn.Module):
    """F = gain * what it reads + offset."""

    leading = 1

    def __init__(self, gain: float, offset: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([gain, offset], dtype=torch.float64))

    def predict(self, scaled: Tensor, log_rho: Tensor, background: Tensor, calendar: Tensor) -> Tensor:
        return self.w[0] * scaled + self.w[1]


def scalars(winner: Any, loser: Any, analysis: Any = None) -> PairLatents:
    """Pairs of single numbers."""
    given = (winner, loser, winner if analysis is None else analysis)
    w, l, a = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1, 1) for v in given)
    return PairLatents(w, l, a, torch.zeros_like(w), torch.zeros(len(w), 4, dtype=torch.float64))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
def test_weighted_errors_are_those_of_the_noise(prediction: str) -> None:
    z, noise, clean = torch.randn(3, 8, 1, 1, 1, dtype=torch.float64, generator=generator())
    levels = Levels(*(c.double() for c in draw_levels(COSINE, prediction, 8, generator())))
    target = noised(z, noise, levels, prediction).target
    alpha, sigma = levels.like(z)
    z_t = alpha * z + sigma * noise
    for i in range(8):
        level = Level(0, 0.0, float(levels.alpha[i]), float(levels.sigma[i]))
        zero, one = (to_clean(prediction, torch.full_like(z_t[i], F), z_t[i], level) for F in (0.0, 1.0))
        F = (clean[i] - zero) / (one - zero)
        error = eps_weight(prediction, levels)[i] * (target[i] - F) ** 2
        expected = (noise[i] - (z_t[i] - level.alpha * clean[i]) / level.sigma) ** 2
        torch.testing.assert_close(error, expected, rtol=1e-6, atol=1e-9)


def test_the_margin_of_scalar_models_is_the_closed_form() -> None:
    # With F = c z_t of unit-variance input, E (eps - c z_t)^2 = (1 - c sigma)^2 + (c alpha z)^2, so that
    # E h = (c_theta^2 - c_ref^2) alpha^2 (z_l^2 - z_w^2).
    n, c, c_ref, w, l = 200_000, 0.9, 0.4, 0.3, -1.5
    pairs = scalars([w] * n, [l] * n)
    answers = compare(Scalar(c), Scalar(c_ref), pairs, EPS, generator())
    levels = draw_levels(COSINE, "eps", n, generator())
    alpha = levels.alpha.double() / (levels.alpha**2 + levels.sigma**2).double().sqrt()
    expected = (c**2 - c_ref**2) * alpha**2 * (l**2 - w**2)
    error = answers.margin.detach() - expected
    assert abs(float(error.mean())) < 4 * float(error.std()) / n**0.5
    assert float(error.std()) / n**0.5 < 0.01 * float(expected.mean())


def test_held_out_accuracy_is_the_share_of_pairs_whose_winner_is_preferred() -> None:
    pairs = scalars([0.0, 0.0, 0.0, 5.0], [5.0, 5.0, 5.0, 0.0])
    package: Any = SimpleNamespace(
        device=torch.device("cpu"), schedule=COSINE, prediction="eps", whitened=False, modules={}
    )
    validation = Validation(pairs, Scalar(0.0), package, AlignmentConfig())
    assert validation(Scalar(0.5))[1] == 0.75


def test_losses_of_given_answers() -> None:
    target, model, reference = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, 1.0]], dtype=torch.float64)[..., None, None]
    answers = Answers(target, model, reference, torch.tensor([0.5], dtype=torch.float64)[:, None])
    # Delta_w = 0.5 (0.25 - 1), Delta_l = 0.5 (4 - 1).
    h, beta = 1.875, 0.7
    assert float(answers.margin) == pytest.approx(h)
    below = 1 / (1 + np.exp(beta * h))
    expected = {
        "dpo": np.log1p(np.exp(-beta * h)),
        "ipo": (beta * h - 0.5) ** 2,
        "dspo": 0.5 * (-0.5 - beta * below * 0.5) ** 2,
    }
    for name, value in expected.items():
        assert float(LOSSES[name](answers, beta)) == pytest.approx(value)


def test_the_anchor_adds_the_growth_of_a_latent_between_winner_and_analysis() -> None:
    pairs, model, reference = scalars([0.2, -0.4], [1.2, 0.9], [1.0, 3.0]), Scalar(0.9, 0.1), Scalar(0.4)
    config = ObjectiveConfig(beta=7.0, anchor=0.5, toward=0.25)
    answers = compare(model, reference, pairs, Errors(COSINE, "eps", toward=0.25), generator())
    plain = compare(model, reference, pairs, EPS, generator())
    # The pairs' own part is the same; the anchor's latents are a quarter of the way from 0.2 to 1 and from -0.4 to 3.
    assert torch.equal(answers.growth[:2], plain.growth)
    between = compare(model, reference, scalars([0.4, 0.45], [0.0, 0.0]), EPS, generator())
    torch.testing.assert_close(answers.growth[2], between.growth[0])
    torch.testing.assert_close(objective(answers, config), LOSSES["dpo"](plain, 7.0) + 3.5 * answers.growth[2])


def test_a_place_without_an_anchor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"toward 0\.5 came without an anchor; accepted is an anchor above 0"):
        ObjectiveConfig(toward=0.5)


def test_latent_units_measure_what_the_whitening_restores() -> None:
    whitening = DiagonalWhitening((3, 2, 2))
    whitening.std.copy_(torch.rand(3, 2, 2, generator=generator()) + 0.5)
    pairs, model, reference = latents(5, same=False), network(0, leading=2), network(1, leading=2)
    plain = compare(model, reference, pairs, EPS, generator())
    colored = compare(model, reference, pairs, Errors(COSINE, "eps", "latent", whitening), generator())
    error = lambda F: ((F - plain.target) * whitening.std[:2]).square().flatten(2).sum(2) / 12  # noqa: E731
    torch.testing.assert_close(colored.growth, error(plain.model) - error(plain.reference), rtol=1e-4, atol=1e-6)


def test_where_a_whitening_mixes_channels_answers_that_are_not_predicted_have_no_error() -> None:
    whitening = ZonalWhitening((3, 2, 2), rank=6)
    whitening.fit(torch.randn(40, 3, 2, 2, generator=generator()).cumsum(1))
    pairs, model, reference = latents(5, same=False), network(0, leading=2), network(1, leading=2)
    plain = compare(model, reference, pairs, EPS, generator())
    colored = compare(model, reference, pairs, Errors(COSINE, "eps", "latent", whitening), generator())

    def error(F: Tensor) -> Tensor:
        filled = nn.functional.pad(F - plain.target, (0, 0, 0, 0, 0, 1))
        return whitening.color(filled.flatten(0, 1)).reshape(filled.shape).square().flatten(2).mean(2)

    torch.testing.assert_close(colored.growth, error(plain.model) - error(plain.reference), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("units", ["training", "eps"])
@pytest.mark.parametrize("anchor", [0.0, 0.8])
@pytest.mark.parametrize("name", list(LOSSES))
def test_gradients_are_those_of_finite_differences(name: str, anchor: float, units: str) -> None:
    pairs = scalars([0.2, -0.4, 1.0, 0.1], [1.2, 0.9, -2.0, 0.3], [0.0, -1.0, 0.5, 0.7])
    toward = 0.6 if anchor else 0.0
    config = ObjectiveConfig(loss=name, beta=3.0, units=units, anchor=anchor, toward=toward)
    errors = Errors(Schedule.edm(sigma_max=5.0), "wiener", units, toward=toward or None)
    loss = preference_loss(pairs, Scalar(0.1), errors, config, torch.device("cpu"))
    module = Scalar(0.3, -0.2)

    def value() -> Tensor:
        return loss(module, torch.arange(4), generator())

    value().backward()
    numeric = torch.empty(2, dtype=torch.float64)
    for i in range(2):
        sides = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                module.w[i] += step
                sides.append(value())
                module.w[i] -= step
        numeric[i] = (sides[0] - sides[1]) / 2e-6
    torch.testing.assert_close(module.w.grad, numeric, rtol=1e-6, atol=1e-8)


def gradient(name: str, beta: float, pairs: PairLatents, module: nn.Module, reference: nn.Module) -> Tensor:
    config = ObjectiveConfig(loss=name, beta=beta)
    loss = preference_loss(pairs, reference, EPS, config, torch.device("cpu"))
    module.zero_grad()
    loss(module, torch.arange(len(pairs.winner)), generator()).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def test_from_the_reference_gradients_are_as_large_as_beta() -> None:
    pairs, module = scalars([0.2, -0.4], [1.2, 0.9]), Scalar(0.3)
    for name in ("dpo", "ipo"):
        small, large = (gradient(name, beta, pairs, module, Scalar(0.3)) for beta in (1e-6, 1.0))
        torch.testing.assert_close(small * 1e6, large)
    # There DSPO is the fine-tuning to the winner, less half of beta.
    fine, half = (gradient("dspo", beta, pairs, module, Scalar(0.3)) for beta in (1e-12, 1.0))
    torch.testing.assert_close(half, 0.5 * fine)


def network(seed: int, **settings: Any) -> TransformerDenoiser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = TransformerDenoiser((3, 2, 2), width=8, depth=1, heads=2, prediction="eps", **settings)
        for p in module.parameters():
            nn.init.normal_(p, std=0.2)
    return module


def latents(n: int, same: bool) -> PairLatents:
    winner, loser, background = torch.randn(3, n, 3, 2, 2, generator=generator())
    return PairLatents(winner, winner if same else loser, winner, background, torch.zeros(n, 4))


@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_identical_pairs_have_no_gradient(name: str) -> None:
    module = network(0, dropout=0.5).train()
    found = gradient(name, 8000.0, latents(6, same=True), module, network(1))
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize(("same", "beta"), [(True, 8000.0), (False, 1e-30)])
def test_with_nothing_to_prefer_the_model_stays_where_it_was(same: bool, beta: float) -> None:
    module = network(0)
    reference = copy.deepcopy(module).requires_grad_(False)
    loss = preference_loss(latents(8, same), reference, EPS, ObjectiveConfig(beta=beta), torch.device("cpu"))
    settings = Optimization(steps=5, batch=4, lr=0.1, warmup=0, weight_decay=0.0)
    fit(module, loss, 8, settings, stage="x", seed=0, log=Log(None))
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), reference.parameters()))


def test_a_preferred_sign_is_learned_and_the_reference_stays() -> None:
    n = 64
    winner = 1.0 + 0.1 * torch.randn(n, 3, 2, 2, generator=generator())
    pairs = PairLatents(winner, -winner, winner, torch.zeros_like(winner), torch.zeros(n, 4))
    module = network(0)
    reference = copy.deepcopy(module).requires_grad_(False)
    before = copy.deepcopy(reference.state_dict())
    config = ObjectiveConfig(beta=50.0)
    loss = preference_loss(pairs, reference, EPS, config, torch.device("cpu"))
    settings = Optimization(steps=40, batch=32, lr=3e-3, warmup=0, ema=0.0, weight_decay=0.0)
    fit(module, loss, n, settings, stage="x", seed=0, log=Log(None))
    margin = compare(module, reference, pairs, EPS, generator()).margin
    assert float((margin > 0).double().mean()) > 0.8
    assert all(torch.equal(value, before[key]) for key, value in reference.state_dict().items())
