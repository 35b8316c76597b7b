"""Products with a matrix that is the same at every longitude, its blocks low rank and a diagonal:

    y = F^-1 (left_m middle_m right_m^H + floor_m) F x

F is the Fourier transform in longitude, m a zonal wavenumber: ``models.zonal_whitening``'s covariance and its roots.
Everything is in real arithmetic; left and right are real and imaginary parts side by side. In C++ a wavenumber's modes
are read once, and written once, by matrix products whose multiplications and additions are fused, in one order for
every instruction set that has them.

The operation sees channels last, x (M, rows, columns, C). Its matrices are analysis (2 waves, columns) and synthesis
(columns, 2 waves), real parts first, right, middle, left and floor (waves, rows C); right and left are ``packed``, and
middle where it is a matrix; beside them stand those of the transpose, which is ``zonal_adjoint``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lsda_fast.kernels import native
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.linear import transposes
from lsda_fast.kernels.packed import obstacle, unpacked
from lsda_fast.kernels.registry import Operation

__all__ = ["ADJOINT", "ZONAL", "zonal_adjoint", "zonal_product"]


def zonal_reference(x: Tensor, matrices: Sequence[Tensor], transposed: Sequence[Tensor]) -> Tensor:
    """x (M, rows, columns, C) through the matrices: see the module."""
    analysis, synthesis, right, middle, left, floor = matrices
    M, waves = len(x), len(floor)
    rows = x.movedim(2, -1).flatten(1, 2)
    modes = (rows @ analysis.T).unflatten(2, (2, waves)).permute(3, 0, 2, 1)
    rr, ri, ir, ii = (modes @ unpacked(right)[:, None]).flatten(2).unflatten(2, (4, -1)).unbind(2)
    c = torch.cat([rr + ii, ir - ri], dim=-1)
    c = c * middle[:, None] if middle.ndim == 2 else c @ unpacked(middle)
    a, b = c.chunk(2, dim=-1)
    weights = torch.cat([a, -b, b, a], dim=-1).unflatten(2, (2, -1))
    modes = weights @ unpacked(left)[:, None] + floor[:, None, None] * modes
    y = modes.permute(1, 3, 2, 0).reshape(M, rows.shape[1], 2 * waves) @ synthesis.T
    return y.unflatten(1, (x.shape[1], x.shape[3])).movedim(-1, 2).contiguous()


def _fill(out: Tensor, x: Tensor, matrices: Sequence[Tensor], transposed: Sequence[Tensor]) -> None:
    middle, floor = matrices[3], matrices[5]
    M, rows, columns, C = x.shape
    sizes = (M, rows, columns, C, len(floor), _modes(middle))
    scratch = x.new_empty(native.load().code.zonal_scratch(*sizes))
    native.run("zonal", x.dtype, out, x, *matrices, scratch, *sizes, middle.ndim > 2)


def _modes(middle: Tensor) -> int:
    return middle.shape[-1] if middle.ndim == 2 else middle.shape[-2]


def _limits(x: Tensor, matrices: Sequence[Tensor], transposed: Sequence[Tensor]) -> str:
    return obstacle(x.shape[3], _modes(matrices[3]))


_MATRICES = "Tensor x, Tensor[] matrices, Tensor[] transposed) -> Tensor"
ZONAL = Operation(
    f"zonal_product({_MATRICES}",
    reference=zonal_reference,
    empty=lambda x, matrices, transposed: x.new_empty(x.shape),
    natives={"cpu": Native(_fill, _limits)},
)
ADJOINT = Operation(
    f"zonal_adjoint({_MATRICES}",
    reference=lambda x, matrices, transposed: zonal_reference(x, transposed, matrices),
    empty=lambda x, matrices, transposed: x.new_empty(x.shape),
    natives={"cpu": Native(lambda out, x, matrices, transposed: _fill(out, x, transposed, matrices), _limits)},
)
zonal_product, zonal_adjoint = transposes(ZONAL, ADJOINT)
