"""Whole LO-SDA analyses of the built-in package: the fused backend against the reference, as it is and at its best.

Same background, observations and members for all; the fused backend with its networks in float32 and in bfloat16, its
blocks replayed as an ``Assimilator`` does from the fourth of a shape on ("eager": without); the
reference in torch's usual memory format, with channels last, and with value, VJP and JVP of the observed decoder
compiled by torch.compile. Each runs once to warm up (to compile), then in turns. A row has the shortest time from the
background on (the compiled one's without its preparation), its ratio to that of the fused backend, and the largest
difference between the two analyses in units of each channel's standard deviation; with ``--double`` also how far each
is from the reference in float64 (of the same weights and noise, rounded to float32 where they are).

    python -m bench.backends --output bench/results/backends.jsonl
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.cases.analysis import demo
from lsda_fast import kernels
from lsda_fast.demo import METHODS
from lsda_fast.engine.footprint import weights_of
from lsda_fast.engine.graphs import Graphs, TapeRecorder
from lsda_fast.guidance import Likelihood
from lsda_fast.prior import Derivative, Differentiable, Prior
from lsda_fast.sampler import Sampler


def compiled(function: Callable[[Tensor], Tensor]) -> Differentiable:
    """The function with value, VJP and JVP by torch.compile."""
    value = torch.compile(function, dynamic=False)
    jvp = torch.compile(lambda z, v: torch.func.jvp(function, (z,), (v,))[1], dynamic=False)

    def derivative(z: Tensor) -> Derivative:
        with torch.enable_grad():
            point = z.detach().requires_grad_(True)
            y = value(point)
        vjp = lambda u: torch.autograd.grad(y, point, u, retain_graph=True)[0]  # noqa: E731
        return Derivative(y.detach(), lambda v: jvp(z, v), vjp)

    return Differentiable(value, derivative)


def compile_decoder(prior: Prior, operator: Any) -> Prior:
    """The prior whose observed decoder is compiled."""

    class Decoder:
        own = compiled(prior.observe(operator))
        observe = lambda self, _: self.own  # noqa: E731
        __call__ = lambda self, z: prior.decode(z)  # noqa: E731

    return replace(prior, decode=Decoder())


def analysis(
    make: Callable[[], Prior], likelihood: Likelihood, members: int, graphs: Graphs | None = None
) -> tuple[float, np.ndarray]:
    """Seconds from the background to the samples, and their states."""
    begin = time.perf_counter()
    prior = make()
    z = _sampler()(prior, likelihood, members=members, seed=0, run=graphs).z
    seconds = time.perf_counter() - begin
    return seconds, torch.cat([prior.decode(block) for block in z.split(4)]).numpy()


def _sampler() -> Sampler:
    guidance, steps = METHODS["LO-SDA"]
    return Sampler(guidance, steps=steps)


def apart(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The largest difference and that in the mean square."""
    return {"difference": float(np.abs(a - b).max()), "rms_difference": float(np.sqrt(np.mean((a - b) ** 2)))}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=(1, 4, 16))
    parser.add_argument("--fractions", type=float, nargs="+", default=(0.01, 0.05))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile too, minutes")
    parser.add_argument("--double", action="store_true", help="the reference in float64 too, ten times as long")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    case = demo()
    double = case.double() if arguments.double else None
    last = deepcopy(case)  # weights that change their format are other weights, to recordings too
    last.package.autoencoder.to(memory_format=torch.channels_last)
    rows: list[dict[str, Any]] = []
    for fraction in arguments.fractions:
        likelihood = case.likelihood(fraction)
        makers: dict[str, Callable[[], Prior]] = {
            "fused": lambda: case.prior(fused=True),
            "fused, eager": lambda: case.prior(fused=True),
            "fused, bfloat16": lambda: case.prior(fused=True, precision=torch.bfloat16),
            "reference": case.prior,
            "reference, channels last": last.prior,
        }
        if arguments.compile:
            prepared = compile_decoder(case.prior(), likelihood.operator)
            makers["reference, compiled"] = lambda prepared=prepared: prepared  # type: ignore[misc]
        for members in arguments.members:
            seconds: dict[str, float] = {}
            analyses: dict[str, np.ndarray] = {}
            weights = partial(weights_of, case.package)
            graphs = {name: Graphs(_sampler(), TapeRecorder(), weights) for name in ("fused", "fused, bfloat16")}
            for name, recorded in graphs.items():
                while not len(recorded):
                    analysis(makers[name], likelihood, members, recorded)
                    if recorded.failure:
                        raise RuntimeError(f"{name} cannot be recorded: {recorded.failure}")
            for round_ in range(arguments.rounds + 1):
                for name, make in makers.items():
                    with nullcontext() if "fused" in name else kernels.use("reference"):
                        spent, analyses[name] = analysis(make, likelihood, members, graphs.get(name))
                    if round_:
                        seconds[name] = min(seconds.get(name, np.inf), spent)
            yardsticks = {"": analyses["fused"]}
            if double:
                with kernels.use("reference"):
                    yardsticks["_from_double"] = analysis(double.prior, double.likelihood(fraction), members)[1]
            for name, best in seconds.items():
                rows.append(
                    {
                        "bench": "backends",
                        "observed": fraction,
                        "members": members,
                        "backend": name,
                        "seconds": round(best, 3),
                        "over_fused": round(best / seconds["fused"], 2),
                        **{k + of: v for of, x in yardsticks.items() for k, v in apart(analyses[name], x).items()},
                        "threads": torch.get_num_threads(),
                        "torch": torch.__version__,
                    }
                )
                print(rows[-1], flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
