"""Products with a matrix that is the same at every longitude, its blocks low rank and a diagonal:

    y = F^-1 after (left_m middle_m right_m^H + floor_m) before F x

F is the Fourier transform in longitude, m a zonal wavenumber: ``models.zonal_whitening``'s covariance and its roots.
Everything is in real arithmetic; left and right are real and imaginary parts side by side. In C++ a wavenumber's modes
are read once, and written once, by matrix products whose multiplications and additions are fused, in one order for
every instruction set that has them.

The operation sees channels last, x (M, rows, columns, C). Its matrices are analysis (2 waves, columns) and synthesis
(columns, 2 waves), real parts first, right, middle, left and floor (waves, rows C); right and left are ``packed``, and
middle where it is a matrix; before and after (rows C), or empty, scale every wavenumber alike. Beside them stand those
of the transpose, which is ``zonal_adjoint``. Right and left, which are most of what is read, may be float32 beside
float64, and count as what they are: a product of one member waits for memory.
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
    analysis, synthesis, right, middle, left, floor, before, after = matrices
    M, waves = len(x), len(floor)
    right, left = right.to(x.dtype), left.to(x.dtype)
    rows = x.movedim(2, -1).flatten(1, 2)
    modes = _scaled((rows @ analysis.T).unflatten(2, (2, waves)).permute(3, 0, 2, 1), before)
    rr, ri, ir, ii = (modes @ unpacked(right)[:, None]).flatten(2).unflatten(2, (4, -1)).unbind(2)
    c = torch.cat([rr + ii, ir - ri], dim=-1)
    c = c * middle[:, None] if middle.ndim == 2 else c @ unpacked(middle)
    a, b = c.chunk(2, dim=-1)
    weights = torch.cat([a, -b, b, a], dim=-1).unflatten(2, (2, -1))
    modes = _scaled(weights @ unpacked(left)[:, None] + floor[:, None, None] * modes, after)
    y = modes.permute(1, 3, 2, 0).reshape(M, rows.shape[1], 2 * waves) @ synthesis.T
    return y.unflatten(1, (x.shape[1], x.shape[3])).movedim(-1, 2).contiguous()


def _scaled(modes: Tensor, factor: Tensor) -> Tensor:
    return modes * factor if factor.numel() else modes


def _fill(out: Tensor, x: Tensor, matrices: Sequence[Tensor], transposed: Sequence[Tensor]) -> None:
    middle, floor = matrices[3], matrices[5]
    M, rows, columns, C = x.shape
    sizes = (M, rows, columns, C, len(floor), _modes(middle))
    scratch = x.new_empty(native.load("cpu").code.zonal_scratch(*sizes))
    native.run("zonal", x.dtype, out, x, *matrices, scratch, *sizes, middle.ndim > 2, is_narrow(matrices))


def _modes(middle: Tensor) -> int:
    return middle.shape[-1] if middle.ndim == 2 else middle.shape[-2]


def is_narrow(matrices: Sequence[Tensor]) -> bool:
    """Whether right and left are float32 beside float64."""
    return matrices[2].dtype != matrices[5].dtype


def kinds(dtype: torch.dtype, *matrices: Tensor) -> str:
    """Why C++ cannot multiply numbers of this type with these; "" where it can."""
    right, left = matrices[2].dtype, matrices[4].dtype
    rest = {t.dtype for i, t in enumerate(matrices) if i not in (2, 4)}
    if right == left and right in (dtype, torch.float32) and rest == {dtype}:
        return ""
    return f"{dtype} with other types than right and left, both of float32"


def _limits(x: Tensor, matrices: Sequence[Tensor], transposed: Sequence[Tensor]) -> str:
    wrong = (kinds(x.dtype, *side) for side in (matrices, transposed) if side)
    return next(filter(None, wrong), "") or obstacle(x.shape[3], _modes(matrices[3]))


_MATRICES = "Tensor x, Tensor[] matrices, Tensor[] transposed) -> Tensor"
ZONAL = Operation(
    f"zonal_product({_MATRICES}",
    reference=zonal_reference,
    empty=lambda x, matrices, transposed: x.new_empty(x.shape),
    natives={"cpu": Native(_fill, _limits, narrow=True)},
)
ADJOINT = Operation(
    f"zonal_adjoint({_MATRICES}",
    reference=lambda x, matrices, transposed: zonal_reference(x, transposed, matrices),
    empty=lambda x, matrices, transposed: x.new_empty(x.shape),
    natives={
        "cpu": Native(lambda out, x, matrices, transposed: _fill(out, x, transposed, matrices), _limits, narrow=True)
    },
)
zonal_product, zonal_adjoint = transposes(ZONAL, ADJOINT)
