"""Weighted departures of observations, and what they cost, in one pass over the stencil of an ``ObservationPlan``:

    d = precision (H x - target) - noise,   r = w(d)^1/2 d,   slope = w(d)^1/2 precision,   cost[m] = sum_p rho(d[m, p])

with the weight and the cost of ``robust``, of which r = d, slope = precision, rho = 1/2 d^2 is the Gaussian case. The
gradient of the cost is H' (slope r), and H' slope^2 H the curvature of its Gauss-Newton steps. Precision is R^-1/2, and
0 takes an observation out whatever its value; noise is a perturbation of each member's observations in units of their
errors, which comes before the weight. The cost is summed in float64, in one order for any threads and members.

Without a robust cost r and cost have derivatives in x, with one the cost alone: the weight counts as a number.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels import native, triton
from lsda_fast.kernels.derivatives import call, last
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.linear import nothing
from lsda_fast.kernels.obs_plan import ObservationPlan
from lsda_fast.kernels.obs_project import (
    ADJOINT,
    ADJOINT_CALL,
    PLAN,
    PROJECT_CALL,
    by_place,
    members,
    project_limits,
    project_reference,
)
from lsda_fast.kernels.registry import Operation
from lsda_fast.kernels.robust import GAUSSIAN, Robust, arguments, weigh

__all__ = ["Departures", "departures", "obs_residual"]


class Departures(NamedTuple):
    """r (M, P), slope (M, P) or a row that is that of all members, cost (M,)."""

    r: Tensor
    slope: Tensor
    cost: Tensor


def obs_residual(
    x: Tensor,
    plan: ObservationPlan,
    target: Tensor,
    *,
    precision: Tensor | None = None,
    noise: Tensor | None = None,
    robust: Robust | None = None,
    out: Departures | None = None,
) -> Departures:
    """The module's equation.

    Parameters
    ----------
    x : Tensor, shape (M, ...)
        N numbers a member.
    plan : ObservationPlan
    target : Tensor, shape (P,)
    precision : Tensor, shape (P,), optional
        1 when not given.
    noise : Tensor, shape (M, P), optional
    robust : Huber or VariationalQC, optional
        Gaussian when not given.
    out : Departures, optional
        Where to put it, without derivatives or torch.compile; its slope is of shape (M, 0) without a robust cost.
    """
    x = members(x, plan.cells, "cells")
    M, P = len(x), plan.size
    for name, t, shape in (("target", target, (P,)), ("precision", precision, (P,)), ("noise", noise, (M, P))):
        if t is not None and t.shape != shape:
            raise InputError(f"{name} {tuple(t.shape)}; accepted: {shape}")
    kind, number = arguments(robust)
    rest = (x, *plan.arguments, target, precision, noise, kind, number)
    if out is not None:
        r, slope, cost = RESIDUAL.into(tuple(out), [(M, P), (M, P if kind else 0), (M,)], *rest)
    else:
        r, slope, cost = call(_Residual, RESIDUAL, *rest)
    if robust is None:
        slope = x.new_ones(1, P) if precision is None else precision[None]
    return Departures(r, slope, cost)


def departures(
    y: Tensor,
    target: Tensor,
    *,
    precision: Tensor,
    noise: Tensor | None = None,
    robust: Robust | None = None,
) -> Departures:
    """The same for observed numbers y = H x (M, P), however they came about."""
    r, slope, cost = departures_reference(y, target, precision, noise, *arguments(robust))
    return Departures(r, precision[None] if robust is None else slope, cost)


def departures_reference(
    y: Tensor, target: Tensor, precision: Tensor | None, noise: Tensor | None, kind: int, number: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The equation for H x = y, with slope (M, P) for every kind."""
    d = y - target
    if precision is not None:
        d = d * precision
    if noise is not None:
        d = d - noise
    if precision is not None:
        d = torch.where(precision == 0, 0.0, d)
    weight, cost = weigh(d, kind, number)
    root = weight.sqrt()
    return root * d, root if precision is None else root * precision, cost.sum(1)


