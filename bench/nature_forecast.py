"""Forecasts by the atmosphere of the nature run itself, from states on pressure levels.

The other half of bench/cases/nature_model.py, which starts it and speaks to it: this half needs the generator's own
environment (``make nature-env``). A state on pressure levels is linear in the columns x of the model's eight levels,
for a given surface pressure: p = A x, by the interpolation of bench/nature.py. Back goes the likeliest column by the
climate's mean m and covariance B of each latitude (a month of the model after the run, made at first use):

    x = m + B A' (A B A' + r)^-1 (p - A m)

with r so small that what is seen stays as it is; what no level sees, the model's uppermost and its moisture above
500 hPa, comes from what goes with it. From such columns of a state of the run the 48-hour forecast has a normalised
mean square error of 0.015 from the run.

On standard input a line of JSON (channels, latitude, longitude), then for every call one (time, hours, count) and the
states (count, C, H, W), float32; on standard output a line of JSON with an error or none, and the states.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xarray as xr

from bench.nature import HUMID_LEVELS, LEVELS, P0, SOURCES, bracket, state_on_pressure_levels, write_atomically

VARIABLES = ("t", "u", "v", "q")  # geopotential is diagnosed
NAMES = {f"{v}{p}" for v in SOURCES for p in (HUMID_LEVELS if v == "q" else LEVELS)} | {"sp"}
NOISE = 1e-4  # r, as a share of the variance


class Columns:
    """Columns on the model's levels from values on pressure levels.

    Parameters
    ----------
    sigma : np.ndarray, shape (8,)
        The model's levels, from the uppermost.
    climate : xr.Dataset
        ``<variable>_mean`` (latitude, level) and ``<variable>_covariance`` (latitude, level, other), as `climate_of`
        makes it.
    """

    def __init__(self, sigma: np.ndarray, climate: xr.Dataset) -> None:
        self.log_sigma, self.climate = np.log(sigma), climate

    def __call__(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Channels (latitude, longitude) to variables (level, latitude, longitude)."""
        log_p = self.log_sigma[:, None, None] + np.log(state["sp"].astype(np.float64))
        rows = {level: _row(level, log_p) for level in LEVELS}
        out = {}
        for name in VARIABLES:
            levels = HUMID_LEVELS if name == "q" else LEVELS
            values = np.stack([state[f"{name}{level}"] for level in levels], -1).astype(np.float64)
            out[name] = self._column(name, np.stack([rows[level] for level in levels], -2), values)
        out["q"] = np.maximum(out["q"], 0)
        return out

    def _column(self, name: str, A: np.ndarray, p: np.ndarray) -> np.ndarray:
        """A (latitude, longitude, level, sigma) and p (latitude, longitude, level)."""
        m, B = (self.climate[f"{name}_{part}"].values for part in ("mean", "covariance"))
        AB = np.einsum("yxil,ylk->yxik", A, B)
        S = np.einsum("yxik,yxjk->yxij", AB, A)
        n = S.shape[-1]
        S += NOISE * np.einsum("yxii->yx", S)[..., None, None] / n * np.eye(n)
        d = p - np.einsum("yxil,yl->yxi", A, m)
        x = m[:, None] + np.einsum("yxik,yxi->yxk", AB, np.linalg.solve(S, d[..., None])[..., 0])
        return x.transpose(2, 0, 1)


def _row(level: int, log_p: np.ndarray) -> np.ndarray:
    """The interpolation to a level as a row (latitude, longitude, sigma) of A."""
    lower, upper, share = bracket(level, log_p)
    row = np.zeros_like(log_p)
    np.put_along_axis(row, lower[None], (1 - share)[None], 0)
    np.put_along_axis(row, upper[None], share[None], 0)
    return row.transpose(1, 2, 0)


def climate_of(native: xr.Dataset) -> xr.Dataset:
    """Mean and covariance of the columns of each latitude, over times and longitudes."""
    out: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name in VARIABLES:
        x = native[SOURCES[name]].sortby("level").transpose("lat", "level", "time", "lon").values.astype(np.float64)
        x = x.reshape(*x.shape[:2], -1)
        mean = x.mean(-1)
        d = x - mean[..., None]
        out[f"{name}_mean"] = (("latitude", "level"), mean)
        out[f"{name}_covariance"] = (("latitude", "level", "other"), d @ d.transpose(0, 2, 1) / d.shape[-1])
    return xr.Dataset(out)


