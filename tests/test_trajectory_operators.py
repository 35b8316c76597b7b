"""Operators on trajectories and on whole fields: exact in space and time, means by hand, reasons of what is missing."""

import numpy as np
import pandas as pd
import pytest
import torch

from lsda_fast.errors import InputError
from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.observations import ObservationOperator, Observations
from lsda_fast.observations.averages import Blocks, blocks, field_averages, layer_rows, layer_weights, observing
from lsda_fast.observations.trajectory import at_times, every, operator_rows, trajectory_stations

F64 = torch.float64
TIGHT = {"rtol": 1e-12, "atol": 1e-10}
LEVELS = (1000.0, 850.0, 500.0, 100.0)
LAYOUT = StateLayout(
    Grid(np.linspace(60.0, 30.0, 7), np.arange(0.0, 50.0, 5.0)),
    (*(Channel("t", level, "K") for level in LEVELS), Channel("olr", None, "W m-2")),
)
C, H, W = LAYOUT.shape
NORMALIZATION = Normalization(np.array([288.0, 280.0, 255.0, 210.0, 240.0]), np.array([8.0, 8.0, 7.0, 5.0, 30.0]))
TIMES = np.datetime64("2002-01-01T00", "ns") + np.arange(5) * np.timedelta64(6, "h")


def trajectory(field):
    """Normalised (1, T*C, H, W) of a function of hours, latitude, longitude and channel."""
    lat, lon = np.meshgrid(LAYOUT.grid.latitude, LAYOUT.grid.longitude, indexing="ij")
    x = np.stack([[field(6.0 * t, lat, lon, c) for c in LAYOUT.channels] for t in range(len(TIMES))])
    return torch.from_numpy(NORMALIZATION.normalize(x)).flatten(0, 1)[None]


def table(hours, variable="t", level=850.0):
    hours = np.asarray(hours, dtype=float)
    rng = np.random.default_rng(0)
    time = TIMES[0] + np.array([np.timedelta64(round(3600 * h), "s") for h in hours])
    frame = pd.DataFrame({"time": time, "latitude": rng.uniform(30, 60, len(hours))})
    frame["longitude"] = rng.uniform(0, 45, len(hours))
    return Observations.from_frame(frame.assign(variable=variable, level=level, value=1.0, std=1.0))


def stations(observations, **options):
    return trajectory_stations(observations, LAYOUT, NORMALIZATION, TIMES, dtype=F64, **options)


def linear(t, lat, lon, c):
    return 200.0 + 0.7 * t + 2.0 * lat - 3.0 * lon + 0.1 * t * lat


def test_stations_between_two_states_are_exact_where_the_field_is_linear_in_time():
    hours = [0.0, 1.5, 6.0, 9.0, 23.0, 24.0]
    observations = table(hours)
    H_ = stations(observations)
    frame = observations.frame
    expected = linear(np.array(hours), frame["latitude"].to_numpy(), frame["longitude"].to_numpy(), None)
    torch.testing.assert_close(H_(trajectory(linear))[0], torch.from_numpy(expected), **TIGHT)
    assert H_.index.shape == (6, 8)
    assert H_.shape == (len(TIMES) * C, H, W)
    # On a state, only that one is touched.
    assert ((H_.weight != 0).sum(1) <= 4).tolist() == [True, False, True, False, False, True]


def test_the_nearest_state_is_the_later_one_half_way():
    H_ = stations(table([2.9, 3.0, 8.9, 24.0]), temporal="nearest")
    y = H_(trajectory(lambda t, lat, lon, c: 100.0 + t + 0 * lat))[0]
    torch.testing.assert_close(y, torch.tensor([100.0, 106.0, 106.0, 124.0], dtype=F64), **TIGHT)
    assert H_.index.shape == (4, 4)


def test_what_lies_outside_the_window_has_a_reason():
    observations = table([-0.1, 0.0, 24.0, 24.1])
    frame = observations.frame.assign(time=observations.frame["time"].where([True, True, False, True]))
    frame.loc[1, "variable"] = "q"
    H_ = stations(Observations(frame, observations.rejected))
    window = "outside the window 2002-01-01T00:00..2002-01-02T00:00"
    assert H_.reasons.tolist() == [window, "variable q is not among the model's t, olr", "no time", window]
    assert H_.size == 0


