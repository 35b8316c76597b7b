"""Calls of every native operation at any size: for the tests, for parity on a GPU, and for timing.

A case is a call. ``inputs`` is what it is a function of, float64 as drawn; ``bind(cast)`` is that function, with plans
and constants cast as the inputs are. A cast rounds to the precision under test first: float64 then starts from what
float32 or bfloat16 is given. Numbers of a call are sums of few powers of 2, which every precision holds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lsda_fast.kernels import gated_residual_norm as gated
from lsda_fast.kernels import norm_conv as convolution
from lsda_fast.kernels import norm_silu as norm
from lsda_fast.kernels import window_attention as attention
from lsda_fast.kernels.adam_step import ADAM
from lsda_fast.kernels.cg_step import cg_step
from lsda_fast.kernels.geo_conv import ADJOINT, CONV
from lsda_fast.kernels.geo_pad import FOLD
from lsda_fast.kernels.head_plan import HeadPlan
from lsda_fast.kernels.head_project import head_adjoint, head_project
from lsda_fast.kernels.noise import NOISE, signed
from lsda_fast.kernels.obs_plan import ObservationPlan
from lsda_fast.kernels.obs_project import obs_adjoint, obs_project
from lsda_fast.kernels.obs_residual import obs_residual
from lsda_fast.kernels.packed import packed
from lsda_fast.kernels.restricted_solve import SOLVE, product_reference
from lsda_fast.kernels.restricted_step import restricted_step
from lsda_fast.kernels.robust import Robust
from lsda_fast.kernels.sampler_step import sampler_step
from lsda_fast.kernels.shuffle_product import SHUFFLE, SHUFFLE_ADJOINT
from lsda_fast.kernels.standard import Standard
from lsda_fast.kernels.zonal_product import zonal_adjoint, zonal_product

__all__ = [
    "SEED",
    "Case",
    "Draw",
    "adam",
    "conjugate",
    "convolve",
    "draws",
    "head",
    "observe",
    "pad",
    "plain_convolve",
    "residual",
    "restricted",
    "shuffle",
    "slices",
    "solve",
    "stream",
    "transition",
    "windows",
    "zonal",
]

Outputs = Tensor | Sequence[Tensor]
Cast = Callable[[Tensor], Tensor]

EPS = 1e-5
SEED = (0x9ABCDEF0 << 32) + 0x12345678


@dataclass(frozen=True, eq=False)
class Case:
    """A call of an operation.

    Parameters
    ----------
    inputs : tuple of Tensor
        Floating ones are cast; others only move.
    bind : callable
        Cast to the function of the inputs.
    derivatives : tuple of str
        "vjp" and "jvp", where the function has them in all its inputs.
    alone : bool
        Whether a member needs no other.
    """

    inputs: tuple[Tensor, ...]
    bind: Callable[[Cast], Callable[..., Outputs]]
    derivatives: tuple[str, ...] = ()
    alone: bool = True

    def prepare(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", work: torch.dtype | None = None
    ) -> tuple[Callable[..., Outputs], tuple[Tensor, ...]]:
        """The function and its inputs, rounded to ``dtype``, held in ``work``, which is ``dtype`` if not given."""

        def cast(t: Tensor) -> Tensor:
            return t.to(device, dtype).to(work or dtype) if t.is_floating_point() else t.to(device)

        return self.bind(cast), tuple(map(cast, self.inputs))

    def __call__(self, dtype: torch.dtype, work: torch.dtype | None = None) -> Outputs:
        """The outputs, on the CPU."""
        function, inputs = self.prepare(dtype, work=work)
        return function(*inputs)

    @property
    def in_company(self) -> bool:
        """Whether every input has one row a member, and a member needs no other."""
        return self.alone and len({len(t) for t in self.inputs}) == 1


class Draw:
    """Random numbers by seed: float64 on the CPU for accuracy, float32 on a device for timing."""

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device, self.dtype = device, dtype

    def normal(self, *shape: int) -> Tensor:
        """Standard normals."""
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)

    def integers(self, end: int, *shape: int) -> Tensor:
        """From 0 to end - 1."""
        return torch.randint(0, end, shape, generator=self.generator, device=self.device)


def observe(
    product: str, draw: Draw, M: int, N: int, P: int, K: int, cells: int | None = None, *, index: Any = None
) -> Case:
    """M members of N cells, P observations of K points, all within ``cells`` or at the places of ``index``."""
    index = draw.integers(cells or N, P, K) if index is None else index
    weight, x = draw.normal(*index.shape), draw.normal(M, P if product == "adjoint" else N)

    def bind(cast: Cast) -> Callable[..., Outputs]:
        plan = ObservationPlan.from_stencil(cast(index), cast(weight), N)
        return partial(obs_project if product == "project" else obs_adjoint, plan=plan)

    return Case((x,), bind, ("vjp", "jvp"))


def residual(
    robust: Robust | None,
    bare: bool,
    draw: Draw,
    M: int,
    N: int,
    P: int,
    K: int,
    cells: int | None = None,
    *,
    index: Any = None,
) -> Case:
    """The same with departures of a cost; unless ``bare``, with precision, 0 for the first, and noise."""
    index = draw.integers(cells or N, P, K) if index is None else index
    weight, x, target, noise = draw.normal(*index.shape), draw.normal(M, N), draw.normal(P), draw.normal(M, P)
    precision = draw.normal(P).abs()
    precision[:1] = 0

    def bind(cast: Cast) -> Callable[..., Outputs]:
        plan, y = ObservationPlan.from_stencil(cast(index), cast(weight), N), cast(target)
        scale = None if bare else cast(precision)

        def departures(x: Tensor, noise: Tensor | None = None) -> Outputs:
            found = obs_residual(x, plan, y, precision=scale, noise=noise, robust=robust)
            # The slope of the Gaussian cost is the precision itself.
            return (found.r, found.cost) if robust is None else found

        return departures

    return Case((x,) if bare else (x, noise), bind, ("vjp", "jvp") if bare and robust is None else ())


def head(
    product: str, draw: Draw, M: int, S: int, F: int, T: int, R: int, U: int, around: int | None = None, last: Any = 0
) -> Case:
    """U of the R rows of a layer over F features and T neighbours, at S places, all within ``around`` of them."""
    features, values, weight = draw.normal(M, S, F), draw.normal(M, U), draw.normal(R, T, F)
    where = draw.integers(S, S, T), draw.integers(around or S, U), draw.integers(R, U)

    def bind(cast: Cast) -> Callable[..., Outputs]:
        plan = HeadPlan.from_rows(cast(weight), *map(cast, where))
        if product == "adjoint":
            return partial(head_adjoint, plan=plan, last=bool(last))
        return lambda x: head_project(x.mT if last else x, plan)

    x = features if last else features.mT.contiguous()
    return Case((x if product == "project" else values,), bind, ("vjp", "jvp"))


def transition(draw: Draw, count: int, noise: float, *shape: int) -> Case:
    """A transition of ``count`` terms."""
    terms, coefficients = [draw.normal(*shape) for _ in range(count)], (0.25, -1.75, 2.0, 0.0625)[:count]
    members = torch.arange(shape[0], device=draw.device) + 5

    def bind(cast: Cast) -> Callable[..., Outputs]:
        counter: Any = {"seed": cast(torch.tensor([signed(SEED)])), "step": 2, "stream": 1}
        return lambda *inputs: sampler_step(inputs[:-1], coefficients, noise=noise, members=inputs[-1], **counter)

    return Case((*terms, members), bind)


def draws(draw: Draw, size: int, *members: int) -> Case:
    """Noise of these members."""

    def bind(cast: Cast) -> Callable[..., Outputs]:
        dtype, seed = cast(draw.normal(1)).dtype, cast(torch.tensor([signed(SEED)]))
        return lambda members: NOISE(members, size, seed, 3, 2**32 - 1, dtype)

    return Case((torch.tensor(members, device=draw.device),), bind)


def conjugate(draw: Draw, *shape: int) -> Case:
    """x, r, p, rr, Ap, limit in the middle of an iteration."""
    x, r, p, noise = (draw.normal(*shape) for _ in range(4))
    rr = r.square().flatten(1).sum(1)
    return Case((x, r, p, rr, p + 0.125 * noise, torch.zeros_like(rr)), lambda cast: cg_step)


def restricted(draw: Draw, M: int, P: int) -> Case:
    """x, r, p, rr, F F'w, f, limit in the middle of an iteration, every third member at its end."""
    x, q, w, f = draw.normal(M, P + 1), draw.normal(M, P + 1), draw.normal(M, P), draw.normal(M, P)
    # Products of a positive definite F F', here twice the identity, so that lengths are positive.
    products = torch.cat([2 * q[:, :-1] + q[:, -1:] * f, (q[:, :-1] * f).sum(1, True) + 3 * q[:, -1:]], dim=1)
    r, p = torch.stack([q, products]), torch.stack([q + 0.125 * x, products])
    rr = (r[0] * r[1]).sum(1)
    limit = torch.where(torch.arange(M, device=rr.device) % 3 == 2, 2 * rr.abs(), torch.zeros_like(rr))
    inputs = (x, r.movedim(1, 0), p.movedim(1, 0), rr, w, f, limit)

    def bind(cast: Cast) -> Callable[..., Outputs]:
        # A row a member, as of every case.
        def call(x: Tensor, r: Tensor, p: Tensor, *rest: Tensor) -> Outputs:
            x, r, p, rr = restricted_step(x, r.movedim(0, 1), p.movedim(0, 1), *rest)
            return x, r.movedim(1, 0).contiguous(), p.movedim(1, 0).contiguous(), rr

        return call

    return Case(inputs, bind)


