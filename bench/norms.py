"""How fast are norm_silu and gated_residual_norm against torch, and what do they bring to whole networks?

Every candidate takes its turn in every round, so that a busy machine is unfair to all of them alike; the figures are
medians. ``vjp`` is the value and the product with the transpose together, ``jvp`` the value and the tangent, both by
torch.func: what a guidance asks for. ``eager`` and ``compile`` are the plain-torch layer of the networks; ``fused`` is
the operation. ``product`` is the operation of the derivative alone, ``bytes`` what it (or the value) must move at
least, ``of_copy`` its bytes per second over those of a copy of the same size in the same run.

The networks are the built-in package's decoder and denoiser; the convolutions are theirs, in both memory formats.

    python bench/norms.py --threads 1 --compile --output bench/results/norms.jsonl
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lsda_fast.demo import built_in_package
from lsda_fast.kernels import gated_residual_norm as gated
from lsda_fast.kernels import native
from lsda_fast.kernels import norm_silu as norm
from lsda_fast.models.fused import fused
from lsda_fast.models.layers import GeoConv2d, GroupNorm

Calls = dict[str, Callable[[], Any]]
Function = Callable[..., Any]
GROUP = ((4, 96, 12, 24), (4, 32, 48, 96))
LAYER = ((4, 288, 160), (1, 512, 1024))
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def rounds(calls: Calls, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of each, in turns, after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 2):
        for name, call in calls.items():
            start = clock()
            call()
            if turn > 1:
                seconds[name].append(clock() - start)
    return {name: round(1e3 * statistics.median(values), 4) for name, values in seconds.items()}


def products(f: Function, inputs: tuple[Tensor, ...]) -> dict[str, Function]:
    """Value, value and VJP, value and JVP of f as functions of its inputs."""
    tangents = tuple(torch.randn_like(x) for x in inputs)
    y = f(*inputs)
    cotangents = tuple(map(torch.randn_like, y)) if isinstance(y, tuple) else torch.randn_like(y)

    def vjp(*inputs: Tensor) -> Any:
        pair: Any = torch.func.vjp(f, *inputs)
        return pair[0], pair[1](cotangents)

    def jvp(*inputs: Tensor) -> Any:
        return torch.func.jvp(f, inputs, tangents)

    return {"value": f, "vjp": vjp, "jvp": jvp}


def compiled(f: Function, inputs: tuple[Tensor, ...]) -> Function | None:
    """The function through torch.compile, or nothing where that fails."""
    try:
        fast = torch.compile(f, fullgraph=True)
        fast(*inputs)
    except Exception as error:
        print(f"torch.compile: {str(error).splitlines()[0]}", flush=True)
        return None
    return fast


def norm_calls(x: Tensor, rest: tuple, eps: float) -> Calls:
    """The value, and the products at a point whose statistics are known."""
    t, kept = torch.randn_like(x), norm.VALUE(x, *rest, eps)[1]
    return {
        "value": lambda: norm.VALUE(x, *rest, eps),
        "vjp": lambda: norm.VJP(t, x, kept, *rest),
        "jvp": lambda: norm.JVP(t, x, kept, *rest),
    }


def group_norm(shape: tuple[int, ...], layout: str) -> tuple[Function, Function, tuple[Tensor, ...], Calls, int]:
    """A layer of the autoencoder: plain, fused, its inputs, the bare products, and the size."""
    x = torch.randn(shape).contiguous(memory_format=FORMATS[layout])
    layer = GroupNorm(8, shape[1]).requires_grad_(False)
    last = layout == "channels_last"
    flat = x.permute(0, 2, 3, 1).flatten(1, 2) if last else x.flatten(2)
    rest: tuple[Any, ...] = (layer.weight[None], layer.bias[None], 8, last, True, [])
    return (
        lambda x: F.silu(layer(x)),
        lambda x: norm.norm_silu(x, layer.weight, layer.bias, groups=8, eps=layer.eps),
        (x,),
        norm_calls(flat, rest, layer.eps),
        x.numel(),
    )


def layer_norm(shape: tuple[int, ...]) -> tuple[Function, Function, tuple[Tensor, ...], Calls, int]:
    """The modulated norm of a transformer block, likewise."""
    x, C = torch.randn(shape), shape[-1]
    scale, shift = torch.randn(2, shape[0], C)
    flat = x.reshape(-1, 1, C)
    rest: tuple[Any, ...] = (1 + scale, shift, 1, True, False, [])
    return (
        lambda x: F.layer_norm(x, (C,)) * (1 + scale[:, None]) + shift[:, None],
        lambda x: norm.norm_silu(x, scale=scale, shift=shift, silu=False),
        (x,),
        norm_calls(flat, rest, 1e-5),
        x.numel(),
    )


def stream(shape: tuple[int, ...]) -> tuple[Function, Function, tuple[Tensor, ...], Calls, int]:
    """The residual and the norm between two branches, likewise."""
    x, branch, C = torch.randn(shape), torch.randn(shape), shape[-1]
    gate, scale, shift = torch.randn(3, shape[0], C)
    left, right, y = (t.reshape(-1, C) for t in (x, branch, torch.randn(shape)))
    a = 1 + scale

    def plain(x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        y = x + gate[:, None] * branch
        return y, F.layer_norm(y, (C,)) * (1 + scale[:, None]) + shift[:, None]

    return (
        plain,
        lambda x, b: gated.gated_residual_norm(x, b, gate=gate, scale=scale, shift=shift),
        (x, branch),
        {
            "value": lambda: gated.VALUE(left, right, gate, a, shift, 1e-5),
            "vjp": lambda: gated.VJP(left, right, y, gate, a, 1e-5),
            "jvp": lambda: gated.JVP(left, right, y, gate, a, 1e-5),
        },
        x.numel(),
    )


def operations(options: argparse.Namespace, clock: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Each operation at each size."""
    cases: list[tuple[str, tuple[int, ...], str, Any]] = []
    cases += [("norm_silu, group", s, layout, group_norm(s, layout)) for s in GROUP for layout in FORMATS]
    cases += [("norm_silu, layer", s, "contiguous", layer_norm(s)) for s in LAYER]
    cases += [("gated_residual_norm", s, "contiguous", stream(s)) for s in LAYER]
    for name, shape, layout, (plain, fast, inputs, bare, size) in cases:
        source, target = torch.randn(size), torch.empty(size)
        ours, theirs = products(fast, inputs), products(plain, inputs)
        for kind in ours:
            calls: Calls = {
                "copy": partial(target.copy_, source),
                "product": bare[kind],
                "fused": partial(ours[kind], *inputs),
                "eager": partial(theirs[kind], *inputs),
            }
            machine = compiled(theirs[kind], inputs) if options.compile else None
            if machine:
                calls["compile"] = partial(machine, *inputs)
            ms = rounds(calls, options.repeats, clock)
            tensors = (4 if kind == "value" else 5) if name.startswith("gated") else 2 if kind == "value" else 3
            rate = 4 * size * tensors / ms["product"]
            yield {
                "op": name,
                "shape": shape,
                "format": layout,
                "kind": kind,
                "ms": ms,
                "faster": {k: round(ms[k] / ms["fused"], 2) for k in ("eager", "compile") if k in ms},
                "bytes": 4 * size * tensors,
                "gb_per_s": round(rate / 1e6, 2),
                "of_copy": round(rate / (8 * size / ms["copy"]), 3),
            }


