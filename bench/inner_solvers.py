"""How many decoder derivatives do Gauss-Newton, L-BFGS and Adam need for the same analysis cost?

On the built-in package: one noise level, the same latent problem, J(v) = 1/2 |r(v)|^2 + 1/2 |v|^2 after ever more
derivative evaluations (JVP + VJP) of the decoder. Adam gets its best learning rate of a list. The table says how many
each needs to come within 1 % of the lowest cost found by any of them, relative to the cost at the start.

    python bench/inner_solvers.py --output bench/results/inner_solvers.jsonl
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from lsda_fast.assimilator import Assimilator
from lsda_fast.demo import built_in_package, demo_case
from lsda_fast.guidance import LBFGS, Adam, GaussNewton, InnerSolver
from lsda_fast.guidance.base import squared_norm
from lsda_fast.prior import Linearization
from lsda_fast.twin import column_observations

RATES = (0.03, 0.1, 0.3)


def trace(solver: InnerSolver, residual, prior, members: int) -> list[tuple[int, float]]:  # type: ignore[no-untyped-def]
    """(derivatives so far per member, cost) whenever the solver evaluates a gradient, and at its end."""
    prior.evaluations.clear()
    points: list[tuple[int, float]] = []

    def spent() -> int:
        return (prior.evaluations["decoder_jvp"] + prior.evaluations["decoder_vjp"]) // members

    def linearize(v: Tensor) -> Linearization:
        linear = Linearization(residual, v, prior.evaluations, "decoder")
        points.append((spent(), float((0.5 * (squared_norm(linear.value) + squared_norm(v))).mean())))
        return linear

    v = solver.minimize(linearize, torch.zeros(members, *prior.latent_shape))
    points.append((spent(), float((0.5 * (squared_norm(residual(v)) + squared_norm(v))).mean())))
    return points


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--adam-steps", type=int, default=300)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    package = built_in_package()
    truth, background = demo_case(package, 0)
    x = package.layout.to_array(truth)
    observations = column_observations(
        x, package.layout, fraction=arguments.fraction, std=package.observation_std, seed=0
    )
    likelihood = Assimilator(package).likelihood(observations)[1]
    prior = package.prior(package.normalize(package.layout.to_array(background)))
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(arguments.members, len(likelihood.y), generator=generator)
    whitened = likelihood.residual(prior)
    residual = lambda v: whitened(v) - e  # noqa: E731
    solvers: dict[str, list[InnerSolver]] = {
        "GaussNewton": [GaussNewton(outer=2, cg=n) for n in (2, 4, 6, 8, 12, 16, 24)],
        "LBFGS": [LBFGS(steps=60)],
        "Adam": [Adam(steps=arguments.adam_steps, lr=rate) for rate in RATES],
    }
    traces = {
        name: [p for s in group for p in trace(s, residual, prior, arguments.members)]
        for name, group in solvers.items()
    }
    start = max(cost for points in traces.values() for count, cost in points if count == 0)
    best = min(cost for points in traces.values() for _, cost in points)
    rows = []
    for share in (0.05, 0.02, 0.01):
        need = {
            name: min((count for count, cost in points if cost <= best + share * (start - best)), default=None)
            for name, points in traces.items()
        }
        row = {"bench": "inner_solvers", "within": share, "cost_at_start": start, "lowest_cost": best, **need}
        if need["GaussNewton"] and need["Adam"]:
            row["adam_over_gauss_newton"] = need["Adam"] / need["GaussNewton"]
        rows.append(row)
        print(row)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
