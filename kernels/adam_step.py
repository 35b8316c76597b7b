"""One step of Adam (Kingma & Ba 2015) in one pass over memory, as ``torch.optim.Adam`` does it:

    g = gradient + decay v;  m += (1 - beta1) (g - m);  s = beta2 s + (1 - beta2) g^2
    v -= lr / (1 - beta1^t) m / (sqrt(s) / sqrt(1 - beta2^t) + eps)

``decay`` = 1 is the prior term of a control variable, gradient of 1/2 |v|^2. Reads four vectors and writes three,
element by element: nothing depends on threads or company. Nothing is differentiated through it.
"""

import math

import torch
from torch import Tensor

from lsda_fast.errors import InputError
from lsda_fast.kernels import native, triton
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.registry import Operation

__all__ = ["adam_step"]

State = tuple[Tensor, Tensor, Tensor]


def adam_step(
    v: Tensor,
    m: Tensor,
    s: Tensor,
    gradient: Tensor,
    t: int,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    decay: float = 0.0,
    out: State | None = None,
) -> State:
    """Step ``t``, counted from 1.

    Parameters
    ----------
    v, m, s, gradient : Tensor, any one shape
        Variable, first and second moment (0 before the first step), gradient at v.
    t : int
    lr, beta1, beta2, eps, decay : float
    out : tuple of Tensor, optional
        Where to put the results; may be (v, m, s) themselves. Not under torch.compile.

    Returns
    -------
    tuple of Tensor
        v, m, s.
    """
    if not v.shape == m.shape == s.shape == gradient.shape or t < 1:
        shapes = ", ".join(str(tuple(a.shape)) for a in (v, m, s, gradient))
        raise InputError(f"v, m, s, gradient of shapes {shapes}, t = {t}; accepted: one shape, t of at least 1")
    if out is None:
        v, m, s, gradient = (t.contiguous() for t in (v, m, s, gradient))
    arguments = (v, m, s, gradient, lr / (1.0 - beta1**t), math.sqrt(1.0 - beta2**t), beta1, beta2, eps, decay)
    return ADAM(*arguments) if out is None else ADAM.into(out, [v.shape] * 3, *arguments)


def adam_reference(
    v: Tensor,
    m: Tensor,
    s: Tensor,
    gradient: Tensor,
    rate: float,
    spread: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> State:
    """See the module: rate = lr / (1 - beta1^t), spread = sqrt(1 - beta2^t)."""
    g = gradient + decay * v
    m = m + (1.0 - beta1) * (g - m)
    s = beta2 * s + (1.0 - beta2) * (g * g)
    return v - rate * m / (s.sqrt() / spread + eps), m, s


def _empty(v: Tensor, m: Tensor, s: Tensor, *rest: object) -> State:
    like = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (v, m, s)]
    return like[0], like[1], like[2]


def _fill(out: State, v: Tensor, m: Tensor, s: Tensor, gradient: Tensor, *numbers: float) -> None:
    native.run("adam_step", v.dtype, *out, v, m, s, gradient, *numbers, v.numel())


ADAM = Operation(
    "adam_step(Tensor v, Tensor m, Tensor s, Tensor gradient, float rate, float spread, float beta1, float beta2,"
    " float eps, float decay) -> (Tensor, Tensor, Tensor)",
    reference=adam_reference,
    empty=_empty,
    natives={
        "cpu": Native(_fill),
        "cuda": Native(_fill),
        "triton": Native(triton.fill("adam_step"), dtypes=triton.DTYPES),
    },
)
