"""Networks with their derivatives by hand: one pass forward keeps what products with J and J' need.

``torch.func.jvp`` runs a network again for every product, at two passes each, and autograd keeps and looks up what
frozen weights never use. Here a product with J or with J' is one pass of the linear parts and nothing else:

    convolution        J v = W * v          J' u = W' * u
    norm and SiLU      J v = D P v          J' u = P D u          (``kernels.norm_silu``, with a convolution's margins;
                                                                  ``kernels.norm_conv`` where the two are one)
    attention          see ``models.window_derivatives``

``derivative(module, x)`` knows the layers of this package's decoders, by type; for any other module it is torch.func's.
Images are kept in torch's channels-last format, in which the transposed convolutions of a CPU are twice as fast.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial, singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsda_fast.kernels.geo_conv import geo_conv_products
from lsda_fast.kernels.geo_pad import geo_fold, geo_pad
from lsda_fast.kernels.norm_conv import norm_conv_products
from lsda_fast.kernels.norm_silu import norm_silu_products
from lsda_fast.models.layers import GeoConv2d, GroupNorm, ResidualBlock, passes
from lsda_fast.prior import Derivative

__all__ = ["chain", "derivative", "pointwise", "product", "residual"]


def chain(x: Tensor, steps: Sequence[Callable[[Tensor], Derivative]]) -> Derivative:
    """The composition of steps, first to last, at x."""
    done = []
    for step in steps:
        done.append(step(x))
        x = done[-1].value

    def jvp(v: Tensor) -> Tensor:
        for part in done:
            v = part.jvp(v)
        return v

    def vjp(u: Tensor) -> Tensor:
        for part in reversed(done):
            u = part.vjp(u)
        return u

    return Derivative(x, jvp, vjp)


def residual(x: Tensor, branch: Derivative) -> Derivative:
    """x + branch."""
    return Derivative(x + branch.value, lambda v: v + branch.jvp(v), lambda u: u + branch.vjp(u))


@singledispatch
def derivative(module: nn.Module, x: Tensor) -> Derivative:
    """``module`` at x (M, ...), with the products of its derivative."""
    return Derivative.of(module, x)


def product(x: Tensor, W: Tensor) -> Tensor:
    """x W in the precision of W, as ``models.precision`` has it."""
    return (x.to(W.dtype) @ W).to(x.dtype)


@derivative.register
def _(module: nn.Sequential, x: Tensor) -> Derivative:
    return chain(x, _steps(module))


def _steps(layers: Iterable[nn.Module]) -> list[Callable[[Tensor], Derivative]]:
    return [
        _norm(layer, silu, pad) if isinstance(layer, GroupNorm) else partial(derivative, layer)
        for layer, silu, pad in passes(layers)
    ]


def _block(module: ResidualBlock, x: Tensor) -> Derivative | None:
    """x + its branch, norm and convolution as one operation each; None where no native code takes them."""
    first = _norm_conv(module.norm1, module.conv1, x)
    second = first and _norm_conv(module.norm2, module.conv2, first[0], x)
    if not first or not second:
        return None
    _, jvp1, vjp1 = first
    value, jvp2, vjp2 = second
    return Derivative(value, lambda v: jvp2(jvp1(v, None), v), lambda u: vjp1(vjp2(u, None), u))


def _norm_conv(norm: GroupNorm, layer: GeoConv2d, x: Tensor, add: Tensor | None = None) -> Any:
    conv = layer.conv
    return norm_conv_products(
        x, norm.weight, norm.bias, conv.weight, conv.bias, layer.pad, groups=norm.num_groups, eps=norm.eps, add=add
    )


def _norm(layer: Any, silu: bool, pad: Sequence[Any] = ()) -> Callable[[Tensor], Derivative]:
    settings: Any = {"eps": layer.eps, "silu": silu, "pad": pad}
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else None
    return lambda x: Derivative(*norm_silu_products(x, layer.weight, layer.bias, groups=groups, **settings))


@derivative.register
def _(module: nn.LayerNorm, x: Tensor) -> Derivative:
    return _norm(module, False)(x)


@derivative.register
def _(module: nn.Linear, x: Tensor) -> Derivative:
    W = module.weight
    return Derivative(module(x), lambda v: product(v, W.T), lambda u: product(u, W))


@derivative.register
def _(module: nn.Conv2d, x: Tensor) -> Derivative:
    if module.kernel_size == (1, 1):
        return pointwise(x, module.weight.flatten(1), module.bias)
    # As the images lie: torch would copy it so for every product.
    W = module.weight.contiguous(memory_format=torch.channels_last)
    return Derivative(
        F.conv2d(x.to(W.dtype), W, module.bias).to(x.dtype),
        lambda v: F.conv2d(v.to(W.dtype), W).to(v.dtype),
        lambda u: F.conv_transpose2d(u.to(W.dtype), W).to(u.dtype),
    )


def pointwise(x: Tensor, W: Tensor, bias: Tensor | None) -> Derivative:
    """A convolution of one place: a linear layer W of the channels, which lie last in memory."""
    of_channels = lambda t, M: product(t.movedim(1, -1), M).movedim(-1, 1)  # noqa: E731
    y = F.linear(x.movedim(1, -1).to(W.dtype), W, bias).to(x.dtype)
    return Derivative(y.movedim(-1, 1), lambda v: of_channels(v, W.T), lambda u: of_channels(u, W))


@derivative.register
def _(module: GeoConv2d, x: Tensor) -> Derivative:
    own = geo_conv_products(x, module.conv.weight, module.conv.bias, module.pad)
    if own:
        return Derivative(*own)
    dtype, low = x.dtype, module.conv.weight.dtype
    inner = derivative(module.conv, geo_pad(x.to(low), *module.pad))
    return Derivative(
        inner.value.to(dtype),
        lambda v: inner.jvp(geo_pad(v.to(low), *module.pad)).to(dtype),
        lambda u: geo_fold(inner.vjp(u.to(low)).to(dtype), *module.pad),
    )


@derivative.register
def _(module: ResidualBlock, x: Tensor) -> Derivative:
    return _block(module, x) or residual(x, chain(x, _steps(module.branch())))


@derivative.register
def _(module: nn.GELU, x: Tensor) -> Derivative:
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    slope = below + x * density
    return Derivative(x * below, lambda v: slope * v, lambda u: slope * u)
