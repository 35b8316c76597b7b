"""Softmax attention inside windows of tokens, and the products of its derivative, for each window and head:

    S = Q K' / sqrt(d) + bias,  A = softmax(S),  O = A V
    JVP  dS = (dQ K' + Q dK') / sqrt(d),  dO = (A dS) V - (sum_j A dS) O + A dV
    VJP  dS* = A (O* V' - sum_d O* O),    Q* = dS* K / sqrt(d),  K* = dS*' Q / sqrt(d),  V* = A' O*

A dS is element by element; that the softmax's own derivative needs of A dS no more than its row sums times O, and of
the cotangent no more than O* . O, is what flash attention rests on (Dao 2023, arXiv:2307.08691; the tangent: Lu & Song
2024, arXiv:2410.11081). torch's fused attention has no forward mode, and no second derivative to get it from.

The bias is constant; -inf in it keeps a token from another, and every token must attend somewhere. There are no second
derivatives. Triton never writes S or A: it makes them again, tile by tile, for each product. Plain torch keeps A where
it can (``window_attention_products``).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lsda_fast.errors import InputError
from lsda_fast.kernels import triton
from lsda_fast.kernels.derivatives import call, first_order, more_rows, rows_for
from lsda_fast.kernels.implementations import Native
from lsda_fast.kernels.registry import Operation

__all__ = ["window_attention", "window_attention_products"]

Map = Callable[[Tensor], Tensor]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST, LARGEST = 128, 2**31


def window_attention(qkv: Tensor, bias: Tensor | None = None) -> Tensor:
    """See the module's equations.

    Parameters
    ----------
    qkv : Tensor, shape (B, L, 3, H, d)
        Queries, keys and values of B windows of L tokens, as one projection of the tokens gives them.
    bias : Tensor, shape (W, L, L), optional
        Added to the scores of queries and keys in all heads; window b takes bias b mod W. B is a multiple of W.

    Returns
    -------
    Tensor, shape (B, L, H, d)

    Raises
    ------
    InputError
        Sizes that do not belong together; a derivative in the bias.
    """
    _check(qkv, bias)
    return call(_Value, VALUE, qkv.contiguous(), bias)


def window_attention_products(qkv: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Map, Map]:
    """The value, v -> J v and u -> J' u, past autograd; as ``window_attention``.

    The windows of one member take any number of v and u. Native code keeps qkv and O, and makes A again: in the papers'
    size A is 4 GB a member. Plain torch keeps A: a product then takes 0.5 to 0.8 of the time (bench/attention.py), for
    H L numbers a token, fewer than the rest of a transformer block keeps while L is below some 12 d.
    """
    _check(qkv, bias)
    qkv = qkv.contiguous()
    if VALUE.choose(qkv, bias).implementation != "reference":
        o = VALUE(qkv, bias)
        return (
            o,
            lambda v: call(_JVP, JVP, v.contiguous(), *rows_for(v, qkv, o), bias),
            lambda u: call(_VJP, VJP, u.contiguous(), *rows_for(u, qkv, o), bias),
        )
    with torch.no_grad():
        q, k, v = _heads(qkv)
        A = _weights(q, k, bias)
        O = A @ v
    kept = (q, k, v, A, O)
    return _tokens(O, qkv), lambda t: _tangent(t, *rows_for(t, *kept)), lambda u: _cotangent(u, *rows_for(u, *kept))


def attention_reference(qkv: Tensor, bias: Tensor | None) -> Tensor:
    """O (B, L, H, d)."""
    if bias is None:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return _tokens(F.scaled_dot_product_attention(q, k, v), qkv)
    q, k, v = _heads(qkv)
    return _tokens(_weights(q, k, bias) @ v, qkv)


def jvp_reference(v: Tensor, qkv: Tensor, o: Tensor, bias: Tensor | None) -> Tensor:
    """dO (B, L, H, d) of a tangent of qkv."""
    q, k, value = _heads(qkv)
    return _tangent(v, q, k, value, _weights(q, k, bias), o.transpose(1, 2))


def vjp_reference(u: Tensor, qkv: Tensor, o: Tensor, bias: Tensor | None) -> Tensor:
    """The cotangent (B, L, 3, H, d) of qkv, of one of O."""
    q, k, v = _heads(qkv)
    return _cotangent(u, q, k, v, _weights(q, k, bias), o.transpose(1, 2))


def _heads(qkv: Tensor) -> Tensor:
    """(B, L, 3, H, d) to (3, B, H, L, d), float32 at least."""
    work = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.permute(2, 0, 3, 1, 4).to(work).contiguous()


def _tokens(o: Tensor, like: Tensor) -> Tensor:
    """(B, H, L, d) to (B, L, H, d), of the type of ``like``."""
    return o.transpose(1, 2).to(like.dtype).contiguous()


def _weights(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
    """A (B, H, L, L)."""
    S = (q * _scale(q)) @ k.mT
    if bias is not None:
        S.unflatten(0, (len(S) // len(bias), len(bias))).add_(bias[:, None])
    return S.softmax(-1)


def _tangent(t: Tensor, q: Tensor, k: Tensor, v: Tensor, A: Tensor, O: Tensor) -> Tensor:
    dq, dk, dv = t.permute(2, 0, 3, 1, 4).to(A)
    # One product of twice the depth, and nothing the size of A but its result.
    AdS = (torch.cat([dq, q], -1) @ torch.cat([k, dk], -1).mT).mul_(A)
    dO = (AdS @ v).sub_(AdS.sum(-1, keepdim=True) * O).mul_(_scale(q)).add_(A @ dv)
    return _tokens(dO, t)


def _cotangent(u: Tensor, q: Tensor, k: Tensor, v: Tensor, A: Tensor, O: Tensor) -> Tensor:
    above = u.transpose(1, 2).to(A).contiguous()
    dS = (above @ v.mT).sub_((above * O).sum(-1, keepdim=True)).mul_(A)
    parts = (dS @ k).mul_(_scale(q)), (dS.mT @ q).mul_(_scale(q)), A.mT @ above
    return torch.stack([part.transpose(1, 2) for part in parts], 2).to(u.dtype)


def _scale(q: Tensor) -> float:
    return q.shape[-1] ** -0.5


def _check(qkv: Tensor, bias: Tensor | None) -> None:
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        accepted = "(windows, tokens, 3, heads, width)"
        raise InputError(f"window_attention of a tensor of shape {tuple(qkv.shape)}; accepted: {accepted}")
    if bias is None:
        return
    B, L = qkv.shape[:2]
    if bias.ndim != 3 or bias.shape[1:] != (L, L) or not len(bias) or B % len(bias):
        accepted = f"(a divisor of {B}, {L}, {L})"
        raise InputError(f"bias {tuple(bias.shape)} for {B} windows of {L} tokens; accepted: {accepted}")


def _empty(qkv: Tensor, *rest: Any) -> Tensor:
    B, L, _, H, d = qkv.shape
    return qkv.new_empty(B, L, H, d)


def _limits(qkv: Tensor, *rest: Any) -> str:
    L, d = qkv.shape[1], qkv.shape[-1]
    if d > WIDEST:
        return f"heads of {d} numbers; Triton takes up to {WIDEST}"
    inside = max(qkv[:1].numel(), L * L)
    return f"a window of {inside} numbers; Triton takes fewer than {LARGEST}" if inside >= LARGEST else ""


def _native(name: str, limits: Callable[..., str]) -> dict[str, Native]:
    return {"triton": Native(triton.fill(name), limits, DTYPES)}


VALUE = Operation(
    "window_attention(Tensor qkv, Tensor? bias) -> Tensor",
    reference=attention_reference,
    empty=_empty,
    natives=_native("window_attention", _limits),
)
JVP = Operation(
    "window_attention_jvp(Tensor v, Tensor qkv, Tensor o, Tensor? bias) -> Tensor",
    reference=jvp_reference,
    empty=_empty,
    natives=_native("window_attention_jvp", _limits),
)
VJP = Operation(
    "window_attention_vjp(Tensor u, Tensor qkv, Tensor o, Tensor? bias) -> Tensor",
    reference=vjp_reference,
    empty=lambda u, qkv, *rest: torch.empty_like(qkv, memory_format=torch.contiguous_format),
    natives=_native("window_attention_vjp", lambda u, *rest: _limits(*rest)),
)


def _constant(asked: bool) -> None:
    if asked:
        raise InputError("a derivative of window_attention in its bias; accepted: in queries, keys and values")


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _constant(ctx.needs_input_grad[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:1], output, *inputs[1:])


def _backward(ctx: Any, u: Tensor | None) -> tuple:
    return (None, None) if u is None else (call(_VJP, VJP, u.contiguous(), *ctx.saved_tensors), None)


VALUE.differentiate(_keep, _backward)
_JVP, _VJP = first_order(JVP), first_order(VJP)


class _Value(torch.autograd.Function):
    forward = staticmethod(VALUE)
    backward = staticmethod(_backward)
    vmap = staticmethod(lambda *arguments: more_rows(_Value.apply, *arguments))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _keep(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:1], output, *inputs[1:])

    @staticmethod
    def jvp(ctx: Any, v: Tensor | None, vbias: Tensor | None) -> Tensor:
        _constant(vbias is not None)
        qkv, o, bias = ctx.saved_tensors
        return torch.zeros_like(o) if v is None else call(_JVP, JVP, v.contiguous(), qkv, o, bias)
