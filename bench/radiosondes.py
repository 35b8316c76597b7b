"""Real soundings: radiosondes of 2008-12-08 12 UTC into the background of that time, half of the stations withheld.

Temperature at 850 hPa and geopotential at 500 hPa of every station in the domain. For each split of the stations into
halves the analysis is made with one half and compared with the other: O-B and O-A of what it has not seen.

    python bench/radiosondes.py STATES SOUNDINGS.csv.gz runs/era --output bench/results/radiosondes.jsonl
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd

from lsda_fast.assimilator import Assimilator
from lsda_fast.datasets import open_states
from lsda_fast.forecast import forecast
from lsda_fast.guidance import LatentOptimization
from lsda_fast.observations import ObservationOperator, Observations
from lsda_fast.package import Package

TIME, BEFORE = "2008-12-08T12", "2008-12-07T12"
GUIDANCE = LatentOptimization(prior_covariance="tweedie")
STD = {"t850": 1.0, "z500": 100.0}


def soundings(path: str | Path, package: Package) -> Observations:
    """T at 850 hPa and geopotential at 500 hPa inside the package's domain, as an observation table."""
    raw = pd.read_csv(path)
    parts = []
    for column, variable, level in (
        ("airTemperature", "t", 850.0),
        ("nonCoordinateGeopotential", "z", 500.0),
    ):
        here = raw[(raw["pressure"] == level * 100.0) & raw[column].notna()]
        parts.append(
            pd.DataFrame(
                {
                    "time": pd.Timestamp(TIME),
                    "latitude": here["latitude"],
                    "longitude": here["longitude"],
                    "variable": variable,
                    "level": level,
                    "value": here[column],
                }
            )
        )
    table = Observations.from_frame(pd.concat(parts, ignore_index=True), std=STD)
    operator = ObservationOperator.stations(table, package.layout, package.normalization)
    return table.select(operator.used, "outside the domain")


def withheld_departures(
    package: Package, states: str | Path, table: Observations, *, members: int, every: int = 1
) -> pd.DataFrame:
    """One row per ``every``-th split: rms of O-B and O-A on the withheld stations, in units of their error."""
    background = forecast(package, open_states(states), time=BEFORE)
    frame = table.frame
    places = list(frame.groupby(["latitude", "longitude"]).groups)
    station = np.array([places.index(place) for place in zip(frame["latitude"], frame["longitude"])])
    rows = []
    for kept in itertools.islice(itertools.combinations(range(len(places)), len(places) // 2), 0, None, every):
        used = np.isin(station, kept)
        result = Assimilator(package, GUIDANCE)(background, table.select(used, "withheld"), members=members, seed=0)
        others = ObservationOperator.stations(table.select(~used), package.layout, package.normalization)
        departure = {}
        for name, state in (("O-B", result.before), ("O-A", result.mean)):
            x = package.normalize(package.layout.to_array(state))
            d = (others.values - others(x[None])[0].numpy()) / others.std
            departure[name] = float(np.sqrt(np.mean(d**2)))
        rows.append({"kept": len(kept), "withheld": int((~used).sum()), **departure})
    return pd.DataFrame(rows)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states")
    parser.add_argument("soundings")
    parser.add_argument("package", type=Path)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    package = Package.load(arguments.package)
    table = soundings(arguments.soundings, package)
    splits = withheld_departures(package, arguments.states, table, members=arguments.members)
    rms = np.sqrt((splits[["O-B", "O-A"]] ** 2).mean())
    row = {
        "bench": "radiosondes",
        "stations": int(table.frame.groupby(["latitude", "longitude"]).ngroups),
        "splits": len(splits),
        "O-B": float(rms["O-B"]),
        "O-A": float(rms["O-A"]),
        "splits_improved": int((splits["O-A"] < splits["O-B"]).sum()),
        "worst_O-A_over_O-B": float((splits["O-A"] / splits["O-B"]).max()),
    }
    print(row)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
