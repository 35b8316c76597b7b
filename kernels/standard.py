"""What the normalisations share: a and b of p = a n + b, and in plain torch n and the two factors of dy/dx = D P.

See ``norm_silu``. ``Standard`` is the specification of both derivatives: P v = (v - mean(v) - n mean(n v)) scale with
scale = 1 / sqrt(variance + eps), and D = diag(a slope).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels.geo_pad import fold_reference, pad_reference

__all__ = ["Standard", "affine", "folded", "padded", "split"]


def affine(
    x: Tensor, C: int, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """a and b, (M, C) with modulation and (1, C) without, float32 at least; InputError for other sizes."""
    for name, t, shape in (
        *(("weight", weight, (C,)), ("bias", bias, (C,))),
        *(("scale", scale, (len(x), C)), ("shift", shift, (len(x), C))),
    ):
        if t is not None and t.shape != shape:
            raise InputError(f"{name} {tuple(t.shape)}; accepted: {shape}")
    rows = len(x) if scale is not None or shift is not None else 1
    work = _work(x)
    weight, bias, scale, shift = (
        None if t is None else t.to(torch.promote_types(t.dtype, work)) for t in (weight, bias, scale, shift)
    )
    a = x.new_ones(1, C, dtype=work) if weight is None else weight[None]
    b = x.new_zeros(1, C, dtype=work) if bias is None else bias[None]
    if scale is not None:
        a = 1 + scale if weight is None else a * (1 + scale)
        b = b if bias is None else b * (1 + scale)
    b = b if shift is None else shift if bias is None else b + shift
    return a.expand(rows, C).contiguous(), b.expand(rows, C).contiguous()


class Standard(NamedTuple):
    """The slices (A, share, ...) in groups, with what both derivatives need; float32 at least."""

    n: Tensor
    mean: Tensor
    scale: Tensor
    a: Tensor
    b: Tensor
    slices: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, a: Tensor, b: Tensor, groups: int, last: bool, eps: float) -> "Standard":
        """Standardise x (R, C, S), or (R, S, C) for ``last``."""
        slices, wide = (2, 4) if last else (3, 4), split(x, a, groups, last).to(_work(x))
        mean = wide.mean(slices, True)
        scale = ((wide - mean).square().mean(slices, True) + eps).rsqrt()
        return cls.at(x, a, b, groups, last, mean, scale)

    @classmethod
    def kept(cls, x: Tensor, kept: Tensor, a: Tensor, b: Tensor, groups: int, last: bool) -> "Standard":
        """The same from the ``statistics``."""
        rows = len(kept) // max(len(a), 1)
        shape = (len(a), rows, 1, groups, 1) if last else (len(a), rows, groups, 1, 1)
        return cls.at(x, a, b, groups, last, *(t.reshape(shape).to(_work(x)) for t in kept.unbind(-1)))

    @classmethod
    def at(cls, x: Tensor, a: Tensor, b: Tensor, groups: int, last: bool, mean: Tensor, scale: Tensor) -> "Standard":
        """With mean and scale of every slice."""
        width = a.shape[1] // groups
        channels = (1, 1, groups, width) if last else (1, groups, width, 1)
        centred = split(x, a, groups, last).to(_work(x)) - mean
        a, b = (t.to(_work(x)).reshape(len(t), *channels) for t in (a, b))
        return cls(centred * scale, mean, scale, a, b, (2, 4) if last else (3, 4))

    def statistics(self, rows: int, groups: int) -> Tensor:
        """Mean and scale of every slice, (R, groups, 2); zeros where there is nothing."""
        kept = torch.stack([self.mean, self.scale], -1).reshape(rows, groups, 2)
        return kept if self.n.numel() else torch.zeros_like(kept)

    def project(self, v: Tensor) -> Tensor:
        """P v."""
        return self.scale * (v - v.mean(self.slices, True) - self.n * (self.n * v).mean(self.slices, True))

    def slope(self, silu: bool) -> Tensor | float:
        """silu'(p), or 1."""
        if not silu:
            return 1.0
        p = self.a * self.n + self.b
        s = p.sigmoid()
        return s * (1 + p * (1 - s))


def _work(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def split(x: Tensor, a: Tensor, groups: int, last: bool) -> Tensor:
    """(A, share, S, groups, width) for ``last``, else (A, share, groups, width, S)."""
    A, width = len(a), a.shape[1] // groups
    shape = (x.shape[1], groups, width) if last else (groups, width, x.shape[2])
    return x.reshape(A, len(x) // max(A, 1), *shape)


def padded(y: Tensor, last: bool, image: Sequence[int]) -> Tensor:
    """Slices of images with the margins of ``geo_pad``; y itself where ``image`` is nothing."""
    return _framed(pad_reference, y, last, image, 0) if image else y


def folded(u: Tensor, last: bool, image: Sequence[int]) -> Tensor:
    """The adjoint of ``padded``."""
    return _framed(fold_reference, u, last, image, 2 * image[2]) if image else u


def _framed(function: Callable[..., Tensor], t: Tensor, last: bool, image: Sequence[int], more: int) -> Tensor:
    H, W, *settings = image
    if last:
        return function(t.unflatten(1, (H + more, W + more)), *settings).flatten(1, 2)
    images = function(t.reshape(-1, H + more, W + more, 1), *settings)
    return images.reshape(*t.shape[:2], images.shape[1] * images.shape[2])
