"""Put a trained package and a few states of the nature run where ``lsda demo`` finds them.

Per case two states: the truth, from the test period, and the analysis one lead earlier that the background starts
from, which is the truth of that time with a perturbation. States are packed to 11 bits. Everything together stays
under 15 MB.

    python bench/pack_demo.py runs/nature runs/demo
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from lsda_fast.datasets import open_states
from lsda_fast.package import Package
from lsda_fast.twin import perturbed

DESTINATION = Path(__file__).resolve().parents[1] / "lsda_fast" / "data" / "demo"
TRUTHS = ("2002-02-10T12", "2002-03-12T18")
PERTURBATIONS = (("2002-02-03T00", "2002-03-02T12"), ("2002-02-16T06", "2002-03-18T00"))
BITS = 11


def main() -> None:
    """Copy the package, write ``states.nc``, check the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nature", type=Path)
    parser.add_argument("package", type=Path)
    arguments = parser.parse_args()
    package = Package.load(arguments.package)
    nature = open_states(str(arguments.nature / "states_*.nc"))[list(package.layout.names)]
    lead = pd.Timedelta(hours=package.lead_hours)
    scale = package.provenance["configuration"]["background"]["perturbation"]
    found: list[xr.Dataset] = []
    for truth, pair in zip(TRUTHS, PERTURBATIONS):
        pick = lambda time: nature.sel(time=time).load()  # noqa: E731
        first, second = (pick(pd.Timestamp(time)) for time in pair)
        found.append(pick(pd.Timestamp(truth)))
        found.append(perturbed(pick(pd.Timestamp(truth) - lead), first, second, scale))
    states = xr.concat(found, "time")
    encoding = {}
    for name, field in states.data_vars.items():
        low, high = float(field.min()), float(field.max())
        encoding[name] = {
            "dtype": "int16",
            "scale_factor": (high - low) / (2**BITS - 4),
            "add_offset": (high + low) / 2.0,
            "_FillValue": np.int16(-32768),
            "zlib": True,
            "complevel": 9,
            "shuffle": True,
        }
    DESTINATION.mkdir(parents=True, exist_ok=True)
    xr.Dataset(
        states.data_vars, states.coords, {"Conventions": "CF-1.11", "source": nature.attrs.get("source", "")}
    ).to_netcdf(DESTINATION / "states.nc", encoding=encoding)
    shutil.rmtree(DESTINATION / "package", ignore_errors=True)
    shutil.copytree(arguments.package, DESTINATION / "package")
    size = sum(f.stat().st_size for f in DESTINATION.rglob("*") if f.is_file()) / 1e6
    print(f"{DESTINATION}: {size:.1f} MB")
    if size > 15:
        raise SystemExit("over 15 MB")


if __name__ == "__main__":
    main()
