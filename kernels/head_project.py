"""The last, linear layer of a decoder only where the state is looked at, through a ``HeadPlan``, and its transpose:

    project:   values[m, output[u]] = sum_tf weight[row[u], (t, f)] features[m, f, neighbour[q, t]],  u of site q
    adjoint:   features[m, f, s] = sum over (q, t) with neighbour[q, t] = s, and u of site q,
                   of weight[row[u], (t, f)] values[m, output[u]]

An observation operator commutes with this layer: it needs the state at the U cells of its stencils, and ``obs_project``
takes it from there. The work goes with what is observed, the reference's with the sites and all rows of the weight. The
sums have one order whatever the number of threads and members. Values are without the layer's bias, so that the JVP is
the operation itself and the VJP the adjoint; the weight counts as constant.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels import native, triton
from lsda_fast.kernels.head_plan import HeadPlan
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.linear import transposes
from lsda_fast.kernels.registry import Operation

__all__ = ["head_adjoint", "head_project"]


def head_project(features: Tensor, plan: HeadPlan) -> Tensor:
    """The wanted rows at the wanted places.

    Parameters
    ----------
    features : Tensor, shape (M, F, ...)
        S places a member; channels-last memory is read as it lies.
    plan : HeadPlan

    Returns
    -------
    Tensor, shape (M, U)
    """
    if features.ndim < 3 or features.shape[1] != plan.features or math.prod(features.shape[2:]) != plan.places:
        raise InputError(
            f"features {tuple(features.shape)}; accepted: (members, {plan.features}, ...) at {plan.places} places"
        )
    _check_dtype("features", features, plan)
    by_place = features.movedim(1, -1)
    last = by_place.is_contiguous()
    flat = by_place.flatten(1, -2) if last else features.flatten(2)
    return PROJECT_CALL(flat, plan.weight, plan.layout, last)


def head_adjoint(values: Tensor, plan: HeadPlan, *, last: bool = False) -> Tensor:
    """The transpose, shape (M, F, S), or (M, S, F) with features ``last``, for values (M, U)."""
    if values.ndim != 2 or values.shape[1] != plan.size:
        raise InputError(f"values {tuple(values.shape)}; accepted: (members, {plan.size})")
    _check_dtype("values", values, plan)
    return ADJOINT_CALL(values, plan.weight, plan.layout, last)


def _check_dtype(what: str, tensor: Tensor, plan: HeadPlan) -> None:
    if tensor.dtype != plan.weight.dtype:
        raise InputError(f"{tensor.dtype} {what}; accepted: {plan.weight.dtype}, as the plan")


def project_reference(features: Tensor, weight: Tensor, layout: list[Tensor], last: bool) -> Tensor:
    """features (M, F, S), or (M, S, F) when ``last``, to (M, U): all rows at the sites, and those that are wanted."""
    neighbour, output = layout[0], layout[3]
    points = features if last else features.mT
    patches = points[:, neighbour].flatten(2)
    picked = (patches @ weight.T).flatten(1)[:, _wanted(layout, len(weight))]
    return torch.empty_like(picked).index_copy(1, output.long(), picked)


def adjoint_reference(values: Tensor, weight: Tensor, layout: list[Tensor], last: bool) -> Tensor:
    """values (M, U) to features (M, F, S), or (M, S, F) when ``last``."""
    neighbour, output, begin = layout[0], layout[3], layout[4]
    (M, _), (Q, T), (R, size) = values.shape, neighbour.shape, weight.shape
    rows = values.new_zeros(M, Q * R).index_add(1, _wanted(layout, R), values[:, output])
    patches = (rows.reshape(M, Q, R) @ weight).reshape(M, Q * T, size // T)
    points = values.new_zeros(M, len(begin) - 1, size // T).index_add(1, neighbour.flatten(), patches)
    return points if last else points.mT.contiguous()


def _wanted(layout: list[Tensor], rows: int) -> Tensor:
    """Where the wanted rows lie among all rows at all sites."""
    _, start, row, *_ = layout
    entries = torch.arange(len(row), dtype=start.dtype, device=row.device)
    # No size that depends on values: a recording would refuse it.
    return (torch.searchsorted(start, entries, right=True) - 1) * rows + row


def _project_empty(features: Tensor, weight: Tensor, layout: list[Tensor], last: bool) -> Tensor:
    return features.new_empty(features.shape[0], layout[3].shape[0])


def _adjoint_empty(values: Tensor, weight: Tensor, layout: list[Tensor], last: bool) -> Tensor:
    S, F = _sizes(weight, layout)
    return values.new_empty(values.shape[0], *((S, F) if last else (F, S)))


def _project_fill(values: Tensor, features: Tensor, *plan: Any) -> None:
    _run(False, features, values, *plan)


def _adjoint_fill(features: Tensor, values: Tensor, *plan: Any) -> None:
    _run(True, features, values, *plan)


def _run(transpose: bool, features: Tensor, values: Tensor, weight: Tensor, layout: list[Tensor], last: bool) -> None:
    S, F = _sizes(weight, layout)
    sizes = (len(values), F, S, *layout[0].shape, values.shape[1])
    native.run("head", features.dtype, transpose, features, values, weight, *layout, *sizes, last)


def _sizes(weight: Tensor, layout: list[Tensor]) -> tuple[int, int]:
    """Places and features."""
    return layout[4].shape[0] - 1, weight.shape[1] // layout[0].shape[1]


def _project_limits(features: Tensor, weight: Tensor, layout: list[Tensor], last: bool) -> str:
    S, F = _sizes(weight, layout)
    fits = features.shape[1:] == ((S, F) if last else (F, S))
    return "" if fits else f"features {tuple(features.shape[1:])}, a plan of {F} at {S} places"


def _adjoint_limits(values: Tensor, weight: Tensor, layout: list[Tensor], last: bool) -> str:
    wanted = len(layout[3])
    return "" if values.shape[1] == wanted else f"{values.shape[1]} values, a plan of {wanted}"


_PLAN = "Tensor weight, Tensor[] layout, bool last"
PROJECT = Operation(
    f"head_project(Tensor features, {_PLAN}) -> Tensor",
    reference=project_reference,
    empty=_project_empty,
    natives={
        **dict.fromkeys(("cpu", "cuda"), Native(_project_fill, _project_limits)),
        "triton": Native(triton.fill("head_project"), _project_limits, triton.DTYPES),
    },
)
ADJOINT = Operation(
    f"head_adjoint(Tensor values, {_PLAN}) -> Tensor",
    reference=adjoint_reference,
    empty=_adjoint_empty,
    natives={
        **dict.fromkeys(("cpu", "cuda"), Native(_adjoint_fill, _adjoint_limits)),
        "triton": Native(triton.fill("head_adjoint"), _adjoint_limits, triton.DTYPES),
    },
)
PROJECT_CALL, ADJOINT_CALL = transposes(PROJECT, ADJOINT)
