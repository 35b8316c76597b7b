"""How many decoder derivatives do Gauss-Newton, L-BFGS and Adam need for the same analysis cost?

On the built-in package: one noise level, the same latent problem, J(v) = 1/2 |r(v)|^2 + 1/2 |v|^2 after ever more
derivative evaluations (JVP + VJP) of the decoder. Adam gets its best learning rate of a list. The table says how many
each needs to bring J to within a share of the lowest J found by any of them. The derivatives that the stand-in of the
preconditioner is fitted to are needed once an analysis; they are shared out over ``--ensemble`` members.

    python -m bench.inner_solvers --output bench/results/inner_solvers.jsonl
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases.analysis import demo
from lsda_fast.diffusion.noise import Key
from lsda_fast.guidance import LBFGS, Adam, Context, GaussNewton, InnerSolver
from lsda_fast.guidance.base import squared_norm
from lsda_fast.prior import Linearization

RATES = (0.03, 0.1, 0.3)
SHARES = (0.2, 0.1, 0.05, 0.02, 0.01)


def trace(solver: InnerSolver, context: Context, e: Tensor) -> list[tuple[int, float]]:
    """(derivatives so far per member, cost) whenever the solver evaluates a gradient, and at its end."""
    prior, members = context.prior, len(e)
    whitened = context.likelihood.residual(prior)
    start = torch.zeros(members, *prior.latent_shape)
    surrogate = context.linearize_surrogate(start, start)
    prior.evaluations.clear()
    points: list[tuple[int, float]] = []

    def cost(value: Tensor, v: Tensor) -> float:
        return float((0.5 * (squared_norm(value) + squared_norm(v))).mean())

    def spent() -> int:
        return (prior.evaluations["decoder_jvp"] + prior.evaluations["decoder_vjp"]) // members

    def linearize(v: Tensor) -> Linearization:
        linear = context.linearize_residual(v, e)
        points.append((spent(), cost(linear.value, v)))
        return linear

    v = solver.minimize(linearize, start, surrogate)
    points.append((spent(), cost(whitened(v) - e, v)))
    return points


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--ensemble", type=int, default=16)
    parser.add_argument("--adam-steps", type=int, default=400)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    case = demo()
    likelihood, prior = case.likelihood(arguments.fraction), case.prior()
    context = Context(prior, likelihood, prior.schedule.level(1.0), False, Key.of(0, range(arguments.members)))
    assert prior.tangent is not None
    prior.tangent(prior.evaluations)
    once = prior.evaluations["decoder_jvp"]
    e = torch.randn(arguments.members, len(likelihood.y), generator=torch.Generator().manual_seed(0))
    preconditioned = [(3, n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 10)] + [(2, n) for n in (1, 2, 3, 4, 6, 8, 10)]
    solvers: dict[str, list[InnerSolver]] = {
        "GaussNewton": [GaussNewton(outer, n, 0, precondition=10) for outer, n in preconditioned],
        "GaussNewton, not preconditioned": [GaussNewton(3, n, 0) for n in (4, 8, 12, 16, 20, 24, 30)],
        "LBFGS": [LBFGS(steps=100, history=20)],
        "Adam": [Adam(steps=arguments.adam_steps, lr=rate) for rate in RATES],
    }
    traces = {
        name: [point for solver in group for point in trace(solver, context, e)] for name, group in solvers.items()
    }
    start = max(cost for points in traces.values() for count, cost in points if count == 0)
    best = min(cost for points in traces.values() for _, cost in points)
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        need: dict[str, float | None] = {}
        for name, points in traces.items():
            need[name] = min((count for count, cost in points if cost <= (1 + share) * best), default=None)
        if need["GaussNewton"] is not None:
            need["GaussNewton"] += once / arguments.ensemble
        row = {"bench": "inner_solvers", "above_lowest": share, "cost_at_start": start, "lowest_cost": best, **need}
        if need["GaussNewton"] and need["Adam"]:
            row["adam_over_gauss_newton"] = round(need["Adam"] / need["GaussNewton"], 2)
        rows.append(row)
        print(row)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
