"""One operation: a schema in torch's library, a reference in plain torch, native code, and the choice between them.

The operations live in ``torch.ops.lsda`` with functional schemas and fake implementations, so that torch.compile,
torch.export and CUDA graphs see them as nodes. The native code takes contiguous float32 or float64 tensors on the CPU;
for all else the reference runs. ``use`` and ``trace`` act on the thread that enters them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels import native

__all__ = ["Choice", "Operation", "recorded", "report", "trace", "use"]

FILES = ("adam_step", "cg_step", "gated_residual_norm", "noise", "norm_silu", "obs_project", "sampler_step")
IMPLEMENTATIONS = ("reference", "cpu")
LIBRARY = torch.library.Library("lsda", "FRAGMENT")
OPERATIONS: "dict[str, Operation]" = {}

_forced: ContextVar[str | None] = ContextVar("forced", default=None)
_taken: "ContextVar[list[Choice] | None]" = ContextVar("taken", default=None)


class Choice(NamedTuple):
    """Which implementation of an operation, and why."""

    operation: str
    implementation: str
    reason: str


class Operation:
    """An operation, callable.

    Parameters
    ----------
    schema : str
        ``name(Tensor x, ...) -> Tensor``; functional, and no output is an input.
    reference : callable
        The specification, in plain torch.
    empty : callable
        The outputs, uninitialised, from the same arguments: the fake implementation too.
    fill : callable (outputs, *arguments)
        Has the native code fill them.
    limits : callable, optional
        Why the native code cannot take these arguments, "" where it can.
    """

    def __init__(
        self,
        schema: str,
        *,
        reference: Callable[..., Any],
        empty: Callable[..., Any],
        fill: Callable[..., None],
        limits: Callable[..., str] | None = None,
    ) -> None:
        self.name = schema.partition("(")[0]
        self._reference, self._empty, self._fill, self._limits = reference, empty, fill, limits
        self._differentiable = False
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(self.name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"lsda::{self.name}", empty, lib=LIBRARY)
        self.op = getattr(torch.ops.lsda, self.name).default
        OPERATIONS[self.name] = self

    def differentiate(self, keep: Callable[..., None], backward: Callable[..., Any]) -> None:
        """Give the operation its VJP: ``keep(ctx, inputs, output)``, ``backward(ctx, *cotangents)``."""
        torch.library.register_autograd(f"lsda::{self.name}", backward, setup_context=keep, lib=LIBRARY)
        self._differentiable = True

    def __call__(self, *arguments: Any) -> Any:
        """Run through torch's dispatcher.

        Raises
        ------
        InputError
            A derivative is asked for that the operation does not have.
        """
        if not self._differentiable and recorded(arguments):
            raise InputError(f"{self.name} of a tensor that requires a gradient; accepted: none, or torch.no_grad()")
        return self.op(*arguments)

    def into(self, outputs: Any, shapes: Sequence[Sequence[int]], *arguments: Any) -> Any:
        """Run into ``outputs``, one tensor or several, past the dispatcher: no derivative, no tracing.

        Raises
        ------
        InputError
            Outputs that are not of these shapes.
        """
        given, accepted = [tuple(t.shape) for t in _tensors([outputs])], [tuple(shape) for shape in shapes]
        if given != accepted:
            raise InputError(f"{self.name} into {given}; accepted: {accepted}")
        if self._native(arguments, outputs):
            self._fill(outputs, *arguments)
        else:
            for output, value in zip(_tensors([outputs]), _tensors([self._reference(*arguments)]), strict=True):
                output.copy_(value)
        return outputs

    def choose(self, *arguments: Any, outputs: Any = ()) -> Choice:
        """Which implementation takes these arguments, and why.

        Raises
        ------
        InputError
            ``use`` forces one that cannot.
        """
        forced = _forced.get()
        if forced == "reference":
            return Choice(self.name, "reference", "forced by use")
        obstacle = native.load().missing or _obstacle(list(_tensors([arguments, outputs])))
        if not obstacle and self._limits:
            obstacle = self._limits(*arguments)
        if not obstacle:
            return Choice(self.name, "cpu", f"C++, {native.load().cpu.isa()}")
        if forced:
            raise InputError(f"{self.name} cannot run in C++: {obstacle}")
        return Choice(self.name, "reference", obstacle)

    def _native(self, arguments: tuple[Any, ...], outputs: Any = ()) -> bool:
        choice = self.choose(*arguments, outputs=outputs)
        taken = _taken.get()
        if taken is not None:
            taken.append(choice)
        return choice.implementation == "cpu"

    def _run(self, *arguments: Any) -> Any:
        if not self._native(arguments):
            return self._reference(*arguments)
        outputs = self._empty(*arguments)
        self._fill(outputs, *arguments)
        return outputs


def recorded(arguments: Sequence[Any]) -> bool:
    """Whether autograd would want a derivative."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(arguments))


@contextmanager
def use(implementation: str, isa: str | None = None) -> Iterator[None]:
    """Force ``"reference"`` or ``"cpu"`` (C++) in this block; with ``isa``, on that instruction set.

    Raises
    ------
    InputError
        An unknown name, or C++ or an instruction set that is not there.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"implementation {implementation!r}; accepted: {', '.join(IMPLEMENTATIONS)}")
    cpu, missing = native.load()
    if implementation == "cpu" and missing:
        raise InputError(f"the C++ kernels are not there: {missing}")
    before = cpu.isa() if cpu else ""
    if isa is not None:
        native.set_isa(cpu, isa)
    token = _forced.set(implementation)
    try:
        yield
    finally:
        _forced.reset(token)
        if isa is not None:
            native.set_isa(cpu, before)


@contextmanager
def trace() -> Iterator[list[Choice]]:
    """A list that grows by one ``Choice`` with every operation run in this block."""
    choices: list[Choice] = []
    token = _taken.set(choices)
    try:
        yield choices
    finally:
        _taken.reset(token)


def report() -> list[Choice]:
    """What every operation takes contiguous float32 tensors of the CPU with, and why: the rows of ``lsda doctor``."""
    for name in FILES:
        import_module(f"lsda_fast.kernels.{name}")
    cpu, missing = native.load()
    if missing:
        return [Choice(name, "reference", missing) for name in sorted(OPERATIONS)]
    reason = f"C++, {cpu.isa()}; this processor has {', '.join(cpu.build_info()['isas'])}"
    return [Choice(name, "cpu", reason) for name in sorted(OPERATIONS)]


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)


def _obstacle(tensors: Sequence[Tensor]) -> str:
    """Why no native code takes these tensors; "" where it may."""
    real = {t.dtype for t in tensors if t.is_floating_point()}
    if any(t.device.type != "cpu" for t in tensors):
        return "a tensor is not on the CPU"
    if len(real) > 1 or not real <= {torch.float32, torch.float64}:
        return f"{', '.join(sorted(map(str, real)))}; C++ takes float32 or float64, all alike"
    if not all(t.is_contiguous() for t in tensors):
        return "a tensor is not contiguous"
    return ""
