"""cg_step and adam_step: C++ against plain torch, against the solvers they serve, members that stand still."""

import pytest
import torch

from lsda_fast import kernels
from lsda_fast.errors import InputError
from lsda_fast.guidance.krylov import cg, matrix
from lsda_fast.kernels.adam_step import ADAM, adam_step
from lsda_fast.kernels.cg_step import CG, cg_step


def vectors(shape, count, seed=0):
    """Numbers that float32 holds, in float64."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g, dtype=torch.float64).float().double() for _ in range(count)]


def state(shape, seed=0):
    """x, r, p, rr, Ap, limit in the middle of an iteration."""
    x, r, p, noise = vectors(shape, 4, seed)
    rr = r.square().flatten(1).sum(1).float().double()
    return x, r, p, rr, (p + 0.1 * noise).float().double(), torch.zeros_like(rr)


def system(members, size, dtype=torch.float64, seed=0):
    """A member's own symmetric positive matrix, and right-hand sides."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(members, size, size, generator=g, dtype=torch.float64) / size**0.5
    A = root @ root.mT + 0.1 * torch.eye(size, dtype=torch.float64)
    return A.to(dtype), torch.randn(members, size, generator=g, dtype=torch.float64).to(dtype)


def solve(A, b, iterations, tolerance=1e-6, in_place=False):
    x, r, p = torch.zeros_like(b), b.clone(), b.clone()
    rr = b.square().sum(1)
    limit = tolerance**2 * rr
    for _ in range(iterations):
        Ap = torch.einsum("mij,mj->mi", A, p)
        x, r, p, rr = cg_step(x, r, p, rr, Ap, limit, out=(x, r, p, rr) if in_place else None)
    return x


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("in_place", [False, True])
def test_cg_solves_and_is_the_package_s_cg(checks, implementation, in_place):
    checks.isas()
    A, b = system(5, 30)
    with kernels.use(implementation):
        x = solve(A, b, 60, 1e-12, in_place)
        torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-9)
        some = solve(A, b, 7, in_place=in_place)
    torch.testing.assert_close(some, cg(matrix(lambda v: torch.einsum("mij,mj->mi", A, v)), b, iterations=7))


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_a_member_that_has_converged_or_is_not_positive_stands_still(checks, implementation):
    checks.isas()
    x, r, p, rr, Ap, limit = state((4, 300))
    limit[1] = rr[1]
    Ap[2] = -p[2]
    x[1, 0] = p[1, 1] = torch.nan
    with kernels.use(implementation):
        after = cg_step(x, r, p, rr, Ap, limit)
    for before, now in zip((x, r, p, rr), after, strict=True):
        assert checks.same_bits(now[1:3], before[1:3])
        assert not (now[[0, 3]] == before[[0, 3]]).any()


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_adam_is_torch_s_adam(checks, implementation, decay):
    checks.isas()
    start, target = vectors((3, 50), 2)
    weights = torch.linspace(0.1, 3.0, 50, dtype=torch.float64)
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.05, betas=(0.8, 0.99), eps=1e-6, weight_decay=decay)
    v, m, s = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t in range(1, 30):
        theirs.grad = weights * (theirs.detach() - target)
        optimizer.step()
        gradient = weights * (v - target)
        numbers = {"lr": 0.05, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "decay": decay}
        with kernels.use(implementation):
            v, m, s = adam_step(v, m, s, gradient, t, **numbers, out=(v, m, s) if t % 2 else None)
    torch.testing.assert_close(v, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_the_same_bits_every_time_on_any_number_of_threads(checks):
    """With more members than threads, and with fewer."""
    for shape in ((9, 13000), (1, 120000)):
        inputs = [t.float() for t in state(shape)]
        checks.assert_bitwise_stable(lambda inputs=inputs: cg_step(*inputs), repeats=100)
    v, m, s, gradient = (t.float() for t in vectors((9, 13000), 4))
    checks.assert_bitwise_stable(lambda: adam_step(v, m, s.abs(), gradient, 2, lr=0.1))


def test_in_place_and_strided_give_the_same(checks):
    checks.isas()
    inputs = [t.float() for t in state((4, 301))]
    with kernels.use("cpu"):
        expected = cg_step(*inputs)
        own = [t.clone() for t in inputs[:4]]
        assert cg_step(*own, *inputs[4:], out=tuple(own))[0] is own[0]
    assert checks.same_bits(own, expected)
    wide = torch.full((4, 602), torch.nan)
    wide[:, ::2] = inputs[4]
    x, r, p = inputs[:3]
    with kernels.use("cpu"):
        assert checks.same_bits(cg_step(*inputs[:4], wide[:, ::2], inputs[5]), expected)
        assert checks.same_bits(adam_step(x, r, p, wide[:, ::2], 1, lr=0.1), adam_step(x, r, p, inputs[4], 1, lr=0.1))
    with kernels.trace() as taken:
        adam_step(x, r, p, wide[:, ::2], 1, lr=0.1, out=(x.clone(), r.clone(), p.clone()))
    assert [choice.reason for choice in taken] == ["a tensor is not contiguous"]


def test_the_outputs_of_any_strides_are_as_registered():
    turned = [t.contiguous(memory_format=torch.channels_last) for t in vectors((2, 3, 4, 5), 4)]
    quick = ("test_schema", "test_faketensor")
    torch.library.opcheck(ADAM.op, (*turned, 0.1, 0.5, 0.9, 0.999, 1e-8, 0.0), test_utils=quick)
    x, r, p, Ap = turned
    rr = r.square().flatten(1).sum(1)
    torch.library.opcheck(CG.op, (x, r, p, rr, Ap, torch.zeros_like(rr)), test_utils=quick)


def test_registration(checks):
    torch.library.opcheck(CG.op, state((2, 6)))
    v, m, s, gradient = vectors((2, 6), 4)
    torch.library.opcheck(ADAM.op, (v, m, s.abs(), gradient, 0.1, 0.5, 0.9, 0.999, 1e-8, 0.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: cg_step(z, z, z, z[:, 0], z[:, :2], z[:, 0]), r"\(2, 2\), \(2,\); accepted: \(M, ...\)"),
        (lambda z: cg_step(z, z, z, z, z, z[:, 0]), r"rr and limit \(M,\)"),
        (lambda z: adam_step(z, z, z[:1], z, 1, lr=0.1), r"\(1, 3\), \(2, 3\), t = 1; accepted: one shape"),
        (lambda z: adam_step(z, z, z, z, 0, lr=0.1), "t = 0; accepted"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.zeros(2, 3))
