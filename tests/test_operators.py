"""Observation operators: exact interpolation, exact adjoints, a reason for whatever is not seen."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from lsda_fast.grid import Channel, Grid, Normalization, StateLayout
from lsda_fast.likelihood import likelihood_of
from lsda_fast.observations import ObservationOperator, Observations, StencilOperator
from lsda_fast.observations.trajectory import trajectory_stations

DATA = Path(os.environ.get("LSDA_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
F64 = torch.float64
TIGHT = {"rtol": 1e-12, "atol": 1e-10}

CHANNELS = (
    Channel("z", 500.0, "m2 s-2"),
    Channel("t", 1000.0, "K"),
    Channel("t", 850.0, "K"),
    Channel("t", 500.0, "K"),
    Channel("msl", None, "Pa"),
    Channel("u", 500.0, "m s-1", "eastward_wind"),
)
MEAN = np.array([55000.0, 288.0, 280.0, 255.0, 101325.0, 5.0])
STD = np.array([2500.0, 8.0, 8.0, 7.0, 900.0, 10.0])
NORMALIZATION = Normalization(MEAN, STD)
REGION = StateLayout(Grid(np.array([60.0, 57.0, 50.0, 48.0]), np.arange(-15.0, 11.0, 2.5)), CHANNELS)
GLOBE = StateLayout(Grid(np.linspace(87.5, -87.5, 36), np.arange(0.0, 360.0, 5.0)), CHANNELS)
ONE_DEGREE = StateLayout(Grid(np.arange(90.0, -91.0, -1.0), np.arange(0.0, 360.0)), CHANNELS[:1])


def table(latitude, longitude, variable="t", level=850.0, **more):
    frame = pd.DataFrame({"latitude": np.atleast_1d(latitude), "longitude": np.atleast_1d(longitude)})
    return Observations.from_frame(
        frame.assign(time="2008-12-08T12", variable=variable, level=level, **{"value": 1.0, **more})
    )


def stations(observations, layout=REGION):
    normalization = Normalization(MEAN[: len(layout.channels)], STD[: len(layout.channels)])
    return ObservationOperator.stations(observations, layout, normalization, dtype=F64)


def state(layout, field):
    """Normalised (1, C, H, W) of a function of latitude, longitude and channel."""
    lat, lon = np.meshgrid(layout.grid.latitude, layout.grid.longitude, indexing="ij")
    physical = np.stack([field(lat, lon, c) for c in layout.channels])
    C = len(layout.channels)
    mean, std = (np.asarray(a[:C], np.float32).astype(np.float64)[:, None, None] for a in (MEAN, STD))
    return torch.from_numpy((physical - mean) / std)[None]


def scattered(seed=0, size=50, layout=REGION):
    rng = np.random.default_rng(seed)
    lat, lon = layout.grid.latitude, layout.grid.longitude
    return rng.uniform(lat.min(), lat.max(), size), rng.uniform(lon.min(), lon.max(), size)


def test_bilinear_is_exact_where_the_field_is_and_longitudes_may_be_written_either_way():
    lat, lon = scattered()
    x = state(REGION, lambda a, o, c: 200 + 2 * a - 3 * o + 0.5 * a * o)
    for written in (lon, lon % 360.0):
        H = stations(table(lat, written))
        assert H.index.shape == (50, 4)
        torch.testing.assert_close(H(x)[0], torch.from_numpy(200 + 2 * lat - 3 * lon + 0.5 * lat * lon), **TIGHT)


def test_log_pressure_is_exact_for_fields_linear_in_log_pressure():
    level = np.array([1000.0, 900.0, 850.0, 700.0, 500.0])
    x = state(REGION, lambda a, o, c: 250 + 30 * np.log((c.level or 1.0) / 500) + a)
    H = stations(table(np.full(5, 52.0), np.full(5, 3.0), level=level))
    assert H.index.shape == (5, 8)
    torch.testing.assert_close(H(x)[0], torch.from_numpy(250 + 30 * np.log(level / 500) + 52.0), **TIGHT)
    exact = H.interpolation[[0, 2, 4]]
    assert (exact[:, 4:] == 0).all()
    assert H.channel[[0, 2, 4], 0].tolist() == [1, 2, 3]


def test_the_meridian_wraps():
    H = stations(table([10.0, 10.0, 10.0], [359.9, -0.2, 360.0], "z", 500.0), ONE_DEGREE)
    x = state(ONE_DEGREE, lambda a, o, c: np.where(o == 359.0, 1.0, 0.0) + np.where(o == 0.0, 11.0, 0.0))
    torch.testing.assert_close(H(x)[0], torch.tensor([10.0, 9.0, 11.0], dtype=F64), **TIGHT)


def test_coordinates_of_the_sphere_are_smooth_over_both_poles():
    def cartesian(a, o):
        a, o = np.deg2rad(a), np.deg2rad(o)
        return np.stack([np.cos(a) * np.cos(o), np.cos(a) * np.sin(o), np.sin(a)])

    turn = np.arange(0.0, 360.0, 14.4)
    for pole in (1, -1):
        lat, lon = (a.ravel() for a in np.meshgrid(pole * np.linspace(85.0, 90.0, 41), turn))
        for axis in range(3):
            x = state(GLOBE, lambda a, o, c, i=axis: cartesian(a, o)[i])
            H = stations(table(lat, lon), GLOBE)
            assert H.used.all()
            y = H(x)[0].numpy().reshape(25, 41)
            # Linear interpolation over h = 5 degrees of a field of curvature 1: h^2 / 8 in either direction.
            assert np.abs(y - cartesian(lat, lon)[axis].reshape(25, 41)).max() < np.deg2rad(5.0) ** 2 / 4
            assert np.ptp(y[:, -1]) < np.deg2rad(5.0) ** 2 / 4
            # Continuous: no step from row to row beyond that of the field.
            assert np.abs(np.diff(y, axis=1)).max() < 1.05 * np.deg2rad(5.0 / 40)


def test_a_wind_over_the_pole_keeps_its_direction():
    # A uniform flow in the tangent plane at the pole: u = -sin(lon) on every meridian.
    x = state(GLOBE, lambda a, o, c: -np.sin(np.deg2rad(o)))
    lat, lon = np.full(12, 89.5), np.arange(0.0, 360.0, 30.0)
    observed, expected = table(lat, lon, "u", 500.0), torch.from_numpy(-np.sin(np.deg2rad(lon)))
    torch.testing.assert_close(stations(observed, GLOBE)(x)[0], expected, **TIGHT)
    # Half way between two states too.
    times = np.array(["2008-12-08T06", "2008-12-08T18"], "datetime64[ns]")
    H = trajectory_stations(observed, GLOBE, NORMALIZATION, times, dtype=F64)
    torch.testing.assert_close(H(torch.cat([x, x], dim=1))[0], expected, **TIGHT)


@pytest.mark.parametrize(
    ("channel", "wind"),
    [
        *((Channel(name, None, "m s-1"), True) for name in ("u", "v", "u10", "v10", "u100", "v100")),
        (Channel("ua", None, "m s-1", "eastward_wind"), True),
        (Channel("va", None, "m s-1", "northward_wind"), True),
        (Channel("t", None, "K", "air_temperature"), False),
    ],
)
def test_winds_turn_round_beyond_the_pole_by_name_or_standard_name(channel, wind):
    layout = StateLayout(GLOBE.grid, (channel,))
    lon = np.arange(0.0, 360.0, 30.0)
    H = ObservationOperator.stations(
        table(np.full(12, 89.5), lon, channel.variable, np.nan), layout, Normalization([0.0], [1.0]), dtype=F64
    )
    wave = -np.sin(np.deg2rad(layout.grid.longitude)) + np.zeros((36, 1))
    # Three fifths from this side of the pole, two from the other.
    share = 3 / 5 + 2 / 5 if wind else 3 / 5 - 2 / 5
    expected = -share * np.sin(np.deg2rad(lon))
    torch.testing.assert_close(H(torch.from_numpy(wave)[None, None])[0], torch.from_numpy(expected), **TIGHT)


def test_a_band_has_no_poles():
    band = StateLayout(Grid(np.arange(60.0, -61.0, -5.0), GLOBE.grid.longitude), CHANNELS)
    H = stations(table([61.0, 60.0, -88.0], [10.0, 10.0, 10.0]), band)
    assert H.reasons.tolist() == ["outside the domain", "", "outside the domain"]


@pytest.mark.parametrize(
    ("observed", "reason"),
    [
        ({"latitude": 61.0, "longitude": 0.0}, "outside the domain"),
        ({"latitude": 50.0, "longitude": 10.5}, "outside the domain"),
        ({"latitude": 50.0, "longitude": 200.0}, "outside the domain"),
        ({"level": 10.0}, "level 10 hPa lies outside the model's 500..1000 hPa"),
        ({"level": 1001.0}, "level 1001 hPa lies outside the model's 500..1000 hPa"),
        ({"variable": "q"}, "variable q is not among the model's z, t, msl, u"),
        ({"level": np.nan}, "variable t needs a level in hPa"),
        ({"variable": "msl", "level": 850.0}, "surface variable msl has a level, 850 hPa"),
        ({"units": "hPa"}, "units that are Pa in SI do not fit t, which is in K"),
    ],
)
def test_what_the_model_cannot_see_has_a_reason(observed, reason):
    both = pd.concat(
        [
            table(**{"latitude": 50.0, "longitude": 0.0, **observed}).frame,
            table(48.0, 10.0, "msl", np.nan, value=101325.0).frame,
        ]
    )
    H = stations(Observations.from_frame(both, std={"msl": 100.0}))
    assert H.reasons.tolist() == [reason, ""]
    assert H.used.tolist() == [False, True]
    assert H.size == len(H.index) == 1
    assert (H.observation.tolist(), H.values.tolist(), H.std.tolist()) == ([1], [101325.0], [100.0])


def test_channels_in_other_units_than_si():
    layout = StateLayout(REGION.grid, (Channel("msl", None, "hPa"), Channel("t2m", None, "degC")))
    normalization = Normalization(np.array([1013.0, 10.0]), np.array([10.0, 8.0]))
    observed = table([50.0, 50.0], [0.0, 0.0], ["msl", "t2m"], np.nan)
    H = ObservationOperator.stations(observed, layout, normalization, dtype=F64)
    y = H(torch.ones(1, *layout.shape, dtype=F64))
    torch.testing.assert_close(y[0], torch.tensor([102300.0, 18.0 + 273.15], dtype=F64), **TIGHT)


def test_the_scale_of_a_likelihood_is_the_spread_of_what_is_observed():
    H = stations(table([50.0, 50.0], [0.0, 1.0], ["t", "msl"], [850.0, np.nan], std=1.0))
    torch.testing.assert_close(likelihood_of(H, dtype=F64).scale, torch.tensor([8.0, 900.0], dtype=F64))


def operators():
    rng = np.random.default_rng(3)
    size = int(np.prod(REGION.shape))
    matrix = np.where(rng.random((7, size)) < 0.02, rng.normal(size=(7, size)), 0.0)
    lat, lon = scattered(1)
    at = stations(table(lat, lon, level=rng.uniform(500, 1000, 50)))
    mask = ObservationOperator.mask(rng.random(REGION.shape) < 0.1, REGION, NORMALIZATION, dtype=F64)
    linear = ObservationOperator.linear(matrix, REGION, NORMALIZATION, dtype=F64)
    glat, glon = rng.uniform(-90, 90, 60), rng.uniform(-180, 360, 60)
    return {
        "stations": at,
        "globe": stations(table(glat, glon, "u", 500.0), GLOBE),
        "mask": mask,
        "linear": linear,
        "stack": ObservationOperator.stack(at, mask, linear),
        "empty": stations(table([], [])),
    }


@pytest.mark.parametrize("name", operators())
def test_adjoint_and_derivatives(name):
    H = operators()[name]
    generator = torch.Generator().manual_seed(0)
    x, dx = (torch.randn(3, *H.shape, dtype=F64, generator=generator) for _ in range(2))
    r = torch.randn(3, H.size, dtype=F64, generator=generator)
    left, right = (H.tangent(dx) * r).sum(), (dx * H.adjoint(r)).sum()
    assert H(x).shape == (3, H.size)
    assert abs(left - right) <= 1e-12 * H.tangent(dx).norm() * r.norm()
    _, jvp = torch.func.jvp(H, (x,), (dx,))
    _, vjp = torch.func.vjp(H, x)
    torch.testing.assert_close(jvp, H.tangent(dx), rtol=1e-13, atol=1e-10)
    torch.testing.assert_close(vjp(r)[0], H.adjoint(r), rtol=1e-13, atol=1e-10)
    torch.testing.assert_close(H(x + dx) - H(x), H.tangent(dx), rtol=1e-9, atol=1e-8)
    # Members do not see each other.
    assert torch.equal(H(x)[1:2], H(x[1:2]))


def test_mask_takes_the_state_and_gives_it_back():
    generator = torch.Generator().manual_seed(0)
    x, truth = (torch.randn(2, *REGION.shape, dtype=F64, generator=generator) for _ in range(2))
    mask = torch.rand(REGION.grid.shape, generator=generator) < 0.4
    H = ObservationOperator.mask(mask, REGION.shape, NORMALIZATION, dtype=F64)
    y = H(truth)
    torch.testing.assert_close(y.reshape(2, len(CHANNELS), -1), NORMALIZATION.denormalize(truth)[:, :, mask], **TIGHT)
    blended = x + H.spread(y - H(x))
    torch.testing.assert_close(blended, torch.where(mask, truth, x), **TIGHT)


def test_spread_is_the_mean_of_what_touches_a_point():
    observed = table([50.0, 53.5, 57.0], [0.0, 0.0, 0.0])
    H = stations(observed)
    increment = H.spread(torch.tensor([[8.0, 16.0, 8.0]], dtype=F64))
    row = increment[0, 2, :, REGION.grid.longitude.tolist().index(0.0)]
    # Half a share of the middle one beside a whole one: (8 + 16/2) / 1.5, over a standard deviation of 8.
    torch.testing.assert_close(row, torch.tensor([0.0, 4 / 3, 4 / 3, 0.0], dtype=F64), **TIGHT)
    assert torch.count_nonzero(increment) == 2


def test_spread_of_one_observation_takes_its_value_even_over_the_pole():
    H = stations(table([89.0], [12.0], "u", 500.0), GLOBE)
    x = torch.zeros(1, *GLOBE.shape, dtype=F64)
    y = torch.tensor([[7.0]], dtype=F64)
    torch.testing.assert_close(H(x + H.spread(y - H(x))), y, **TIGHT)


@pytest.mark.parametrize("rows", [1, 3])
def test_representativeness_of_points_is_the_channel_error_in_physical_units(rows):
    H = stations(table([50.0, 52.0], [0.0, 1.0], level=[850.0, 652.0]))
    error = torch.linspace(0.1, 0.6, 6, dtype=F64)
    share = np.log(850 / 652) / np.log(850 / 500)
    upper, lower = (0.4 * 7.0) ** 2, (0.3 * 8.0) ** 2
    expected = torch.tensor([lower, share * upper + (1 - share) * lower], dtype=F64)
    table_of_blocks = error / 2.0 ** torch.arange(rows, dtype=F64)[:, None]
    torch.testing.assert_close(H.representativeness(table_of_blocks), expected, **TIGHT)


@pytest.mark.parametrize("kind", ["dense", "torch dense", "coo", "csr", "scipy"])
def test_any_matrix_acts_on_the_physical_state(kind):
    rng = np.random.default_rng(0)
    shape = (2, 3, 4)
    dense = np.where(rng.random((5, 24)) < 0.3, rng.normal(size=(5, 24)), 0.0)
    dense[2] = 0.0
    normalization = Normalization(np.array([3.0, -1.0]), np.array([2.0, 0.5]))
    if kind == "scipy":
        matrix = pytest.importorskip("scipy.sparse").csc_matrix(dense)
    else:
        tensor = torch.from_numpy(dense)
        matrix = {
            "dense": dense,
            "torch dense": tensor,
            "coo": tensor.to_sparse_coo(),
            "csr": tensor.to_sparse_coo().to_sparse_csr() if kind == "csr" else None,
        }[kind]
    H = ObservationOperator.linear(matrix, shape, normalization, dtype=F64)
    x = torch.from_numpy(rng.normal(size=(2, *shape)))
    expected = normalization.denormalize(x).flatten(1) @ torch.from_numpy(dense).T
    torch.testing.assert_close(H(x), expected, **TIGHT)
    alone = ObservationOperator.linear(dense[:1], shape, normalization, dtype=F64)
    r = torch.tensor([[1.0], [-2.0]], dtype=F64)
    torch.testing.assert_close(alone.tangent(alone.spread(r)), r, **TIGHT)


def test_function_and_mixed_stack():
    def speed(physical):
        return physical[:, 5].square().mean((1, 2), keepdim=True)[:, :, 0]

    f = ObservationOperator.function(speed, 1, NORMALIZATION)
    at = stations(table([50.0], [0.0]))
    both = ObservationOperator.stack(f, at)
    x = torch.ones(2, *REGION.shape, dtype=F64)
    torch.testing.assert_close(both(x), torch.tensor([[225.0, 288.0]] * 2, dtype=F64), **TIGHT)
    assert both.size == 2
    with pytest.raises(ValueError, match=r"returned \(2, 1\); accepted: \(2, 3\)"):
        ObservationOperator.function(speed, 3, NORMALIZATION)(x)


def test_stack_keeps_the_order_and_the_books():
    a = stations(table([50.0, 70.0], [0.0, 0.0]))
    b = stations(table([52.0], [1.0], level=700.0))
    H = ObservationOperator.stack(a, b)
    x = torch.randn(2, *REGION.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert isinstance(H, StencilOperator)
    torch.testing.assert_close(H(x), torch.cat([a(x), b(x)], 1), **TIGHT)
    assert H.used.tolist() == [True, False, True]
    assert H.values.tolist() == [1.0, 1.0]


def test_float32_is_near_float64_and_to_moves_everything():
    lat, lon = scattered()
    H = ObservationOperator.stations(table(lat, lon, "z", 500.0), REGION, NORMALIZATION)
    x = torch.randn(2, *REGION.shape, generator=torch.Generator().manual_seed(0))
    assert H(x).dtype == torch.float32
    wide = H.to(dtype=F64)
    assert wide(x.double()).dtype == F64
    # 32-bit geopotential near 55,000 m2/s2 is good to 0.004.
    torch.testing.assert_close(H(x).double(), wide(x.double()), rtol=0, atol=0.02)
    assert wide.values is H.values


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ObservationOperator.mask(np.ones((2, 2), bool), REGION, NORMALIZATION), "mask bool"),
        (lambda: ObservationOperator.mask(np.ones(REGION.shape), REGION, NORMALIZATION), "mask float64"),
        (lambda: ObservationOperator.linear(np.ones((2, 3)), REGION, NORMALIZATION), r"matrix \(2, 3\)"),
        (
            lambda: ObservationOperator.linear(np.full((1, 4), np.nan), (1, 2, 2), Normalization([0], [1])),
            "finite",
        ),
        (lambda: ObservationOperator.mask(np.ones((2, 2), bool), (1, 2, 2), NORMALIZATION), "6 channels"),
        (lambda: ObservationOperator.stack(), "no operator"),
        (
            lambda: ObservationOperator.stations(table(50.0, 0.0), REGION, NORMALIZATION, horizontal="cubic"),
            "'cubic'",
        ),
    ],
)
def test_bad_input_is_one_sentence(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_radiosondes_agree_with_the_era_interim_analysis():
    sondes = DATA / "observations" / "radiosondes_20081208_12z.csv.gz"
    analysis = DATA / "gridded" / "era_interim_western_europe_2000_2008.nc"
    if not (sondes.is_file() and analysis.is_file()):
        pytest.skip(f"{DATA} is not here")
    raw = pd.read_csv(sondes)
    parts = []
    for variable, pressure, column in (
        ("t", 85000, "airTemperature"),
        ("z", 50000, "nonCoordinateGeopotential"),
    ):
        part = raw[(raw["pressure"] == pressure) & raw[column].notna()]
        part = part.assign(variable=variable, level=pressure / 100, value=part[column])
        parts.append(part[["time", "latitude", "longitude", "variable", "level", "value"]])
    obs = Observations.from_frame(pd.concat(parts))
    dataset = xr.open_dataset(analysis)
    layout = StateLayout.infer(dataset, ["z500", "t850"])
    x = layout.to_array(dataset.sel(time="2008-12-08T12"))
    normalization = Normalization(x.mean((1, 2)), x.std((1, 2)))
    H = ObservationOperator.stations(obs, layout, normalization)
    departure = H.values - H(torch.from_numpy(normalization.normalize(x))[None])[0].numpy()
    variable = obs.frame["variable"][H.used].to_numpy()
    rms = {v: float(np.sqrt(np.mean(departure[variable == v] ** 2))) for v in ("t", "z")}
    assert set(H.reasons) == {"", "outside the domain"}
    assert {v: int((variable == v).sum()) for v in ("t", "z")} == {"t": 9, "z": 9}
    assert rms["t"] == pytest.approx(0.53, abs=0.01)
    assert rms["z"] == pytest.approx(44.0, abs=1.0)


def test_a_gaussian_global_state_is_seen_at_its_own_points():
    path = DATA / "gridded" / "era5_global_tl31_19590102_00z.nc"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    layout = StateLayout.infer(xr.open_dataset(path), ["t"])
    x = layout.to_array(xr.open_dataset(path))
    C, _, W = layout.shape
    normalization = Normalization(np.full(C, 250.0), np.full(C, 10.0))
    rng = np.random.default_rng(0)
    row, column = rng.integers(0, layout.grid.shape[0], 40), rng.integers(0, W, 40)
    obs = table(layout.grid.latitude[row], layout.grid.longitude[column] - 180.0, "t", 500.0)
    H = ObservationOperator.stations(obs, layout, normalization, dtype=F64)
    seen = H(torch.from_numpy(normalization.normalize(x.astype(np.float64)))[None])[0]
    opposite = (column - W // 2) % W
    at = layout.index("t500")
    unique = obs.frame["observation"].to_numpy()
    np.testing.assert_allclose(seen, x[at, row, opposite][unique], rtol=1e-6)
    pole = ObservationOperator.stations(table([90.0, 90.0], [0.0, 77.0], "t", 500.0), layout, normalization)
    north = pole(torch.from_numpy(normalization.normalize(x))[None])[0]
    assert (north - torch.from_numpy(x[at, 0]).mean()).abs().max() < 3.0
