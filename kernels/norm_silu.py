"""Group or layer normalisation with modulation and SiLU, and the products of its derivative, in one pass:

    n = (x - mean) / sqrt(variance + eps),  p = a n + b,  y = silu(p), or p without ``silu``
    a = weight (1 + scale),  b = bias (1 + scale) + shift

Layer normalisation has a mean for every token; group normalisation (Wu & He 2018, arXiv:1803.08494) one for every
member and group of channels. With D = diag(a silu'(p)) and P v = (v - mean(v) - n mean(n v)) / sqrt(variance + eps),
which is its own transpose, the JVP is D P and the VJP P D. The value leaves the statistics of each slice, its mean and
1 / sqrt(variance + eps), from which both find n again. The gradients of a and b, and their tangents, are plain torch
and cost nothing where nobody asks. Sums are in float64 in native code. Half precision is computed in float32 (float16
on the CPU in plain torch), and a, b and the statistics are float32 islands: the weights and the modulation may be of
either precision. A member is the same in any company. There are no second derivatives.

Where a convolution follows, y and the JVP are made with the margins that ``geo_pad`` would give them, and the VJP is of
what has them: in C++ in the same pass.

The operation itself sees slices: x (R, C, S), or (R, S, C) where the channels lie last; a and b (A, C), each for R / A
rows; ``image`` is nothing, or rows and columns of S = H x W and what ``geo_pad`` is told. A token is a row with S = 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lsda_fast.kernels import native, triton
from lsda_fast.kernels.derivatives import call, first_order, more_rows, rows_for
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.norm_reference import joined, jvp_reference, norm_reference, vjp_reference
from lsda_fast.kernels.registry import Operation
from lsda_fast.kernels.slices import Map, slices_of
from lsda_fast.kernels.standard import Standard, folded, padded, split

__all__ = ["norm_silu", "norm_silu_products"]

LAYOUTS = ("tokens", "planes", "last")
PRODUCTS = ("value", "jvp", "vjp")
CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def norm_silu(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    groups: int | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
    pad: Sequence[Any] = (),
) -> Tensor:
    """See the module's equations.

    Parameters
    ----------
    x : Tensor, shape (M, ..., C) for layer, (M, C, ...) for group normalisation
        Contiguous, or (M, C, H, W) in torch's channels-last format; anything else is copied.
    weight, bias : Tensor, shape (C,), optional
    groups : int, optional
        Of channels, for group normalisation; layer normalisation when not given.
    scale, shift : Tensor, shape (M, C), optional
        The modulation.
    eps : float
    silu : bool
    pad : sequence
        What ``geo_pad`` is told of the margins that images (M, C, H, W) get; none when not given.

    Returns
    -------
    Tensor
        Shape, with margins, and memory format of x.

    Raises
    ------
    InputError
        Sizes that do not belong together.
    """
    slices, a, b, settings, back = slices_of(x, weight, bias, scale, shift, groups, silu, pad)
    return back(call(_Value, VALUE, slices(x), a, b, *settings, eps)[0])


def norm_silu_products(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    groups: int | None = None,
    eps: float = 1e-5,
    silu: bool = True,
    pad: Sequence[Any] = (),
) -> tuple[Tensor, Map, Map]:
    """The value, v -> J v and u -> J' u, past autograd; as ``norm_silu``. One member takes any number of v and u."""
    slices, a, b, settings, back = slices_of(x, weight, bias, None, None, groups, silu, pad)
    flat = slices(x)
    y, kept = VALUE(flat, a, b, *settings, eps)

    def product(operation: Operation, t: Tensor) -> Tensor:
        t = slices(t)
        return back(operation(t, *rows_for(t, flat, kept), a, b, *settings))

    return back(y), partial(product, JVP), partial(product, VJP)


def _padded_empty(x: Tensor, last: bool, image: Sequence[int]) -> Tensor:
    size = list(x.shape)
    if image:
        H, W, n, *_ = image
        size[1 if last else 2] = (H + 2 * n) * (W + 2 * n)
    return x.new_empty(size)


def _value_empty(
    x: Tensor, a: Tensor, b: Tensor, groups: int, last: bool, silu: bool, image: Sequence[int], eps: float
) -> tuple[Tensor, Tensor]:
    new = x.new_empty if x.numel() else x.new_zeros
    kept = new(len(x), groups, 2, dtype=torch.promote_types(x.dtype, torch.float32))
    return _padded_empty(x, last, image), kept


