"""Noise schedules against their closed forms, their inverse, and the levels of a run."""

import math

import numpy as np
import pytest
import torch

from lsda_fast.diffusion import Schedule
from lsda_fast.errors import InputError

SCHEDULES = [Schedule.vp_cosine(), Schedule.vp_linear(), Schedule.edm()]
IDS = [schedule.kind for schedule in SCHEDULES]


def test_vp_cosine_closed_form():
    schedule = Schedule.vp_cosine(eta=1e-3)
    assert schedule.alpha(0.0) == 1.0
    assert schedule.alpha(1.0) == pytest.approx(1e-3, rel=1e-12)
    assert schedule.sigma(0.0) == pytest.approx(1e-3, rel=1e-9)
    assert schedule.sigma(1.0) == pytest.approx(1.0, rel=1e-12)
    angle = math.acos(math.sqrt(1e-3))
    assert schedule.alpha(0.3) == pytest.approx(0.5 * (1 + math.cos(0.6 * angle)), rel=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 1.0])
def test_vp_linear_is_the_integral_of_its_rate(t):
    schedule = Schedule.vp_linear(beta_min=0.1, beta_max=20.0)
    midpoints = (np.arange(1000) + 0.5) * (t / 1000)
    integral = float(np.sum(0.1 + midpoints * (20.0 - 0.1)) * (t / 1000))
    assert schedule.alpha(t) == pytest.approx(math.exp(-0.5 * integral), rel=1e-9)
    assert schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 == pytest.approx(1.0, rel=1e-12)


def test_edm_is_the_spacing_of_karras():
    schedule = Schedule.edm(sigma_min=2e-3, sigma_max=80.0)
    N = 18
    i = np.arange(N)
    karras = (80.0 ** (1 / 7) + i / (N - 1) * (2e-3 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    np.testing.assert_allclose([schedule.sigma(1 - k / (N - 1)) for k in i], karras, rtol=1e-11)
    assert schedule.alpha(0.4) == 1.0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_time_inverts_rho(schedule):
    times = np.linspace(0.01, 1.0, 34)
    rho = [schedule.rho(t) for t in times]
    assert all(np.diff(rho) > 0)
    np.testing.assert_allclose([schedule.time(r) for r in rho], times, rtol=1e-9)
    assert schedule.time(1e9) == pytest.approx(1.0)
    assert schedule.time(0.0) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_levels_in_time_leave_out_the_end(schedule, steps):
    levels = schedule.levels(steps, start=0.8, stop=0.2)
    np.testing.assert_allclose([level.t for level in levels], 0.8 - 0.6 / steps * np.arange(steps), rtol=1e-12)
    assert [level.index for level in levels] == list(range(steps))
    for level in levels:
        assert (level.alpha, level.sigma) == (schedule.alpha(level.t), schedule.sigma(level.t))
        assert level.rho == schedule.rho(level.t)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)
def test_levels_in_log_rho_are_geometric_and_take_in_the_end(schedule):
    stop = schedule.time(2.0)
    rho = np.array([level.rho for level in schedule.levels(7, stop=stop, spacing="log_rho")])
    assert rho[0] == schedule.rho(1.0)
    assert rho[-1] == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_allclose(np.diff(np.log(rho)), np.log(2.0 / rho[0]) / 6, rtol=1e-6)


def test_the_manifest_keeps_a_schedule():
    for schedule in (Schedule.vp_cosine(1e-2), Schedule.vp_linear(0.2, 10.0), Schedule.edm(0.01, 50.0)):
        assert Schedule(**schedule.to_dict()) == schedule


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Schedule("cosine"), "'cosine' is unknown; accepted: vp_cosine, vp_linear, edm"),
        (lambda: Schedule.vp_cosine(eta=0.0), "0 < eta < 1"),
        (lambda: Schedule.vp_linear(2.0, 1.0), "0 < beta_min < beta_max"),
        (lambda: Schedule.edm(sigma_min=float("nan")), "0 < sigma_min < sigma_max"),
        (lambda: Schedule().levels(0), "steps = 0; accepted is a whole number of at least 1"),
        (lambda: Schedule().levels(4, start=0.3, stop=0.3), "accepted is 0 <= stop < start <= 1"),
        (lambda: Schedule().levels(4, start=1.1), "accepted is 0 <= stop < start <= 1"),
        (lambda: Schedule().levels(4, spacing="rho"), "'rho' is unknown; accepted: time, log_rho"),
    ],
)
def test_bad_input_gets_a_sentence(call, sentence):
    with pytest.raises(InputError) as caught:
        call()
    assert sentence in str(caught.value)


def test_vp_cosine_is_the_square_of_azulas_cosine(azula):
    """azula's cosine schedule is alpha = cos(t arccos(alpha_min)); the papers' is the square of one."""
    ours = Schedule.vp_cosine(eta=1e-3)
    t = torch.linspace(0, 1, 17, dtype=torch.float64)
    theirs = azula.noise.CosineSchedule(alpha_min=math.sqrt(1e-3)).alpha(t).square()
    alpha = torch.tensor([ours.alpha(float(v)) for v in t], dtype=torch.float64)
    sigma = torch.tensor([ours.sigma(float(v)) for v in t], dtype=torch.float64)
    torch.testing.assert_close(alpha, theirs, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(sigma, torch.sqrt(1 - theirs**2 + 1e-3**2), rtol=1e-9, atol=1e-12)


def test_vp_linear_without_a_first_rate_is_azulas_vp(azula):
    ours = Schedule.vp_linear(beta_min=1e-12, beta_max=4 * math.log(1e3))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    theirs = azula.noise.VPSchedule(alpha_min=1e-3, sigma_min=0.0)(t)
    for mine, other in zip((ours.alpha, ours.sigma), theirs):
        torch.testing.assert_close(torch.tensor([mine(float(v)) for v in t]).double(), other, rtol=1e-6, atol=1e-6)
