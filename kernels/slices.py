"""How tensors become the slices that ``norm_silu`` works on, and back: see there for the layouts."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels.geo_pad import edges
from lsda_fast.kernels.standard import affine

__all__ = ["Map", "slices_of"]

Map = Callable[[Tensor], Tensor]
Settings = tuple[int, bool, bool, Sequence[int]]


def slices_of(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int | None,
    silu: bool,
    pad: Sequence[Any],
) -> tuple[Map, Tensor, Tensor, Settings, Map]:
    """How x becomes slices, a and b, the operations' settings, and how slices become x's shape and format."""
    if x.ndim < 2 or (groups and x.shape[1] % groups):
        accepted = "(members, ..., channels)" if groups is None else f"(members, a multiple of {groups} channels, ...)"
        raise InputError(f"norm_silu of a tensor of shape {tuple(x.shape)}; accepted: {accepted}")
    if groups is None and pad:
        raise InputError("norm_silu of tokens with margins; accepted: images, with groups")
    last = groups is None or (x.ndim == 4 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous())
    images = groups is not None and last
    place = x.permute(0, 2, 3, 1) if images else x
    C = place.shape[-1] if last else place.shape[1]
    a, b = affine(x, C, weight, bias, scale, shift)
    shape, image = place.shape[1:], [*x.shape[2:], *map(int, edges(x.shape, *pad))] if pad and pad[0] else []
    tokens = math.prod(shape[:-1])

    def slices(t: Tensor) -> Tensor:
        t = (t.permute(0, 2, 3, 1) if images else t).contiguous()
        if groups is None:
            return t.reshape(len(t) * tokens, 1, C)
        S = math.prod(t.shape[1:-1] if last else t.shape[2:])
        return t.reshape(len(t), S, C) if last else t.reshape(len(t), C, S)

    def back(y: Tensor) -> Tensor:
        if groups is None:
            return y.reshape(len(y) // tokens if tokens else len(x), *shape)
        wide = image and y.shape[1 if last else 2] != image[0] * image[1]
        size = [n + 2 * image[2] for n in image[:2]] if wide else shape[:-1] if last else shape[1:]
        return y.reshape(len(y), *size, C).permute(0, 3, 1, 2) if images else y.reshape(len(y), C, *size)

    return slices, a, b, (groups or 1, last, silu, image), back
