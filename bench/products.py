"""How fast are the operations that hold matrix products, against the same in torch?

``norm_conv`` against ``norm_silu`` with its margins, torch's convolution and the sum, and against that convolution
alone; ``shuffle_product`` against a matrix product and the copies of a pixel shuffle; ``zonal_product`` against batched
matrix products, as ``models.zonal_whitening`` has them for other machines; ``geo_conv`` against padding and torch's
convolution; ``restricted_step`` against torch expressions, and ``restricted_solve``, ten iterations of the built-in
analysis at 1 % of the columns, against the operations that it is made of. Sizes and precisions are those of the
built-in package's analysis. Every candidate takes its turn in every round; figures are medians, rates those of the
matrix products alone over a product of two large matrices in the same run (``of_peak``).

    python -m bench.products --threads 1 --clock cpu --output bench/results/products.jsonl
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.cases.analysis import demo
from bench.norms import rounds
from lsda_fast import kernels
from lsda_fast.demo import built_in_package
from lsda_fast.guidance.krylov import restricted_cg
from lsda_fast.kernels import native
from lsda_fast.kernels.geo_conv import geo_conv_products
from lsda_fast.kernels.geo_pad import geo_fold, geo_pad
from lsda_fast.kernels.norm_conv import norm_conv_products
from lsda_fast.kernels.norm_silu import norm_silu_products
from lsda_fast.kernels.restricted_step import restricted_reference, restricted_step
from lsda_fast.kernels.shuffle_product import shuffle_products
from lsda_fast.models.zonal_whitening import ZonalWhitening
from lsda_fast.prior import Linearization, observe

GLOBE = (1, True, (True, True))
Case = tuple[str, str, dict[str, Callable[[], Any]], float, torch.dtype]


def images(*shape: int) -> Tensor:
    """With channels last in memory."""
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def norm_conv(M: int, C: int, H: int, W: int) -> Iterator[Case]:
    """A layer of a residual block: value, JVP and VJP."""
    x, v, weight, bias, shift = images(M, C, H, W), images(M, C, H, W), torch.randn(C), torch.randn(C), torch.randn(C)
    kernel = (torch.randn(C, C, 3, 3) / (9 * C) ** 0.5).contiguous(memory_format=torch.channels_last)
    ours = norm_conv_products(x, weight, bias, kernel, shift, GLOBE, groups=8, add=v)
    assert ours is not None
    y, jvp, vjp = norm_silu_products(x, weight, bias, groups=8, pad=GLOBE)
    flops = 18.0 * M * H * W * C * C
    convolved, spread = (lambda t, b=None: F.conv2d(t, kernel, b)), (lambda u: F.conv_transpose2d(u, kernel))
    by_kind: dict[str, tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]] = {
        "value": (
            lambda: norm_conv_products(x, weight, bias, kernel, shift, GLOBE, groups=8, add=v),
            lambda: convolved(norm_silu_products(x, weight, bias, groups=8, pad=GLOBE)[0], shift) + v,
            lambda: convolved(y, shift),
        ),
        "jvp": (lambda: ours[1](v, v), lambda: convolved(jvp(v)) + v, lambda: convolved(y)),
        "vjp": (lambda: ours[2](v, v), lambda: vjp(spread(v)) + v, lambda: spread(v)),
    }
    for kind, (one, after_the_other, alone) in by_kind.items():
        calls = {"ours": one, "torch": after_the_other, "convolution alone": alone}
        yield "norm_conv", f"{M} x {C} x {H} x {W}, {kind}", calls, flops, torch.float32


def conv(M: int, C: int, D: int, H: int, W: int) -> Iterator[Case]:
    """The decoder's first layer."""
    x, u, kernel = images(M, C, H, W), images(M, D, H, W), torch.randn(D, C, 3, 3) / (9 * C) ** 0.5
    ours, weight = geo_conv_products(x, kernel, None, GLOBE), kernel.contiguous(memory_format=torch.channels_last)
    assert ours is not None
    by_kind: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "value": (lambda: ours[1](x), lambda: F.conv2d(geo_pad(x, *GLOBE), weight)),
        "transpose": (lambda: ours[2](u), lambda: geo_fold(F.conv_transpose2d(u, weight), *GLOBE)),
    }
    for kind, (one, after_the_other) in by_kind.items():
        calls = {"ours": one, "torch": after_the_other}
        yield "geo_conv", f"{M} x {C} to {D} x {H} x {W}, {kind}", calls, 18.0 * M * H * W * C * D, torch.float32


