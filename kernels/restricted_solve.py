"""All iterations of ``guidance.krylov.restricted_cg`` as one operation, with the product between them:

    F F'w = slope factor H W C W' H' slope w

of observations H of the cells that a layer W makes of a latent with covariance C: ``obs_project`` and its adjoint,
``head_project`` and its, ``zonal_product``, ``restricted_step``, by their own code and to their bits, but for the last
step. What it saves is the way from one to the next, which costs as much as they do where members are few. C++
alone has it; elsewhere they are called one after the other. Nothing is differentiated through it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsda_fast.kernels import native
from lsda_fast.kernels.head_plan import HeadPlan
from lsda_fast.kernels.head_project import adjoint_reference as head_adjoint
from lsda_fast.kernels.head_project import project_reference as head_project
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.obs_plan import SORTED, TILES, ObservationPlan
from lsda_fast.kernels.obs_project import adjoint_reference as obs_adjoint
from lsda_fast.kernels.obs_project import by_place
from lsda_fast.kernels.obs_project import project_reference as obs_project
from lsda_fast.kernels.packed import obstacle
from lsda_fast.kernels.registry import Operation
from lsda_fast.kernels.restricted_step import restricted_iterations, restricted_reference
from lsda_fast.kernels.zonal_product import is_narrow, kinds, zonal_reference

__all__ = ["ObservedCovariance"]


@dataclass(frozen=True, eq=False)
class ObservedCovariance:
    """H W C W' H', and the solutions with it.

    Parameters
    ----------
    plan : ObservationPlan
        H.
    head : HeadPlan
        W; features with channels last.
    square : callable int -> list of Tensor
        C, as ``zonal_product`` takes it for so many members, on latents (channels, rows, columns).
    """

    plan: ObservationPlan
    head: HeadPlan
    square: Callable[[int], list[Tensor]]

    def solve(
        self, f: Tensor, rr: Tensor, limit: Tensor, *, slope: Tensor | float, factor: float, iterations: int
    ) -> Tensor | None:
        """The coordinates x (M, P + 1) of ``restricted_cg``'s solution; None where no native code takes it.

        Parameters
        ----------
        f : Tensor, shape (M, P)
            F b.
        rr, limit : Tensor, shape (M,)
            b'b, and where a member stands still.
        slope : Tensor, shape (M or 1, P), or float
        factor : float
        iterations : int
        """
        slope = torch.as_tensor(slope, dtype=f.dtype, device=f.device).expand_as(f).contiguous()
        parts = (*self.plan.arguments, self.head.weight, self.head.layout, self.square(len(f)))
        arguments = (f.contiguous(), rr, limit, slope, factor, iterations, *parts)
        return SOLVE(*arguments) if SOLVE.native(*arguments) else None


def solve_reference(
    f: Tensor, rr: Tensor, limit: Tensor, slope: Tensor, factor: float, iterations: int, *parts: Any
) -> Tensor:
    """See the module."""
    product = lambda w: product_reference(w, slope, factor, *parts)  # noqa: E731
    return restricted_iterations(product, f, rr, limit, iterations, step=restricted_reference)


def product_reference(
    w: Tensor,
    slope: Tensor,
    factor: float,
    index: Tensor,
    weight: Tensor,
    transpose: list[Tensor],
    cells: int,
    head: Tensor,
    layout: list[Tensor],
    square: list[Tensor],
) -> Tensor:
    """F F'w."""
    seen = obs_adjoint(slope * w, index, weight, transpose, cells)
    latent = head_adjoint(seen, head, layout, True).unflatten(1, _grid(layout, head, square)[:2])
    features = zonal_reference(latent, square, square).flatten(1, 2)
    return slope * (factor * obs_project(head_project(features, head, layout, True), index, weight, transpose, cells))


def _grid(layout: Sequence[Tensor], head: Tensor, square: Sequence[Tensor]) -> tuple[int, int, int]:
    """Rows, columns and channels of the latent."""
    places, channels = len(layout[4]) - 1, head.shape[1] // layout[0].shape[1]
    columns = square[0].shape[1]
    return places // columns, columns, channels


def _fill(
    out: Tensor, f: Tensor, rr: Tensor, limit: Tensor, slope: Tensor, factor: float, iterations: int, *parts: Any
) -> None:
    index, weight, transpose, cells, head, layout, square = parts
    row = transpose[TILES] if len(transpose) > TILES else None
    stencil, (points, P) = by_place(index, weight, transpose), index.shape
    rows, columns, channels = _grid(layout, head, square)
    sizes = (len(f), P, cells, points, rows * columns, channels, *layout[0].shape, rows, columns)
    native.run(
        "restricted_solve",
        f.dtype,
        *(out, f, rr, limit, slope, factor, iterations),
        *(stencil, [*transpose[:TILES], row], [head, *layout], square),
        (*sizes, len(square[5]), square[3].shape[-2]),
        is_narrow(square),
    )


def _limits(f: Tensor, *arguments: Any) -> str:
    index, _, transpose, cells, head, layout, square = arguments[5:]
    rows, _, channels = _grid(layout, head, square)
    if len(transpose) not in (TILES, TILES + SORTED):
        return "the plan has no transpose in tiles"
    if (f.shape[1], cells) != (index.shape[1], len(layout[3])) or rows * channels != square[5].shape[1]:
        return f"{f.shape[1]} observations of {cells} cells, of {rows} x {channels} rows and channels"
    given = [*arguments[:3], arguments[6], head, *transpose, *layout]
    others = {str(t.dtype) for t in given if t.is_floating_point() and t.dtype != f.dtype}
    if others:
        return f"{', '.join(sorted(others))} beside {f.dtype}; C++ takes right and left alone so"
    return kinds(f.dtype, *square) or obstacle(channels, square[3].shape[-2])


SOLVE = Operation(
    "restricted_solve(Tensor f, Tensor rr, Tensor limit, Tensor slope, float factor, int iterations, Tensor index,"
    " Tensor weight, Tensor[] transpose, SymInt cells, Tensor head, Tensor[] layout, Tensor[] square) -> Tensor",
    reference=solve_reference,
    empty=lambda f, *rest: f.new_empty(f.shape[0], f.shape[1] + 1),
    natives={"cpu": Native(_fill, _limits, narrow=True)},
)
