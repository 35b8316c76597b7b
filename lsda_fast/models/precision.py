"""Networks whose matrix products are in a lower precision, and nothing else is.

Convolutions and linear layers take their input in the precision of their weights and answer in that of their input, and
attention multiplies in that precision: norms, activations, residual sums and the softmax stay in float32. Images stay
in the lower precision, norms computed in float32, in ``models.window_unet`` and in the products of a convolutional
decoder's derivative (``models.decoder_derivatives``). A bfloat16 product has an error of 2^-9 of its size; processors
with matrix units (AMX, tensor cores) make it 4 to 16 times faster.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["lowered"]


class LowLinear(nn.Linear):
    """A linear layer in the precision of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """The shape of x but for its last dimension, in the precision of x."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class LowConv2d(nn.Conv2d):
    """A convolution in the precision of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        """(M, inputs, H, W) -> (M, outputs, H, W), in the precision of x."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


LOW = {nn.Linear: LowLinear, nn.Conv2d: LowConv2d}


def lowered(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a network with its matrix products in ``dtype``; all other weights and buffers are shared.

    Parameters
    ----------
    module : nn.Module
    dtype : torch.dtype

    Returns
    -------
    nn.Module
        Of the module's interface; what it is given and what it answers is as before.
    """
    twin = copy.copy(module)
    twin.__dict__["_modules"] = {name: child and lowered(child, dtype) for name, child in module._modules.items()}
    if type(module) in LOW:
        twin.__class__ = LOW[type(module)]
        twin.__dict__["_parameters"] = {
            name: value if value is None else nn.Parameter(value.detach().to(dtype), requires_grad=False)
            for name, value in module._parameters.items()
        }
    return twin
