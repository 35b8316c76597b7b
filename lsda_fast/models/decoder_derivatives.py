"""What the heads of a decoder read (``models.head``), with derivatives: one per head, all from the same latent."""

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from lsda_fast.kernels.shuffle_product import shuffle_products
from lsda_fast.models.convolutional import ConvolutionalAutoencoder
from lsda_fast.models.derivatives import chain, derivative, pointwise
from lsda_fast.models.linear import LinearAutoencoder, ResidualAutoencoder
from lsda_fast.models.slams import SlamsAutoencoder
from lsda_fast.models.tangent import PatchTangent
from lsda_fast.models.vit import ViTAutoencoder
from lsda_fast.models.window_derivatives import tower
from lsda_fast.prior import Derivative

__all__ = ["feature_derivatives", "features_are_latents", "has_derivatives"]


@singledispatch
def feature_derivatives(module: Any, z: Tensor) -> tuple[Derivative, ...]:
    """``module.features`` at the latents z (M, k, h, w), with the products of each one's derivative."""
    raise NotImplementedError(f"the derivatives of {type(module).__name__} are not written out")


def has_derivatives(module: object) -> bool:
    """Whether ``feature_derivatives`` knows the module."""
    if isinstance(module, ResidualAutoencoder):
        return has_derivatives(module.linear) and has_derivatives(module.residual)
    return feature_derivatives.dispatch(type(module)) is not feature_derivatives.dispatch(object)


def features_are_latents(module: object) -> bool:
    """Whether what the heads read is the latent itself."""
    return isinstance(module, LinearAutoencoder | PatchTangent)


@feature_derivatives.register
def _(module: LinearAutoencoder | PatchTangent, z: Tensor) -> tuple[Derivative, ...]:
    return (Derivative(z, lambda v: v, lambda u: u),)


@feature_derivatives.register
def _(module: ResidualAutoencoder, z: Tensor) -> tuple[Derivative, ...]:
    return (*feature_derivatives(module.linear, z), *feature_derivatives(module.residual, z))


@feature_derivatives.register
def _(module: ConvolutionalAutoencoder, z: Tensor) -> tuple[Derivative, ...]:
    steps = [
        lambda h: derivative(module.decoder, h),
        lambda h: _expanded(module.expand, module.patch, h),
        lambda h: derivative(module.fine, h),
    ]
    # From here to the features in the precision of the products: in a lower one memory is half as wide too.
    low = lambda t: _last(t.to(module.expand.weight.dtype))  # noqa: E731
    features = chain(low(z), steps)
    jvp, vjp = (lambda t, f=f: f(low(t)).to(t.dtype) for f in (features.jvp, features.vjp))
    return (Derivative(features.value.to(z.dtype), jvp, vjp),)


@feature_derivatives.register
def _(module: SlamsAutoencoder, z: Tensor) -> tuple[Derivative, ...]:
    std, mean = module.std[:, None, None], module.mean[:, None, None]
    scaled = lambda z: Derivative(z * std + mean, lambda v: v * std, lambda u: u * std)  # noqa: E731
    return (chain(z, [scaled, lambda h: derivative(module.decoder, h)]),)


@feature_derivatives.register
def _(module: ViTAutoencoder, z: Tensor) -> tuple[Derivative, ...]:
    tokens = chain(
        z.permute(0, 2, 3, 1), [lambda t: derivative(module.decoder_embed, t), lambda t: tower(module.decoder, t)]
    )
    jvp = lambda v: tokens.jvp(v.permute(0, 2, 3, 1)).movedim(-1, 1)  # noqa: E731
    vjp = lambda u: tokens.vjp(u.movedim(1, -1)).movedim(-1, 1)  # noqa: E731
    return (Derivative(tokens.value.movedim(-1, 1), jvp, vjp),)


def _expanded(layer: nn.Conv2d, p: int, x: Tensor) -> Derivative:
    """A convolution of one place and the pixel shuffle after it.

    Its channels are made in the order in which they lie after the shuffle, which then moves p pixels at once.
    """
    fused = shuffle_products(x, layer.weight.flatten(1), layer.bias, p)
    if fused:
        return Derivative(*fused)
    order = torch.arange(layer.out_channels, device=x.device).unflatten(0, (-1, p, p)).permute(1, 2, 0).flatten()
    bias = layer.bias if layer.bias is None else layer.bias[order]
    y, jvp, vjp, _ = pointwise(x, layer.weight.flatten(1)[order], bias)
    h, w = x.shape[2:]

    def shuffled(t: Tensor) -> Tensor:
        rows = t.permute(0, 2, 3, 1).reshape(-1, h, w, p, t.shape[1] // p).transpose(2, 3)
        return rows.reshape(len(t), h * p, w * p, -1).permute(0, 3, 1, 2)

    def unshuffled(u: Tensor) -> Tensor:
        rows = u.permute(0, 2, 3, 1).reshape(-1, h, p, w, p * u.shape[1]).transpose(2, 3)
        return rows.reshape(len(u), h, w, -1).permute(0, 3, 1, 2)

    return Derivative(shuffled(y), lambda v: shuffled(jvp(v)), lambda u: vjp(unshuffled(u)))


def _last(x: Tensor) -> Tensor:
    """An image with its channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last)