def adam(draw: Draw, *shape: int) -> Case:
    """v, m, s, gradient; rate, spread, beta1, beta2, eps, decay."""
    v, m, s, gradient = (draw.normal(*shape) for _ in range(4))
    numbers = (0.125, 0.5, 0.875, 0.96875, 2.0**-20, 1.0)
    return Case((v, m, s.abs(), gradient), lambda cast: lambda *inputs: ADAM(*inputs, *numbers))


def slices(
    product: str,
    draw: Draw,
    R: int,
    C: int,
    S: int,
    groups: int,
    last: int,
    A: int,
    silu: bool = True,
    mean: float = 0,
    image: Sequence[int] = (),
) -> Case:
    """x (R, C, S), or (R, S, C) with the channels last; a and b (A, C); ``image`` as the operation has it."""
    shape, places = ((R, S, C) if last else (R, C, S)), S
    if image and product == "vjp":
        places = (image[0] + 2 * image[2]) * (image[1] + 2 * image[2])
    t, x = draw.normal(*((R, places, C) if last else (R, C, places))), draw.normal(*shape) + mean
    a, b, settings = draw.normal(A, C), draw.normal(A, C), (groups, bool(last), silu, list(image))
    if product == "value":
        # The statistics have no derivative.
        return Case((x, a, b), lambda cast: lambda *inputs: norm.VALUE(*inputs, *settings, EPS), ())
    operation = {"jvp": norm.JVP, "vjp": norm.VJP}[product]
    kept = Standard.of(x, a, b, groups, bool(last), EPS).statistics(R, groups)
    return Case((t, x, kept, a, b), lambda cast: lambda *inputs: operation(*inputs, *settings))


