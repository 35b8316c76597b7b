"""The nature run behind the built-in package: a global atmosphere from JAX-GCM with SPEEDY physics.

An aquaplanet at T31 (96 x 48 Gaussian grid, 8 sigma levels, 30-minute step) is integrated, saved every six hours and
interpolated in log pressure to the levels below, which lie below the model's top level (sigma 0.025). Precipitation and
outgoing long-wave radiation are those of the state's own time step, not means. It resumes where it stopped: every chunk
of days is one netCDF file, written atomically beside the model's checkpoint. The generator has its own environment
(``make nature-env``).

    python bench/nature.py --output runs/nature --days 1090 --spin-up 90

JAX-GCM: Cambridge Environmental Intelligence, Apache-2.0; SPEEDY: Molteni (2003), doi:10.1007/s00382-002-0268-2.
"""

import argparse
import os
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

LEVELS = (925, 850, 700, 500, 300, 200, 100)  # hPa
HUMID_LEVELS = (925, 850, 700, 500)
THERMAL_LEVELS = (600, 400, 50)  # temperature has these too
P0 = 1.0e5  # Pa: JAX-GCM's unit of surface pressure
ATTRIBUTES = {
    "z": ("geopotential", "m2 s-2"),
    "t": ("air_temperature", "K"),
    "u": ("eastward_wind", "m s-1"),
    "v": ("northward_wind", "m s-1"),
    "q": ("specific_humidity", "kg kg-1"),
    "sp": ("surface_air_pressure", "Pa"),
    "precipitation": ("precipitation_flux", "kg m-2 s-1"),
    "olr": ("toa_outgoing_longwave_flux", "W m-2"),
}
SOURCES = {
    "z": "geopotential",
    "t": "temperature",
    "u": "u_wind",
    "v": "v_wind",
    "q": "specific_humidity",
}


def to_pressure_levels(native: xr.Dataset) -> xr.Dataset:
    """Interpolate sigma-level fields linearly in log pressure; ``q`` keeps the lower levels only.

    A level below the lowest sigma level is extrapolated from the lowest two.
    """
    out = {}
    for name, values in state_on_pressure_levels(native, THERMAL_LEVELS).items():
        level = {} if name == "sp" else {"pressure_level": int(name[1:])}
        out[name] = _variable(name.rstrip("0123456789"), values, **level)
    grams = _flat(native["convection.precnv"]) + _flat(native["condensation.precls"])
    out["precipitation"] = _variable("precipitation", np.maximum(grams, 0) / 1000, cell_methods="time: point")
    out["olr"] = _variable("olr", _flat(native["longwave_rad.ftop"]), cell_methods="time: point")
    coords = {"time": native["time"].values, "latitude": native["lat"].values, "longitude": native["lon"].values}
    dataset = xr.Dataset(out, coords=coords)
    dataset["latitude"].attrs = {"standard_name": "latitude", "units": "degrees_north"}
    dataset["longitude"].attrs = {"standard_name": "longitude", "units": "degrees_east"}
    dataset.attrs = {"Conventions": "CF-1.11", "source": "JAX-GCM, SPEEDY physics, aquaplanet, T31L8"}
    return dataset


def state_on_pressure_levels(native: xr.Dataset, thermal_levels: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """The state's channels (time, latitude, longitude), and temperature on further levels."""
    surface_pressure = _flat(native["normalized_surface_pressure"]) * P0
    order = np.argsort(native["level"].values)
    log_p = np.log(native["level"].values[order])[None, :, None, None] + np.log(surface_pressure)[:, None]
    columns = {
        name: native[source].transpose("time", "level", "lat", "lon").values[:, order]
        for name, source in SOURCES.items()
    }
    wanted = [(name, level) for name in SOURCES for level in (HUMID_LEVELS if name == "q" else LEVELS)]
    out = {f"{name}{level}": _at(level, columns[name], log_p) for name, level in wanted}
    out["sp"] = surface_pressure
    return out | {f"t{level}": _at(level, columns["t"], log_p) for level in thermal_levels}


def _flat(array: xr.DataArray) -> np.ndarray:
    return array.transpose("time", "lat", "lon").values


def _at(level: int, field: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """The field (time, level, ...) at a pressure in hPa, linear in the logarithm of pressure."""
    lower, upper, share = (x[:, None] for x in bracket(level, log_p, axis=1))
    x0, x1 = np.take_along_axis(field, lower, 1), np.take_along_axis(field, upper, 1)
    return (x0 + (x1 - x0) * share)[:, 0]


def bracket(level: int, log_p: np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The levels above and below a pressure in hPa along the axis of ``log_p``, and how far it is from the first."""
    target = np.log(level * 100.0)
    upper = np.clip((log_p < target).sum(axis=axis), 1, log_p.shape[axis] - 1)
    lower = upper - 1
    p0, p1 = (np.take_along_axis(log_p, np.expand_dims(i, axis), axis).squeeze(axis) for i in (lower, upper))
    return lower, upper, (target - p0) / (p1 - p0)


def _variable(name: str, values: np.ndarray, **attrs: object) -> xr.DataArray:
    standard_name, units = ATTRIBUTES[name]
    return xr.DataArray(
        values.astype(np.float32),
        dims=("time", "latitude", "longitude"),
        attrs={"standard_name": standard_name, "units": units, **attrs},
    )


def write_atomically(dataset: xr.Dataset, path: Path) -> None:
    """Write netCDF beside its final name and rename."""
    partial = path.with_suffix(".partial")
    encoding = {name: {"zlib": True, "complevel": 1, "shuffle": True} for name in dataset.data_vars}
    dataset.to_netcdf(partial, engine="netcdf4", encoding=encoding)
    os.replace(partial, path)


def main() -> None:
    """Run or resume the nature run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the chunks and the checkpoint")
    parser.add_argument("--days", type=int, default=1090, help="days to keep, after the spin-up")
    parser.add_argument("--spin-up", type=int, default=90, help="days to discard while eddies grow")
    parser.add_argument("--chunk", type=int, default=10, help="days per file and per checkpoint")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    from jcm.checkpoint import load_checkpoint, save_checkpoint
    from jcm.model import Model
    from jcm.physics.speedy.speedy_coords import get_speedy_coords

    arguments.output.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.output / "checkpoint.msgpack"
    model = Model(coords=get_speedy_coords(), time_step=30.0)
    model.bootstrap_state()
    done = round(load_checkpoint(model, checkpoint)) if checkpoint.exists() else 0
    end = arguments.spin_up + arguments.days
    while done < end:
        native = model.resume(save_interval=0.25, total_time=float(arguments.chunk)).to_xarray()
        if done >= arguments.spin_up:
            states = to_pressure_levels(native)
            if not all(np.isfinite(states[name].values).all() for name in states.data_vars):
                raise SystemExit(f"non-finite values between day {done} and day {done + arguments.chunk}")
            write_atomically(states, arguments.output / f"states_{done - arguments.spin_up:04d}.nc")
        done += arguments.chunk
        save_checkpoint(model, checkpoint, elapsed_days=float(done))
        print(f"day {done} of {end}", flush=True)


if __name__ == "__main__":
    main()
