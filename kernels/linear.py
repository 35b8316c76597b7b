"""Derivatives of two operations that are linear in their first argument and each the other's transpose.

The JVP of each is itself and its VJP the other, to any order, for torch.autograd, torch.func and torch.compile. The
other arguments count as constants.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lsda_fast.errors import InputError
from lsda_fast.kernels.derivatives import call, more_rows
from lsda_fast.kernels.registry import Operation

__all__ = ["nothing", "transposes"]

Call = Callable[..., Tensor]


def transposes(forward: Operation, adjoint: Operation) -> tuple[Call, Call]:
    """Give both their derivatives; the two as calls that have them, also inside torch.func."""
    calls: dict[Operation, Call] = {}
    for operation, other in ((forward, adjoint), (adjoint, forward)):
        _register(operation, other)
        calls[operation] = _call(operation, lambda u, *rest, other=other: calls[other](u, *rest))
    return calls[forward], calls[adjoint]


def nothing(rest: Sequence[Any]) -> tuple[Any, ...]:
    """The derivative in these arguments, as torch.library wants it."""
    return tuple([None] * len(a) if isinstance(a, (list, tuple)) else None for a in rest)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.rest = inputs[1:]


def _register(operation: Operation, other: Operation) -> None:
    operation.differentiate(_keep, lambda ctx, u: (other(u.contiguous(), *ctx.rest), *nothing(ctx.rest)))


def _call(operation: Operation, transpose: Call) -> Call:
    class Linear(torch.autograd.Function):
        forward = staticmethod(operation)
        setup_context = staticmethod(_keep)

        @staticmethod
        def backward(ctx: Any, u: Tensor) -> tuple:
            return transpose(u.contiguous(), *ctx.rest), *[None] * len(ctx.rest)

        @staticmethod
        def vmap(info: Any, dims: tuple, u: Tensor, *rest: Any) -> tuple[Any, Any]:
            if any(dim is not None for dim in tree_leaves(dims[1:])):
                raise InputError(f"torch.func.vmap over what {operation.name} is told; accepted: over its numbers")
            return more_rows(lambda u: Linear.apply(u, *rest), info, dims[:1], u)

        @staticmethod
        def jvp(ctx: Any, v: Tensor, *_: None) -> Tensor:
            return Linear.apply(v.contiguous(), *ctx.rest)

    return lambda *arguments: call(Linear, operation, *arguments)
