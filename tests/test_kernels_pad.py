"""geo_pad and its adjoint: C++ against plain torch, memory formats, derivatives, half precision, registration.

What padding means is held in test_models.py.
"""

from itertools import product

import pytest
import torch

from lsda_fast import kernels
from lsda_fast.errors import InputError
from lsda_fast.kernels.geo_pad import FOLD, PAD, geo_fold, geo_pad

EDGES = [(n, periodic, poles) for n in (1, 2) for periodic in (True, False) for poles in ((True, True), (False, True))]
EDGES += [(n, True, (True, True), True) for n in (1, 5)]
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def image(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("edges", EDGES, ids=str)
@pytest.mark.parametrize("form", FORMATS)
def test_fold_is_the_adjoint_of_pad_in_every_format(checks, edges, form):
    checks.isas()
    n, memory = edges[0], FORMATS[form]
    x = image(3, 4, 5, 7).contiguous(memory_format=memory)
    u = image(3, 4, 5 + 2 * n, 7 + 2 * n, seed=1).contiguous(memory_format=memory)
    with kernels.use("cpu"):
        padded, folded = geo_pad(x, *edges), geo_fold(u, *edges)
    with kernels.use("reference"):
        assert torch.equal(padded, geo_pad(x, *edges))
        torch.testing.assert_close(folded, geo_fold(u, *edges), rtol=1e-14, atol=1e-14)
    assert padded.is_contiguous(memory_format=memory)
    assert folded.is_contiguous(memory_format=memory)
    torch.testing.assert_close((padded * u).sum(), (x * folded).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.int32])
def test_numbers_of_any_kind_are_padded(checks, dtype):
    checks.isas()
    x = (8 * image(2, 3, 4, 6)).to(dtype)
    with kernels.use("cpu"):
        padded = geo_pad(x, 2, True)
    with kernels.use("reference"):
        assert torch.equal(padded, geo_pad(x, 2, True))


def test_the_same_bits_on_any_number_of_threads(checks):
    u = image(4, 24, 66, 98, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    checks.assert_bitwise_stable(lambda: geo_fold(u, 1, True), repeats=40)


def test_derivatives_are_each_other():
    x, v, u = image(2, 3, 4, 6), image(2, 3, 4, 6, seed=1), image(2, 3, 6, 8, seed=2)
    pad, fold = (lambda t, f=f: f(t, 1, True) for f in (geo_pad, geo_fold))
    value, pull = torch.func.vjp(pad, x)
    assert torch.equal(value, pad(x))
    assert torch.equal(pull(u)[0], fold(u))
    assert torch.equal(torch.func.jvp(pad, (x,), (v,))[1], pad(v))
    assert torch.equal(torch.func.jvp(fold, (u,), (u,))[1], fold(u))
    both = torch.func.vmap(lambda t: pull(t)[0])(torch.stack([u, 2 * u]))
    torch.testing.assert_close(both, torch.stack([fold(u), 2 * fold(u)]))
    point = x.clone().requires_grad_()
    cost = torch.compile(lambda t: (pad(2.0 * t) * u).sum(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(cost(point), point)[0], 2.0 * fold(u))


def test_registration(checks):
    checks.isas()
    for operation, shape in ((PAD, (2, 4, 6, 3)), (FOLD, (2, 6, 8, 3))):
        torch.library.opcheck(operation.op, (image(*shape).requires_grad_(), 1, True, True, False, False))


@pytest.mark.parametrize(("shape", "n"), [((2, 3, 4), 1), ((2, 3, 1, 6), 2), ((2, 3, 4, 2), 3), ((2, 3, 4, 6), -1)])
def test_bad_input_gets_one_sentence(shape, n):
    for f, edges in product((geo_pad, geo_fold), ((True, True), (False, False))):
        with pytest.raises(InputError, match=r"accepted: \(M, C, H, W\), no smaller than the margin"):
            f(torch.zeros(shape), n, True, edges)