def test_refused_times_and_interpolations():
    with pytest.raises(InputError, match="do not ascend"):
        trajectory_stations(table([0.0]), LAYOUT, NORMALIZATION, TIMES[::-1])
    with pytest.raises(InputError, match="'cubic' given; accepted: linear, nearest"):
        stations(table([0.0]), temporal="cubic")


def test_an_operator_of_one_state_at_every_other_one():
    one = field_averages(LAYOUT.shape, NORMALIZATION, blocks((H, W), 4), [0, 4], dtype=F64)
    lifted = at_times(one, every(5, 2), 5)
    x = torch.randn(2, 5 * C, H, W, dtype=F64)
    states = x.reshape(2, 5, C, H, W)
    torch.testing.assert_close(lifted(x), torch.cat([one(states[:, t]) for t in (0, 2, 4)], dim=1), **TIGHT)
    with pytest.raises(InputError, match=r"states \[5\] of 5"):
        at_times(one, [5], 5)
    with pytest.raises(InputError, match="every 0 states"):
        every(5, 0)


@pytest.mark.parametrize("factor", [1, 4, 7, 10])
def test_coarse_averages_are_the_area_weighted_means_of_blocks_the_last_smaller(factor):
    area = LAYOUT.grid.area_weights
    cells = blocks((H, W), factor, area)
    op = field_averages(LAYOUT.shape, NORMALIZATION, cells, dtype=F64)
    x = torch.randn(1, C, H, W, dtype=F64)
    physical = NORMALIZATION.denormalize(x[0].numpy())
    expected = [
        np.average(part, axis=(-2, -1), weights=np.broadcast_to(area[i : i + factor, None], part.shape[1:]))
        for i in range(0, H, factor)
        for j in range(0, W, factor)
        for part in [physical[:, i : i + factor, j : j + factor]]
    ]
    assert cells.shape == (-(-H // factor), -(-W // factor))
    torch.testing.assert_close(op(x)[0], torch.from_numpy(np.stack(expected, axis=1).ravel()), **TIGHT)
    torch.testing.assert_close(op.interpolation.sum(1), torch.ones(op.size, dtype=F64), **TIGHT)


@pytest.mark.parametrize("profile", ["log_pressure", "pressure"])
@pytest.mark.parametrize("layer", [(100.0, 1000.0), (300.0, 700.0), (550.0, 600.0)])
def test_a_layer_average_integrates_a_profile_linear_between_the_levels(profile, layer):
    p = np.linspace(*layer, 200001)
    axis = np.log if profile == "log_pressure" else np.asarray
    for values in (axis(np.array(LEVELS)), np.array([3.0, -1.0, 2.0, 5.0])):
        order = np.argsort(LEVELS)
        fine = np.interp(axis(p), axis(np.array(LEVELS)[order]), values[order])
        mean = np.trapezoid(fine, p) / (layer[1] - layer[0])
        assert layer_weights(LEVELS, *layer, profile=profile) @ values == pytest.approx(mean, abs=1e-8)
    assert layer_weights(LEVELS, *layer, profile=profile).sum() == pytest.approx(1.0)


def averaged(factor):
    """Means of two channels over factor x factor cells, at two times, as analyses see them beside other operators."""
    one = at_times(field_averages(LAYOUT.shape, NORMALIZATION, blocks((H, W), factor), [1, 4], dtype=F64), [0, 3], 4)
    return ObservationOperator.stack(one, observing(one, np.zeros(one.size), 1.0)).padded(lambda n: n + 1)


# The variance of a mean of 9 cells, linear in log n from that of 4 to that of 16; of 49, that of the largest known.
WAY = np.log(9 / 4) / np.log(4)


@pytest.mark.parametrize(
    ("factor", "part"), [(1, 1.0), (2, 1 / 4), (3, (1 - WAY) / 4 + WAY / 16), (4, 1 / 16), (7, 1 / 16)]
)
def test_white_errors_count_less_in_means_and_constant_ones_do_not(factor, part):
    op = averaged(factor)
    white = np.array([[1.0], [1 / 2], [1 / 4]]) * np.linspace(0.1, 0.5, C)
    first = [0, op.size - 1 - len(blocks((H, W), factor).cells)]
    for errors, share in ((white, part), (np.tile(white[0], (3, 1)), 1.0), (white[0], 1.0)):
        variance = op.representativeness(torch.from_numpy(np.tile(errors, 4)))
        expected = share * np.array([0.2 * 8.0, 0.5 * 30.0]) ** 2
        np.testing.assert_allclose(variance[first], expected, rtol=1e-12)
        assert variance[-1] == 0


def test_unequal_cells_and_those_at_the_edge_are_fewer():
    op = field_averages(LAYOUT.shape, NORMALIZATION, blocks((H, W), 4, LAYOUT.grid.area_weights), [0], dtype=F64)
    counted = np.array([16.0, 16.0, 8.0, 12.0, 12.0, 6.0])
    assert (op.cells.numpy() < counted).all()
    np.testing.assert_allclose(op.cells, counted, rtol=0.03)


def test_layer_averages_of_coarse_cells():
    row = layer_rows(LAYOUT, "t", 300.0, 700.0)
    op = field_averages(LAYOUT.shape, NORMALIZATION, blocks((H, W), 5), row, dtype=F64)
    x = torch.randn(1, C, H, W, dtype=F64)
    mean = np.tensordot(row[0], NORMALIZATION.denormalize(x[0].numpy()), axes=1)
    assert op.size == 4
    assert op(x)[0, 0].item() == pytest.approx(mean[:5, :5].mean())
    assert 4 not in op.channel
    # The errors of its levels are taken for the same.
    points = field_averages(LAYOUT.shape, NORMALIZATION, blocks((H, W), 1), row, dtype=F64)
    error = torch.ones(C, dtype=F64)
    halved = op.representativeness(torch.stack([error, error / 2, error / 2]))
    torch.testing.assert_close(halved, points.representativeness(error)[:4] / 4, **TIGHT)
    with pytest.raises(InputError, match="variable 'olr' has 0 levels"):
        layer_rows(LAYOUT, "olr", 300.0, 700.0)
    with pytest.raises(InputError, match=r"layer 700\.\.300 hPa"):
        layer_weights(LEVELS, 700.0, 300.0)


def test_missing_pixels_are_not_observed_and_counted():
    field = np.full((2, H, W), 240.0)
    field[0, 2, 3] = field[1, 6, 9] = np.nan
    one = field_averages(LAYOUT.shape, NORMALIZATION, blocks((H, W), 1), [4], dtype=F64)
    op = observing(at_times(one, [0, 3], 5), field, 2.0)
    assert op.size == 2 * H * W - 2
    assert np.flatnonzero(op.reasons == "missing in the observed field").tolist() == [2 * W + 3, H * W + 6 * W + 9]
    assert op.observation.tolist() == np.flatnonzero(op.used).tolist()
    assert set(op.std) == {2.0}
    x = torch.randn(1, 5 * C, H, W, dtype=F64)
    seen = NORMALIZATION.denormalize(x.reshape(5, C, H, W))[[0, 3], 4].flatten()[torch.from_numpy(op.used)]
    torch.testing.assert_close(op(x)[0], seen, **TIGHT)
    with pytest.raises(InputError, match="3 values and std"):
        observing(one, [1.0, 2.0, 3.0], 1.0)


def test_the_row_of_an_average_stands_where_its_largest_share_is():
    cells = Blocks(np.array([[11, 12, 21]]), np.array([[0.2, 0.7, 0.1]]), (1, 1))
    op = observing(at_times(field_averages(LAYOUT.shape, NORMALIZATION, cells, [4]), [2], 3), [240.0], 1.0)
    row = operator_rows(op, LAYOUT, TIMES[:3]).frame.iloc[0]
    place = LAYOUT.grid.latitude[1], LAYOUT.grid.longitude[2]
    assert (row["time"], row["latitude"], row["longitude"], row["variable"]) == (TIMES[2], *place, "olr")