def convolve(
    product: str, draw: Draw, R: int, C: int, D: int, k: int, groups: int, silu: bool, added: bool, image: Sequence[int]
) -> Case:
    """x (R, S, C) and a convolution to D channels of k x k places; ``image`` as the operation has it."""
    S = image[0] * image[1]
    x, v, u = draw.normal(R, S, C), draw.normal(R, S, C), draw.normal(R, S, D)
    kernel, bias, a, b = draw.normal(D, C, k, k) / (k * C**0.5), draw.normal(D), draw.normal(C), draw.normal(C)
    add = draw.normal(R, S, C if product == "vjp" else D)
    kept = Standard.of(x, a[None], b[None], groups, True, EPS).statistics(R, groups)
    inputs = {"value": (x,), "jvp": (v, x, kept), "vjp": (u, x, kept)}[product]
    operation = {"value": convolution.VALUE, "jvp": convolution.JVP, "vjp": convolution.VJP}[product]
    w = convolution.filters(kernel.flip(2, 3).transpose(0, 1) if product == "vjp" else kernel)
    settings: tuple[Any, ...] = (groups, silu, list(image), *([EPS] if product == "value" else []))

    def bind(cast: Cast) -> Callable[..., Outputs]:
        constants: tuple[Any, ...] = tuple(map(cast, (a, b, w)))
        if product == "value":
            constants += (cast(bias) if silu else None,)

        def call(*inputs: Tensor) -> Outputs:
            rest, more = (inputs[:-1], inputs[-1]) if added else (inputs, None)
            return operation(*rest, *constants, more, *settings)

        return call

    return Case((*inputs, *([add] if added else [])), bind)