def residual_reference(
    x: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The equation, with a slope (M, 0) in the Gaussian case."""
    r, slope, cost = departures_reference(project_reference(x, index, weight, transpose, cells), *rest)
    return r, slope if rest[-2] != GAUSSIAN else slope.new_empty(len(x), 0), cost


def _empty(x: Tensor, index: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    M, P = x.shape[0], index.shape[1]
    return x.new_empty(M, P), x.new_empty(M, P if rest[-2] != GAUSSIAN else 0), x.new_empty(M)


def _fill_cpu(
    out: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    transpose: list[Tensor],
    cells: int,
    *rest: Any,
) -> None:
    native.run(
        "obs_residual", x.dtype, *out, x, *by_place(index, weight, transpose), *rest, *x.shape, *index.shape[::-1]
    )


def _fill_cuda(
    out: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    index: Tensor,
    weight: Tensor,
    transpose: list[Tensor],
    cells: int,
    *rest: Any,
) -> None:
    twice = x.new_empty(len(x), -(-index.shape[1] // _block()), dtype=torch.float64)
    native.run("obs_residual", x.dtype, *out, twice, x, index, weight, *rest, *x.shape, *index.shape[::-1])


@cache
def _block() -> int:
    """Observations of a partial sum of a cost in CUDA C++."""
    return native.load("cuda").code.build_info()["block"]


RESIDUAL = Operation(
    f"obs_residual(Tensor x, {PLAN}, Tensor target, Tensor? precision, Tensor? noise, int kind, float number)"
    " -> (Tensor, Tensor, Tensor)",
    reference=residual_reference,
    empty=_empty,
    natives={
        "cpu": Native(_fill_cpu, project_limits),
        "cuda": Native(_fill_cuda, project_limits),
        "triton": Native(triton.fill("obs_residual"), project_limits, triton.DTYPES),
    },
)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.plan, ctx.robust = inputs[1:5], inputs[8] != GAUSSIAN
    ctx.mark_non_differentiable(*output[not ctx.robust : 2])
    ctx.save_for_backward(*_kept(inputs, output))


def _kept(inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """x, r, and the factor of H in the derivative of r or in what stands for it."""
    r, slope, _ = output
    precision, robust = inputs[6], inputs[8] != GAUSSIAN
    return inputs[0], r, slope if robust else r.new_ones(1) if precision is None else precision


def _cotangent(ctx: Any, u: Tensor, cost: Tensor) -> Tensor:
    _, r, factor = ctx.saved_tensors
    weighted = cost[:, None] * r
    return (weighted if ctx.robust else u + weighted) * factor


RESIDUAL.differentiate(
    _keep,
    lambda ctx, u, _, cost: (ADJOINT(_cotangent(ctx, u, cost), *ctx.plan), *nothing(ctx.plan), *[None] * 5),
)


class _Residual(torch.autograd.Function):
    forward = staticmethod(RESIDUAL)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _keep(ctx, inputs, output)
        ctx.save_for_forward(*_kept(inputs, output))

    @staticmethod
    def backward(ctx: Any, u: Tensor, _: Tensor, cost: Tensor) -> tuple:
        gradient = ADJOINT_CALL(_cotangent(ctx, u, cost), *ctx.plan)
        return last(gradient, ctx.saved_tensors[0], "obs_residual") if ctx.robust else gradient, *[None] * 9

    @staticmethod
    def jvp(ctx: Any, v: Tensor, *_: None) -> tuple:
        x, r, factor = ctx.saved_tensors
        tangent = PROJECT_CALL(v, *ctx.plan) * factor
        cost = torch.linalg.vecdot(r, tangent)
        return (None, None, last(cost, x, "obs_residual")) if ctx.robust else (tangent, None, cost)
