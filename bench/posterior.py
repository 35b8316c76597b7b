"""Is the posterior right? Mean and variance of every guidance where the answer is known, by noise levels.

50 latents with eigenvalues 1 to 0.01, a linear decoder, an exact denoiser and 10 observations with R = 0.01.
The moments are those of infinitely many samples (``tests/linear_gaussian.py``); ``--members 4096`` draws that
many as well, and prints theirs. DPS with its limited step is no affine map: its samples are drawn always.

    python bench/posterior.py --output bench/results/posterior.jsonl
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lsda_fast.guidance import DPS, MMPS, GaussNewton, Guidance, LatentOptimization, ObsFree, Repaint
from lsda_fast.sampler import Sampler

# The problem is the tests': what is tabulated is what they assert.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from linear_gaussian import LinearGaussian, build, moments

P = 10
TO_CLEAN: dict[str, Any] = {"spacing": "time", "stop": 0.0}


def _optimization(name: str) -> LatentOptimization:
    # As many iterations as unknowns: what is left is the method's own error.
    return LatentOptimization(GaussNewton(outer=1, cg=P + 1, halvings=0), prior_covariance=name, lanczos=50)


METHODS: dict[str, tuple[Guidance, dict[str, Any]]] = {
    "LatentOptimization, stationary": (_optimization("stationary"), {}),
    "LatentOptimization, tweedie": (_optimization("tweedie"), {}),
    "LatentOptimization, diagonal": (_optimization("diagonal"), {}),
    "LatentOptimization, diagonal, to the clean end": (_optimization("diagonal"), TO_CLEAN),
    "LatentOptimization, isotropic": (_optimization("isotropic"), {}),
    "LatentOptimization, isotropic, to the clean end": (_optimization("isotropic"), TO_CLEAN),
    "MMPS, ancestral": (MMPS(iterations=P + 1), {"solver": "ancestral"}),
    "MMPS, DDIM": (MMPS(iterations=P + 1), {"solver": "ddim"}),
    "MMPS, Heun": (MMPS(iterations=P + 1), {"solver": "heun"}),
    "DPS as published, gamma = 0.1": (DPS(gamma=0.1, limit=False), {}),
    "DPS as published, gamma = 0.3": (DPS(gamma=0.3, limit=False), {}),
    "DPS as published, gamma = 1": (DPS(gamma=1.0, limit=False), {}),
    "DPS, gamma = 0.1 (drawn)": (DPS(gamma=0.1), {}),
    "DPS, gamma = 0.3 (drawn)": (DPS(gamma=0.3), {}),
    "DPS, gamma = 1 (drawn)": (DPS(gamma=1.0), {}),
    "Repaint": (Repaint(), {}),
    "ObsFree": (ObsFree(), {}),
}


def measure(problem: LinearGaussian, name: str, levels: int, members: int) -> dict[str, Any]:
    """One row: error of the mean in units of the posterior's spread, and total variance over the true one."""
    guidance, settings = METHODS[name]
    start = time.perf_counter()
    row: dict[str, Any] = {"bench": "posterior", "method": name, "levels": levels}
    affine = not getattr(guidance, "limit", False)
    if affine:
        mean, covariance = moments(guidance, problem, steps=levels, **settings)
        row |= {"error_of_mean": problem.error(mean), "variance_ratio": problem.ratio(covariance)}
    if members or not affine:
        members = members or 4096
        sampler = Sampler(guidance, steps=levels, block=members, **settings)
        z = sampler(problem.prior, problem.likelihood, members=members, recenter=False).z
        row |= {
            "members": members,
            "sampled_error_of_mean": problem.error(z.mean(0)),
            "sampled_variance_ratio": problem.ratio(torch.cov(z.T)),
        }
    return row | {"seconds": round(time.perf_counter() - start, 2), "torch": torch.__version__}


def main() -> None:
    """Measure, print a Markdown table, and keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 4, 16, 64, 256], help="numbers of noise levels")
    parser.add_argument("--members", type=int, default=0, help="samples to draw; 0 for the exact moments alone")
    parser.add_argument(
        "--prior", choices=["correlated", "isotropic"], default="correlated", help="covariance of the prior"
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--output", type=Path, help="JSON lines file to append the rows to")
    arguments = parser.parse_args()
    problem = build(arguments.prior, P=P)
    print("| method | " + " | ".join(f"{n} level{'s' * (n > 1)}" for n in arguments.levels) + " |")
    print("|---" * (len(arguments.levels) + 1) + "|")
    for name in arguments.methods:
        rows = [
            measure(problem, name, levels, arguments.members) | {"prior": arguments.prior}
            for levels in arguments.levels
        ]
        prefix = "sampled_" if "members" in rows[0] else ""
        cells = (f"{row[prefix + 'error_of_mean']:.2f}, {row[prefix + 'variance_ratio']:.2f}" for row in rows)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            with arguments.output.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
