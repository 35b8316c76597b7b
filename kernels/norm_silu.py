"""Group or layer normalisation with modulation and SiLU, and the products of its derivative, in one pass:

    n = (x - mean) / sqrt(variance + eps),  p = a n + b,  y = silu(p), or p without ``silu``
    a = weight (1 + scale),  b = bias (1 + scale) + shift

Layer normalisation has a mean for every token; group normalisation (Wu & He 2018, arXiv:1803.08494) one for every
member and group of channels. With D = diag(a silu'(p)) and P v = (v - mean(v) - n mean(n v)) / sqrt(variance + eps),
which is its own transpose, the JVP is D P and the VJP P D; both find n again from x. The gradients of a and b, and
their tangents, are plain torch and cost nothing where nobody asks. Statistics are in float64 in native code. Half
precision is computed in float32, on the CPU in plain torch, and a and b are float32 islands: the weights and the
modulation may be of either precision. A member is the same in any company. There are no second derivatives.

The operation itself sees slices: x (R, C, S), or (R, S, C) where the channels lie last; a and b (A, C), each for R / A
rows. A token is a row with S = 1.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lsda_fast.errors import InputError
from lsda_fast.kernels import native, triton
from lsda_fast.kernels.derivatives import call, first_order, more_rows, rows_for
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.registry import Operation
from lsda_fast.kernels.standard import Standard, affine, split

__all__ = ["norm_silu", "norm_silu_products"]

Map = Callable[[Tensor], Tensor]
Maybe = Tensor | None

LAYOUTS = ("tokens", "planes", "last")
PRODUCTS = ("value", "jvp", "vjp")


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

    Returns
    -------
    Tensor
        Shape and memory format of x.

    Raises
    ------
    InputError
        Sizes that do not belong together.
    """
    slices, a, b, settings, back = _slices(x, weight, bias, scale, shift, groups, eps, silu)
    return back(call(_Value, VALUE, slices(x), a, b, *settings))


def norm_silu_products(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    groups: int | None = None,
    eps: float = 1e-5,
    silu: bool = True,
) -> tuple[Tensor, Map, Map]:
    """The value, v -> J v and u -> J' u, past autograd; as ``norm_silu``. One member takes any number of v and u."""
    slices, a, b, settings, back = _slices(x, weight, bias, None, None, groups, eps, silu)
    flat = slices(x)
    y = back(VALUE(flat, a, b, *settings))

    def product(operation: Operation, t: Tensor) -> Tensor:
        t = slices(t)
        return back(operation(t, *rows_for(t, flat), a, b, *settings))

    return y, partial(product, JVP), partial(product, VJP)