class NatureModel:
    """The model, started from states.

    Parameters
    ----------
    folder : path
        Of the nature run: its checkpoint, and ``climate.nc``, which is made where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        import jax
        from jcm.model import Model, default_forcing
        from jcm.physics.speedy.speedy_coords import get_speedy_coords

        self.model = Model(coords=get_speedy_coords(), time_step=30.0)
        self.model.bootstrap_state()
        self.carry = self.model.initial_physics_carry()
        self.forcing = default_forcing(self.model.coords.horizontal)
        if not (folder / "climate.nc").exists():
            self._make_climate(folder)
        climate = xr.load_dataset(folder / "climate.nc")
        self.latitude, self.longitude = climate["latitude"].values, climate["longitude"].values
        self.sigma = np.asarray(self.model.coords.vertical.centers, np.float64)
        self.columns = Columns(self.sigma, climate)
        self._integrate = jax.jit(self._days, static_argnums=3)

    def _make_climate(self, folder: Path) -> None:
        from jcm.checkpoint import load_checkpoint

        load_checkpoint(self.model, folder / "checkpoint.msgpack")
        native = self.model.resume(save_interval=0.25, total_time=30.0).to_xarray()
        points = {"latitude": native["lat"].values, "longitude": native["lon"].values}
        write_atomically(climate_of(native).assign_coords(points), folder / "climate.nc")

    def _days(self, physics_state: Any, days: Any, seconds: Any, length: float) -> Any:
        import jax.numpy as jnp
        import jax_datetime as jdt

        start = jdt.Datetime(jdt.Timedelta(days=days, seconds=seconds))
        run, _ = self.model.run_from_state_with_carry(
            self.model.initial_state(physics_state),
            self.forcing,
            save_interval=length,
            total_time=length,
            initial_time=start,
            initial_step=jnp.int32(0),
            initial_physics_state=self.carry,
        )
        return self.model.dycore.to_physics_state(run.dynamics)

    def __call__(self, state: dict[str, np.ndarray], time: np.datetime64, hours: float) -> dict[str, np.ndarray]:
        """Channels (latitude, longitude) at ``time`` to those ``hours`` later."""
        import jax.numpy as jnp
        from jcm.physics_interface import PhysicsState

        columns = {name: jnp.asarray(x.transpose(0, 2, 1), jnp.float32) for name, x in self.columns(state).items()}
        initial = PhysicsState(
            u_wind=columns["u"],
            v_wind=columns["v"],
            temperature=columns["t"],
            specific_humidity=columns["q"],
            geopotential=jnp.zeros_like(columns["t"]),
            normalized_surface_pressure=jnp.asarray(state["sp"].T / P0, jnp.float32),
        )
        days, seconds = divmod(int((time - np.datetime64(0, "s")) / np.timedelta64(1, "s")), 86400)
        last = self._integrate(initial, jnp.int32(days), jnp.int32(seconds), hours / 24)
        dims: tuple[str, ...] = ("level", "lon", "lat")
        native = {name: (dims, np.asarray(getattr(last, name))) for name in SOURCES.values()}
        native["normalized_surface_pressure"] = (dims[1:], np.asarray(last.normalized_surface_pressure))
        dataset = xr.Dataset(native, coords={"level": self.sigma}).expand_dims("time")
        return {name: values[0] for name, values in state_on_pressure_levels(dataset).items()}


def serve(model: NatureModel, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the input ends."""
    header = json.loads(requests.readline())
    channels, shape = header["channels"], (len(model.latitude), len(model.longitude))
    missing, unknown = NAMES - set(channels), set(channels) - NAMES
    # From north to south or from south to north.
    turn = slice(None, None, -1 if header["latitude"][0] > header["latitude"][-1] else 1)
    same = all(
        np.shape(came) == mine.shape and np.allclose(came, mine, atol=1e-3)
        for came, mine in ((header["latitude"][turn], model.latitude), (header["longitude"], model.longitude))
    )
    points = "" if same else f"the nature run's model has its own {shape[0]} x {shape[1]} points; accepted are the same"
    lacking = f"the nature run's model needs {sorted(missing)} too and has no {sorted(unknown)}"
    _say(answers, lacking if missing | unknown else points)
    while line := requests.readline():
        asked = json.loads(line)
        size = asked["count"] * len(channels) * shape[0] * shape[1]
        states = np.frombuffer(requests.read(4 * size), np.float32).reshape(asked["count"], len(channels), *shape)
        states = states[:, :, turn]
        later = [model(dict(zip(channels, x)), np.datetime64(asked["time"]), asked["hours"]) for x in states]
        _say(answers, "")
        answers.write(np.stack([[x[name][turn] for name in channels] for x in later]).astype(np.float32).tobytes())
        answers.flush()


def _say(answers: BinaryIO, error: str) -> None:
    answers.write((json.dumps({"error": error}) + "\n").encode())
    answers.flush()


def main() -> None:
    """Serve forecasts from the run in the folder that is named."""
    warnings.filterwarnings("ignore")
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(NatureModel(Path(sys.argv[1])), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
