"""obs_residual in Triton: the pass of obs_project with its target, then each member's cost from the blocks' sums."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lsda_fast.kernels.triton.base import NAMES, OPTIONS, POINTERS, Signature, real, sum_of_parts
from lsda_fast.kernels.triton.obs_project import blocks_of, launch, signature

__all__ = ["SIGNATURES", "fill"]


@triton.jit
def _cost_kernel(
    cost,  # (M)
    squares,  # (M, blocks), float64
    blocks,
    REAL: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64)
    half = 0.5 * sum_of_parts(squares + m * blocks, blocks)
    tl.store(cost + m, half.to(REAL).to(cost.dtype.element_ty))


def fill(out: tuple[Tensor, Tensor], x: Tensor, index: Tensor, weight: Tensor, *rest: Tensor) -> None:
    """See ``lsda_fast.kernels.obs_project``."""
    r, cost = out
    if len(x) == 0:
        return
    blocks = blocks_of(index.shape[1])
    squares = torch.empty(len(x), blocks, dtype=torch.float64, device=x.device)
    launch(r, squares, x, index, weight, rest[-1])
    _cost_kernel[(len(x),)](cost, squares, blocks, REAL=real(cost.dtype), **OPTIONS)


_COST = {"cost": POINTERS[torch.float32], "squares": "*fp64", "blocks": "i32"}
SIGNATURES = {
    **{NAMES[dtype]: signature(dtype, residual=True) for dtype in (torch.float32, torch.float64)},
    "cost_f32": Signature(_cost_kernel, _COST, {"REAL": real(torch.float32)}),
}