def shuffle(M: int, C: int, features: int, h: int, w: int, p: int) -> Iterator[Case]:
    """The decoder's way to the full grid, and back."""
    x, u, W = images(M, C, h, w), images(M, features, h * p, w * p), torch.randn(features * p * p, C)
    ours = shuffle_products(x, W, None, p)
    assert ours is not None
    flops = 2.0 * M * h * w * C * features * p * p
    rows = W.unflatten(0, (features, p, p)).permute(1, 2, 0, 3).flatten(0, 2)

    def there(x: Tensor) -> Tensor:
        y = (x.permute(0, 2, 3, 1) @ rows.T).reshape(M, h, w, p, -1).transpose(2, 3)
        return y.reshape(M, h * p, w * p, features).permute(0, 3, 1, 2)

    def back(u: Tensor) -> Tensor:
        rows_of = u.permute(0, 2, 3, 1).reshape(M, h, p, w, -1).transpose(2, 3).reshape(M, h, w, -1)
        return (rows_of @ rows).permute(0, 3, 1, 2)

    for kind, one, other, t in (("value", ours[1], there, x), ("transpose", ours[2], back, u)):
        calls: dict[str, Callable[[], Any]] = {"ours": partial(one, t), "torch": partial(other, t)}
        yield "shuffle_product", f"{M} x {C} to {features}, {p} x {p}, {kind}", calls, flops, torch.float32


def zonal(members: int, dtype: torch.dtype) -> Iterator[Case]:
    """The covariance of the built-in package's latent."""
    whitening = built_in_package().modules["whitening"]
    assert isinstance(whitening, ZonalWhitening)
    ours = (whitening.wide_coloring() if dtype == torch.float64 else whitening.coloring()).covariance
    with kernels.use("reference"):
        torchs = (whitening.wide_coloring() if dtype == torch.float64 else whitening.coloring()).covariance
    C, rows, columns = *whitening.std.shape[:2], whitening.analysis.shape[1]
    x = torch.randn(members, C, rows, columns, dtype=dtype)
    waves, modes = whitening.variance.shape[0], 2 * whitening.variance.shape[1]
    flops = 8.0 * members * C * rows * waves * (modes + columns)
    calls = {"ours": lambda: ours(x), "torch": lambda: torchs(x)}
    yield "zonal_product", f"{members} x {C * rows} in {waves} wavenumbers, {dtype}", calls, flops, dtype


def restricted(M: int, P: int) -> Iterator[Case]:
    """The vectors of an iteration among P observations."""
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64)  # noqa: E731
    state = draw(M, P + 1), draw(2, M, P + 1), draw(2, M, P + 1), draw(M).abs(), draw(M, P), draw(M, P), 0 * draw(M)
    calls = {"ours": lambda: restricted_step(*state), "torch": lambda: restricted_reference(*state)}
    yield "restricted_step", f"{M} x {P} observations", calls, 0.0, torch.float64


def solve(M: int) -> Iterator[Case]:
    """All iterations among the observations."""
    case = demo()
    prior, likelihood = case.prior(fused=True), case.likelihood(0.01)
    assert prior.tangent is not None
    tangent = observe(prior.tangent(Counter()), likelihood.operator)
    zero, b = (torch.zeros(1, *prior.latent_shape).double(), torch.randn(M, *prior.latent_shape).double())
    near = Linearization.of(tangent, zero, Counter(), "tangent").scaled(likelihood.variance.rsqrt())
    settings: dict[str, Any] = {"iterations": 10, "tolerance": 1e-2}
    apart = lambda: restricted_cg(near.jvp, near.vjp, near.gram, b, **settings)  # noqa: E731
    ours = lambda: restricted_cg(near.jvp, near.vjp, near.gram, b, solve=near.solve, **settings)  # noqa: E731
    yield "restricted_solve", f"{M} x {len(likelihood.y)} observations", {"ours": ours, "torch": apart}, 0.0, b.dtype


def cases() -> Iterator[Case]:
    """All of them."""
    yield from solve(1)
    for M in (4, 16):
        yield from solve(M)
        yield from conv(M, 64, 96, 12, 24)
        yield from norm_conv(M, 32, 48, 96)
        yield from norm_conv(M, 96, 12, 24)
        yield from shuffle(M, 96, 32, 12, 24, 4)
        for dtype in (torch.float32, torch.float64):
            yield from zonal(M, dtype)
        yield from restricted(M, 1518)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    code = native.load("cpu").code
    settings = {"threads": options.threads, "clock": options.clock, "isa": code.isa(), "torch": torch.__version__}
    rows = []
    for name, what, calls, flops, dtype in cases():
        A = torch.randn(1024, 1024, dtype=dtype)
        ms = rounds({**calls, "peak": lambda A=A: A @ A}, options.repeats, clock)  # type: ignore[misc]
        row: dict[str, Any] = {"bench": "products", "op": name, "what": what, "ms": ms}
        row["faster"] = round(ms["torch"] / ms["ours"], 2)
        if flops:
            row["gflops"] = round(flops / ms["ours"] / 1e6, 1)
            row["of_peak"] = round(flops / ms["ours"] / (2 * 1024**3 / ms["peak"]), 2)
        rows.append(row | settings)
        print(json.dumps(rows[-1]), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
