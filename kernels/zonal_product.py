"""Products with a matrix that is the same at every longitude, its blocks low rank and a diagonal:

    y = F^-1 (left_m middle_m right_m^H + floor_m) F x

F is the Fourier transform in longitude, m a zonal wavenumber: ``models.zonal_whitening``'s covariance and its roots.
Everything is in real arithmetic; left and right are real and imaginary parts side by side. In C++ a wavenumber's modes
are read once, and written once, by matrix products whose multiplications and additions are fused, in one order for
every instruction set that has them.

The operation sees channels last, x (M, rows, columns, C); its matrices are ``packed``.
"""

import torch
from torch import Tensor

from lsda_fast.kernels import native
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.packed import BLOCK, obstacle, unpacked
from lsda_fast.kernels.registry import Operation

__all__ = ["ZONAL"]


def zonal_reference(
    x: Tensor,
    analysis: Tensor,
    synthesis: Tensor,
    right: Tensor,
    middle: Tensor,
    left: Tensor,
    floor: Tensor,
) -> Tensor:
    """The same in torch: see ``ZONAL``."""
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


def _fill(out: Tensor, x: Tensor, *matrices: Tensor) -> None:
    middle, floor = matrices[3], matrices[5]
    M, rows, columns, C = x.shape
    waves, modes = len(floor), middle.shape[-1] if middle.ndim == 2 else middle.shape[-2]
    # ``zonal_scratch`` of csrc/core/zonal.h.
    scratch = x.new_empty(waves * (2 * M * (rows * C + BLOCK) + 5 * BLOCK + 6 * M * modes))
    native.run("zonal", x.dtype, out, x, *matrices, scratch, M, rows, columns, C, waves, modes, middle.ndim > 2)


def _limits(x: Tensor, analysis: Tensor, synthesis: Tensor, right: Tensor, middle: Tensor, *rest: Tensor) -> str:
    modes = middle.shape[-1] if middle.ndim == 2 else middle.shape[-2]
    return obstacle(x.shape[3], modes)


ZONAL = Operation(
    "zonal_product(Tensor x, Tensor analysis, Tensor synthesis, Tensor right, Tensor middle, Tensor left, Tensor floor)"
    " -> Tensor",
    reference=zonal_reference,
    empty=lambda x, *matrices: x.new_empty(x.shape),
    natives={"cpu": Native(_fill, _limits)},
)
