"""The nature run behind the built-in package: a global atmosphere from JAX-GCM with SPEEDY physics.

An aquaplanet at T31 (96 x 48 Gaussian grid, 8 sigma levels, 30-minute step) is integrated, saved every six hours and
interpolated in log pressure to the levels below. It resumes where it stopped: every chunk of days is one netCDF file,
written atomically beside the model's checkpoint. The generator has its own environment (``make nature-env``).

    python bench/nature.py --output runs/nature --days 720 --spin-up 90

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
P0 = 1.0e5  # Pa: JAX-GCM's unit of surface pressure
ATTRIBUTES = {
    "z": ("geopotential", "m2 s-2"),
    "t": ("air_temperature", "K"),
    "u": ("eastward_wind", "m s-1"),
    "v": ("northward_wind", "m s-1"),
    "q": ("specific_humidity", "kg kg-1"),
    "sp": ("surface_air_pressure", "Pa"),
}
SOURCES = {
    "z": "geopotential",
    "t": "temperature",
    "u": "u_wind",
    "v": "v_wind",
    "q": "specific_humidity",
}


def to_pressure_levels(native: xr.Dataset) -> xr.Dataset:
    """Interpolate sigma-level fields linearly in log pressure; ``q`` keeps the lower levels only."""
    surface_pressure = native["normalized_surface_pressure"].transpose("time", "lat", "lon") * P0
    order = np.argsort(native["level"].values)
    sigma = native["level"].values[order]
    log_p = np.log(sigma)[None, :, None, None] + np.log(surface_pressure.values)[:, None]
    out: dict[str, xr.DataArray] = {}
    coords = {"time": native["time"].values, "latitude": native["lat"].values, "longitude": native["lon"].values}
    for name, source in SOURCES.items():
        field = native[source].transpose("time", "level", "lat", "lon").values[:, order]
        levels = HUMID_LEVELS if name == "q" else LEVELS
        for level in levels:
            target = np.log(level * 100.0)
            upper = np.clip((log_p < target).sum(axis=1), 1, len(sigma) - 1)[:, None]
            lower = upper - 1
            p0, p1 = np.take_along_axis(log_p, lower, 1), np.take_along_axis(log_p, upper, 1)
            x0, x1 = np.take_along_axis(field, lower, 1), np.take_along_axis(field, upper, 1)
            value = (x0 + (x1 - x0) * (target - p0) / (p1 - p0))[:, 0]
            standard_name, units = ATTRIBUTES[name]
            out[f"{name}{level}"] = xr.DataArray(
                value.astype(np.float32),
                dims=("time", "latitude", "longitude"),
                attrs={"standard_name": standard_name, "units": units, "pressure_level": level},
            )
    standard_name, units = ATTRIBUTES["sp"]
    out["sp"] = xr.DataArray(
        surface_pressure.values.astype(np.float32),
        dims=("time", "latitude", "longitude"),
        attrs={"standard_name": standard_name, "units": units},
    )
    dataset = xr.Dataset(out, coords=coords)
    dataset["latitude"].attrs = {"standard_name": "latitude", "units": "degrees_north"}
    dataset["longitude"].attrs = {"standard_name": "longitude", "units": "degrees_east"}
    dataset.attrs = {"Conventions": "CF-1.11", "source": "JAX-GCM, SPEEDY physics, aquaplanet, T31L8"}
    return dataset


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
    parser.add_argument("--days", type=int, default=720, help="days to keep, after the spin-up")
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
