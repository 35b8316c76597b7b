"""The kinds of native code: where each runs, why it may be missing, and what one operation gives of it.

A kind is added by one entry of ``KINDS``, and by a ``Native`` under its name in the operations that have it. The order
of ``KINDS`` is the order of preference on a device: an operation has CUDA C++ only where there is a reason, told at the
head of its file in csrc/cuda, why it is faster than Triton. Nothing here looks for a module, a driver or a device
before ``missing`` is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsda_fast.kernels import cuda, native, triton

__all__ = ["KINDS", "Kind", "Native"]


@dataclass(frozen=True)
class Kind:
    """A kind of native code.

    Parameters
    ----------
    title : str
        As a reason calls it.
    devices : tuple of str
        Types of device whose tensors it takes.
    missing : callable
        Why it cannot run on this machine, "" where it can; cheap when called again.
    detail : callable
        What it is here, where it can run: a few words, the reason of a choice.
    about : callable
        How it was made, for a bug report; "" where there is nothing.
    """

    title: str
    devices: tuple[str, ...]
    missing: Callable[[], str]
    detail: Callable[[], str]
    about: Callable[[], str]


@dataclass(frozen=True)
class Native:
    """The native code of one operation, of one kind.

    Parameters
    ----------
    fill : callable (outputs, *arguments)
        Fills the outputs.
    limits : callable, optional
        Why it cannot take these arguments, "" where it can.
    dtypes : tuple of torch.dtype
        Of its real tensors, which are all alike.
    mixed : bool
        Unless float32 may stand beside half precision: parameters that a network in half precision keeps in float32.
    narrow : bool
        Or beside float64: what it reads much of; ``limits`` says what that may be.
    """

    fill: Callable[..., None]
    limits: Callable[..., str] | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    mixed: bool = False
    narrow: bool = False

    def obstacle(self, kind: Kind, tensors: list[Tensor], arguments: tuple[Any, ...]) -> str:
        """Why it cannot take these tensors, those of arguments and outputs; "" where it can."""
        real = {t.dtype for t in tensors if t.is_floating_point()}
        devices = {t.device for t in tensors}
        if len(devices) > 1 or not all(d.type in kind.devices for d in devices):
            return f"tensors on {_words(devices)}; {kind.title} takes {' or '.join(kind.devices)}, all on one"
        single = {torch.float32, torch.float64}
        beside_half, beside_double = self.mixed and not real <= single, self.narrow and real == single
        alike = real - {torch.float32} if beside_half or beside_double else real
        if len(alike) > 1 or not real <= set(self.dtypes):
            accepted = " or ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            beside = ", but for float32 beside half precision" if self.mixed else ""
            return f"{_words(real)}; {kind.title} takes {accepted}, all alike{beside}"
        if not all(t.is_contiguous() for t in tensors):
            return "a tensor is not contiguous"
        return self.limits(*arguments) if self.limits else ""


def _words(values: set) -> str:
    return ", ".join(sorted(map(str, values)))


KINDS = {
    "cpu": Kind(
        native.TITLES["cpu"],
        ("cpu",),
        lambda: native.load("cpu").missing,
        lambda: f"C++, {native.load('cpu').code.isa()}",
        native.about,
    ),
    "cuda": Kind(native.TITLES["cuda"], ("cuda",), cuda.missing, cuda.detail, cuda.about),
    "triton": Kind("Triton", triton.DEVICES, triton.missing, triton.detail, triton.about),
}
