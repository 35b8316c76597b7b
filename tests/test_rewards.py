"""Rewards against numbers worked out by hand: balanced flow, isothermal columns, known errors, a known forecast."""

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from lsda_fast.alignment.case import Case
from lsda_fast.alignment.rewards import (
    REWARDS,
    Accuracy,
    ForecastSkill,
    Geostrophic,
    HeldOut,
    Hydrostatic,
    Reward,
    register_reward,
    rewards_of,
)
from lsda_fast.alignment.rewards.base import bradley_terry
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError, NonFiniteError
from lsda_fast.forecast_models import CallableForecast
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.observations import Observations
from lsda_fast.package import Package
from lsda_fast.twin import column_observations

TIME = np.datetime64("2008-12-07T12", "ns")
GLOBAL = Grid(np.linspace(88.75, -88.75, 72), np.arange(144) * 2.5)
EUROPE = Grid(np.linspace(70.0, 30.0, 33), np.linspace(-20.0, 30.0, 41))
UNITS = {"z": "m2 s-2", "t": "K", "u": "m s-1", "v": "m s-1", "q": "g kg-1", "msl": "hPa"}
SPREAD = {"z": 2000.0, "t": 10.0, "u": 10.0, "v": 8.0, "q": 3.0, "msl": 10.0}
OMEGA, RADIUS, R = 7.292115e-5, 6.371229e6, 287.05


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + exp(-x))


def package(*names: str, grid: Grid = GLOBAL, units: dict[str, str] = UNITS) -> Package:
    """A package without networks, with these channels ("z500", "msl")."""
    split = [(name, None) if name == "msl" else (name[0], float(name[1:])) for name in names]
    channels = tuple(Channel(variable, level, units[variable]) for variable, level in split)
    std = np.array([SPREAD[channel.variable] for channel in channels])
    normalization = Normalization(3 * std, std)
    return Package(StateLayout(grid, channels), normalization, Schedule.edm(), "wiener", {}, {}, np.zeros(len(names)))


def states(of: Package, *fields: dict[str, Any]) -> Tensor:
    """Normalised states of physical fields by channel, each anything that broadcasts to (H, W)."""
    shape = of.layout.grid.shape
    values = [[np.broadcast_to(given[name], shape) for name in of.layout.names] for given in fields]
    return of.normalize(np.array(values))


def case(of: Package, reference: Tensor, **others: Any) -> Case:
    """A case whose background is the reference too."""
    return Case(of, TIME, reference, reference, **others)


def geostrophic_flow(grid: Grid, jet: float, wave: float) -> dict[str, Any]:
    """A jet and waves of number 3, with the geopotential that balances them everywhere."""
    phi, lam = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)[None]
    scale = 2 * OMEGA * RADIUS
    return {
        "z500": scale * np.sin(phi) ** 2 * (-jet / 2 + wave * np.cos(phi) * np.sin(3 * lam)),
        "u500": jet * np.cos(phi) - wave * (2 * np.cos(phi) ** 2 - np.sin(phi) ** 2) * np.sin(3 * lam),
        "v500": 3 * wave * np.sin(phi) * np.cos(3 * lam),
    }


def isothermal(temperature: float, **others: Any) -> dict[str, Any]:
    """A dry column of one temperature in hydrostatic balance."""
    levels = (1000, 700, 500)
    heights = {f"z{p}": -R * temperature * log(p / 1000) for p in levels}
    return {**heights, **{f"t{p}": temperature for p in levels}, **others}


COLUMN = ("z1000", "z700", "z500", "t1000", "t700", "t500")


# Errors among candidates


