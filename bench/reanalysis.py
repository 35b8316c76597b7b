"""Analyses of the ERA-Interim western Europe set, against optimal interpolation with the full error covariance.

Backgrounds are the package's 24-hour forecasts; 5, 10 and 20 % of the points are observed in all variables with an
error of 10 % of each channel's climatological standard deviation; optimal interpolation has the sample covariance of
the cross-fitted forecast errors of the training years. Same background, same points, same observation errors for
everybody.

    lsda train STATES --config small --train 2000-01-01/2006-12-31 --validate 2007-01-01/2007-12-31 --output runs/era
    python bench/reanalysis.py STATES runs/era --output bench/results/reanalysis.jsonl
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lsda_fast.baselines import OptimalInterpolation
from lsda_fast.datasets import open_states
from lsda_fast.guidance import DPS, MMPS, GaussNewton, Guidance, LatentOptimization, Likelihood, ObsFree, Repaint
from lsda_fast.models import build
from lsda_fast.models.forecaster import Forecaster
from lsda_fast.observations import ObservationOperator
from lsda_fast.package import Package
from lsda_fast.sampler import Sampler
from lsda_fast.training.config import TrainingConfig
from lsda_fast.training.data import States, load_states
from lsda_fast.twin import column_observations
from lsda_fast.verification import Scores, paired_bootstrap

SOLVE = GaussNewton(outer=1, cg=16, halvings=0)  # the decoder is linear
# Guidance, noise levels, and rho of the last one (the guidance's own for None); LO-SDA's were chosen on 2007.
METHODS: dict[str, tuple[Guidance, int, float | None]] = {
    "ObsFree": (ObsFree(), 16, None),
    "Repaint": (Repaint(), 32, None),
    "DPS": (DPS(), 64, None),
    "MMPS": (MMPS(), 16, None),
    "LO-SDA": (LatentOptimization(SOLVE, prior_covariance="tweedie"), 4, 1.0),
    "LO-SDA, isotropic": (LatentOptimization(SOLVE), 4, 1.0),
}


def forecast_errors(package: Package, states: States, work: Path) -> torch.Tensor:
    """Cross-fitted forecast errors of the training period, from the fold models that training kept."""
    config = TrainingConfig.model_validate(package.provenance["configuration"])
    pairs = states.pairs(states.train)
    spec = package.architectures["forecaster"]
    errors = []
    for i, block in enumerate(np.array_split(pairs, config.forecaster.folds)):
        model = build({"unet": Forecaster}, spec.name, spec.settings).eval()
        name = f"forecaster_{i}.pt" if config.forecaster.folds > 1 else "forecaster.pt"
        model.load_state_dict(torch.load(work / name, weights_only=True))
        before = states.before[block]
        with torch.no_grad():
            errors.append(model(states.x[before], states.calendar[before]) - states.x[block])
    return torch.cat(errors)


def main() -> None:
    """Measure, print the table, write one JSON line per method and density."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("states")
    parser.add_argument("package", type=Path)
    parser.add_argument("--period", nargs=2, default=("2008-01-01", "2008-12-31"))
    parser.add_argument("--dates", type=int, default=122, help="evenly spaced in the period")
    parser.add_argument("--fractions", type=float, nargs="+", default=(0.05, 0.1, 0.2))
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--steps", type=int, help="noise levels of LO-SDA")
    parser.add_argument("--no-correction", action="store_true", help="the linear-Gaussian prior alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = measure(arguments)
    print(pd.DataFrame(rows).drop(columns=["bench"]).to_string(index=False, float_format=lambda v: f"{v:.4f}"))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measure(arguments: argparse.Namespace) -> list[dict]:
    """One row per method and density."""
    package = Package.load(arguments.package)
    config = TrainingConfig.model_validate(package.provenance["configuration"])
    dataset = open_states(arguments.states)
    states = load_states(dataset, config, all_times=True)
    oi = OptimalInterpolation(forecast_errors(package, states, Path(f"{arguments.package}.work")))
    layout = package.layout
    inside = states.pairs(np.arange(len(states.times)))
    inside = inside[(states.times[inside] >= arguments.period[0]) & (states.times[inside] <= arguments.period[1])]
    dates = inside[np.linspace(0, len(inside) - 1, arguments.dates).round().astype(int)]
    weights = np.ones(layout.shape[1])  # a regional set in the prototype's plain normalised RMSE
    rows = []
    for fraction in arguments.fractions:
        scores: dict[str, Scores] = {}
        series: dict[str, list[float]] = {name: [] for name in ("background", "OI", *arguments.methods)}
        seconds = dict.fromkeys(series, 0.0)
        for date in dates:
            x = states.x[date]
            before = int(states.before[date])
            x_b = package.modules["forecaster"](states.x[before][None], states.calendar[before][None])[0]
            truth = package.denormalize(x)
            observations = column_observations(
                truth, layout, fraction=fraction, std=package.observation_std, seed=arguments.seed + int(date)
            )
            operator = ObservationOperator.stations(observations, layout, package.normalization)
            y, variance = torch.tensor(operator.values).float(), torch.tensor(operator.std).float() ** 2
            H = torch.zeros(operator.size, x.numel()).scatter_add_(1, operator.index, operator.weight)
            begin = time.perf_counter()
            x_a, members = oi.analysis(x_b, H, y - operator.offset, variance, members=arguments.members, seed=int(date))
            results = {"background": x_b[None], "OI": members - members.mean(0) + x_a}
            kinds = {"background": "independent", "OI": "recentred"}
            seconds["OI"] += time.perf_counter() - begin
            error = operator.representativeness(torch.as_tensor(package.reconstruction_error))
            likelihood = Likelihood(
                operator, y, variance + error, operator.representativeness(torch.ones(len(layout.names))).sqrt()
            )
            for name in arguments.methods:
                guidance, steps, rho = METHODS[name]
                if name.startswith("LO-SDA") and arguments.steps:
                    steps = arguments.steps
                begin = time.perf_counter()
                prior = package.prior(x_b, correction=not arguments.no_correction)
                stop = None if rho is None else prior.schedule.time(rho)
                sampler = Sampler(guidance, steps=steps, stop=stop, block=16)
                samples = sampler(prior, likelihood, members=arguments.members, seed=int(date))
                with torch.no_grad():
                    results[name], kinds[name] = prior.decode(samples.z), samples.ensemble
                seconds[name] += time.perf_counter() - begin
            for name, ensemble in results.items():
                mine = scores.setdefault(name, Scores(layout.names, weights, kind=kinds[name]))
                mine.add(ensemble.numpy(), x.numpy())
                series[name].append(float((ensemble.mean(0) - x).square().mean().sqrt()))
        for name, score in scores.items():
            total: Any = score.table().loc["normalized"]
            ratio = paired_bootstrap(np.array(series[name]), np.array(series["OI"]))
            rows.append(
                {
                    "bench": "reanalysis",
                    "observed": fraction,
                    "method": name,
                    "rmse": float(np.sqrt(np.mean(np.square(series[name])))),
                    "ratio_to_oi": ratio.ratio,
                    "low": ratio.low,
                    "high": ratio.high,
                    "crps": float(total["crps"]),
                    "spread_skill": None if np.isnan(total["spread_skill"]) else float(total["spread_skill"]),
                    "dates": len(dates),
                    "members": arguments.members,
                    "seconds_per_analysis": seconds[name] / len(dates),
                }
            )
    return rows


if __name__ == "__main__":
    main()
