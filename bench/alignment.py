"""What alignment changes: the reference package against aligned ones, over the test period of the nature run.

Each test state gets a background and noisy observations of every channel at 1 % and 5 % random columns, as in
bench/skill.py, and is analysed by ObsFree, Repaint, DPS and LO-SDA with every package, from the same noise. Scored are
the members and their mean (LO-SDA's members are recentred, and so nearer to it than draws would be; the same with every
package):

- mse, mse_mean: normalised, area-weighted mean square error; wrmse_<channel>: of the members, in the channel's units
- variance: of the members, normalised: what accuracy is bought with where it falls faster than mse_mean
- forecast: normalised mean square error of the members' 48-hour forecasts, by the package's own model, which alignment
  leaves alone, or by the nature run's (--judge nature: needs its environment; a second of a core for each)
- excess: that less the error of the forecast from the truth
- physics: the mean reward ``physics`` (or another, --physics) of the members

One JSON line per density, method and package. The change of an aligned package is that of the mean over the cases,
relative to the reference's, with the 90 % interval of a paired block bootstrap over the dates. Scores of a case are
kept as it is done, so that an interrupted run goes on.

    python -m bench.alignment runs/nature lsda_fast/data/demo/package --aligned A=runs/A F=runs/F P=runs/P M=runs/M \\
        --output bench/results/alignment.jsonl
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.cases.kept import digest_of, kept
from bench.cases.nature_model import NatureForecast
from lsda_fast.assimilator import Assimilator
from lsda_fast.datasets import open_states
from lsda_fast.errors import InputError
from lsda_fast.forecast_models import ForecastModel, PackageForecast
from lsda_fast.guidance import DPS, GaussNewton, Guidance, LatentOptimization, ObsFree, Repaint
from lsda_fast.package import Package
from lsda_fast.package.files import package_hash
from lsda_fast.twin import Twin, column_observations, twins
from lsda_fast.verification import normalized_rmse, paired_bootstrap

METHODS: dict[str, tuple[Guidance, int]] = {
    "ObsFree": (ObsFree(), 8),
    "Repaint": (Repaint(), 16),
    "DPS": (DPS(), 12),
    "LO-SDA": (LatentOptimization(GaussNewton(outer=1, cg=3, halvings=0, precondition=10)), 2),
}
PERIOD = ("2002-02-01", "2002-03-20")
FRACTIONS = (0.01, 0.05)
MAIN = ("z500", "t850", "u500", "v500", "u850", "q700", "sp")
HOURS = 48.0

Scores = dict[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nature", type=Path, help="folder of the nature run")
    parser.add_argument("reference", type=Path, help="the package before alignment")
    parser.add_argument("--aligned", nargs="+", default=[], metavar="NAME=PACKAGE")
    parser.add_argument("--states", type=int, default=40)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--period", nargs=2, default=PERIOD, metavar=("FIRST", "LAST"))
    parser.add_argument("--physics", default="physics", help="name of the reward that is reported")
    parser.add_argument("--judge", default="package", choices=("package", "nature"), help="model of the forecasts")
    parser.add_argument("--work", type=Path, default=Path("runs/alignment"), help="folder of finished cases")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.members < 2:
        raise InputError(f"--members {arguments.members} came; accepted: 2 or more, whose variance is scored too")
    paths = {"reference": arguments.reference, **dict(_named(text) for text in arguments.aligned)}
    cases = list(run_cases(paths, arguments))
    rows = summarise(cases, list(paths), arguments.methods)
    shown = [{k: v for k, v in row.items() if not isinstance(v, dict)} | _brief(row) for row in rows]
    print(pd.DataFrame(shown).drop(columns="bench").to_string(index=False, float_format=lambda v: f"{v:.4f}"))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not path or name == "reference":
        raise InputError(f"--aligned {text!r}; accepted is NAME=PACKAGE, another name than reference")
    return name, Path(path)


def run_cases(paths: dict[str, Path], arguments: argparse.Namespace) -> Iterator[tuple[int, float, str, str, Scores]]:
    """Case, density, method, package, scores; from disk where done."""
    packages = {name: Package.load(path) for name, path in paths.items()}
    hashes = {name: package_hash(path)[:12] for name, path in paths.items()}
    nature = open_states(str(arguments.nature / "states_*.nc"))
    reference, first = packages["reference"], nature["time"].values[0]
    judged: tuple[str, ...] = ()
    judge: ForecastModel = PackageForecast(reference)
    if arguments.judge == "nature":
        judged, judge = ("nature",), NatureForecast(reference, arguments.nature)
    for twin in twins(reference, nature, tuple(arguments.period), arguments.states, hours=HOURS):
        x = reference.layout.to_array(twin.truth)
        when = str(twin.truth["time"].values.astype("datetime64[h]"))
        file = "_".join((when, "truth", hashes["reference"], digest_of(first, *judged))) + ".json"
        least = kept(arguments.work / file, partial(least_forecast, reference, judge, twin))["forecast"]
        for fraction in FRACTIONS:
            observations = column_observations(
                x,
                reference.layout,
                fraction=fraction,
                std=reference.observation_std,
                seed=twin.number,
                time=twin.truth["time"].values,
            )
            for method in arguments.methods:
                for name, package in packages.items():
                    # Without observations it is one analysis at every density.
                    seen = "free" if isinstance(METHODS[method][0], ObsFree) else fraction
                    given = (METHODS[method], hashes["reference"], tuple(arguments.period), arguments.states, first)
                    key = (when, twin.number, seen, method, hashes[name], arguments.members, arguments.physics)
                    file = "_".join(map(str, (*key, digest_of(*given, *judged)))) + ".json"
                    case = partial(score, package, METHODS[method], twin, observations, judge, arguments)
                    scores = kept(arguments.work / file, case)
                    yield twin.number, fraction, method, name, scores | {"excess": scores["forecast"] - least}
        print(f"state {twin.number + 1} of {arguments.states}", flush=True)


def least_forecast(package: Package, judge: ForecastModel, twin: Twin) -> Scores:
    """The error of the forecast from the truth."""
    layout, std = package.layout, package.normalization.std
    truth = package.normalize(layout.to_array(twin.truth)[None])
    start = package.denormalize(judge(truth, time_of(twin), HOURS))[0]
    assert twin.later is not None
    return {"forecast": normalized_rmse(start, layout.to_array(twin.later), layout.grid.area_weights, std) ** 2}


def time_of(twin: Twin) -> np.datetime64:
    """Of the truth and the background."""
    times: Any = twin.truth["time"].values
    return times.astype("datetime64[ns]")[()]


def score(
    package: Package,
    method: tuple[Guidance, int],
    twin: Twin,
    observations: Any,
    judge: ForecastModel,
    arguments: argparse.Namespace,
) -> Scores:
    """All scores of one analysis."""
    from lsda_fast.alignment.case import Case
    from lsda_fast.alignment.rewards import rewards_of

    assert twin.later is not None
    guidance, steps = method
    begin = time.perf_counter()
    assimilate = Assimilator(package, guidance, steps=steps)
    analysis = assimilate(twin.background, observations, members=arguments.members, seed=twin.number).analysis
    seconds = time.perf_counter() - begin
    layout = package.layout
    std, weights = np.asarray(package.normalization.std), layout.grid.area_weights[:, None]
    states = {
        "analysis": layout.to_array(analysis),
        "truth": layout.to_array(twin.truth),
        "later": layout.to_array(twin.later),
        "background": layout.to_array(twin.background),
    }
    tensors = {name: package.normalize(value) for name, value in states.items()}
    later = package.denormalize(judge(tensors["analysis"], time_of(twin), HOURS))
    errors = states["analysis"] - states["truth"]
    square = lambda e: np.mean(e**2 * weights, axis=(-2, -1)) / weights.mean()  # noqa: E731
    per_channel = square(errors).mean(0)
    case = Case(package, time_of(twin), tensors["background"], tensors["truth"], {HOURS: tensors["later"]})
    with torch.no_grad():
        physics = rewards_of(arguments.physics, package, lead=HOURS)[0](tensors["analysis"], case)
    return {
        "mse": float((per_channel / std**2).mean()),
        "mse_mean": float((square(errors.mean(0)) / std**2).mean()),
        "variance": float((square(errors - errors.mean(0)).sum(0) / (len(errors) - 1) / std**2).mean()),
        "forecast": float((square(later - states["later"]).mean(0) / std**2).mean()),
        "physics": float(physics.mean()),
        **{f"mse_{name}": float(per_channel[layout.index(name)]) for name in MAIN if name in layout.names},
        "seconds": seconds,
    }


def summarise(cases: Sequence[tuple[int, float, str, str, Scores]], names: list[str], methods: list[str]) -> list[dict]:
    """One row per density, method and package."""
    rows = []
    for fraction in FRACTIONS:
        for method in methods:
            mine = {name: [s for _, f, m, n, s in cases if (f, m, n) == (fraction, method, name)] for name in names}
            for name in names:
                table, base = pd.DataFrame(mine[name]), pd.DataFrame(mine["reference"])
                mean = table.mean()
                row: dict[str, Any] = {"bench": "alignment", "observed": fraction, "method": method, "package": name}
                told = ("mse", "mse_mean", "variance", "forecast", "excess", "physics", "seconds")
                row |= {key: float(mean[key]) for key in told}
                row["wrmse"] = {str(k).removeprefix("mse_"): float(v**0.5) for k, v in mean.items() if _is_channel(k)}
                row["states"] = len(table)
                if name != "reference":
                    row["change"] = {k: change(table[k], base[k], _is_channel(k)) for k in mean.index if k != "seconds"}
                rows.append(row)
    return rows


def _is_channel(score: Any) -> bool:
    return str(score).removeprefix("mse_") in MAIN


def change(scores: pd.Series, reference: pd.Series, root: bool) -> list[float] | None:
    """The mean over the cases relative to the reference's less 1, and its interval; of its square root where asked.

    None of scores that are below 0 somewhere: they have no relative change.
    """
    if min(scores.min(), reference.min()) < 0 or not reference.max() > 0:
        return None
    # The bootstrap is of root mean squares.
    found = np.array(paired_bootstrap(np.sqrt(scores), np.sqrt(reference)))
    return [round(float(value), 5) for value in (found if root else found**2) - 1]


def _brief(row: dict[str, Any]) -> dict[str, str]:
    """The changes that the targets are about, in per cent with their intervals."""
    shown = {k: row.get("change", {}).get(k) for k in ("mse", "forecast", "excess", "physics")}
    return {
        f"{k} %": "" if v is None else f"{100 * v[0]:+.2f} ({100 * v[1]:+.2f}..{100 * v[2]:+.2f})"
        for k, v in shown.items()
    }


if __name__ == "__main__":
    main()
