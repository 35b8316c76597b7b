"""How fast are adam_step, cg_step and sampler_step, against torch.optim and torch expressions, and against a copy?

A latent of 18,432 numbers (the built-in package's) and one of 141,312 (the papers'). Every candidate takes its turn in
every round; the ratios are between medians. ``bytes`` is what must move: each vector that is read or written, once.
``of_copy`` compares bytes per second with a copy in the same run, reading and writing counted: small ensembles stay in
the caches, where it is above 1.

    python -m bench.updates --output bench/results/updates.jsonl
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.operators import forced, rounds
from lsda_fast.kernels import native
from lsda_fast.kernels.adam_step import adam_step
from lsda_fast.kernels.cg_step import cg_step
from lsda_fast.kernels.sampler_step import sampler_step

SIZES = (18_432, 141_312)
Candidates = dict[str, Callable[[], Any]]


def adam(M: int, n: int) -> tuple[Candidates, int]:
    """One step, the state in place where the rival has it in place too."""
    v, m, s, g = (torch.rand(M, n) for _ in range(4))
    kept: Any = tuple(t.clone() for t in (v, m, s))
    arguments: Any = (v, m, s, g, 5)
    candidates: Candidates = {
        "cpp": forced("cpu", lambda: adam_step(*arguments, lr=0.1)),
        "cpp_out": forced("cpu", lambda: adam_step(*kept, g, 5, lr=0.1, out=kept)),
        "torch expressions": forced("reference", lambda: adam_step(*arguments, lr=0.1)),
    }
    for kind in ("single", "foreach", "fused"):
        p = v.clone().requires_grad_(True)
        p.grad = g
        optimizer = torch.optim.Adam([p], lr=0.1, **({} if kind == "single" else {kind: True}))  # type: ignore[arg-type]
        if kind == "single":
            optimizer.defaults["foreach"] = optimizer.param_groups[0]["foreach"] = False
        candidates[f"torch.optim {kind}"] = optimizer.step
    return candidates, 7 * 4 * M * n


def cg(M: int, n: int) -> tuple[Candidates, int]:
    """One iteration."""
    x, r, p, Ap = (torch.rand(M, n) for _ in range(4))
    rr, limit = torch.rand(M), torch.zeros(M)
    kept: Any = tuple(t.clone() for t in (x, r, p, rr))
    state = (x, r, p, rr, Ap, limit)
    candidates: Candidates = {
        "cpp": forced("cpu", lambda: cg_step(*state)),
        "cpp_out": forced("cpu", lambda: cg_step(*kept, Ap, limit, out=kept)),
        "torch expressions": forced("reference", lambda: cg_step(*state)),
    }
    return candidates, 7 * 4 * M * n


def transition(M: int, n: int) -> tuple[Candidates, int]:
    """DDIM with noise: two terms and fresh normals; torch.randn stands for a generator that is not counter-based."""
    z0, z_t = torch.rand(M, n), torch.rand(M, n)
    members = torch.arange(M)
    call: Callable[[], Tensor] = lambda: sampler_step([z0, z_t], [0.5, 0.5], noise=0.1, members=members)  # noqa: E731
    candidates: Candidates = {
        "cpp": forced("cpu", call),
        "torch expressions": forced("reference", call),
        "torch.randn": lambda: 0.5 * z0 + 0.5 * z_t + 0.1 * torch.randn(M, n),
    }
    return candidates, 3 * 4 * M * n


OPERATIONS = {"adam_step": adam, "cg_step": cg, "sampler_step": transition}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu for one thread on a busy machine")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    rows: list[dict[str, Any]] = []
    for name, make in OPERATIONS.items():
        for n in arguments.sizes:
            for members in arguments.members:
                candidates, least = make(members, n)
                source, target = torch.rand(members, n), torch.empty(members, n)
                copy = lambda a=source, b=target: b.copy_(a)  # noqa: E731
                seconds = rounds({**candidates, "copy": copy}, arguments.repeats, clock)
                ours = min(value for key, value in seconds.items() if key.startswith("cpp"))
                best = min(value for key, value in seconds.items() if key.startswith("torch"))
                rows.append(
                    {
                        "bench": "updates",
                        "op": name,
                        "numbers": n,
                        "members": members,
                        "ms": {key: round(1e3 * value, 3) for key, value in seconds.items()},
                        "faster_than_best": round(best / ours, 2),
                        "of_copy": round(least / ours / (2 * 4 * members * n / seconds["copy"]), 3),
                        "clock": arguments.clock,
                        "threads": arguments.threads,
                        "isa": native.load("cpu").code.isa(),
                        "torch": torch.__version__,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
