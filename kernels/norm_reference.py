"""The specification of ``norm_silu`` and of its products: see there for the equations, shapes and settings."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from lsda_fast.kernels.standard import Standard, folded, padded, split

__all__ = ["joined", "jvp_reference", "norm_reference", "vjp_reference"]


def norm_reference(
    x: Tensor, a: Tensor, b: Tensor, groups: int, last: bool, silu: bool, image: Sequence[int], eps: float
) -> tuple[Tensor, Tensor]:
    """y for x (R, C, S) or (R, S, C), a and b (A, C), and the statistics (R, groups, 2)."""
    s = Standard.of(x, a, b, groups, last, eps)
    p = s.a * s.n + s.b
    return padded(joined(F.silu(p) if silu else p, x), last, image), s.statistics(len(x), groups)


def jvp_reference(
    v: Tensor,
    x: Tensor,
    kept: Tensor,
    a: Tensor,
    b: Tensor,
    groups: int,
    last: bool,
    silu: bool,
    image: Sequence[int],
) -> Tensor:
    """D P v."""
    s = Standard.kept(x, kept, a, b, groups, last)
    return padded(joined(s.a * s.slope(silu) * s.project(split(v, a, groups, last).to(s.n)), x), last, image)


def vjp_reference(
    u: Tensor,
    x: Tensor,
    kept: Tensor,
    a: Tensor,
    b: Tensor,
    groups: int,
    last: bool,
    silu: bool,
    image: Sequence[int],
) -> Tensor:
    """P D u."""
    s = Standard.kept(x, kept, a, b, groups, last)
    u = folded(u, last, image)
    return joined(s.project(s.a * s.slope(silu) * split(u, a, groups, last).to(s.n)), x)


def joined(y: Tensor, x: Tensor) -> Tensor:
    """What ``standard.split`` took apart, as x is."""
    return y.reshape(x.shape).to(x.dtype).contiguous()
