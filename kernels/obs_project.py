"""Observations of an ensemble, and their adjoint, through the stencil of an ``ObservationPlan``:

    project:   y[m, p] = sum_k weight[p, k] x[m, index[p, k]]
    adjoint:   x[m, c] = sum over (p, k) with index[p, k] = c of weight[p, k] r[m, p]

One pass: K gathered reads and one write an observation and member; the reference makes K times the output twice. The
sums have one order whatever the number of threads and members.

H is linear: its JVP is itself and its VJP the adjoint, as operations to call and for torch.autograd and torch.func,
which see x and r as the only variables.
"""

from typing import Any

from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels import native, triton
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.linear import transposes
from lsda_fast.kernels.obs_plan import COLUMNS, SORTED, TILES, ObservationPlan
from lsda_fast.kernels.registry import Operation

__all__ = ["PLAN", "members", "obs_adjoint", "obs_project"]


def obs_project(x: Tensor, plan: ObservationPlan, *, out: Tensor | None = None) -> Tensor:
    """H x.

    Parameters
    ----------
    x : Tensor, shape (M, ...)
        N numbers a member.
    plan : ObservationPlan
    out : Tensor, shape (M, P), optional
        Where to put it, without derivatives or torch.compile: fresh memory costs more than the operation.

    Returns
    -------
    Tensor, shape (M, P)
    """
    x = members(x, plan.cells, "cells")
    if out is not None:
        return PROJECT.into(out, [(len(x), plan.size)], x, *plan.arguments)
    return PROJECT_CALL(x, *plan.arguments)


def obs_adjoint(r: Tensor, plan: ObservationPlan, *, out: Tensor | None = None) -> Tensor:
    """H' r, shape (M, N), for r (M, P)."""
    r = members(r, plan.size, "observations")
    if out is not None:
        return ADJOINT.into(out, [(len(r), plan.cells)], r, *plan.arguments)
    return ADJOINT_CALL(r, *plan.arguments)


def project_reference(x: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int) -> Tensor:
    """x (M, N), index and weight (K, P) to (M, P)."""
    return (x.index_select(1, index.flatten()).reshape(len(x), *index.shape) * weight).sum(1)


def adjoint_reference(r: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int) -> Tensor:
    """r (M, P), index and weight (K, P) to (M, cells); the transpose is for the native code."""
    points = (r[:, None] * weight).flatten(1)
    return points.new_zeros(len(r), cells).index_add(1, index.flatten(), points)


def _project_empty(x: Tensor, index: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], index.shape[1])


def _project_fill(y: Tensor, x: Tensor, index: Tensor, weight: Tensor, *rest: Any) -> None:
    native.run("obs_project", x.dtype, y, x, index, weight, *x.shape, *index.shape[::-1])


def _project_fill_cpu(y: Tensor, x: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int) -> None:
    native.run("obs_project", x.dtype, y, x, *by_place(index, weight, transpose), *x.shape, *index.shape[::-1])


def by_place(index: Tensor, weight: Tensor, transpose: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The stencil as C++ reads it: sorted, with the rank of each observation, where the plan has it so."""
    if len(transpose) == TILES + SORTED:
        _, rank, index, weight = transpose[TILES:]
        return index, weight, rank
    return index, weight, None


def _adjoint_empty(r: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int) -> Tensor:
    return r.new_empty(r.shape[0], cells)


def _adjoint_fill(x: Tensor, r: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int) -> None:
    native.run("obs_adjoint", r.dtype, x, r, *transpose, len(r), cells, r.shape[1])


def _adjoint_fill_cpu(x: Tensor, r: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int) -> None:
    row = transpose[TILES] if len(transpose) > TILES else None
    native.run("obs_adjoint", r.dtype, x, r, *transpose[:TILES], row, len(r), cells, r.shape[1])


def project_limits(x: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int, *_: Any) -> str:
    return "" if x.shape[1] == cells else f"a state of {x.shape[1]} cells, a plan of {cells}"


def _tiles_limits(r: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int) -> str:
    return _adjoint_limits(
        r, index, "" if len(transpose) in (TILES, TILES + SORTED) else "the plan has no transpose in tiles"
    )


def _columns_limits(r: Tensor, index: Tensor, weight: Tensor, transpose: list[Tensor], cells: int) -> str:
    return _adjoint_limits(r, index, "" if len(transpose) == COLUMNS else "the plan has no transpose by columns")


def _adjoint_limits(r: Tensor, index: Tensor, layout: str) -> str:
    return layout if r.shape[1] == index.shape[1] else f"{r.shape[1]} observations, a plan of {index.shape[1]}"


PLAN = "Tensor index, Tensor weight, Tensor[] transpose, SymInt cells"
PROJECT = Operation(
    f"obs_project(Tensor x, {PLAN}) -> Tensor",
    reference=project_reference,
    empty=_project_empty,
    natives={
        "cpu": Native(_project_fill_cpu, project_limits),
        "cuda": Native(_project_fill, project_limits),
        "triton": Native(triton.fill("obs_project"), project_limits, triton.DTYPES),
    },
)
ADJOINT = Operation(
    f"obs_adjoint(Tensor r, {PLAN}) -> Tensor",
    reference=adjoint_reference,
    empty=_adjoint_empty,
    natives={
        "cpu": Native(_adjoint_fill_cpu, _tiles_limits),
        "cuda": Native(_adjoint_fill, _columns_limits),
        "triton": Native(triton.fill("obs_adjoint"), _columns_limits, triton.DTYPES),
    },
)
PROJECT_CALL, ADJOINT_CALL = transposes(PROJECT, ADJOINT)


def members(x: Tensor, size: int, what: str) -> Tensor:
    """x as (M, size); InputError when that is not its size."""
    if x.ndim < 2 or x[:1].numel() != size * min(len(x), 1):
        raise InputError(f"a tensor of shape {tuple(x.shape)}; accepted: (members, {size} {what})")
    return x.flatten(1)
