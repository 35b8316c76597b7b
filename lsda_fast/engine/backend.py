"""Which backend runs an analysis, and why.

- ``reference``: plain torch, autograd, whole states, no native kernel, not even for the noise: the specification.
- ``fused``: observations through the decoder's head, derivatives of the decoder written out by hand, networks with
  fused norms; native kernels where they are built, which draw the noise where they add it. The same analysis to
  rounding, of the same draws: C++ and Triton round theirs from float64 normals that differ from torch's by 6e-15.

``auto`` takes fused where the decoder's derivatives are written out and there are kernels for the device: on a CPU with
the C++ kernels it measured faster (docs/results.md); on a GPU with Triton it is not measured, but does less of the same
work, and its blocks can be captured as graphs (``engine.graphs``). Elsewhere it takes the reference.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from lsda_fast.errors import InputError
from lsda_fast.kernels import native, triton, use
from lsda_fast.models.decoder_derivatives import has_derivatives
from lsda_fast.package import Package

__all__ = ["BACKENDS", "PRECISIONS", "Backend", "choose_backend", "choose_precision"]

BACKENDS = ("auto", "reference", "fused")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Backend(NamedTuple):
    """A backend's name and why it was taken."""

    name: str
    reason: str

    def kernels(self) -> AbstractContextManager[None]:
        """The block in which its operations run."""
        return use("reference") if self.name == "reference" else nullcontext()


def choose_backend(name: str, package: Package) -> Backend:
    """The backend for a package.

    Raises
    ------
    InputError
        An unknown name, or ``fused`` for a decoder that it does not know.
    """
    if name not in BACKENDS:
        raise InputError(f"backend {name!r} is unknown; accepted: {', '.join(BACKENDS)}")
    known = has_derivatives(package.autoencoder)
    decoder = f"the derivatives of {type(package.autoencoder).__name__} are not written out"
    if name == "fused" and not known:
        raise InputError(f"backend 'fused': {decoder}; accepted: reference, auto")
    if name != "auto":
        return Backend(name, "asked for")
    if not known:
        return Backend("reference", decoder)
    if package.device.type != "cpu":
        missing = triton.missing()
        if missing:
            return Backend("reference", f"no kernels for {package.device.type}: {missing}")
        return Backend("fused", "Triton kernels, and a decoder whose derivatives are written out; not yet measured")
    if missing := native.load("cpu").missing:
        return Backend("reference", f"no C++ kernels: {missing}")
    return Backend("fused", "C++ kernels, and a decoder whose derivatives are written out")


def choose_precision(name: str, package: Package, backend: Backend) -> torch.dtype:
    """The precision of the networks' matrix products.

    Raises
    ------
    InputError
        An unknown name, or one that is not the package's own with another backend than ``fused``.
    """
    if name not in PRECISIONS:
        raise InputError(f"precision {name!r} is unknown; accepted: {', '.join(PRECISIONS)}")
    if name == "float32":
        return package.dtype
    if backend.name != "fused":
        raise InputError(f"precision {name!r} with backend {backend.name!r} ({backend.reason}); accepted: float32")
    return PRECISIONS[name]
