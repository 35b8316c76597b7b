"""Skill of the built-in package over the test period of the nature run: backgrounds, and analyses by every guidance.

Each test state gets a background (the package's forecast from a perturbed state one lead earlier), and noisy
observations of every channel at 1 % and 5 % random columns. Scores are over all states; one JSON line per method and
density. Cases are kept as they are done, so that an interrupted run goes on.

    python -m bench.skill runs/nature lsda_fast/data/demo/package --output bench/results/skill.jsonl
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.cases.kept import digest_of, kept_arrays
from lsda_fast.assimilator import Assimilator
from lsda_fast.datasets import open_states
from lsda_fast.guidance import DPS, MMPS, GaussNewton, Guidance, LatentOptimization, ObsFree, Repaint
from lsda_fast.package import Package
from lsda_fast.package.files import package_hash
from lsda_fast.twin import column_observations, twins
from lsda_fast.verification import Scores, kind_of, paired_bootstrap

LO = LatentOptimization(GaussNewton(outer=1, cg=3, halvings=0, precondition=10))
METHODS: dict[str, tuple[Guidance, int, bool]] = {
    "ObsFree": (ObsFree(), 8, True),
    "Repaint": (Repaint(), 16, True),
    "DPS": (DPS(), 12, True),
    "MMPS": (MMPS(), 6, True),
    "LO-SDA": (LO, 2, True),
    "LO-SDA, linear-Gaussian prior": (LO, 2, False),
}
PERIOD = ("2002-02-01", "2002-03-20")
FRACTIONS = (0.01, 0.05)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nature", type=Path, help="folder of the nature run")
    parser.add_argument("package", type=Path)
    parser.add_argument("--states", type=int, default=20)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--work", type=Path, default=Path("runs/skill"), help="folder of finished cases")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    package = Package.load(arguments.package)
    nature = open_states(str(arguments.nature / "states_*.nc"))
    cases = list(run_cases(package, nature, arguments))
    rows = summarise(package, cases)
    print(
        pd.DataFrame(rows).drop(columns=["bench", "groups"]).to_string(index=False, float_format=lambda v: f"{v:.4f}")
    )
    print(pd.DataFrame({f"{row['observed']:.0%} {row['method']}": row["groups"] for row in rows}).T.to_string())
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_cases(package, nature, arguments):  # type: ignore[no-untyped-def]
    """Per state and density: truth, background and every ensemble, from disk where done."""
    made_with = package_hash(arguments.package), PERIOD, arguments.states, nature["time"].values[0], arguments.members
    for number, truth, background, _ in twins(package, nature, PERIOD, arguments.states):
        x, x_b = package.layout.to_array(truth), package.layout.to_array(background)
        for fraction in FRACTIONS:
            observations = column_observations(
                x,
                package.layout,
                fraction=fraction,
                std=package.observation_std,
                seed=number,
                time=truth["time"].values,
            )
            results = {"background": (x_b[None], 0.0, "independent")}
            for name in arguments.methods:
                digest = digest_of(METHODS[name], *made_with)
                file = f"{number}_{fraction}_{name.replace(' ', '_')}_{digest}.npz"
                case = partial(analysed, package, METHODS[name], background, observations, arguments.members, number)
                found = kept_arrays(arguments.work / file, case)
                results[name] = found["ensemble"], float(found["seconds"]), str(found["kind"])
            print(f"state {number + 1} of {arguments.states}, {fraction:.0%}", flush=True)
            yield fraction, x, results


def analysed(package, method, background, observations, members, seed):  # type: ignore[no-untyped-def]
    """An ensemble, what kind it is, and its seconds."""
    guidance, steps, correction = method
    begin = time.perf_counter()
    assimilate = Assimilator(package, guidance, steps=steps, correction=correction)
    analysis = assimilate(background, observations, members=members, seed=seed).analysis
    seconds = time.perf_counter() - begin
    return {"ensemble": package.layout.to_array(analysis), "seconds": seconds, "kind": kind_of(analysis)["kind"]}


def summarise(package: Package, cases: list) -> list[dict]:
    """One row per density and method; groups are RMSE over the background's by kind of channel."""
    layout, std = package.layout, np.asarray(package.normalization.std)
    weights = layout.grid.area_weights
    kinds = sorted({channel.variable for channel in layout.channels})
    rows = []
    for fraction in FRACTIONS:
        mine = [(x, results) for f, x, results in cases if f == fraction]
        base: pd.DataFrame | None = None
        series: dict[str, np.ndarray] = {}
        for name in mine[0][1]:
            scores = Scores(layout.names, weights, std, kind=mine[0][1][name][2])
            errors = []
            for x, results in mine:
                scores.add(results[name][0], x)
                d = (results[name][0].mean(0) - x) / std[:, None, None]
                errors.append(np.sqrt(np.mean(d**2 * weights[:, None])))
            series[name] = np.array(errors)
            table = scores.table()
            base = table if base is None else base
            total: Any = table.loc["normalized"]
            ratio = paired_bootstrap(series[name], series["background"])
            groups = {
                kind: round(float(np.sqrt((table["rmse"] ** 2 / np.append(std, 1) ** 2)[members].mean()
                                          / (base["rmse"] ** 2 / np.append(std, 1) ** 2)[members].mean())), 4)
                for kind in kinds
                for members in [[c.name for c in layout.channels if c.variable == kind]]
            }  # fmt: skip
            rows.append(
                {
                    "bench": "skill",
                    "observed": fraction,
                    "method": name,
                    "rmse": float(total["rmse"]),
                    "over_background": ratio.ratio,
                    "low": ratio.low,
                    "high": ratio.high,
                    "crps": float(total["crps"]),
                    "spread_skill": None if np.isnan(total["spread_skill"]) else float(total["spread_skill"]),
                    "seconds": float(np.mean([results[name][1] for _, results in mine])),
                    "states": len(mine),
                    "groups": groups,
                }
            )
        reconstruction = np.asarray(package.reconstruction_error)
        assert base is not None
        rows.append(
            {
                "bench": "skill",
                "observed": fraction,
                "method": "autoencoder error",
                "rmse": float(np.sqrt(np.mean(reconstruction**2))),
                "over_background": float(np.sqrt(np.mean(reconstruction**2)) / base.loc["normalized", "rmse"]),
                "groups": {
                    kind: round(
                        float(
                            np.sqrt(
                                np.mean(reconstruction[index] ** 2)
                                / np.mean(base["rmse"].to_numpy()[index] ** 2 / std[index] ** 2)
                            )
                        ),
                        4,
                    )
                    for kind in kinds
                    for index in [[i for i, c in enumerate(layout.channels) if c.variable == kind]]
                },
            }
        )
    return rows


if __name__ == "__main__":
    main()
