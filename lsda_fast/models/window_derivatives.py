"""The derivatives of window transformers, see ``models.derivatives``; attention's are ``kernels.window_attention``."""

from torch import Tensor
from torch.nn import functional as F

from lsda_fast.kernels.window_attention import window_attention_products
from lsda_fast.models.derivatives import chain, derivative, product, residual
from lsda_fast.models.windows import Tower, WindowAttention, WindowBlock, Windows
from lsda_fast.prior import Derivative

__all__ = ["tower"]


def _window_attention(module: WindowAttention, windows: Windows, bias: Tensor | None, x: Tensor) -> Derivative:
    """``WindowAttention`` at tokens x (M, h, w, D)."""

    def parted(t: Tensor) -> Tensor:
        """(M, h, w, 3 D) to (windows, L, 3, heads, d)."""
        return windows.split(t).unflatten(-1, (3, module.heads, -1)).flatten(0, 1)

    def joined(o: Tensor) -> Tensor:
        """(windows, L, ..., d) to tokens."""
        return windows.merge(o.flatten(2).unflatten(0, (-1, windows.count)))

    def split(u: Tensor) -> Tensor:
        """(M, h, w, D) to (windows, L, heads, d)."""
        return windows.split(u).unflatten(-1, (module.heads, -1)).flatten(0, 1)

    W, out = module.qkv.weight, module.out
    # In the precision of the weights (``models.precision``) from one projection to the other.
    qkv = F.linear(x.to(W.dtype), W, module.qkv.bias)
    value, jvp, vjp = window_attention_products(parted(qkv), None if bias is None else bias.to(W.dtype))
    return Derivative(
        out(joined(value).to(x.dtype)),
        lambda v: product(joined(jvp(parted(v.to(W.dtype) @ W.T))).to(v.dtype), out.weight.T),
        lambda u: (joined(vjp(split(u.to(W.dtype) @ out.weight))) @ W).to(u.dtype),
    )


def _block(module: WindowBlock, windows: Windows, bias: Tensor | None, x: Tensor) -> Derivative:
    def attended(x: Tensor) -> Derivative:
        mix = [lambda h: derivative(module.norm1, h), lambda h: _window_attention(module.attention, windows, bias, h)]
        return residual(x, chain(x, mix))

    def expanded(x: Tensor) -> Derivative:
        return residual(x, chain(x, [lambda h: derivative(module.norm2, h), lambda h: derivative(module.mlp, h)]))

    return chain(x, [attended, expanded])


@derivative.register
def tower(module: Tower, x: Tensor) -> Derivative:
    """A tower at tokens x (M, h, w, D)."""
    biases = {windows: windows.bias(x) for windows in dict.fromkeys(module.plan)}
    embedding = module.rows if module.columns is None else module.rows + module.columns
    steps = [
        lambda h, windows=windows, block=block: _block(block, windows, biases[windows], h)
        for windows, block in zip(module.plan, module.blocks)
    ]
    return chain(x + embedding, [*steps, lambda h: derivative(module.norm, h)])
