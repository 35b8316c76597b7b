"""What do gross errors do to an analysis, and what do robust costs make of it?

The built-in package, columns observed with their usual errors, and a share of the values wrong by several spreads of
what is observed. RMSE of the ensemble mean against the truth, normalised by the climate's spread and averaged over the
channels; ``clean`` are the same values before they were spoilt. ``missed`` is the share of gross errors that keep half
their weight, ``lost`` that of good values that do not.

    python bench/robust.py --output bench/results/robust.jsonl
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lsda_fast.analysis import Analysis
from lsda_fast.assimilator import Assimilator
from lsda_fast.demo import built_in_package, demo_case
from lsda_fast.guidance import GaussNewton, Huber, LatentOptimization, VariationalQC
from lsda_fast.observations import Observations
from lsda_fast.package import Package
from lsda_fast.twin import column_observations

COSTS = {"gaussian": None, "huber:3": Huber(3.0), "varqc:0.01,5": VariationalQC(0.01, 5.0)}


def spoil(observations: Observations, share: float, size: float, seed: int) -> tuple[Observations, np.ndarray]:
    """A share of the values moved by ``size`` spreads of its variable and level; which."""
    rng = np.random.default_rng(seed)
    frame = observations.frame.copy()
    wrong = rng.random(len(frame)) < share
    spread = frame.groupby(["variable", "level"], dropna=False)["value"].transform("std").to_numpy()
    frame["value"] += np.where(wrong, size * rng.choice([-1.0, 1.0], len(frame)) * spread, 0.0)
    return Observations(frame, observations.rejected), wrong


def score(package: Package, result: Analysis, x: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """See the module."""
    error = (package.layout.to_array(result.mean) - x) / package.normalization.std[:, None, None]
    light = ~(result.departures["weight"].to_numpy() >= 0.5)  # those that were rejected have none
    return {
        "rmse": float(np.sqrt((error**2).mean((1, 2))).mean()),
        "missed": float((wrong & ~light).sum() / max(wrong.sum(), 1)),
        "lost": float((light & ~wrong).sum() / (~wrong).sum()),
        "seconds": result.seconds,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=0.05, help="of the columns observed")
    parser.add_argument("--share", type=float, default=0.05, help="of the values with gross errors")
    parser.add_argument("--size", type=float, default=3.0)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--outer", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    package = built_in_package()
    rows: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        truth, background = demo_case(package, seed)
        x = package.layout.to_array(truth)
        clean = column_observations(
            x, package.layout, fraction=arguments.fraction, std=package.observation_std, seed=seed
        )
        cases = {
            "clean": (clean, np.zeros(len(clean), bool)),
            "spoilt": spoil(clean, arguments.share, arguments.size, seed),
        }
        for outer, kind, cost in product(arguments.outer, cases, COSTS):
            guidance = LatentOptimization(GaussNewton(outer=outer, cg=3, halvings=0, precondition=10))
            assimilate = Assimilator(package, guidance, steps=2, robust=COSTS[cost])
            observations, wrong = cases[kind]
            result = assimilate(background, observations, members=arguments.members, seed=seed)
            scores = score(package, result, x, wrong)
            rows.setdefault((kind, cost, outer), []).append(scores)
    settings: dict[str, Any] = {key: value for key, value in vars(arguments).items() if key not in ("output", "outer")}
    lines = []
    for (kind, name, outer), found in rows.items():
        means = {key: round(float(np.mean([s[key] for s in found])), 4) for key in found[0]}
        row = {"bench": "robust", "observations": kind, "cost": name, "outer": outer, **means, **settings}
        lines.append(json.dumps(row))
        print(lines[-1], flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
