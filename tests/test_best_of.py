"""The best of N: the members that the rewards choose, their departures, and what stands in for the truth."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor

from lsda_fast.alignment.best_of import best_of, check_rewards, reward_table
from lsda_fast.alignment.case import Case
from lsda_fast.alignment.rewards import Accuracy, rewards_of
from lsda_fast.analysis import Analysis, departure_table
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.guidance import Huber, Likelihood
from lsda_fast.observations import ObservationOperator, Observations
from lsda_fast.package import Package

TIME = np.datetime64("2008-12-08T12", "ns")
LAYOUT = StateLayout(
    Grid(np.linspace(85.0, -85.0, 18), np.arange(24) * 15.0),
    tuple(Channel(name, 500.0, units) for name, units in zip("zuvt", ("m2 s-2", "m s-1", "m s-1", "degC"))),
)
NORMALIZATION = Normalization(np.array([5.5e4, 5.0, 0.0, -20.0]), np.array([2e3, 10.0, 8.0, 10.0]))
PACKAGE = Package(LAYOUT, NORMALIZATION, Schedule.edm(), "wiener", {}, {}, np.zeros(4))
NUMBERS = [3, 5, 7, 11]


def jet(wind: float, factor: float) -> np.ndarray:
    """A jet ``factor`` times as strong as the geopotential balances, and a weak meridional wind that it does not."""
    phi = np.deg2rad(LAYOUT.grid.latitude)[:, None] + np.zeros((1, 24))
    z = 5.5e4 - 7.292115e-5 * 6.371229e6 * wind * np.sin(phi) ** 2
    return np.stack([z, factor * wind * np.cos(phi), 0.1 + 0 * phi, -20 + 0 * phi]).astype(np.float32)


# Members 3 and 11 are nearly in balance, 5 as far from it as the background, 7 further.
MEMBERS = np.stack([jet(20, 1.01), jet(20, 1.5), jet(20, 2.0), jet(20, 1.0)])
BACKGROUND = jet(18, 1.5)


def dataset(states: np.ndarray, **coords: Any) -> xr.Dataset:
    """States of this layout, with a time unless there is a dimension of them."""
    dims = tuple(name for name in ("time", "member") if name in coords)
    return LAYOUT.to_dataset(states, dims=dims, coords={"time": TIME} | coords)


def observed(state: np.ndarray, **columns: Any) -> Observations:
    """Temperature and wind of this state at three places, and one row that cannot be used."""
    frame = pd.DataFrame(
        {
            "time": TIME,
            "latitude": [45.0, 95.0, 45.0, -35.0],
            "longitude": [30.0, 0.0, 30.0, 200.0],
            "variable": ["t", "u", "u", "u"],
            "level": 500.0,
            "value": [0.0, 0.0, 0.0, 0.0],
            "std": 1.0,
        }
    ).assign(**columns)
    operator = ObservationOperator.stations(Observations.from_frame(frame), LAYOUT, NORMALIZATION)
    values = operator(PACKAGE.normalize(state)[None])[0].double().numpy()
    return Observations.from_frame(frame.assign(value=np.insert(values, 1, 0.0)))


def analysis(members: np.ndarray = MEMBERS, numbers: list[int] = NUMBERS, robust: Huber | None = None) -> Analysis:
    """An analysis of these members, with departures."""
    observations = observed(jet(22, 1.0))
    operator = ObservationOperator.stations(observations, LAYOUT, NORMALIZATION)
    x_b, x_a = PACKAGE.normalize(BACKGROUND), PACKAGE.normalize(members)
    ones = torch.ones(operator.size)
    likelihood = Likelihood(operator, torch.tensor(operator.values).float(), ones, ones, robust)
    table = departure_table(observations, operator.reasons, likelihood, x_b, x_a)
    return Analysis(dataset(members, member=numbers), dataset(BACKGROUND), table, Counter(), 1.0, robust=robust)


CLIMATE = dataset(np.stack([jet(25, 1.0), jet(15, 1.02)]), time=TIME + np.array([-20, -10], "timedelta64[D]"))


def test_the_members_whose_balance_is_that_of_the_reference_states_are_kept() -> None:
    given = analysis()
    best = best_of(given, PACKAGE, "physics", members=2, reference=CLIMATE)
    assert "chosen_by" not in given.analysis.attrs
    assert best.analysis["member"].values.tolist() == [3, 11]
    assert (best.analysis.attrs["chosen_from"], best.analysis.attrs["chosen_by"]) == (4, "physics")
    table = best.candidates
    assert table is not None
    assert table.columns.tolist() == ["member", "physics", "rank", "kept"]
    assert table["kept"].tolist() == [True, False, False, True]
    assert sorted(table["rank"]) == [1, 2, 3, 4]
    # As if these two had been the analysis.
    pd.testing.assert_frame_equal(best.departures, analysis(MEMBERS[[0, 3]], [3, 11]).departures, atol=1e-4)


def test_robust_weights_are_those_of_the_members_that_are_kept() -> None:
    cost = Huber(0.3)
    best = best_of(analysis(robust=cost), PACKAGE, "physics", members=2, reference=CLIMATE)
    expected = analysis(MEMBERS[[0, 3]], [3, 11], cost).departures
    assert expected["weight"].min() < 0.9
    pd.testing.assert_frame_equal(best.departures, expected, atol=1e-4)
    assert not np.allclose(best.departures["weight"], analysis(robust=cost).departures["weight"], equal_nan=True)


def test_robust_weights_know_the_errors_of_representativeness() -> None:
    package = replace(PACKAGE, reconstruction_error=np.full(4, 0.5, np.float32))
    knows, without = (
        best_of(
            replace(analysis(robust=Huber(0.3)), representativeness=known),
            package,
            "physics",
            members=2,
            reference=CLIMATE,
        ).departures["weight"]
        for known in (True, False)
    )
    assert (knows.dropna() >= without.dropna()).all()
    assert not np.allclose(knows, without, equal_nan=True)


def test_those_that_are_kept_stand_in_the_order_of_the_analysis() -> None:
    """Of these the later are nearer to balance."""
    given = analysis(MEMBERS[[2, 1, 0]], [3, 5, 7])
    kept = best_of(given, PACKAGE, "physics", members=2, reference=CLIMATE).analysis
    assert kept["member"].values.tolist() == [5, 7]
    np.testing.assert_array_equal(kept["u500"][0], MEMBERS[1][1])


def test_without_reference_states_the_background_stands_in() -> None:
    assert best_of(analysis(), PACKAGE).analysis["member"].values.tolist() == [5]


def test_observations_held_out_stand_in_for_accuracy() -> None:
    rewards = rewards_of("observations", PACKAGE, held_out=observed(MEMBERS[2]))
    assert best_of(analysis(), PACKAGE, rewards).analysis["member"].values.tolist() == [7]


def test_ranks_are_averaged_and_ties_share_them() -> None:
    twice = analysis(MEMBERS[[2, 0, 0]], [0, 1, 2])
    rewards = rewards_of("physics,observations", PACKAGE, held_out=observed(MEMBERS[2]))
    table = reward_table(twice, PACKAGE, rewards, reference=CLIMATE)
    pd.testing.assert_frame_equal(reward_table(twice, PACKAGE, ["physics", rewards[1]], reference=CLIMATE), table)
    pd.testing.assert_frame_equal(
        reward_table(twice, PACKAGE, ["physics"], reference=CLIMATE)[["physics"]], table[["physics"]]
    )
    assert table["rank"].tolist() == [2, 2, 2]
    assert best_of(twice, PACKAGE, rewards, reference=CLIMATE).analysis["member"].values.tolist() == [0]


@dataclass(frozen=True)
class Spy:
    """Keeps the cases that it is given."""

    seen: list[Case]
    name: str = "spy"

    def __call__(self, candidates: Tensor, case: Case) -> Tensor:
        self.seen.append(case)
        return torch.full((len(candidates),), 0.5)


def test_after_the_fact_the_analysis_of_the_time_is_the_reference_and_later_ones_verify() -> None:
    times = TIME + np.array([-6, 0, 24, 48], "timedelta64[h]")
    truth = dataset(np.stack([BACKGROUND, MEMBERS[1], BACKGROUND, MEMBERS[2]]), time=times)
    spy = Spy([])
    table = analysis().rewards(PACKAGE, [Accuracy(), spy], reference=truth)
    assert table["accuracy"].idxmax() == 1
    (case,) = spy.seen
    assert case.time == TIME
    assert not case.stand_in
    assert list(case.later) == [48.0]
    torch.testing.assert_close(case.later[48.0], PACKAGE.normalize(MEMBERS[2]))


def test_orientation_and_wrap_change_nothing() -> None:
    turned = lambda d: d.isel(latitude=slice(None, None, -1)).roll(longitude=7, roll_coords=True)  # noqa: E731
    given = analysis()
    other = replace(given, analysis=turned(given.analysis), background=turned(given.background))
    table = reward_table(given, PACKAGE, "physics", reference=CLIMATE)
    pd.testing.assert_frame_equal(reward_table(other, PACKAGE, "physics", reference=turned(CLIMATE)), table)


def test_the_rewards_of_an_earlier_analysis_go_with_it(tmp_path: Path) -> None:
    best_of(analysis(), PACKAGE).save(tmp_path / "A.nc")
    assert (tmp_path / "A.rewards.csv").exists()
    analysis().save(tmp_path / "A.nc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["A.departures.csv", "A.nc"]


def test_a_folder_in_the_place_of_a_table_leaves_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "A.departures.csv").mkdir()
    with pytest.raises(InputError, match=r"A\.departures\.csv is a folder"):
        analysis().save(tmp_path / "A.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["A.departures.csv"]


def test_the_rewards_lie_beside_the_analysis(tmp_path: Path) -> None:
    best = best_of(analysis(), PACKAGE, members=3)
    names = ("A.nc", "A.departures.csv", "A.rewards.csv")
    assert best.save(tmp_path / "A.nc") == tuple(tmp_path / name for name in names)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "A.rewards.csv"), best.candidates, check_exact=True)


def test_what_cannot_be_chosen_is_refused() -> None:
    for members in (0, 5):
        with pytest.raises(InputError, match=f"{members} members to keep; accepted are 1 to 4, the candidates"):
            best_of(analysis(), PACKAGE, members=members)
    with pytest.raises(InputError, match="needs the reference analysis of the candidates' time"):
        check_rewards(PACKAGE, dataset(BACKGROUND), "accuracy", reference=CLIMATE)
    check_rewards(PACKAGE, dataset(BACKGROUND), "physics")
    far = observed(BACKGROUND).select(np.zeros(3, bool))
    with pytest.raises(InputError, match="none of 0 observations held out can be used"):
        check_rewards(PACKAGE, dataset(BACKGROUND), rewards_of("observations", PACKAGE, held_out=far))