def plain_convolve(
    adjoint: bool,
    draw: Draw,
    R: int,
    C: int,
    D: int,
    k: int,
    groups: int,
    silu: bool,
    added: bool,
    image: Sequence[int],
) -> Case:
    """The same without norm, and nothing added; with a bias where ``silu``."""
    kernel, bias = draw.normal(D, C, k, k) / (k * C**0.5), draw.normal(D)
    w = convolution.filters(kernel.flip(2, 3).transpose(0, 1) if adjoint else kernel)
    x, settings = draw.normal(R, image[0] * image[1], D if adjoint else C), list(image)

    def bind(cast: Cast) -> Callable[..., Outputs]:
        weight, shift = cast(w), cast(bias) if silu else None
        if adjoint:
            return lambda u: ADJOINT(u, weight, settings)
        return lambda x: CONV(x, weight, shift, settings)

    return Case((x,), bind)


def shuffle(adjoint: bool, draw: Draw, M: int, h: int, w: int, C: int, F: int, p: int) -> Case:
    """Places of C channels and patches of p x p places of F features."""
    weight, bias = draw.normal(p, C, p * F) / C**0.5, draw.normal(p, p * F)

    def bind(cast: Cast) -> Callable[..., Outputs]:
        if adjoint:
            back = packed(cast(weight).transpose(1, 2).flatten(0, 1)).unflatten(1, (p, -1))
            return lambda u: SHUFFLE_ADJOINT(u, back)
        ahead, shift = packed(cast(weight)), cast(bias)
        return lambda x: SHUFFLE(x, ahead, shift)

    return Case((draw.normal(M, h * p, w * p, F) if adjoint else draw.normal(M, h, w, C),), bind)


