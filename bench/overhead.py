"""Where the time of a fused analysis goes on a CPU, operation by operation, and what Python costs a noise level.

A whole LO-SDA analysis of the built-in package under torch's profiler, one thread, its blocks replayed as they are from
the fourth of a shape on (``engine.tape``). Every operation counts with its own time: matrix products (convolutions,
matrix products, attention, the head's projections), norms and activations, padding and layout (copies, shuffles,
concatenations), the observation operator, and updates (conjugate gradients, transitions, noise, all other arithmetic).
Operations that hold products count as products, with the norms of ``norm_conv``; what ``restricted_solve`` holds beside
them is taken from a run that has its parts one by one. Python is the time between operations, the profiler's own share
included: an upper bound. Seconds are the processor's, so that other work on the machine does not count; shares are of
the clock on the wall, as the profiler's. ``eager_seconds`` is without recordings.

    python -m bench.overhead --output bench/results/overhead.jsonl
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from bench.cases.analysis import Twin, demo
from lsda_fast.demo import METHODS
from lsda_fast.engine.backend import PRECISIONS
from lsda_fast.engine.footprint import weights_of
from lsda_fast.engine.graphs import Graphs, TapeRecorder
from lsda_fast.guidance import Likelihood
from lsda_fast.prior import Linearization
from lsda_fast.sampler import Sampler

# The first that an operation's name holds.
CATEGORIES = {
    "matrix products": (
        *("conv", "mm", "linear", "matmul", "attention", "softmax", "einsum", "linalg_", "dot"),
        *("lsda::head", "lsda::shuffle", "lsda::zonal", "lsda::restricted_solve"),
    ),
    "norms and activations": ("norm", "silu", "gelu", "erf"),
    "operator": ("lsda::obs_",),
    "padding and layout": (
        *("copy", "cat", "shuffle", "clone", "im2col", "col2im", "roll", "flip", "index", "lsda::geo_"),
    ),
}  # fmt: skip


def category(name: str) -> str:
    """Of an operation."""
    for title, parts in CATEGORIES.items():
        if any(part in name for part in parts):
            return title
    return "updates"


def measured(case: Twin, likelihood: Likelihood, precision: torch.dtype, members: int) -> dict[str, Any]:
    """Shares and seconds of one analysis."""
    guidance, steps = METHODS["LO-SDA"]
    sampler = Sampler(guidance, steps=steps)

    graphs = Graphs(sampler, TapeRecorder(), partial(weights_of, case.package))

    def run(clock: Callable[[], float] = time.process_time, graphs: Graphs | None = graphs) -> float:
        begin = clock()
        sampler(case.prior(fused=True, precision=precision), likelihood, members=members, seed=0, run=graphs)
        return clock() - begin

    while not len(graphs):
        run()
        if graphs.failure:
            raise RuntimeError(f"the block cannot be recorded: {graphs.failure}")
    # In turns, so that both see the same machine.
    turns = [(run(), run(graphs=None)) for _ in range(5)]
    own, under_profiler = _profiled(run)
    with patch.object(Linearization, "solve", lambda *_: None):
        run(graphs=None)
        apart, _ = _profiled(partial(run, graphs=None))
    parts: dict[str, float] = defaultdict(float)
    for name, value in own.items():
        parts[category(name)] += value
    for name in ("lsda::obs_project", "lsda::obs_adjoint", "lsda::restricted_step"):
        inside = max(0.0, apart[name] - own[name]) if own["lsda::restricted_solve"] else 0.0
        parts[category(name)] += inside
        parts["matrix products"] -= inside
    total = sum(parts.values())
    parts["python"] = max(0.0, under_profiler - total)
    whole = sum(parts.values())
    levels = steps * -(-members // sampler.chunk(case.prior(), members))
    return {
        "seconds": round(min(recorded for recorded, _ in turns), 3),
        "eager_seconds": round(min(eager for _, eager in turns), 3),
        "shares": {
            name: round(value / whole, 3) for name, value in sorted(parts.items(), key=itemgetter(1), reverse=True)
        },
        "outside_networks": round((parts["operator"] + parts["updates"]) / total, 3),
        "python_ms_per_level": round(1e3 * parts["python"] / levels, 1),
    }


def _profiled(run: Callable[..., float]) -> tuple[Counter[str], float]:
    """Seconds of every operation itself, and on the clock."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        clock = run(time.perf_counter)
    return Counter({event.key: event.self_cpu_time_total / 1e6 for event in profiled.key_averages()}), clock


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--fractions", type=float, nargs="+", default=(0.01, 0.05))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    case = demo()
    rows = []
    for fraction in arguments.fractions:
        for name, precision in PRECISIONS.items():
            found = measured(case, case.likelihood(fraction), precision, arguments.members)
            rows.append(
                {
                    "bench": "overhead",
                    "observed": fraction,
                    "precision": name,
                    "members": arguments.members,
                    **found,
                    "torch": torch.__version__,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
