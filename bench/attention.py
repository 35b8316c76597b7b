"""Which derivative of attention: kept probabilities, a Triton kernel, or the VJP of a VJP?

Flash attention has no forward mode. In one run, in turns, as milliseconds of the bare product at a point that has been
linearised before:

    kept     (a)  plain torch with the softmax kept, ``window_attention_products``
    triton   (b)  the operation on a GPU, which keeps Q, K, V and O
    double   (c)  u -> J' u is linear, and its VJP is J: of torch's attention as written out in plain torch, because the
                  fused kernels have no second derivative (their refusal is in the row)
    again         plain torch that makes the softmax again for every product
    func          torch.func on the attention as written out: the value is made with every product
    sdpa          torch's fused attention, its value and its VJP
    bare          the matrix products alone, which no code can save

``faster`` is each over what ``window_attention_products`` takes on the device, the median over the rounds; ``mib`` the
most that point and product hold beyond qkv. The windows are those of a small vision transformer, of the papers'
ViT-L, and the one of the built-in package's denoiser. ``share`` is what attention takes of the small one's decoder
derivatives.

    python -m bench.attention --threads 1 --clock cpu --output bench/results/attention.jsonl
    python -m bench.attention --device cuda --dtype bfloat16 --members 8 --output bench/results/attention.jsonl
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.attention_ways import KINDS, Call, bare, refusal, ways
from bench.head import VIT, paired, peak
from lsda_fast.kernels.window_attention import window_attention_products
from lsda_fast.models import build_autoencoder
from lsda_fast.models.decoder_derivatives import feature_derivatives
from lsda_fast.models.windows import Windows

# Windows, heads, width of a head.
CASES = {
    "built-in denoiser": (Windows((12, 24), (12, 24)), 4, 40),
    "small ViT, 8 x 8": (Windows((16, 32), (8, 8), (4, 4), periodic=True), 4, 64),
    "small ViT, global": (Windows((16, 32), (16, 32)), 4, 64),
    "ViT-L, 24 x 24": (Windows((32, 64), (24, 24), periodic=True), 16, 64),
    "ViT-L, global": (Windows((32, 64), (32, 64)), 16, 64),
}


def rounds(calls: dict[str, Call], options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of each in every round, in turns, after one round to warm up."""
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    ms: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(options.repeats + 1):
        for name, call in calls.items():
            wait()
            start = clock()
            for _ in range(options.inner):
                call()
            wait()
            if turn:
                ms[name].append(1e3 * (clock() - start) / options.inner)
    return ms


def held(call: Call) -> float:
    """MiB that tensors hold at most beyond those that are there."""
    if not torch.cuda.is_initialized():
        return round(peak(call) / 2**20, 1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def error(found: Tensor, exact: Tensor) -> float:
    """Largest difference, in units of the largest value."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


def attention(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every product at every size."""
    setting: dict[str, Any] = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    for name, (windows, H, d) in CASES.items():
        B, L = options.members * windows.count, windows.size[0] * windows.size[1]
        qkv, v = torch.randn(2, B, L, 3, H, d, **setting)
        u, bias = torch.randn(B, L, H, d, **setting), windows.bias(qkv)
        for kind, t in zip(KINDS, (qkv, v, u), strict=True):
            made = ways(kind, qkv, t, bias)
            mib = {way: held(lambda point=point: point()()) for way, point in made.items()}  # type: ignore[misc]
            wide = [x if x is None else x.double() for x in (qkv, t, bias)]
            exact = ways(kind, *wide)["kept"]()()  # type: ignore[arg-type]
            calls = {way: point() for way, point in made.items()}
            errors = {way: error(call(), exact) for way, call in calls.items()}
            del exact, wide
            ms = rounds({**calls, "bare": bare(kind, qkv)}, options)
            taken = "triton" if "triton" in calls else "kept"
            yield {
                "case": name,
                "kind": kind,
                "shape": [B, L, H, d],
                "biased": bias is not None,
                "ms": {way: round(statistics.median(times), 3) for way, times in ms.items()},
                "faster": {way: round(paired(times, ms[taken]), 2) for way, times in ms.items() if way != taken},
                "mib": mib,
                "error": {way: float(f"{e:.1e}") for way, e in errors.items()},
                **({"fused kernels": refusal(qkv, bias)} if kind == "jvp" else {}),
            }


def share(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """How much of the small vision transformer's decoder derivatives is attention."""
    torch.manual_seed(0)
    model: Any = build_autoencoder("vit", **VIT).requires_grad_(False).to(options.device)
    z = torch.randn(options.members, *model.latent_shape, device=options.device)
    whole = feature_derivatives(model, z)[0]
    calls: dict[str, Call] = {
        "value": lambda: feature_derivatives(model, z),
        "jvp": partial(whole.jvp, z),
        "vjp": partial(whole.vjp, whole.value),
    }
    parts: dict[str, list[Call]] = {kind: [] for kind in KINDS}
    H, d = VIT["heads"], VIT["width"] // VIT["heads"]
    for windows in model.decoder.plan:
        B, L = len(z) * windows.count, windows.size[0] * windows.size[1]
        qkv, bias = torch.randn(B, L, 3, H, d, device=options.device), windows.bias(z)
        o, jvp, vjp = window_attention_products(qkv, bias)
        parts["value"].append(partial(window_attention_products, qkv, bias))
        parts["jvp"].append(partial(jvp, qkv))
        parts["vjp"].append(partial(vjp, o))
    for kind, some in parts.items():
        ms = rounds({"whole": calls[kind], "attention": lambda some=some: [f() for f in some]}, options)  # type: ignore[misc]
        yield {
            "case": "small ViT, decoder",
            "kind": kind,
            "ms": {name: round(statistics.median(times), 2) for name, times in ms.items()},
            "share": round(paired(ms["attention"], ms["whole"]), 3),
        }


@torch.no_grad()
def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--inner", type=int, default=1, help="calls in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu for one thread on a busy machine")
    parser.add_argument("--output", type=Path, help="appended to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = {key: getattr(options, key) for key in ("device", "dtype", "members", "threads", "clock")}
    name = {"name": torch.cuda.get_device_name()} if options.device == "cuda" else {}
    for part in (share, attention):
        for row in part(options):
            line = json.dumps({"bench": "attention", **row, **asked, **name, "torch": torch.__version__})
            print(line, flush=True)
            if options.output:
                with options.output.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
