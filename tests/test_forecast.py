"""Forecasts by the package's model: leads, times, members, and output that reads back."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

from lsda_fast.calendar import calendar, hours
from lsda_fast.datasets import open_states, write_dataset
from lsda_fast.diffusion.schedule import Schedule
from lsda_fast.errors import InputError
from lsda_fast.forecast import forecast, select_time
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.models import Forecaster
from lsda_fast.package import Package

LAYOUT = StateLayout(
    Grid(np.array([60.0, 50.0, 40.0, 30.0]), np.arange(6) * 2.0),
    (Channel("t", 500.0, "K"), Channel("t", 850.0, "K"), Channel("msl", None, "Pa")),
)
NORMALIZATION = Normalization(np.array([250.0, 280.0, 1e5]), np.array([10.0, 8.0, 1e3]))


class Decay(nn.Module):
    """Half of the anomaly is left after one lead; the calendar is kept to be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, season: Tensor) -> Tensor:
        self.seen.append(season)
        return 0.5 * x


def package(forecaster: nn.Module | None, lead: float = 24.0) -> Package:
    modules = {} if forecaster is None else {"forecaster": forecaster}
    return Package(LAYOUT, NORMALIZATION, Schedule.edm(), "wiener", modules, {}, np.zeros(3), lead_hours=lead)


def states(*lead: tuple[str, Any], style: str = "flat") -> tuple[np.ndarray, xr.Dataset]:
    """Random anomalies (normalised) and their data set, with a time unless the leading dimensions have one."""
    coords: dict[str, Any] = dict(lead)
    shape = tuple(len(values) for _, values in lead)
    x = np.random.default_rng(0).standard_normal((*shape, *LAYOUT.shape)).astype(np.float32)
    coords.setdefault("time", np.datetime64("2008-12-07T12", "ns"))
    dataset = LAYOUT.to_dataset(
        NORMALIZATION.denormalize(x), dims=tuple(name for name, _ in lead), coords=coords, style=style
    )
    return x, dataset


@pytest.mark.parametrize(
    ("lead", "expected"),
    [
        ("24", 24),
        ("24h", 24),
        (24, 24),
        (6.5, 6.5),
        ("2d", 48),
        ("90min", 1.5),
        ("1 d", 24),
        ("2 days", 48),
        ("1.5", 1.5),
        ("1 day 6 h", 30),
    ],
)
def test_leads_are_hours_or_time_spans(lead: str | float, expected: float) -> None:
    assert hours(lead, "lead") == expected


@pytest.mark.parametrize("lead", ["tomorrow", "", "0h", "-24h", 0, -1.0, float("nan"), "²"])
def test_leads_that_are_no_time_span_are_refused(lead: str | float) -> None:
    with pytest.raises(InputError, match="accepted"):
        hours(lead, "lead")


@pytest.mark.parametrize(("lead", "steps"), [(None, 1), ("24h", 1), ("2d", 2), (72, 3)])
def test_a_lead_is_whole_steps_of_the_model_each_with_its_own_calendar(lead: Any, steps: int) -> None:
    model = Decay()
    x, dataset = states()
    out = forecast(package(model), dataset, lead=lead)
    expected = NORMALIZATION.denormalize(x * 0.5**steps)
    np.testing.assert_allclose(LAYOUT.to_array(out), expected, rtol=1e-5)
    starts = pd.date_range("2008-12-07T12", periods=steps, freq="1D")
    np.testing.assert_allclose(torch.cat(model.seen), calendar(starts), atol=1e-6)
    assert out["time"].values == np.datetime64("2008-12-07T12") + np.timedelta64(24 * steps, "h")
    assert out["forecast_reference_time"].values == np.datetime64("2008-12-07T12")
    assert float(out["forecast_period"]) == 24 * steps


@pytest.mark.parametrize("lead", ["36h", 12, "25h"])
def test_other_leads_are_refused(lead: Any) -> None:
    with pytest.raises(InputError, match="accepted are multiples of the package's 24 h"):
        forecast(package(Decay()), states()[1], lead=lead)


@pytest.mark.parametrize("style", ["flat", "levels"])
@pytest.mark.parametrize("name", ["member", "number"])
def test_members_and_style_are_kept(style: str, name: str) -> None:
    x, dataset = states(("member", [3, 7]), style=style)
    out = forecast(package(Decay()), dataset.rename(member=name) if name != "member" else dataset)
    assert out["member"].values.tolist() == [3, 7]
    assert ("level" in out.dims) == (style == "levels")
    np.testing.assert_allclose(LAYOUT.to_array(out), NORMALIZATION.denormalize(0.5 * x), rtol=1e-5)


def test_persistence_is_the_initial_state() -> None:
    _, dataset = states()
    out = forecast(package(Forecaster(LAYOUT.shape, modes=0, width=0)), dataset)
    np.testing.assert_allclose(LAYOUT.to_array(out), LAYOUT.to_array(dataset), rtol=1e-6)


def test_a_forecast_is_the_next_ones_initial_state_from_file(tmp_path: Path) -> None:
    x, dataset = states(("member", [0, 1]), style="levels")
    first = forecast(package(Decay()), dataset)
    write_dataset(first, tmp_path / "first.nc")
    read = open_states(tmp_path / "first.nc")
    assert {*StateLayout.infer(read).names} == {*LAYOUT.names}
    second = forecast(package(Decay()), read)
    assert second["time"].values == np.datetime64("2008-12-09T12")
    assert second["forecast_reference_time"].values == np.datetime64("2008-12-08T12")
    np.testing.assert_allclose(LAYOUT.to_array(second), NORMALIZATION.denormalize(0.25 * x), rtol=1e-5)


def test_the_initial_time_is_chosen_among_several() -> None:
    times = pd.date_range("2008-12-07", periods=3, freq="12h").values
    x, dataset = states(("time", times))
    out = forecast(package(Decay()), dataset, time="2008-12-07T12")
    np.testing.assert_allclose(LAYOUT.to_array(out), NORMALIZATION.denormalize(0.5 * x[1]), rtol=1e-5)
    assert out["forecast_reference_time"].values == times[1]
    assert select_time(dataset, "2008-12-07T12Z")["time"].values == times[1]
    assert select_time(dataset, "2008-12-07T13+01:00")["time"].values == times[1]
    assert select_time(dataset.isel(time=[2]), None)["time"].values == times[2]
    for time, message in (
        (None, "the data hold 3 times, 2008-12-07 00:00:00 .. 2008-12-08 00:00:00; say which"),
        ("2008-12-09", "time 2008-12-09 00:00:00 is not in the data; they reach from 2008-12-07 00:00:00 to"),
        ("yesterday evening", "'yesterday evening' is not a date; accepted are dates such as"),
    ):
        with pytest.raises(InputError, match=message):
            forecast(package(Decay()), dataset, time=time)


def test_what_cannot_be_forecast_is_refused() -> None:
    _, dataset = states()
    with pytest.raises(InputError, match="the package has no forecast model"):
        forecast(package(None), dataset)
    with pytest.raises(InputError, match="the initial state has no time"):
        forecast(package(Decay()), dataset.drop_vars("time"))
    with pytest.raises(InputError, match="has no msl"):
        forecast(package(Decay()), dataset.drop_vars("msl"))