def _slices(
    x: Tensor, weight: Maybe, bias: Maybe, scale: Maybe, shift: Maybe, groups: int | None, eps: float, silu: bool
) -> tuple[Map, Tensor, Tensor, tuple[int, bool, float, bool], Map]:
    """How x becomes slices, a and b, the operations' settings, and how slices become x's shape and format."""
    if x.ndim < 2 or (groups and x.shape[1] % groups):
        accepted = "(members, ..., channels)" if groups is None else f"(members, a multiple of {groups} channels, ...)"
        raise InputError(f"norm_silu of a tensor of shape {tuple(x.shape)}; accepted: {accepted}")
    last = groups is None or (x.ndim == 4 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous())
    images = groups is not None and last
    place = x.permute(0, 2, 3, 1) if images else x
    C = place.shape[-1] if last else place.shape[1]
    a, b = affine(x, C, weight, bias, scale, shift)
    shape, S = place.shape[1:], math.prod(place.shape[1:-1] if last else place.shape[2:])

    def slices(t: Tensor) -> Tensor:
        flat = (len(t) * S, 1, C) if groups is None else (len(t), S, C) if last else (len(t), C, S)
        return (t.permute(0, 2, 3, 1) if images else t).contiguous().reshape(flat)

    def back(y: Tensor) -> Tensor:
        y = y.reshape(len(y) if groups else len(y) // max(S, 1), *shape)
        return y.permute(0, 3, 1, 2) if images else y

    return slices, a, b, (groups or 1, last, eps, silu), back


def norm_reference(x: Tensor, a: Tensor, b: Tensor, groups: int, last: bool, eps: float, silu: bool) -> Tensor:
    """y for x (R, C, S) or (R, S, C), a and b (A, C)."""
    s = Standard.of(x, a, b, groups, last, eps)
    p = s.a * s.n + s.b
    return _join(F.silu(p) if silu else p, x)


def jvp_reference(
    v: Tensor, x: Tensor, a: Tensor, b: Tensor, groups: int, last: bool, eps: float, silu: bool
) -> Tensor:
    """D P v."""
    s = Standard.of(x, a, b, groups, last, eps)
    return _join(s.a * s.slope(silu) * s.project(split(v, a, groups, last).to(s.n)), x)


def vjp_reference(
    u: Tensor, x: Tensor, a: Tensor, b: Tensor, groups: int, last: bool, eps: float, silu: bool
) -> Tensor:
    """P D u."""
    s = Standard.of(x, a, b, groups, last, eps)
    return _join(s.project(s.a * s.slope(silu) * split(u, a, groups, last).to(s.n)), x)


def _join(y: Tensor, x: Tensor) -> Tensor:
    return y.reshape(x.shape).to(x.dtype).contiguous()


def _empty(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _run(product: str, out: Tensor, t: Tensor, x: Tensor, a: Tensor, b: Tensor, *settings: Any) -> None:
    groups, last, eps, silu = settings
    R, C, S = (x.shape[0], x.shape[2], x.shape[1]) if last else x.shape
    layout = "planes" if not last else "tokens" if S * groups == 1 else "last"
    sizes = (R, R // max(len(a), 1), groups, C // groups, S)
    codes = PRODUCTS.index(product), LAYOUTS.index(layout)
    native.run("norm", x.dtype, codes[0], out, t, x, a, b, *sizes, eps, codes[1], silu)


def _limits(x: Tensor, a: Tensor, b: Tensor, groups: int, last: bool, *rest: Any) -> str:
    if not last or x.shape[1] * groups == 1:
        return ""
    width, most = a.shape[1] // groups, native.load().code.build_info()["columns"]
    return f"groups of {width} channels that lie last; C++ takes up to {most}" if width > most else ""


def _row_limits(x: Tensor, *rest: Any) -> str:
    return "" if x[:1].numel() < 2**31 else f"rows of {x[:1].numel()} elements; Triton takes fewer than 2^31"


_SIGNATURE = "Tensor x, Tensor a, Tensor b, int groups, bool last, float eps, bool silu) -> Tensor"
VALUE = Operation(
    f"norm_silu({_SIGNATURE}",
    reference=norm_reference,
    empty=_empty,
    natives={
        "cpu": Native(lambda out, x, *rest: _run("value", out, x, x, *rest), _limits),
        "triton": Native(triton.fill("norm_silu"), _row_limits, triton.DTYPES, mixed=True),
    },
)


def _derivative(product: str, of: str, reference: Callable[..., Tensor]) -> Operation:
    return Operation(
        f"norm_silu_{product}(Tensor {of}, {_SIGNATURE}",
        reference=reference,
        empty=_empty,
        natives={
            "cpu": Native(lambda out, *rest: _run(product, out, *rest), lambda t, *rest: _limits(*rest)),
            "triton": Native(triton.fill(f"norm_silu_{product}"), _row_limits, triton.DTYPES, mixed=True),
        },
    )


JVP, VJP = _derivative("jvp", "v", jvp_reference), _derivative("vjp", "u", vjp_reference)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, a, b, *ctx.settings = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, a, b)


def _backward(ctx: Any, u: Tensor | None) -> tuple:
    if u is None:
        return (None,) * 7
    x, a, b = ctx.saved_tensors
    u = u.contiguous()
    dx = call(_VJP, VJP, u, x, a, b, *ctx.settings) if ctx.needs_input_grad[0] else None
    da = db = None
    if any(ctx.needs_input_grad[1:3]):
        groups, last, eps, silu = ctx.settings
        s = Standard.of(x, a, b, groups, last, eps)
        dp = s.slope(silu) * split(u, a, groups, last).to(s.n)
        da, db = ((dp * f).sum((1, 2 if last else 4)).reshape(a.shape).to(a.dtype) for f in (s.n, 1))
    return dx, da, db, None, None, None, None


VALUE.differentiate(_keep, _backward)
_JVP, _VJP = first_order(JVP), first_order(VJP)


class _Value(torch.autograd.Function):
    forward = staticmethod(VALUE)
    backward = staticmethod(_backward)
    vmap = staticmethod(lambda *arguments: more_rows(_Value, *arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _keep(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def jvp(ctx: Any, v: Tensor | None, va: Tensor | None, vb: Tensor | None, *_: None) -> Tensor:
        x, a, b = ctx.saved_tensors
        dy = torch.zeros_like(x) if v is None else call(_JVP, JVP, v.contiguous(), x, a, b, *ctx.settings)
        if va is None and vb is None:
            return dy
        groups, last, eps, silu = ctx.settings
        s = Standard.of(x, a, b, groups, last, eps)
        va, vb = (torch.zeros_like(a) if t is None else t for t in (va, vb))
        dp = s.n * va.reshape(s.a.shape) + vb.reshape(s.a.shape)
        return dy + _join(s.slope(silu) * dp, x)
