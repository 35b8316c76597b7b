"""How fast are obs_project and obs_adjoint, against torch indexing and torch.sparse, and against a copy of memory?

A state of 69 x 128 x 256 cells and bilinear stencils of 4 points, at random places or sorted by place. Every candidate
takes its turn in every round, so that a busy machine is unfair to all of them alike; the ratios are between medians.
``cpp_out`` writes into memory that is there; ``cpp`` and its rivals also pay for fresh pages.
``bytes`` is what must move at least: the touched cache lines of the state, the observations and the stencil once for
project; the observations, the stencil and the whole state for adjoint. ``of_copy`` compares bytes per second with a
copy between two buffers of the state's size in the same run, reading and writing counted.

    python bench/operators.py --observations 10000 100000 1000000 --members 8 64 --output bench/results/operators.jsonl
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsda_fast import kernels
from lsda_fast.kernels import native
from lsda_fast.kernels.obs_plan import ObservationPlan
from lsda_fast.kernels.obs_project import obs_adjoint, obs_project

SHAPE = (69, 128, 256)
LINE = 64
Candidates = dict[str, Callable[[], Tensor]]


def stencil(observations: int, in_order: bool) -> tuple[Tensor, Tensor]:
    """Bilinear stencils (P, 4) at random places of random channels."""
    C, H, W = SHAPE
    g = torch.Generator().manual_seed(0)
    channel, row, column = (torch.randint(0, n, (observations,), generator=g) for n in (C, H - 1, W))
    down, right = torch.rand(2, observations, 1, generator=g)
    east = (column + 1) % W
    corners = torch.stack([row * W + column, row * W + east, (row + 1) * W + column, (row + 1) * W + east], dim=1)
    index = channel[:, None] * H * W + corners
    weight = torch.cat([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], dim=1)
    order = index[:, 0].argsort() if in_order else torch.arange(observations)
    return index[order], weight[order]


def forced(implementation: str, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call with an implementation forced."""

    def run() -> Tensor:
        with kernels.use(implementation):
            return call()

    return run


def sparse(index: Tensor, weight: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """H and its transpose in torch's CSR layout."""
    P, K = index.shape
    entries = torch.stack([torch.arange(P).repeat_interleave(K), index.flatten()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        H = torch.sparse_coo_tensor(entries, weight.flatten(), (P, cells)).coalesce()
        return H.to_sparse_csr(), H.t().coalesce().to_sparse_csr()


def rounds(candidates: Candidates, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each, in turns, after one round to warm up; a copy before each leaves the caches alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, call in candidates.items():
            candidates["copy"]()
            start = clock()
            call()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def case(
    observations: int, members: int, in_order: bool, repeats: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Both operations at one size."""
    cells = SHAPE[0] * SHAPE[1] * SHAPE[2]
    index, weight = stencil(observations, in_order)
    start = clock()
    plan = ObservationPlan.from_stencil(index, weight, cells)
    seconds_of_plan = clock() - start
    H, H_transpose = sparse(index, weight, cells)
    x, r, other = torch.randn(members, cells), torch.randn(members, observations), torch.empty(members, cells)
    y = torch.empty(members, observations)
    lines = len(torch.unique(index // (LINE // x.element_size()))) * LINE
    stencil_bytes = observations * index.shape[1] * 8
    operations: dict[str, tuple[Candidates, int]] = {
        "obs_project": (
            {
                "cpp": forced("cpu", lambda: obs_project(x, plan)),
                "cpp_out": forced("cpu", lambda: obs_project(x, plan, out=y)),
                "torch_indexing": forced("reference", lambda: obs_project(x, plan)),
                "torch_sparse": lambda: (H @ x.T).T,
            },
            members * (lines + 4 * observations) + stencil_bytes,
        ),
        "obs_adjoint": (
            {
                "cpp": forced("cpu", lambda: obs_adjoint(r, plan)),
                "cpp_out": forced("cpu", lambda: obs_adjoint(r, plan, out=other)),
                "torch_indexing": forced("reference", lambda: obs_adjoint(r, plan)),
                "torch_sparse": lambda: (H_transpose @ r.T).T,
            },
            members * 4 * (observations + cells) + stencil_bytes,
        ),
    }
    rows = []
    for name, (candidates, least) in operations.items():
        results = {key: call() for key, call in candidates.items()}
        scale = results["torch_sparse"].abs().max()
        error = max(float((value - results["cpp"]).abs().max() / scale) for value in results.values())
        seconds = rounds({**candidates, "copy": lambda: other.copy_(x)}, repeats, clock)
        best = min(seconds["torch_indexing"], seconds["torch_sparse"])
        copied = 2 * x.numel() * x.element_size() / seconds["copy"]
        rows.append(
            {
                "bench": "operators",
                "op": name,
                "observations": observations,
                "members": members,
                "order": "by place" if in_order else "random",
                "ms": {key: round(1e3 * value, 3) for key, value in seconds.items()},
                "faster_than_best": {key: round(best / seconds[key], 2) for key in ("cpp", "cpp_out")},
                "bytes": least,
                "gb_per_s": round(least / seconds["cpp_out"] / 1e9, 2),
                "of_copy": round(least / seconds["cpp_out"] / copied, 3),
                "difference": error,
                "plan_ms": round(1e3 * seconds_of_plan, 1),
                "clock": "wall" if clock is time.perf_counter else "cpu",
                "threads": torch.get_num_threads(),
                "isa": native.load("cpu").code.isa(),
                "torch": torch.__version__,
            }
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observations", type=int, nargs="+", default=[10_000])
    parser.add_argument("--members", type=int, nargs="+", default=[8])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu for one thread on a busy machine")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    rows = []
    for observations in arguments.observations:
        for members in arguments.members:
            for in_order in (True, False):
                for row in case(observations, members, in_order, arguments.repeats, clock):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
