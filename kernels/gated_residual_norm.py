"""The step of a transformer's residual stream: what a branch adds, and what the next branch reads, in one pass:

    y = x + gate branch,  n = a (y - mean) / sqrt(variance + eps) + b
    a = weight (1 + scale),  b = bias (1 + scale) + shift

with mean and variance over the channels of a token: adaLN-zero (Peebles & Xie 2023, arXiv:2212.09748), and without
modulation and gate any pre-norm block. With P of ``norm_silu`` at y and D = diag(a),

    JVP  y' = x' + gate branch',  n' = D P y'
    VJP  x' = y' + P D n',        branch' = gate x'

The gradients of gate, a and b, and their tangents, are plain torch and cost nothing where nobody asks. There are no
second derivatives. The operation itself sees x (R, C), and gate, a and b (A, C), each for R / A rows.
"""

from typing import Any

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels import native, triton
from lsda_fast.kernels.derivatives import call, first_order, more_rows
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.norm_silu import PRODUCTS
from lsda_fast.kernels.registry import Operation
from lsda_fast.kernels.standard import Standard, affine

__all__ = ["gated_residual_norm"]


def gated_residual_norm(
    x: Tensor,
    branch: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """See the module's equations.

    Parameters
    ----------
    x, branch : Tensor, shape (M, ..., C)
    weight, bias : Tensor, shape (C,), optional
    gate, scale, shift : Tensor, shape (M, C), optional
        Gate 1 when not given.
    eps : float

    Returns
    -------
    y, n : Tensor, shape (M, ..., C)

    Raises
    ------
    InputError
        Sizes that do not belong together.
    """
    if x.ndim < 2 or x.shape != branch.shape:
        shapes = f"{tuple(x.shape)} and {tuple(branch.shape)}"
        raise InputError(f"gated_residual_norm of {shapes}; accepted: (members, ..., channels) twice")
    M, C = len(x), x.shape[-1]
    if gate is not None and gate.shape != (M, C):
        raise InputError(f"gate {tuple(gate.shape)}; accepted: {(M, C)}")
    a, b = affine(x, C, weight, bias, scale, shift)
    if gate is not None:
        gate, a, b = (t.expand(M, C).contiguous() for t in (gate, a, b))
    rows = (x.numel() // C if C else 0, C)
    left, right = (t.contiguous().reshape(rows) for t in (x, branch))
    y, n = call(_Value, VALUE, left, right, gate, a, b, eps)
    return y.reshape(x.shape), n.reshape(x.shape)


def gated_reference(
    x: Tensor, branch: Tensor, gate: Tensor | None, a: Tensor, b: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """y and n for x and branch (R, C); gate, a and b (A, C)."""
    y = (x + _gated(gate, branch, a)).to(x.dtype)
    s = _standard(y, a, b, eps)
    return y, _join(s.a * s.n + s.b, y)


def jvp_reference(
    vx: Tensor, vbranch: Tensor, y: Tensor, gate: Tensor | None, a: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """y' and n'."""
    vy = vx + _gated(gate, vbranch, a)
    s = _standard(y, a, a, eps)
    return vy, _join(s.a * s.project(vy.reshape(s.n.shape).to(s.n)), y)


def vjp_reference(
    uy: Tensor, un: Tensor, y: Tensor, gate: Tensor | None, a: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x' and branch'."""
    s = _standard(y, a, a, eps)
    dx = uy + _join(s.project(s.a * un.reshape(s.n.shape).to(s.n)), y)
    return dx, _gated(gate, dx, a).clone()


def _standard(y: Tensor, a: Tensor, b: Tensor, eps: float) -> Standard:
    return Standard.of(y[:, None], a, b, 1, True, eps)


def _rows(t: Tensor, a: Tensor) -> Tensor:
    """(R, C) as (A, R / A, C)."""
    return t.reshape(len(a), len(t) // max(len(a), 1), a.shape[1])


def _gated(gate: Tensor | None, branch: Tensor, a: Tensor) -> Tensor:
    return branch if gate is None else (gate[:, None] * _rows(branch, a)).reshape(branch.shape).to(branch.dtype)


def _join(n: Tensor, y: Tensor) -> Tensor:
    return n.reshape(y.shape).to(y.dtype)


def _empty(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _run(product: str, out: tuple[Tensor, Tensor], left: Tensor, right: Tensor, *rest: Any) -> None:
    y, gate, a, b, eps = rest
    sizes = (len(left), len(left) // max(len(a), 1), a.shape[1])
    native.run("gated_norm", left.dtype, PRODUCTS.index(product), *out, left, right, y, gate, a, b, *sizes, eps)


def _limits(x: Tensor, *rest: Any) -> str:
    C = x.shape[1]
    return f"tokens of {C} channels; Triton takes up to {triton.TILE}" if C > triton.TILE else ""


VALUE = Operation(
    "gated_residual_norm(Tensor x, Tensor branch, Tensor? gate, Tensor a, Tensor b, float eps) -> (Tensor, Tensor)",
    reference=gated_reference,
    empty=_empty,
    natives={
        "cpu": Native(lambda out, x, branch, *rest: _run("value", out, x, branch, None, *rest)),
        "triton": Native(triton.fill("gated_residual_norm"), _limits, triton.DTYPES, mixed=True),
    },
)
_DERIVATIVE = "Tensor y, Tensor? gate, Tensor a, float eps) -> (Tensor, Tensor)"
JVP = Operation(
    f"gated_residual_norm_jvp(Tensor vx, Tensor vbranch, {_DERIVATIVE}",
    reference=jvp_reference,
    empty=_empty,
    natives={
        "cpu": Native(lambda out, *rest: _run("jvp", out, *rest[:-1], None, rest[-1])),
        "triton": Native(triton.fill("gated_residual_norm_jvp"), _limits, triton.DTYPES, mixed=True),
    },
)
VJP = Operation(
    f"gated_residual_norm_vjp(Tensor uy, Tensor un, {_DERIVATIVE}",
    reference=vjp_reference,
    empty=_empty,
    natives={
        "cpu": Native(lambda out, *rest: _run("vjp", out, *rest[:-1], None, rest[-1])),
        "triton": Native(triton.fill("gated_residual_norm_vjp"), _limits, triton.DTYPES, mixed=True),
    },
)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, branch, gate, a, b, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], branch, gate, a, b)


def _backward(ctx: Any, uy: Tensor | None, un: Tensor | None) -> tuple:
    y, branch, gate, a, b = ctx.saved_tensors
    uy, un = (torch.zeros_like(y) if t is None else t.contiguous() for t in (uy, un))
    dx, dbranch = call(_VJP, VJP, uy, un, y, gate, a, ctx.eps)
    dgate = da = db = None
    if ctx.needs_input_grad[2]:
        dgate = _rows(dx * branch, a).sum(1)
    if any(ctx.needs_input_grad[3:5]):
        n = _join(_standard(y, a, b, ctx.eps).n, y)
        da, db = _rows(un * n, a).sum(1), _rows(un, a).sum(1)
    return dx, dbranch, dgate, da, db, None


VALUE.differentiate(_keep, _backward)
_JVP, _VJP = first_order(JVP), first_order(VJP)


class _Value(torch.autograd.Function):
    forward = staticmethod(VALUE)
    backward = staticmethod(_backward)
    vmap = staticmethod(lambda *arguments: more_rows(_Value.apply, *arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        _keep(ctx, inputs, output)
        ctx.save_for_forward(output[0], *inputs[1:5])

    @staticmethod
    def jvp(ctx: Any, vx: Any, vbranch: Any, vgate: Any, va: Any, vb: Any, _: None) -> tuple[Tensor, Tensor]:
        y, branch, gate, a, b = ctx.saved_tensors
        vx, vbranch = (torch.zeros_like(y) if t is None else t.contiguous() for t in (vx, vbranch))
        if vgate is not None:
            vx = vx + _gated(vgate, branch, a)
        vy, vn = call(_JVP, JVP, vx, vbranch, y, gate, a, ctx.eps)
        if va is not None:
            vn = vn + _gated(va, _join(_standard(y, a, b, ctx.eps).n, y), a)
        return vy, vn if vb is None else vn + _gated(vb, torch.ones_like(y), a)
