"""One operation: a schema in torch's library, a reference in plain torch, native code, and the choice between them.

The operations live in ``torch.ops.lsda`` with functional schemas and fake implementations, so that torch.compile,
torch.export and CUDA graphs see them as nodes. The first kind of native code (``implementations``) that is there and
takes these tensors runs; for all else the reference. ``use`` and ``trace`` act on the thread that enters them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lsda_fast.errors import InputError
from lsda_fast.kernels import native
from lsda_fast.kernels.implementations import KINDS, Native

__all__ = ["Choice", "Operation", "forced", "kinds_on", "recorded", "report", "trace", "use"]

FILES = (
    "adam_step",
    "cg_step",
    "gated_residual_norm",
    "geo_conv",
    "geo_pad",
    "head_project",
    "noise",
    "norm_conv",
    "norm_silu",
    "obs_project",
    "obs_residual",
    "restricted_solve",
    "restricted_step",
    "sampler_step",
    "shuffle_product",
    "window_attention",
    "zonal_product",
)
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
        The outputs, uninitialised, from the same arguments: the fake implementation too. Contiguous, as those of the
        reference are made.
    natives : mapping of str to Native
        Its native code, by kind.
    """

    def __init__(
        self,
        schema: str,
        *,
        reference: Callable[..., Any],
        empty: Callable[..., Any],
        natives: Mapping[str, Native],
    ) -> None:
        self.name = schema.partition("(")[0]
        self.natives = {kind: natives[kind] for kind in KINDS if kind in natives}
        self.reference, self._empty = reference, empty
        self._differentiable = False
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(self.name, self.run, "CompositeExplicitAutograd")
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

        Under a ``TorchDispatchMode``, which has to see it, it goes through the dispatcher and is copied.

        Raises
        ------
        InputError
            Outputs that are not of these shapes.
        """
        given, accepted = [tuple(t.shape) for t in _tensors([outputs])], [tuple(shape) for shape in shapes]
        if given != accepted:
            raise InputError(f"{self.name} into {given}; accepted: {accepted}")
        watched = _get_current_dispatch_mode() is not None
        code = None if watched else self._native(arguments, outputs)
        if code:
            code.fill(outputs, *arguments)
        else:
            values = self.op(*arguments) if watched else self.reference(*arguments)
            for output, value in zip(_tensors([outputs]), _tensors([values]), strict=True):
                output.copy_(value)
        return outputs

    def run(self, *arguments: Any) -> Any:
        """What the dispatcher calls."""
        code = self._native(arguments)
        if code is None:
            outputs = self.reference(*arguments)
            return outputs.contiguous() if isinstance(outputs, Tensor) else tuple(t.contiguous() for t in outputs)
        outputs = self._empty(*arguments)
        code.fill(outputs, *arguments)
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
        tensors = list(_tensors([arguments, outputs]))
        if forced:
            obstacle = self._obstacle(forced, tensors, arguments)
            if obstacle:
                raise InputError(f"{self.name} cannot run in {KINDS[forced].title}: {obstacle}")
            return Choice(self.name, forced, KINDS[forced].detail())
        device, obstacles = tensors[0].device.type, []
        for kind in self.natives:
            if device in KINDS[kind].devices:
                obstacle = self._obstacle(kind, tensors, arguments)
                if not obstacle:
                    return Choice(self.name, kind, KINDS[kind].detail())
                obstacles.append(obstacle)
        return Choice(self.name, "reference", "; ".join(dict.fromkeys(obstacles)) or f"no native code for {device}")

    def native(self, *arguments: Any) -> bool:
        """Whether native code takes these arguments, in this block, and no derivative is asked for that is not there.

        For who has another way.
        """
        if not self._differentiable and (recorded(arguments) or torch._C._are_functorch_transforms_active()):
            return False
        forced, tensors = _forced.get(), list(_tensors([arguments]))
        kinds = list(self.natives) if forced is None else [forced] if forced in self.natives else []
        device = tensors[0].device.type
        return any(device in KINDS[kind].devices and not self._obstacle(kind, tensors, arguments) for kind in kinds)

    def _obstacle(self, kind: str, tensors: list[Tensor], arguments: tuple[Any, ...]) -> str:
        if kind not in self.natives:
            return f"{self.name} has no such code"
        return KINDS[kind].missing() or self.natives[kind].obstacle(KINDS[kind], tensors, arguments)

    def _native(self, arguments: tuple[Any, ...], outputs: Any = ()) -> Native | None:
        choice = self.choose(*arguments, outputs=outputs)
        taken = _taken.get()
        if taken is not None:
            taken.append(choice)
        return self.natives.get(choice.implementation)


def recorded(arguments: Sequence[Any]) -> bool:
    """Whether autograd would want a derivative."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(arguments))


def forced() -> str | None:
    """What ``use`` forces in this block."""
    return _forced.get()


@contextmanager
def use(implementation: str, isa: str | None = None) -> Iterator[None]:
    """Force ``"reference"``, ``"cpu"`` (C++) or another kind in this block; with ``isa``, C++ on that instruction set.

    What is forced is so for this thread; the instruction set for all of them.

    Raises
    ------
    InputError
        An unknown name, or native code or an instruction set that is not there.
    """
    if implementation not in ("reference", *KINDS):
        raise InputError(f"implementation {implementation!r}; accepted: {', '.join(('reference', *KINDS))}")
    missing = "" if implementation == "reference" else KINDS[implementation].missing()
    if missing:
        raise InputError(f"the {KINDS[implementation].title} kernels are not there: {missing}")
    cpu, absent = native.load("cpu")
    before = cpu.isa() if cpu else ""
    if isa is not None:
        if cpu is None:
            raise InputError(f"instruction set {isa!r}: the C++ kernels are not there: {absent}")
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


def kinds_on(device: torch.device) -> list[str]:
    """The kinds of native code that can run on tensors of a device, the preferred one first."""
    forced = _forced.get()
    names = [forced] if forced and forced in KINDS else list(KINDS)
    return [name for name in names if device.type in KINDS[name].devices and not KINDS[name].missing()]


def report() -> list[Choice]:
    """The native code that every operation takes on this machine, and the state of each: rows of ``lsda doctor``."""
    for name in FILES:
        import_module(f"lsda_fast.kernels.{name}")
    missing = {kind: KINDS[kind].missing() for kind in KINDS}
    state = {kind: f"{kind}: {missing[kind] or KINDS[kind].detail()}" for kind in KINDS}
    rows = []
    for name, operation in sorted(OPERATIONS.items()):
        taken = [kind for kind in operation.natives if not missing[kind]]
        reasons = "; ".join(state[kind] for kind in operation.natives)
        rows.append(Choice(name, ", ".join(taken) or "reference", reasons))
    return rows


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _tensors(argument)
