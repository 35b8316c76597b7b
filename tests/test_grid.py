"""The grid: what is the same grid, where it closes and where it ends. The normalisation, and its inverse."""

import json

import numpy as np
import pytest
import torch

from lsda_fast.errors import InputError
from lsda_fast.grid import Grid, Normalization

GLOBAL = Grid(np.linspace(90, -90, 7), np.arange(0, 360, 30.0))


def test_area_weights_are_the_cosine_with_mean_one():
    grid = Grid(np.array([60.0, 0.0]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(grid.area_weights, [2 / 3, 4 / 3], rtol=1e-15)
    # On equal steps the mean of cosine x weight is the mean of cos^2 over the mean of cos, pi/4 in the limit.
    fine = Grid(np.linspace(89.95, -89.95, 1800), np.array([0.0]))
    cosine = np.cos(np.deg2rad(fine.latitude))
    np.testing.assert_allclose((cosine * fine.area_weights).mean(), np.pi / 4, rtol=1e-6)
    assert (GLOBAL.area_weights >= 0).all()


@pytest.mark.parametrize(
    ("longitude", "periodic"),
    [
        (np.arange(0, 360, 30.0), True),
        (np.arange(-180, 180, 2.8125), True),
        (np.arange(0, 330, 30.0), False),
        (np.arange(-15, 15.1, 2.5), False),
        (np.array([0.0]), False),
        (np.arange(0, 360, 0.1, dtype=np.float32), True),
    ],
)
def test_periodic_means_closed(longitude, periodic):
    assert Grid(np.array([0.0]), longitude).periodic is periodic


@pytest.mark.parametrize(
    ("latitude", "poles"),
    [
        (np.linspace(90, -90, 73), (True, True)),
        (90 - 22.5 * (np.arange(8) + 0.5), (True, True)),
        (np.linspace(87.5, -87.5, 71), (True, True)),  # the poles left out
        (np.linspace(87.5, -87.5, 71, dtype=np.float32), (True, True)),
        (np.array([85.76, 80.27, 74.74, -74.74, -80.27, -85.76]), (True, True)),  # Gaussian
        (np.linspace(30, -30, 25), (False, False)),
        (np.linspace(88.75, 1.25, 36), (True, False)),
        (np.linspace(1.25, -88.75, 37), (False, True)),
        (np.linspace(85, -85, 69), (False, False)),
        (np.array([0.0]), (False, False)),
    ],
)
def test_a_grid_reaches_a_pole_within_one_row(latitude, poles):
    assert Grid(latitude, np.array([0.0])).poles == poles


def test_grids_are_equal_by_value_within_32_bits():
    same = Grid(GLOBAL.latitude.astype("f4") + 5e-5, GLOBAL.longitude.astype("f4"))
    assert same == GLOBAL
    assert hash(same) == hash(GLOBAL)
    assert Grid(GLOBAL.latitude, GLOBAL.longitude + 1e-3) != GLOBAL
    assert Grid(GLOBAL.latitude[:-1], GLOBAL.longitude) != GLOBAL
    with pytest.raises(ValueError, match="read-only"):
        GLOBAL.latitude[0] = 0.0


@pytest.mark.parametrize(
    ("latitude", "longitude", "message"),
    [
        ([0.0, 1.0], [0.0], "latitude 0..1"),
        ([91.0, 1.0], [0.0], "latitude 91..1"),
        ([np.nan], [0.0], "latitude came with shape"),
        ([0.0], [], "longitude came with shape"),
        ([0.0], [1.0, 0.0], "longitude 1..0"),
        ([0.0], [0.0, 180.0, 360.0], "0 and 360 not both"),
        ([0.0], [-200.0, 0.0], "longitude -200..0"),
    ],
)
def test_grids_that_are_refused(latitude, longitude, message):
    with pytest.raises(InputError, match=message):
        Grid(np.array(latitude), np.array(longitude))


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        (np.arange(0, 360, 30.0)[::-1], np.arange(0, 360, 30.0)),
        (np.arange(-180, 180, 30.0), np.arange(-180, 180, 30.0)),
        (np.r_[350.0, 355.0, 0.0, 5.0], np.array([-10.0, -5.0, 0.0, 5.0])),
        (np.r_[0.0, 5.0, 350.0, 355.0], np.array([-10.0, -5.0, 0.0, 5.0])),
        (np.r_[170.0, 175.0, -180.0, -175.0], np.array([170.0, 175.0, 180.0, 185.0])),
    ],
)
def test_regions_cut_by_the_edge_are_joined(came, expected):
    np.testing.assert_array_equal(Grid.from_coordinates(np.array([0.0]), came).longitude, expected)


def test_normalization_is_its_own_inverse_and_alike_in_numpy_and_torch():
    norm = Normalization(np.array([250.0, 5.0]), np.array([8.0, 0.5]))
    x = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    np.testing.assert_array_equal(norm.normalize(x)[:, 0], (x[:, 0] - 250) / 8)
    np.testing.assert_allclose(norm.denormalize(norm.normalize(x)), x, rtol=1e-12, atol=1e-12)
    for dtype in (torch.float32, torch.float64):
        tensor = norm.normalize(torch.as_tensor(x, dtype=dtype))
        assert tensor.dtype is dtype
        np.testing.assert_array_equal(tensor.numpy(), norm.normalize(x.astype(tensor.numpy().dtype)))
    assert norm.normalize(x.astype(np.float32)).dtype == np.float32


def test_normalization_round_trips_through_json():
    norm = Normalization(np.array([0.1, 1 / 3]), np.array([1e-7, 2e4]))
    assert Normalization.from_dict(json.loads(json.dumps(norm.to_dict()))) == norm


@pytest.mark.parametrize(
    ("mean", "std"),
    [([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([np.nan], [1.0]), ([1.0], [-1.0]), ([[1.0]], [[1.0]])],
)
def test_normalizations_that_are_refused(mean, std):
    with pytest.raises(InputError, match="accepted are"):
        Normalization(np.array(mean), np.array(std))


def test_normalization_refuses_other_channels():
    with pytest.raises(InputError, match=r"accepted is \(\.\.\., 2, H, W\)"):
        Normalization(np.zeros(2), np.ones(2)).normalize(np.zeros((3, 4, 5)))
