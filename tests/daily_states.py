"""Daily states of a region and of a globe, smooth in space, that remember 90 % of the day before."""

import numpy as np
import pandas as pd
import xarray as xr

__all__ = ["GLOBE", "REGION"]


def archive(latitude: np.ndarray, longitude: np.ndarray, days: int) -> xr.Dataset:
    """Daily states of an AR(1) process that remembers 90 % and is smooth in space."""
    rng = np.random.default_rng(0)
    H, W = len(latitude), len(longitude)
    row, column = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)[None]
    phases = [(m, n, *pair) for m, n in np.ndindex(4, 4) for pair in 6 * rng.random((2, 2))]
    waves = [np.cos(m * column + p) * np.cos(n * row + q) for m, n, p, q in phases]
    modes = np.stack(waves).reshape(-1, H * W)
    state = np.zeros((3, len(modes)))
    fields = np.empty((days, 3, H, W))
    for day in range(-50, days):
        kick = rng.standard_normal((3, len(modes)))
        kick[1] += kick[0]
        state = 0.9 * state + 0.19**0.5 * kick
        if day >= 0:
            fields[day] = (state @ modes / 4 + 0.02 * rng.standard_normal((3, H * W))).reshape(3, H, W)
    units = {"z500": ("m2 s-2", 5e4, 800.0), "t850": ("K", 280.0, 8.0), "msl": ("Pa", 1e5, 900.0)}
    dims = ("time", "latitude", "longitude")
    data = {
        name: (dims, (mean + std * fields[:, c]).astype(np.float32), {"units": unit})
        for c, (name, (unit, mean, std)) in enumerate(units.items())
    }
    coords = {"time": pd.date_range("2001-01-01", periods=days), "latitude": latitude, "longitude": longitude}
    return xr.Dataset(data, coords=coords)


REGION = archive(np.linspace(50.0, 36.0, 8), np.linspace(0.0, 18.0, 10), 300)
GLOBE = archive(90.0 - 22.5 * (np.arange(8) + 0.5), np.arange(16) * 22.5, 120)