def test_candidates_beat_each_other_with_the_probability_of_bradley_and_terry() -> None:
    rewards = bradley_terry(torch.tensor([[0.0], [1.0], [3.0]]), torch.ones(1))
    expected = [(sigmoid(1) + sigmoid(3)) / 2, (sigmoid(-1) + sigmoid(2)) / 2, (sigmoid(-3) + sigmoid(-2)) / 2]
    torch.testing.assert_close(rewards, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("unit", "z", "msl"), [("normalised", 0.5, 0.25), ("native", 1000.0, 2.5), ("spread", 2.0, 2.0)]
)
def test_accuracy_is_compared_in_the_chosen_unit_and_averaged_over_channels(unit: str, z: float, msl: float) -> None:
    of = package("z500", "msl")
    reference = states(of, {"z500": 5e4, "msl": 1000.0})
    candidates = states(of, {"z500": 5e4 + 1000, "msl": 1000 - 5.0}, {"z500": 5e4 - 2000, "msl": 1002.5})
    chances = (sigmoid(z), sigmoid(-msl))
    expected = [sum(chances) / 2, 1 - sum(chances) / 2]
    rewards = Accuracy(unit)(candidates, case(of, reference[0]))
    torch.testing.assert_close(rewards, torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_errors_count_by_area() -> None:
    of = package("msl")
    row = np.zeros((72, 1))
    row[20] = 10.0
    x = states(of, {"msl": 1000 + row}, {"msl": 1000.0})
    weight = np.cos(np.deg2rad(GLOBAL.latitude))
    error = sqrt(weight[20] / weight.sum())
    expected = torch.tensor([sigmoid(-error), sigmoid(error)], dtype=torch.float64)
    torch.testing.assert_close(Accuracy("normalised")(x, case(of, x[1])), expected, rtol=1e-4, atol=0)


def test_equal_candidates_are_even() -> None:
    of = package("msl")
    x = states(of, *[{"msl": 1010.0}] * 3)
    assert Accuracy()(x, case(of, x[0] + 1)).tolist() == [0.5] * 3


# The forecast


def halved(x: np.ndarray, time: np.datetime64) -> np.ndarray:
    """Half of the pressure is left after a day."""
    return 0.5 * x


def test_the_forecast_is_verified_after_the_lead() -> None:
    of = package("msl")
    x = states(of, {"msl": 4000.0}, {"msl": 4040.0})
    later = states(of, {"msl": 1000.0})[0]
    reward = ForecastSkill(CallableForecast(halved, of, 24.0), unit="native")
    given = case(of, x[0], later={24.0: x[0], 48.0: later})
    expected = torch.tensor([sigmoid(10), sigmoid(-10)], dtype=torch.float64)
    torch.testing.assert_close(reward(x, given), expected, rtol=0, atol=1e-4)


def test_the_forecast_is_of_the_lead() -> None:
    of, asked = package("msl"), []

    def model(x: Tensor, time: np.datetime64, hours: float) -> Tensor:
        asked.append(hours)
        return x

    x = states(of, {"msl": 1000.0}, {"msl": 1010.0})
    ForecastSkill(model, 36.0)(x, case(of, x[0], later={36.0: x[0]}))
    assert asked == [36.0]


# Balance


@pytest.mark.parametrize("grid", [GLOBAL, EUROPE], ids=["global", "regional"])
def test_balanced_flow_scores_1_and_unbalanced_flow_what_its_imbalance_says(grid: Grid) -> None:
    of = package("z500", "u500", "v500", "msl", grid=grid)
    flow = geostrophic_flow(grid, 20.0, 4.0) | {"msl": 1010.0}
    fast = flow | {"u500": 1.25 * flow["u500"], "v500": 1.25 * flow["v500"]}
    calm = flow | {"v500": 2 * flow["v500"]}
    x = states(of, flow, fast, calm)
    assert Geostrophic().imbalance(x, of)[:, 0].numpy() == pytest.approx([0, 0.2, 0.25], abs=6e-3)
    reference = states(of, geostrophic_flow(grid, 30.0, 2.0) | {"msl": 1000.0})[0]
    rewards = Geostrophic()(x, case(of, reference))
    assert rewards.numpy() == pytest.approx([1, 2 * sigmoid(-0.2), 2 * sigmoid(-0.25)], abs=6e-3)
    # Against a reference that is out of balance itself, balance is not the best.
    assert Geostrophic()(x, case(of, x[1])).argmax() == 1


def test_the_tropics_and_the_poles_have_no_part() -> None:
    of = package("z500", "u500", "v500")
    flow = geostrophic_flow(GLOBAL, 20.0, 4.0)
    outside = ((np.abs(GLOBAL.latitude) < 17) | (np.abs(GLOBAL.latitude) > 83))[:, None]
    wild = {name: field + 1e3 * outside for name, field in flow.items()}
    rewards = Geostrophic()(states(of, flow, wild), case(of, states(of, flow)[0]))
    torch.testing.assert_close(rewards[0], rewards[1], rtol=0, atol=1e-5)


def test_imbalance_counts_by_area() -> None:
    """A wind that is half as strong again on one row, 76 degrees north: a third of it is imbalance there."""
    of, flow = package("z500", "u500", "v500"), geostrophic_flow(GLOBAL, 20.0, 0.0)
    row, weight = np.arange(72) == 5, np.cos(np.deg2rad(GLOBAL.latitude))
    wind = 20 * weight
    counted = (np.abs(GLOBAL.latitude) >= 20) & (np.abs(GLOBAL.latitude) <= 80)
    x = states(of, flow, flow | {"u500": flow["u500"] * (1 + 0.5 * row)[:, None]})
    balanced, disturbed = Geostrophic().imbalance(x, of)[:, 0].tolist()
    excess = 0.5 * wind[row] * weight[row]
    expected = 0.5 * excess / ((wind * weight)[counted].sum() + excess)
    assert disturbed - balanced == pytest.approx(float(expected[0]), rel=0.1)


def test_an_isothermal_column_scores_1_and_a_warmed_one_what_its_residual_says() -> None:
    of = package(*COLUMN)
    warm = isothermal(250.0) | {f"t{p}": 252.5 for p in (1000, 700, 500)}
    x = states(of, isothermal(250.0), warm)
    torch.testing.assert_close(Hydrostatic().residual(x, of)[0], torch.zeros(2), rtol=0, atol=3e-6)
    rewards = Hydrostatic()(x, case(of, states(of, isothermal(280.0))[0]))
    assert rewards.numpy() == pytest.approx([1, 2 * sigmoid(-2.5 / 252.5 / 0.01)], abs=5e-4)


def test_hydrostatic_residuals_count_by_area() -> None:
    of, weight = package(*COLUMN), np.cos(np.deg2rad(GLOBAL.latitude))
    row = np.where(np.arange(72) == 5, 2.5, 0.0)[:, None]
    x = states(of, isothermal(250.0) | {f"t{p}": 250.0 + row for p in (1000, 700, 500)})
    expected = 2.5 / 252.5 * weight[5] / weight.sum()
    assert Hydrostatic().residual(x, of)[0].numpy() == pytest.approx(expected, rel=0.02)


def test_humid_air_is_light() -> None:
    of = package(*COLUMN, "q1000", "q700")
    x = states(of, isothermal(280.0, q1000=10.0, q700=10.0))
    lower, upper = 0.00608, 0.00608 / 2
    expected = [lower / (1 + lower), upper / (1 + upper)]
    assert Hydrostatic().residual(x, of)[0].numpy() == pytest.approx(expected, abs=3e-6)


# What holds for every reward


@dataclass(frozen=True)
class Noisy:
    """A reference, its forecast, and candidates that err by different amounts; the first is the reference."""

    case: Case
    candidates: Tensor


@pytest.fixture(scope="module")
def noisy() -> Noisy:
    of = package("z500", "u500", "v500", "z300", "t500", "t300")
    flow = geostrophic_flow(GLOBAL, 20.0, 4.0)
    given = states(of, {**flow, "z300": flow["z500"] + R * 240 * log(5 / 3), "t500": 250.0, "t300": 230.0})
    noise = torch.randn(5, *of.layout.shape, generator=torch.Generator().manual_seed(0))
    candidates = given + 0.1 * torch.arange(5)[:, None, None, None] * noise
    return Noisy(case(of, given[0], later={48.0: of.normalize(0.25 * of.denormalize(given[0]))}), candidates)


def every(noisy: Noisy) -> list[Reward]:
    """All the rewards of this case."""
    of, truth = noisy.case.package, noisy.case.package.denormalize(noisy.case.reference)
    std = dict.fromkeys(of.layout.names, 1e-3)
    observations = column_observations(truth, of.layout, fraction=0.02, std=std, seed=0)
    model = CallableForecast(halved, of, 24.0)
    return rewards_of(",".join(REWARDS), of, model=model, held_out=observations)


@pytest.mark.parametrize("number", range(5), ids=list(REWARDS))
def test_the_reference_is_the_best_candidate_and_their_order_does_not_matter(noisy: Noisy, number: int) -> None:
    reward = every(noisy)[number]
    rewards = reward(noisy.candidates, noisy.case)
    assert rewards.shape == (5,)
    assert rewards.argsort(descending=True).tolist() == [0, 1, 2, 3, 4]
    assert bool(((rewards >= 0) & (rewards <= 1)).all())
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(reward(noisy.candidates[order], noisy.case), rewards[order], rtol=1e-5, atol=1e-6)


def test_observations_without_errors_count_alike(noisy: Noisy) -> None:
    reward = every(noisy)[-1]
    assert isinstance(reward, HeldOut)
    frame = reward.observations.frame
    bare = HeldOut(type(reward.observations)(frame.assign(std=np.nan), reward.observations.rejected))
    for one, other in zip(bare(noisy.candidates, noisy.case), reward(noisy.candidates, noisy.case)):
        assert float(one) == pytest.approx(float(other), abs=1e-9)


def held_out(columns: dict[str, Any], *candidates: dict[str, Any]) -> list[float]:
    """Rewards by two temperatures that are observed, at 10 and at 50 degrees east."""
    of = package("t500", "t850")
    place = {"time": TIME, "latitude": 41.25, "longitude": [10.0, 50.0], "variable": "t"}
    x = states(of, *candidates)
    rewards = HeldOut(Observations.from_frame(pd.DataFrame(place | columns)))(x, case(of, x[0]))
    return rewards.tolist()


def test_levels_are_kinds_of_observations_of_their_own() -> None:
    """At 500 hPa the second is a little better, at 850 hPa it is much worse: one each."""
    columns = {"level": [500.0, 850.0], "value": [250.0, 280.0], "std": 1.0}
    rewards = held_out(columns, {"t500": 251.0, "t850": 280.0}, {"t500": 250.5, "t850": 300.0})
    assert rewards == pytest.approx([0.5, 0.5], abs=1e-3)


def test_departures_of_what_is_held_out_count_in_units_of_their_errors() -> None:
    columns = {"level": 500.0, "value": 250.0, "std": [1.0, 2.0]}
    west = (GLOBAL.longitude < 30)[None]
    one = {"t500": 250.0 + 1.0 * west, "t850": 0.0}
    for departure, better in ((3.0, 0), (1.5, 1)):
        rewards = held_out(columns, one, {"t500": 250.0 + departure * ~west, "t850": 0.0})
        assert np.argmax(rewards) == better


# Names, and what is refused


@pytest.mark.parametrize("number", range(5), ids=list(REWARDS))
def test_a_candidate_that_is_not_finite_is_named(noisy: Noisy, number: int) -> None:
    broken = noisy.candidates.clone()
    broken[2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"candidates \[2\] cannot be judged"):
        every(noisy)[number](broken, noisy.case)


def test_a_users_own_reward_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Dry:
        name: str = "dry"

        def __call__(self, candidates: Tensor, case: Case) -> Tensor:
            return torch.sigmoid(-candidates.mean((1, 2, 3)))

    monkeypatch.setattr("lsda_fast.alignment.rewards.registry.REWARDS", dict(REWARDS))
    register_reward("dry", lambda settings: Dry())
    (reward,) = rewards_of("dry", package("msl"))
    assert reward.name == "dry"
    with pytest.raises(InputError, match="'dry' came; accepted are names without commas that are not accuracy"):
        register_reward("dry", lambda settings: Dry())


@pytest.mark.parametrize(
    ("names", "channels", "sentence"),
    [
        ("accuracy,skill", ("msl",), "'accuracy, skill' came; accepted, each once, are accuracy, forecast, physics"),
        ("accuracy,accuracy", ("msl",), "each once"),
        ("", ("msl",), "accepted, each once"),
        ("physics", ("u500", "v500"), r"physics reward needs geopotential \(z\), eastward wind \(u\), .* u500, v500"),
        ("physics", ("z500", "u500", "v300"), "on 1 pressure level or more; the package has z500, u500, v300"),
        ("hydrostatic", ("z500", "t500"), "on 2 pressure levels or more"),
        ("forecast", ("msl",), "lead 48 h; accepted are multiples of the package's 36 h"),
        ("observations", ("msl",), "needs some that are held out; none came"),
    ],
)
def test_names_and_packages_that_do_not_fit_are_refused(names: str, channels: tuple[str, ...], sentence: str) -> None:
    of = package(*channels)
    of.lead_hours = 36.0
    with pytest.raises(InputError, match=sentence):
        rewards_of(names, of)


def test_cases_that_cannot_be_judged_are_refused() -> None:
    of, tropics = package("msl"), Grid(np.linspace(15.0, -15.0, 5), np.arange(8) * 45.0)
    x = states(of, {"msl": 1000.0}, {"msl": 1010.0})
    model = CallableForecast(halved, of, 24.0)
    later = {24.0: x[0], 72.0: x[0]}
    for refused, sentence in (
        (lambda: Accuracy("metres"), "unit 'metres' came; accepted are spread, normalised, native"),
        (lambda: Accuracy()(x[:1], case(of, x[0])), "1 candidate came; .* accepted are at least two"),
        (lambda: Accuracy()(x, case(of, x[0], stand_in=True)), "needs the reference analysis of the candidates' time"),
        (lambda: ForecastSkill(model)(x, case(of, x[0], later=later)), "48 h later; the case has 24 h, 72 h"),
        (
            lambda: ForecastSkill(model, 24.0)(x, Case(of, np.datetime64("NaT"), x[0], x[0], later)),
            "needs the time of the candidates; the case has none",
        ),
        (lambda: case(of, x), r"background has shape \(2, 1, 72, 144\); accepted is \(1, 72, 144\)"),
        (lambda: rewards_of("physics", package("z500", "u500", "v500", grid=tropics)), "between 20 and 80 degrees"),
        (
            lambda: rewards_of("hydrostatic", package(*COLUMN, units=UNITS | {"z": "m"})),
            "is in 'm'; accepted are units of m2 s-2",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            refused()