def _run(product: str, out: Tensor, kept: Tensor, t: Tensor, x: Tensor, a: Tensor, b: Tensor, *settings: Any) -> None:
    groups, last, silu, image, *eps = settings
    R, C, S = (x.shape[0], x.shape[2], x.shape[1]) if last else x.shape
    layout = "planes" if not last else "tokens" if S * groups == 1 else "last"
    sizes = (R, R // max(len(a), 1), groups, C // groups, LAYOUTS.index(layout), silu, eps[0] if eps else 0.0)
    frame = (*image[:3], *map(bool, image[3:])) if image else (1, S, 0, False, False, False, False)
    native.run("norm", x.dtype, PRODUCTS.index(product), out, kept, t, x, a, b, *sizes, *frame)


def _limits(x: Tensor, a: Tensor, b: Tensor, groups: int, last: bool, *rest: Any) -> str:
    if torch.promote_types(x.dtype, torch.float32) != a.dtype or a.dtype != b.dtype:
        return f"{a.dtype} and {b.dtype} beside {x.dtype}; C++ takes float32 beside bfloat16, else all alike"
    if not last or x.shape[1] * groups == 1:
        return ""
    width, most = a.shape[1] // groups, native.load("cpu").code.build_info()["columns"]
    return f"groups of {width} channels that lie last; C++ takes up to {most}" if width > most else ""


def _derivative_limits(t: Tensor, x: Tensor, kept: Tensor, a: Tensor, *rest: Any) -> str:
    if t.dtype != x.dtype or kept.dtype != a.dtype:
        return f"{t.dtype} beside {x.dtype}, statistics of {kept.dtype} beside {a.dtype}; C++ takes them alike"
    return _limits(x, a, *rest)


def _row_limits(x: Tensor, *rest: Any) -> str:
    return "" if x[:1].numel() < 2**31 else f"rows of {x[:1].numel()} elements; Triton takes fewer than 2^31"


_SETTINGS = "int groups, bool last, bool silu, int[] image"
VALUE = Operation(
    f"norm_silu(Tensor x, Tensor a, Tensor b, {_SETTINGS}, float eps) -> (Tensor, Tensor)",
    reference=norm_reference,
    empty=_value_empty,
    natives={
        "cpu": Native(lambda out, x, *rest: _run("value", *out, x, x, *rest), _limits, CPU_DTYPES, mixed=True),
        "triton": Native(triton.fill("norm_silu"), _row_limits, triton.DTYPES, mixed=True),
    },
)


def _derivative(product: str, of: str, reference: Callable[..., Tensor], empty: Callable[..., Tensor]) -> Operation:
    def run(out: Tensor, t: Tensor, x: Tensor, kept: Tensor, *rest: Any) -> None:
        _run(product, out, kept, t, x, *rest)

    return Operation(
        f"norm_silu_{product}(Tensor {of}, Tensor x, Tensor kept, Tensor a, Tensor b, {_SETTINGS}) -> Tensor",
        reference=reference,
        empty=empty,
        natives={
            "cpu": Native(run, _derivative_limits, CPU_DTYPES, mixed=True),
            "triton": Native(triton.fill(f"norm_silu_{product}"), _row_limits, triton.DTYPES, mixed=True),
        },
    )


JVP = _derivative(
    "jvp", "v", jvp_reference, lambda v, x, kept, a, b, groups, last, silu, image: _padded_empty(x, last, image)
)
VJP = _derivative("vjp", "u", vjp_reference, lambda u, x, *rest: x.new_empty(x.shape))


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, a, b, *settings, _ = inputs
    ctx.settings = settings
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1], a, b)


def _backward(ctx: Any, u: Tensor | None, _: None) -> tuple:
    if u is None:
        return (None,) * 8
    x, kept, a, b = ctx.saved_tensors
    u = u.contiguous()
    dx = call(_VJP, VJP, u, x, kept, a, b, *ctx.settings) if ctx.needs_input_grad[0] else None
    da = db = None
    if any(ctx.needs_input_grad[1:3]):
        groups, last, silu, image = ctx.settings
        s = Standard.kept(x, kept, a, b, groups, last)
        dp = s.slope(silu) * split(folded(u, last, image), a, groups, last).to(s.n)
        da, db = ((dp * f).sum((1, 2 if last else 4)).reshape(a.shape).to(a.dtype) for f in (s.n, 1))
    return dx, da, db, None, None, None, None, None


VALUE.differentiate(_keep, _backward)
_JVP, _VJP = first_order(JVP), first_order(VJP)


class _Value(torch.autograd.Function):
    forward = staticmethod(VALUE)
    backward = staticmethod(_backward)
    vmap = staticmethod(lambda *arguments: more_rows(_Value.apply, *arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _keep(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], output[1], *inputs[1:3])

    @staticmethod
    def jvp(ctx: Any, v: Tensor | None, va: Tensor | None, vb: Tensor | None, *_: None) -> tuple[Tensor, None]:
        x, kept, a, b = ctx.saved_tensors
        v = torch.zeros_like(x) if v is None else v.contiguous()
        dy = call(_JVP, JVP, v, x, kept, a, b, *ctx.settings)
        if va is None and vb is None:
            return dy, None
        groups, last, silu, image = ctx.settings
        s = Standard.kept(x, kept, a, b, groups, last)
        va, vb = (torch.zeros_like(a) if t is None else t for t in (va, vb))
        dp = s.n * va.reshape(s.a.shape) + vb.reshape(s.a.shape)
        return dy + padded(joined(s.slope(silu) * dp, x), last, image), None
