"""norm_silu in Triton: small slices in one pass (``norm_slices``), large ones in parts (``norm_parts``)."""

from collections.abc import Sequence

from torch import Tensor

from lsda_fast.kernels.standard import folded, padded
from lsda_fast.kernels.triton import norm_parts, norm_slices
from lsda_fast.kernels.triton.base import Signature

__all__ = ["SIGNATURES", "fill", "launch", "signatures"]


def launch(
    product: str,
    out: Tensor,
    t: Tensor,
    x: Tensor,
    kept: Tensor,
    a: Tensor,
    b: Tensor,
    groups: int,
    last: bool,
    silu: bool,
    image: Sequence[int],
    eps: float = 0.0,
) -> None:
    """One of "value", "jvp" and "vjp", the last two of ``t``; see ``lsda_fast.kernels.norm_silu``.

    Margins are in plain torch, as those of ``geo_pad`` on a GPU.
    """
    if x.numel() == 0:
        return
    R, C, S = (x.shape[0], x.shape[2], x.shape[1]) if last else x.shape
    layout = "tokens" if S * groups == 1 else "last" if last else "planes"
    plain = x.new_empty(x.shape) if image and product != "vjp" else out
    t = folded(t, last, image).contiguous() if product == "vjp" else t
    tensors, sizes = (plain, t, x, kept, a, b), (R, R // len(a), groups, C, S, eps)
    blocks = norm_slices.tile(layout, C // groups, S)
    if blocks is None:
        norm_parts.launch(product, last, tensors, sizes, silu)
    else:
        norm_slices.launch(product, layout, blocks, tensors, sizes, silu)
    if plain is not out:
        out.copy_(padded(plain, last, image))


def fill(
    outputs: tuple[Tensor, Tensor],
    x: Tensor,
    a: Tensor,
    b: Tensor,
    groups: int,
    last: bool,
    silu: bool,
    image: Sequence[int],
    eps: float,
) -> None:
    """See ``launch``."""
    out, kept = outputs
    launch("value", out, x, x, kept, a, b, groups, last, silu, image, eps)


def signatures(product: str) -> dict[str, Signature]:
    """Of both ways."""
    return {**norm_slices.signatures(product), **norm_parts.signatures(product)}


SIGNATURES = signatures("value")
