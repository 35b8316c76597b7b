"""States for training: sorted, split, paired and normalised, or refused in one sentence."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from lsda_fast.errors import InputError
from lsda_fast.training.config import load_config
from lsda_fast.training.data import calendar, load_states


def test_states_are_sorted_split_paired_and_normalised_by_training_alone(daily: ModuleType) -> None:
    shuffled = daily.REGION.isel(time=np.random.default_rng(0).permutation(300)).rename(
        latitude="lat", time="valid_time"
    )
    states = load_states(shuffled, load_config("tiny"))
    assert states.times.is_monotonic_increasing
    assert (len(states.train), len(states.validation)) == (240, 30)
    held = states.x[states.train].double()
    assert held.mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(held.square().mean((0, 2, 3)), torch.ones(3).double(), rtol=1e-4, atol=0)
    np.testing.assert_allclose(
        states.normalization.denormalize(states.x.numpy())[:, 1], daily.REGION["t850"].values, rtol=1e-6
    )
    # A validation state whose forecast would begin in the training period is no pair.
    assert states.pairs(states.validation).tolist() == list(range(241, 270))
    assert (states.times[states.before[1:]] + pd.Timedelta("1D") == states.times[1:]).all()
    assert states.before[0] == -1


def test_anomaly_normalisation_has_unit_anomalies(daily: ModuleType) -> None:
    zonal = daily.REGION.copy()
    zonal["t850"] = zonal["t850"] + 5.0 * zonal["latitude"]
    states = load_states(zonal, load_config("tiny", normalization="anomaly"))
    held = states.x[states.train].double()
    spread = (held - held.mean(0)).square().mean((0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(3).double(), rtol=1e-4, atol=0)
    assert held[:, 1].square().mean() > 2


def test_dates_choose_the_periods(daily: ModuleType) -> None:
    config = load_config("tiny", train=("2001-02-01", "2001-03"), validate=("2001-05-01", "2001-05-03"))
    states = load_states(daily.REGION, config)
    assert str(states.times[states.train[0]]) == "2001-02-01 00:00:00"
    assert str(states.times[states.train[-1]]) == "2001-03-31 00:00:00"
    assert len(states.validation) == 3


def holes(states: xr.Dataset) -> xr.Dataset:
    broken = states.copy(deep=True)
    broken["t850"][10, 2, 3] = np.nan
    return broken


def test_states_with_missing_values_are_left_out_when_asked(daily: ModuleType) -> None:
    with pytest.raises(InputError, match="t850 has 1"):
        load_states(holes(daily.REGION), load_config("tiny"))
    states = load_states(holes(daily.REGION), load_config("tiny", missing="mask"))
    assert len(states.times) == 299
    assert torch.isfinite(states.x).all()
    assert 9 in states.pairs(states.train)
    assert 10 not in states.pairs(states.train)  # its forecast would begin at the state that is missing


def itself(states: xr.Dataset) -> xr.Dataset:
    return states


BAD: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], dict[str, Any], str]] = {
    "no time": (lambda r: r.isel(time=0), {}, "accepted are states with `time`"),
    "members": (lambda r: r.expand_dims(number=2), {}, "without `member`"),
    "time twice": (lambda r: xr.concat([r, r.isel(time=[4])], "time"), {}, "time 2001-01-05 00:00:00 twice"),
    "constant": (lambda r: r.assign(t850=r["t850"] * 0 + 273.3), {}, "channels t850 do not vary in training"),
    "no pairs": (itself, {"lead_hours": 7.0}, "no training states lie 7 h apart"),
    "no validation pairs": (
        itself,
        {"train": ("2001-02-01", "2001-03"), "validate": ("2001-05-01", "2001-05-01")},
        "no validation states lie 24 h apart",
    ),
    "nothing in the period": (
        itself,
        {"train": ("1999-01-01", "1999-02-01"), "validate": ("2001-05-01", "2001-05-03")},
        "the training period holds no states; the data reach from 2001-01-01",
    ),
    "no validation": (itself, {"train": ("2001-02-01", "2001-03")}, "the validation period holds no states"),
    "validation alone": (itself, {"validate": ("2001-02-01", "2001-03")}, "`validate` came without `train`"),
    "overlap": (itself, {"train": ("2001-02", "2001-03"), "validate": ("2001-03-31", "2001-04")}, "overlap"),
    "no dates": (itself, {"train": ("spring", "autumn"), "validate": ("2001-03-31", "2001-04")}, "not dates"),
    "no variable": (itself, {"variables": ["q700"]}, "q700"),
    "all missing": (lambda r: r.where(r["latitude"] > 40), {"missing": "mask"}, "no state without missing values"),
    "one state": (lambda r: r.isel(time=[0]), {}, "the training period holds no states"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_in_one_sentence(daily: ModuleType, case: str) -> None:
    change, changes, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        load_states(change(daily.REGION), load_config("tiny", **changes))
    assert "\n" not in str(error.value)


def test_calendar_is_the_angle_of_year_and_day() -> None:
    angles = calendar(np.array(["2001-01-01T00", "2001-07-02T18"], "datetime64[ns]"))
    np.testing.assert_allclose(angles[0], [0, 1, 0, 1], atol=1e-7)
    np.testing.assert_allclose(angles[1], [0, -1, -1, 0], atol=0.02)