def convolutions(options: argparse.Namespace, clock: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """The 3 x 3 convolutions between the norms, in both memory formats."""
    for shape in GROUP:
        layer = GeoConv2d(shape[1], shape[1], periodic=True).requires_grad_(False)
        calls: dict[str, Calls] = {"value": {}, "vjp": {}, "jvp": {}}
        for layout, memory_format in FORMATS.items():
            x = torch.randn(shape).contiguous(memory_format=memory_format)
            for kind, f in products(layer, (x,)).items():
                calls[kind][layout] = partial(f, x)
        for kind, pair in calls.items():
            yield {"op": "convolution", "shape": shape, "kind": kind, "ms": rounds(pair, options.repeats, clock)}


def networks(options: argparse.Namespace, clock: Callable[[], float]) -> Iterator[dict[str, Any]]:
    """Decoder and denoiser of the built-in package, plain and fused."""
    package = built_in_package()
    M, latent = options.members, package.latent_shape
    z, z_b, level = torch.randn(M, *latent), torch.randn(M, *latent), package.schedule.level(0.5)
    autoencoder, denoiser = package.modules["autoencoder"], package.modules["denoiser"]

    def denoise(model: Any, z: Tensor) -> Tensor:
        return model(z, level, z_b)

    pairs: dict[str, tuple[Any, Any]] = {
        "decoder": (autoencoder.decode, fused(autoencoder).decode),
        "denoiser": (partial(denoise, denoiser), partial(denoise, fused(denoiser))),
    }
    for name, (plain, fast) in pairs.items():
        both = products(plain, (z,)), products(fast, (z,))
        for kind in both[0]:
            calls: Calls = {key: partial(f[kind], z) for key, f in zip(("eager", "fused"), both)}
            for key, f in zip(("eager", "fused"), (plain, fast)):
                if kind == "vjp":
                    pair: Any = torch.func.vjp(f, z)
                    calls[f"{key} product"] = partial(pair[1], torch.randn_like(pair[0]))
            ms = rounds(calls, options.repeats, clock)
            faster = {"eager": round(ms["eager"] / ms["fused"], 2)}
            yield {"op": name, "shape": tuple(z.shape), "kind": kind, "ms": ms, "faster": faster}


@torch.no_grad()
def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--compile", action="store_true", help="torch.compile too, where it compiles")
    parser.add_argument("--only", choices=("operations", "convolutions", "networks"))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu for one thread on a busy machine")
    parser.add_argument("--output", type=Path, help="appended to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    setting = {"threads": options.threads, "clock": options.clock, "isa": native.load("cpu").code.isa()}
    for part in (operations, convolutions, networks):
        if options.only not in (None, part.__name__):
            continue
        for row in part(options, clock):
            line = json.dumps({"bench": "norms", **row, **setting, "torch": torch.__version__})
            print(line, flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
