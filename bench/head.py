"""What does observing through the decoder's head save, against decoding the whole state and observing that?

The derivatives of the observations' cost, value and VJP, and JVP, for columns of all channels at random places between
grid points: of the built-in package's decoder, of the stand-in for its derivative that preconditions, and of a larger
vision transformer. Both ways take their turn in every round; time is the median, memory the most that tensors hold at
once beyond what lies there before. A ratio is decode-then-observe over head, the median over the rounds.

    python -m bench.head --threads 1 --clock cpu --output bench/results/head.jsonl
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.cases.analysis import demo
from bench.cases.columns import columns
from lsda_fast.engine.watch import Watch
from lsda_fast.kernels import native
from lsda_fast.models import build_autoencoder
from lsda_fast.models.observed import HeadedDecoder
from lsda_fast.observations.operators import StencilOperator
from lsda_fast.prior import Derivative, Differentiable, Linearization, observe

Decode = Callable[[Tensor], Tensor]
ITSELF = Differentiable(lambda z: z, lambda z: Derivative(z, lambda v: v, lambda u: u))

Pair = tuple[Decode, Decode, tuple[int, ...], tuple[int, int, int], torch.dtype | None]
VIT: dict[str, Any] = {
    "shape": (69, 64, 128),
    "latent_channels": 32,
    "width": 256,
    "depth": 4,
    "heads": 4,
    "windows": [(8, 8), (4, 16), (16, 4)],
    "global_every": 4,
    "periodic": True,
}


def decoders() -> dict[str, Pair]:
    """Plain, with head, shape of the latent, shape of the state, and the latent's dtype if not the usual."""
    case = demo()
    plain, headed = case.prior(), case.prior(fused=True)
    assert plain.tangent is not None
    assert headed.tangent is not None
    sizes = case.package.latent_shape, case.package.layout.shape
    torch.manual_seed(0)
    vit: Any = build_autoencoder("vit", **VIT).requires_grad_(False)
    return {
        "built-in": (plain.decode, headed.decode, *sizes, None),
        "its stand-in": (plain.tangent(Counter()), headed.tangent(Counter()), *sizes, headed.tangent_dtype),
        "vit": (vit.decode, HeadedDecoder(vit, ITSELF, products=True), vit.latent_shape, vit.shape, None),
    }


def peak(call: Callable[[], object]) -> int:
    """The most bytes that tensors of the CPU hold at once in a call, beyond what lies there before."""
    with Watch(torch.device("cpu")) as watch:
        call()
    return watch.peak


def paired(whole: list[float], head: list[float]) -> float:
    """Median of the rounds' ratios: what slows a whole round counts for nothing."""
    return statistics.median(a / b for a, b in zip(whole, head, strict=True))


def case(pair: Pair, fraction: float, members: int, repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """One decoder at one density."""
    *decode, latent, shape, dtype = pair
    index, weight = columns(shape, fraction)
    operator = StencilOperator(index, weight, torch.zeros(len(index)), shape)
    z = torch.randn(members, *latent, generator=torch.Generator().manual_seed(1)).to(dtype)
    observed = {"whole": observe(decode[0], operator)}
    start = clock()
    observed["head"] = observe(decode[1], operator)
    plan_ms = 1e3 * (clock() - start)
    whole, head = (f(z) for f in observed.values())

    def gradient(f: Decode) -> Linearization:
        linear = Linearization.of(f, z, Counter(), "")
        linear.vjp(linear.value)
        return linear

    seconds: dict[str, dict[str, list[float]]] = {name: {"vjp": [], "jvp": []} for name in observed}
    for turn in range(repeats + 1):
        for name, f in observed.items():
            begin = clock()
            linear = gradient(f)
            middle = clock()
            linear.jvp(z)
            if turn:
                seconds[name]["vjp"].append(middle - begin)
                seconds[name]["jvp"].append(clock() - middle)
    ms = {name: {k: 1e3 * statistics.median(v) for k, v in times.items()} for name, times in seconds.items()}
    memory = {name: peak(partial(gradient, f)) for name, f in observed.items()}
    return {
        "fraction": fraction,
        "observations": operator.size,
        "members": members,
        "ms": {name: {k: round(v, 2) for k, v in times.items()} for name, times in ms.items()},
        "mib": {name: round(value / 2**20, 1) for name, value in memory.items()},
        "ratio": {k: round(paired(seconds["whole"][k], seconds["head"][k]), 2) for k in ("vjp", "jvp")},
        "ratio_memory": round(memory["whole"] / memory["head"], 2),
        "plan_ms": round(plan_ms, 1),
        "difference": float((whole - head).abs().max() / whole.abs().max()),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.001, 0.01, 0.1])
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu for one thread on a busy machine")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    machine = {
        "clock": arguments.clock,
        "threads": torch.get_num_threads(),
        "isa": native.load("cpu").code.isa() if native.load("cpu").code else "plain torch",
        "torch": torch.__version__,
    }
    rows = []
    for name, pair in decoders().items():
        for fraction in arguments.fractions:
            row = case(pair, fraction, arguments.members, arguments.repeats, clock)
            rows.append({"bench": "head", "decoder": name, **row, **machine})
            print(json.dumps(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