def zonal(adjoint: bool, draw: Draw, M: int, rows: int, columns: int, C: int, modes: int, full: bool) -> Case:
    """x (M, rows, columns, C) and a low rank for every wavenumber, its middle a matrix or a factor."""
    waves, size = columns // 2 + 1, rows * C
    angle = 2 * math.pi * torch.outer(torch.arange(waves), torch.arange(columns)).double() / columns
    analysis = columns**-0.5 * torch.cat([angle.cos(), -angle.sin()]).to(draw.device)
    right, left = draw.normal(waves, size, modes) / size**0.5, draw.normal(waves, modes, size) / modes**0.5
    # Alike for real and imaginary parts.
    half = draw.normal(waves, modes // 2, 1 + full * (modes // 2 - 1)) / modes**0.5
    factor = torch.stack([torch.block_diag(h, h) for h in half]) if full else half.repeat(1, 2, 1)[..., 0]
    floor, transforms = draw.normal(waves, size), (analysis, analysis.T.contiguous())
    before, after = (draw.normal(size), draw.normal(size)) if full else (draw.normal(0), draw.normal(size))
    turned = packed(factor.mT) if full else factor
    matrices = (*transforms, packed(right), packed(factor) if full else factor, packed(left), floor, before, after)
    transposed = (*transforms, packed(left.mT), turned, packed(right.mT), floor, after, before)

    def bind(cast: Cast) -> Callable[..., Outputs]:
        both = list(map(cast, matrices)), list(map(cast, transposed))
        return lambda x: (zonal_adjoint if adjoint else zonal_product)(x, *both)

    return Case((draw.normal(M, rows, columns, C),), bind, ("vjp", "jvp"))


def pad(operation: Any, draw: Draw, R: int, H: int, W: int, C: int, n: int, *edges: bool) -> Case:
    """Images (R, H, W, C) and a margin of n; ``edges``: periodic, north, south."""
    more = 2 * n if operation is FOLD else 0
    return Case((draw.normal(R, H + more, W + more, C),), lambda cast: lambda x: operation(x, n, *edges), ("vjp",))


def stream(product: str, draw: Draw, R: int, C: int, A: int, gated_: bool = True) -> Case:
    """x, branch and y (R, C); gate, a and b (A, C)."""
    x, branch, y = (draw.normal(R, C) for _ in range(3))
    gate, a, b = (draw.normal(A, C) for _ in range(3))
    operation = {"value": gated.VALUE, "jvp": gated.JVP, "vjp": gated.VJP}[product]
    rest = (a, b) if product == "value" else (a,)
    inputs = (x, branch) if product == "value" else (x, branch, y)

    def bind(cast: Cast) -> Callable[..., Outputs]:
        if gated_:
            return lambda *inputs: operation(*inputs, 1e-5)
        count = len(inputs)
        return lambda *inputs: operation(*inputs[:count], None, *inputs[count:], 1e-5)

    has = ("vjp",) if product == "value" else ()
    return Case((*inputs, *((gate,) if gated_ else ()), *rest), bind, has)


def windows(product: str, draw: Draw, B: int, L: int, H: int, d: int, W: int) -> Case:
    """qkv (B, L, 3, H, d), and W biases, or none, that keep a third of the pairs apart, but no token from itself."""
    qkv, v, u = draw.normal(B, L, 3, H, d), draw.normal(B, L, 3, H, d), draw.normal(B, L, H, d)
    bias = draw.normal(W, L, L) if W else None
    if bias is not None:
        bias.masked_fill_((bias > 0.4) & ~torch.eye(L, dtype=torch.bool, device=draw.device), float("-inf"))
    operation = {"value": attention.window_attention, "jvp": attention.JVP, "vjp": attention.VJP}[product]
    inputs = {"value": (qkv,), "jvp": (v, qkv), "vjp": (u, qkv)}[product]
    if product != "value":
        inputs += (attention.attention_reference(qkv, bias),)

    def bind(cast: Cast) -> Callable[..., Outputs]:
        constant = None if bias is None else cast(bias)
        return lambda *inputs: operation(*inputs, constant)

    # A window on its own would take another bias.
    has = ("vjp", "jvp") if product == "value" else ()
    return Case(inputs, bind, has, alone=W <= 1)


def solve(draw: Draw, M: int, P: int, rows: int, columns: int, C: int, taps: int, modes: int, iterations: int) -> Case:
    """P observations of two cells, each made of latents at some places; every third member has found its solution."""
    S, R, cells, waves = rows * columns, 7, 2 * P + 1, columns // 2 + 1
    index, points, layer = draw.integers(cells, P, 2), draw.normal(P, 2), draw.normal(R, taps, C) / (taps * C) ** 0.5
    where = draw.integers(S, S, taps), draw.integers(S, cells), draw.integers(R, cells)
    angle = 2 * math.pi * torch.outer(torch.arange(waves), torch.arange(columns)).double() / columns
    analysis = (columns**-0.5 * torch.cat([angle.cos(), -angle.sin()])).to(draw.device, draw.dtype)
    V, gain = draw.normal(waves, rows * C, modes) / (rows * C) ** 0.5, draw.normal(waves, modes // 2).abs()
    middle = torch.diag_embed(torch.cat([gain, gain], dim=1))
    matrices = (
        analysis,
        analysis.T.contiguous(),
        *map(packed, (V, middle, V.mT)),
        draw.normal(waves, rows * C).abs(),
        *[0.5 + draw.normal(rows * C).abs()] * 2,
    )

    def parts(cast: Cast) -> tuple[Any, ...]:
        plan = ObservationPlan.from_stencil(cast(index), cast(points), cells)
        head = HeadPlan.from_rows(cast(layer), *map(cast, where))
        return *plan.arguments, head.weight, head.layout, list(map(cast, matrices))

    slope, c, factor = 1 + draw.normal(M, P).abs(), draw.normal(M, P), 0.25
    # f = F b and b'b of a b = F'c + d, d longer than F'c and at right angles to F.
    f = product_reference(c, slope, factor, *parts(lambda t: t))
    rr = 2 * (f * c).sum(1)
    limit = torch.where(torch.arange(M, device=rr.device) % 3 == 2, 2 * rr, torch.zeros_like(rr))

    def bind(cast: Cast) -> Callable[..., Outputs]:
        made = parts(cast)
        return lambda *inputs: SOLVE(*inputs, factor, iterations, *made)

    return Case((f, rr, limit, slope), bind)
