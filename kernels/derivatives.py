"""Operations under torch.func: which form a call takes, products of derivatives that have none themselves, and vmap."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lsda_fast.errors import InputError
from lsda_fast.kernels.registry import Operation, recorded

__all__ = ["call", "first_order", "last", "more_rows", "rows_for"]


def call(function: Any, operation: Operation, *arguments: Any) -> Any:
    """The operation as a ``torch.autograd.Function``, whose derivatives torch.func knows; itself where that is no use.

    torch.compile knows the operation's VJP alone: it leaves what is under torch.func to eager torch, or refuses it.
    """
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if transformed or (recorded(arguments) and not torch.compiler.is_compiling()):
        return function.apply(*arguments)
    return operation(*arguments)


def first_order(operation: Operation) -> Any:
    """The ``torch.autograd.Function`` of an operation on rows that is itself a derivative, and has none."""

    def refuse(*_: Any) -> Any:
        raise InputError(f"a derivative of {operation.name}; accepted: first derivatives")

    function: Any
    members = {
        "vmap": staticmethod(lambda *arguments: more_rows(function.apply, *arguments)),
        "forward": staticmethod(operation),
        "setup_context": staticmethod(lambda ctx, inputs, output: None),
        "backward": staticmethod(refuse),
        "jvp": staticmethod(refuse),
    }
    function = type(operation.name, (torch.autograd.Function,), members)
    return function


def last(derivative: Tensor, point: Tensor, name: str) -> Tensor:
    """A first derivative of the operation ``name`` at a point, whose own would be wrong and is refused."""
    return _Last.apply(derivative, point, name)


class _Last(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(derivative: Tensor, point: Tensor, name: str) -> Tensor:
        return derivative.view_as(derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.name = inputs[2]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise InputError(f"a second derivative of {ctx.name}; accepted: first derivatives")

    jvp = backward


def rows_for(directions: Tensor, *points: Tensor | None) -> list[Any]:
    """The points' tensors for as many rows of directions: those of one member serve any number of members."""
    first = next(p for p in points if p is not None)
    count = len(directions) // max(len(first), 1)
    return [p if p is None or count == 1 else p.repeat(count, *[1] * (p.ndim - 1)) for p in points]


def more_rows(function: Any, info: Any, dims: tuple, *arguments: Any) -> tuple[Any, Any]:
    """What torch.func.vmap does with a function whose tensors all have rows first: B times as many."""

    def fold(argument: Any, dim: int | None) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        rows = argument.expand(info.batch_size, *argument.shape) if dim is None else argument.movedim(dim, 0)
        return rows.flatten(0, 1).contiguous()

    outputs = function(*map(fold, arguments, dims))
    if isinstance(outputs, Tensor):
        return outputs.unflatten(0, (info.batch_size, -1)), 0
    return tuple(t.unflatten(0, (info.batch_size, -1)) for t in outputs), (0,) * len(outputs)
